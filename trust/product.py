"""A seeded product of two matrices of small integers: made, committed to by rows, and checked by some of its rows.

Both factors follow from a seed (SHAKE-128, FIPS 202), row by row, so whoever checks needs no more of them at once than
a block of rows. Their entries are whole numbers from -8 to 7: a sum of 32,768 products of two stays below
2**24, so 32-bit floats hold it exactly, in whatever order and on whatever hardware it is added up.

Whoever commits to the rows before knowing which *n* of them are looked at, and made a share *f* of them, is believed
with probability f**n, each time that they may try.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trust.reasons import Reason, Unverifiable

_BLOCK: Final = 512
"""Rows of the second factor that are in memory at once while rows are checked."""
_HASH: Final = 32

Matrix = npt.NDArray[Any]
Multiply = Callable[[Matrix, Matrix], Matrix]
"""Two matrices of 8-bit integers to their product in 32-bit integers."""


def factor(seed: str, name: str, rows: Sequence[int] | range, size: int) -> Matrix:
    """These rows of the factor *name*: (len(rows), size), 8-bit integers."""
    half = (size + 1) // 2
    drawn = b"".join(hashlib.shake_128(f"licet-product {seed} {name} {row}".encode()).digest(half) for row in rows)
    octets = np.frombuffer(drawn, np.uint8).reshape(len(rows), half)
    entries = np.empty((len(rows), 2 * half), np.int8)
    entries[:, 0::2] = (octets & 15).view(np.int8) - 8
    entries[:, 1::2] = (octets >> 4).view(np.int8) - 8
    return entries[:, :size]


def multiply(left: Matrix, right: Matrix) -> Matrix:
    """With this machine's processor."""
    return (left.astype(np.float32) @ right.astype(np.float32)).astype(np.int32)


class Product:
    """Of one seed: ``commitment`` before anybody asks for rows, :meth:`show` after."""

    def __init__(self, seed: str, size: int, how: Multiply = multiply) -> None:
        made = how(factor(seed, "left", range(size), size), factor(seed, "right", range(size), size))
        self._rows = np.ascontiguousarray(made, "<i4")
        self._hashes = b"".join(_hash(row.tobytes()) for row in self._rows)
        self.commitment = _hash(self._hashes)

    def show(self, rows: Sequence[int]) -> bytes:
        """The hash of every row, then these rows: 32-bit integers, little-endian."""
        return self._hashes + b"".join(self._rows[row].tobytes() for row in rows)


def require_rows(seed: str, size: int, commitment: bytes, rows: Sequence[int], opened: bytes) -> None:
    """:class:`Unverifiable` unless *opened* shows *rows* of the product that *commitment* stands for, and they are
    right."""
    width = 4 * size
    if len(opened) != _HASH * size + width * len(rows):
        raise _refuse(f"{len(opened)} bytes instead of {_HASH * size + width * len(rows)}")
    hashes, shown = opened[: _HASH * size], opened[_HASH * size :]
    if _hash(hashes) != commitment:
        raise _refuse("these are not the rows that it committed to")
    for number, row in enumerate(rows):
        if _hash(shown[number * width : (number + 1) * width]) != hashes[row * _HASH : (row + 1) * _HASH]:
            raise _refuse(f"row {row} is not the one that it committed to")
    found = np.frombuffer(shown, "<i4").reshape(len(rows), size)
    wrong = np.flatnonzero((found != _expected(seed, size, rows)).any(axis=1))
    if wrong.size:
        raise _refuse(f"row {rows[int(wrong[0])]} is not what the product has there")


def _expected(seed: str, size: int, rows: Sequence[int]) -> Matrix:
    left = factor(seed, "left", rows, size).astype(np.float32)
    expected = np.zeros((len(rows), size), np.float32)
    for begin in range(0, size, _BLOCK):
        block = range(begin, min(begin + _BLOCK, size))
        expected += left[:, begin : block.stop] @ factor(seed, "right", block, size).astype(np.float32)
    return expected.astype(np.int32)


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.UNAUTHENTICATED, f"product: {detail}")
