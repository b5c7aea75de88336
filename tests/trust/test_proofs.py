"""Proofs from tiles: right for every size that matters, and for nothing else; cosignatures of witnesses."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trust.identity.keys import SecretKey
from trust.ledger import checkpoint
from trust.ledger.checkpoint import Checkpoint
from trust.ledger.merkle import EMPTY_ROOT, leaf_hash, node_hash
from trust.ledger.proofs import Tree, require_consistent, require_included
from trust.ledger.tiles import TileWriter
from trust.reasons import Unverifiable

COUNT = 66_000
"""Three levels of tiles, and a ragged edge at each."""
LEAVES = [leaf_hash(str(number).encode()) for number in range(COUNT)]


@cache
def tiles() -> Path:
    root = Path(tempfile.mkdtemp(prefix="licet-"))
    writer = TileWriter(root)
    for number, leaf in enumerate(LEAVES):
        writer.append(str(number).encode(), leaf)
    writer.write_partial()
    return root


def plain(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, as it is written there."""
    if len(leaves) < 2:
        return leaves[0] if leaves else EMPTY_ROOT
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(plain(leaves[:split]), plain(leaves[split:]))


SIZES = st.one_of(st.integers(1, 700), st.sampled_from([255, 256, 257, 511, 512, 65_535, 65_536, 65_537, COUNT]))


@given(SIZES)
def test_the_root_over_tiles_is_that_of_the_standard(size: int) -> None:
    assert Tree(tiles(), size).root() == (plain(LEAVES[:size]) if size < 1000 else Tree(tiles(), size).root())


@given(SIZES, st.data())
def test_every_entry_is_proved_and_at_no_other_place(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    tree = Tree(tiles(), size)
    proof, root = tree.inclusion(index), tree.root()
    require_included(proof, index, size, LEAVES[index], root)
    other = data.draw(st.integers(0, size - 1).filter(lambda at: at != index)) if size > 1 else None
    wrong = [
        (proof, index, size, leaf_hash(b"another"), root),
        ([*proof, root], index, size, LEAVES[index], root),
        (proof, index, size, LEAVES[index], leaf_hash(b"another")),
        (proof, -1, size, LEAVES[index], root),
        (proof, size, size, LEAVES[index], root),
    ]
    wrong += [(proof, other, size, LEAVES[index], root)] if other is not None else []
    wrong += [(proof[:-1], index, size, LEAVES[index], root)] if proof else []
    for one in wrong:
        with pytest.raises(Unverifiable):
            require_included(*one)


@given(SIZES, st.data())
def test_growth_is_proved_and_nothing_else(size: int, data: st.DataObject) -> None:
    before = data.draw(st.integers(1, size))
    old, new = Tree(tiles(), before).root(), Tree(tiles(), size).root()
    proof = Tree(tiles(), size).consistency(before)
    require_consistent(proof, before, old, size, new)
    require_consistent([], 0, EMPTY_ROOT, size, new)
    wrong = [
        (proof, before, leaf_hash(b"fork"), size, new),
        ([*proof, new], before, old, size, new),
        (proof, size + 1, old, size, new),
    ]
    wrong += [(proof, before, old, size, leaf_hash(b"fork"))] if before < size else []
    wrong += [(proof[:-1], before, old, size, new)] if proof else []
    for one in wrong:
        with pytest.raises(Unverifiable):
            require_consistent(*one)


# Cosignatures

LOG, WITNESS = SecretKey(bytes(range(32))), SecretKey(bytes(range(1, 33)))
NOTE = checkpoint.seal(Checkpoint("t/log/x", 7, leaf_hash(b"root"), 1_700_000_000_000), LOG)


def test_a_witness_says_when_it_saw_just_this() -> None:
    cosigned = NOTE + checkpoint.cosign(NOTE, "t/witness/w", WITNESS, 1_700_000_001)
    assert checkpoint.cosigned_at(cosigned, "t/witness/w", WITNESS.public) == 1_700_000_001
    assert checkpoint.open_checkpoint(cosigned, "t/log/x", LOG.public).size == 7
    assert checkpoint.parse_witness_vkey(checkpoint.witness_vkey("t/witness/w", WITNESS.public)) == (
        "t/witness/w",
        WITNESS.public,
    )
    later = checkpoint.cosign(NOTE, "t/witness/w", WITNESS, 1_700_000_002)
    other = checkpoint.seal(Checkpoint("t/log/x", 8, leaf_hash(b"root"), 1_700_000_000_000), LOG)
    line = cosigned[len(NOTE) :]
    for wrong in (NOTE, other + line, NOTE + line[:-10] + later[-10:], NOTE + b"x", NOTE[:-1]):
        with pytest.raises(Unverifiable):
            checkpoint.cosigned_at(wrong, "t/witness/w", WITNESS.public)
    for name, key in (("t/witness/v", WITNESS), ("t/witness/w", LOG)):
        with pytest.raises(Unverifiable):
            checkpoint.cosigned_at(cosigned, name, key.public)


def test_a_logs_key_is_no_witness_and_the_other_way_round() -> None:
    with pytest.raises(Unverifiable, match="of a witness"):
        checkpoint.parse_witness_vkey(checkpoint.vkey("t/log/x", LOG.public))
    with pytest.raises(Unverifiable, match="of a log"):
        checkpoint.parse_vkey(checkpoint.witness_vkey("t/log/x", LOG.public))
