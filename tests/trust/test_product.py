"""Seeded products: exact, committed to by rows, and no other rows are believed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trust import product
from trust.identity.challenge import MAX_SIZE
from trust.product import Product, factor, require_rows
from trust.reasons import Unverifiable

SEED = "ab" * 16


def exact(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """As whole numbers of 64 bits."""
    return (left.astype(np.int64) @ right.astype(np.int64)).astype(np.int32)


@settings(deadline=None)
@given(st.integers(16, 80), st.text("0123456789abcdef", min_size=32, max_size=32), st.data())
def test_rows_of_a_product_are_believed_and_exact(size: int, seed: str, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8, unique=True))
    made, other = Product(seed, size), Product(seed, size, exact)
    assert made.commitment == other.commitment
    require_rows(seed, size, made.commitment, rows, made.show(rows))


@settings(deadline=None)
@given(st.integers(16, 40), st.data())
def test_one_wrong_entry_in_a_row_that_is_looked_at_is_found(size: int, data: st.DataObject) -> None:
    row, column = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))

    def wrong(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        made = product.multiply(left, right)
        made[row, column] += 1
        return made

    made = Product(SEED, size, wrong)
    with pytest.raises(Unverifiable, match=f"row {row} is not what the product has there"):
        require_rows(SEED, size, made.commitment, [row], made.show([row]))


def test_rows_that_were_not_committed_to_are_not_believed() -> None:
    """Whoever makes the rows only once it knows which are looked at has not made the product in time."""
    lazy, true = Product(SEED, 32, lambda left, right: np.zeros((32, 32), np.int32)), Product(SEED, 32)
    rows = [3, 30]
    with pytest.raises(Unverifiable, match="not the rows that it committed to"):
        require_rows(SEED, 32, lazy.commitment, rows, true.show(rows))
    spliced = lazy.show(rows)[: 32 * 32] + true.show(rows)[32 * 32 :]
    with pytest.raises(Unverifiable, match="row 3 is not the one that it committed to"):
        require_rows(SEED, 32, lazy.commitment, rows, spliced)
    with pytest.raises(Unverifiable, match="bytes instead of"):
        require_rows(SEED, 32, true.commitment, rows, true.show(rows)[:-1])
    with pytest.raises(Unverifiable, match="is not the one"):
        require_rows(SEED, 32, true.commitment, rows, true.show([3, 29]))


def test_both_factors_depend_on_the_seed_and_on_the_row() -> None:
    one = factor(SEED, "left", range(16), 17)
    assert one.shape == (16, 17)
    assert (one.min(), one.max()) == (-8, 7)
    assert not (one == factor("cd" * 16, "left", range(16), 17)).all()
    assert not (one == factor(SEED, "right", range(16), 17)).all()
    assert (one[5:7] == factor(SEED, "left", [5, 6], 17)).all()


def test_the_largest_sum_is_exact_in_a_float_of_32_bits() -> None:
    assert 8 * 8 * MAX_SIZE < 2**24
