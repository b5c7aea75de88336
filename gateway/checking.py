"""``python -m gateway.checking``: checks rows of a product in a process of its own; nothing in it can slow the router.

One line of JSON on stdin (seed, size, commitment and rows), then what the node showed; what is wrong with it on stdout,
or nothing.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from trust.reasons import Reason, Unverifiable

MAX_ANSWER: int = 1000


class Asked(msgspec.Struct, frozen=True):
    """``commitment``: hexadecimal, as it came before the rows were known."""

    seed: str
    size: int
    commitment: str
    rows: tuple[int, ...]


async def require_rows(asked: Asked, opened: bytes) -> None:
    """:class:`Unverifiable` unless *opened* shows the rows that were asked for, and they are right."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.checking", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        wrong, _ = await process.communicate(msgspec.json.encode(asked) + b"\n" + opened)
    finally:
        if process.returncode is None:
            process.kill()
    if wrong or process.returncode:
        detail = wrong.decode("utf-8", "replace") or f"checking rows ended with {process.returncode}"
        raise Unverifiable(Reason.UNAUTHENTICATED, detail[:MAX_ANSWER])


def main() -> None:
    from trust import product  # numpy, which the gateway itself never imports

    asked = msgspec.json.decode(sys.stdin.buffer.readline(), type=Asked)
    try:
        commitment = bytes.fromhex(asked.commitment)
        product.require_rows(asked.seed, asked.size, commitment, asked.rows, sys.stdin.buffer.read())
    except Unverifiable as bad:
        print(bad.detail, end="")


if __name__ == "__main__":
    main()
