"""The published vectors are current, and hold when they are read as another implementation would read them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from joserfc import jwt as jose_jwt
from joserfc.jwk import OKPKey

from loadtests import standing as simulated
from tests.vectors import make

VECTORS: dict[str, Any] = {name: json.loads((make.HERE / name).read_text()) for name in make.made()}
DELEGATION, STANDING = VECTORS["delegation.json"], VECTORS["standing.json"]


def test_the_files_are_what_the_code_makes() -> None:
    for name, text in make.made().items():
        assert (make.HERE / name).read_text() == text, "run `python -m tests.vectors.make`"


def test_the_vectors_have_yes_and_no_of_everything() -> None:
    assert {bool(chain.get("refused")) for chain in DELEGATION["chains"]} == {True, False}
    assert {call["allowed"] for call in DELEGATION["calls"]} == {True, False}
    for triples in ("constraints", "narrows"):
        assert {triple[2] for triple in DELEGATION[triples]} == {True, False}


def test_every_link_that_holds_was_signed_by_the_key_that_the_one_before_names() -> None:
    for told in DELEGATION["chains"]:
        if told.get("refused"):
            continue
        key = OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": DELEGATION["domain"]["public"]})
        for link, thumbprint in zip(told["chain"].split("~"), told["keys"], strict=True):
            claims = jose_jwt.decode(link, key, algorithms=["EdDSA"]).claims
            key = OKPKey.import_key(claims["cnf"]["jwk"])
            assert key.thumbprint() == thumbprint


def test_what_narrows_satisfies_no_more() -> None:
    satisfied = {json.dumps([c, v]): yes for c, v, yes in DELEGATION["constraints"]}
    for one, other, narrows in DELEGATION["narrows"]:
        for value in make.VALUES:
            if narrows and satisfied[json.dumps([one, value])]:
                assert satisfied[json.dumps([other, value])]


@pytest.mark.parametrize("life", STANDING["lives"])
def test_scores_follow_from_the_rules_written_down_again(life: str) -> None:
    """A second implementation, from the words of the rules: floats nowhere, and no function of ours."""
    told = STANDING["lives"][life]
    weights = {int(half): table for half, table in STANDING["weights"].items()}

    def weight(half: int, day: int) -> int:
        return weights[half][day % half] << (day // half)

    earned = negative = 0
    critical = granted = False
    today: dict[tuple[int, int], int] = {}
    repeats: dict[tuple[int, str], int] = {}
    for event in told["events"]:
        day = (event["at_s"] - STANDING["day_0"]) // 86_400
        if event["event"] == "outcome":
            risk = event["risk"]
            got = sum(today.get((day, other), 0) for other in range(4))
            gain = min((10, 50, 300, 1000)[risk], (50, 250, 1000, 2000)[risk] - today.get((day, risk), 0), 2000 - got)
            today[(day, risk)] = today.get((day, risk), 0) + max(0, gain)
            earned += max(0, gain) * weight(30, day)
        elif event["event"] == "refusal":
            each = {"benign": 200, "minor": 500, "moderate": 4000, "severe": 20_000, "critical": 60_000}[
                event["severity"]
            ]
            pair = (day, event["policy"] + event["resource"])
            for _ in range(event["count"]):
                repeats[pair] = repeats.get(pair, 0) + 1
                divisor = repeats[pair] if event["severity"] in ("benign", "minor", "moderate") else 1
                negative += each // divisor * weight(90, day)
            critical = critical or event["severity"] == "critical"
        critical = critical and event["event"] != "cleared"
        granted = granted or event["event"] == "granted"
        r, s = earned // weight(30, day), negative // weight(90, day)
        cap = 299 if critical else 1000 if granted else 899
        assert event["score"] == min(cap, 1000 * (r + 8000) // (r + s + 20_000)), event
    for later in told["later"]:
        day = (told["events"][-1]["at_s"] - STANDING["day_0"]) // 86_400 + later["after_days"]
        r, s = earned // weight(30, day), negative // weight(90, day)
        assert later["score"] == min(cap, 1000 * (r + 8000) // (r + s + 20_000))


def test_the_simulated_figures_are_those_that_the_documents_show() -> None:
    told = {name: value for name, _, value in simulated.figures()}
    assert list(told.values()) == ["459", "618", "637", "637 / 728 / 811", "861 → 299", "400 → 379"]
    text = (make.HERE.parent.parent / "docs" / "standing.md").read_text()
    for value in told.values():
        assert value in text, value
