"""Makes the published vectors: ``python -m tests.vectors.make``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from trust.canonical import jcs
from trust.identity import constraints, delegation, jws
from trust.identity.constraints import Constraint
from trust.identity.keys import SecretKey, b64url
from trust.reasons import Unverifiable
from trust.standing import decay, rules, score
from trust.standing.decay import DAY_S, FIRST_DAY
from trust.standing.score import Book

HERE: Final = Path(__file__).parent
NOW: Final = 1_800_000_000
DOMAIN_SEED, SEEDS = bytes([9]) * 32, {f"agent{n}": bytes([n]) * 32 for n in (1, 2, 3)}
DOMAIN = SecretKey(DOMAIN_SEED)
ONE, TWO, THREE = (SecretKey(seed) for seed in SEEDS.values())
TOOLS: Final[dict[str, Any]] = {
    "files/read_file": {"path": {"constraint_type": "prefix", "prefix": "reports/"}},
    "pay/transfer": {
        "amount": {"constraint_type": "range", "min": 1, "max": 100},
        "to": {"constraint_type": "one_of", "values": ["acme", "globex"]},
    },
}
NARROWER: Final[dict[str, Any]] = {
    "pay/transfer": {
        "amount": {"constraint_type": "range", "min": 1, "max": 10},
        "to": {"constraint_type": "exact", "value": "acme"},
    }
}


def delegation_vectors() -> dict[str, Any]:
    root = delegation.mint(
        trust_domain="mesh.test", principal="ada", audience=delegation.audience("mesh.test"), holder=ONE.public,
        tools=delegation.grants(TOOLS), max_depth=2, now=NOW, expires_at=NOW + 3600, root="root_1", key=DOMAIN,
    )  # fmt: skip
    child = _child(root, ONE, TWO, NARROWER)
    grandchild = _child(child, TWO, THREE, NARROWER)
    chains = [
        _chain("a root alone", root),
        _chain("one link", child),
        _chain("two links", grandchild),
        _chain("after its end", child, NOW + 1800),
        _chain("a middle left out", f"{root}~{grandchild.split('~')[2]}"),
        _chain("signed by somebody else", _forged(child, THREE)),
        _chain("another tool", _forged(child, ONE, authorization_details=_details({**NARROWER, "pay/refund": {}}))),
        _chain("a constraint dropped", _forged(child, ONE, authorization_details=_details({"pay/transfer": {}}))),
        _chain("it outlives its parent", _forged(child, ONE, exp=NOW + 3601)),
        _chain("a ceiling that rises", _forged(child, ONE, del_max_depth=3)),
        _chain("another parent", _forged(child, ONE, par_hash="A" * 43)),
        _chain("a claim that nobody reads", _forged(child, ONE, admin=True)),
    ]
    return {
        "trust_domain": "mesh.test",
        "audience": delegation.audience("mesh.test"),
        "domain": _key(DOMAIN_SEED),
        "keys": {name: _key(seed) for name, seed in SEEDS.items()},
        "chains": chains,
        "calls": [_call(child, args) for args in ARGUMENTS],
        "constraints": [_satisfied(c, v) for c in CONSTRAINTS for v in VALUES],
        "narrows": [_narrows(one, other) for one in CONSTRAINTS for other in CONSTRAINTS],
    }


ARGUMENTS: Final[list[dict[str, Any]]] = [
    {"amount": 5, "to": "acme"}, {"amount": 11, "to": "acme"}, {"amount": 5, "to": "globex"}, {"amount": 5},
    {"amount": "5", "to": "acme"}, {"amount": 10.0, "to": "acme", "note": "free"},
]  # fmt: skip
CONSTRAINTS: Final[list[dict[str, Any]]] = [
    {"constraint_type": "exact", "value": 1},
    {"constraint_type": "exact", "value": "a/b"},
    {"constraint_type": "range", "min": 0, "max": 2},
    {"constraint_type": "range", "max": 1},
    {"constraint_type": "one_of", "values": [1, "a/b"]},
    {"constraint_type": "not_one_of", "excluded": ["x"]},
    {"constraint_type": "not_one_of", "excluded": ["x", 1]},
    {"constraint_type": "contains", "required": ["a"]},
    {"constraint_type": "contains", "required": ["a", "b"]},
    {"constraint_type": "subset", "allowed": ["a", "b"]},
    {"constraint_type": "subset", "allowed": ["a"]},
    {"constraint_type": "prefix", "prefix": "a/"},
    {"constraint_type": "prefix", "prefix": "a/b"},
    {
        "constraint_type": "all",
        "constraints": [{"constraint_type": "range", "min": 0}, {"constraint_type": "range", "max": 1}],
    },
    {
        "constraint_type": "any",
        "constraints": [{"constraint_type": "exact", "value": 1}, {"constraint_type": "prefix", "prefix": "a/b"}],
    },
]
VALUES: Final[list[Any]] = [1, 1.0, True, 2, "a/b", "a/../b", "x", None, ["a"], ["a", "b"], ["b"], []]


def _key(seed: bytes) -> dict[str, str]:
    public = SecretKey(seed).public
    return {"seed": b64url(seed), "public": b64url(public.raw), "thumbprint": public.thumbprint, "did": public.did}


def _child(chain: str, key: SecretKey, holder: SecretKey, tools: dict[str, Any]) -> str:
    return delegation.derive(
        chain, holder=holder.public, tools=delegation.grants(tools), expires_at=NOW + 1800, now=NOW + 1,
        token_id="aat_1", key=key,
    )  # fmt: skip


def _details(tools: Any) -> list[Any]:
    return [{"type": delegation.DETAIL, "tools": tools}]


def _forged(chain: str, key: SecretKey, **changed: Any) -> str:
    head, _, last = chain.rpartition("~")
    return f"{head}~{jws.seal(jcs({**jws.peek(last, delegation.TYP), **changed}), delegation.TYP, key)}"


def _open(chain: str, now: int) -> delegation.Authority:
    return delegation.open_chain(
        chain, issuer=DOMAIN.public, trust_domain="mesh.test", audience=delegation.audience("mesh.test"), now=now
    )


def _chain(name: str, chain: str, now: int = NOW + 10) -> dict[str, Any]:
    told: dict[str, Any] = {"name": name, "chain": chain, "now": now}
    try:
        opened = _open(chain, now)
    except Unverifiable as bad:
        return {**told, "refused": True, "because": bad.detail}
    return {
        **told,
        "principal": opened.principal,
        "root": opened.root,
        "tokens": list(opened.tokens),
        "keys": list(opened.keys),
        "expires_at": opened.expires_at,
        "tools": msgspec.to_builtins(opened.tools),
    }


def _call(chain: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        _open(chain, NOW + 10).require("pay/transfer", arguments)
        allowed = True
    except Unverifiable:
        allowed = False
    return {"chain": "one link", "tool": "pay/transfer", "arguments": arguments, "allowed": allowed}


def _satisfied(constraint: dict[str, Any], value: Any) -> list[Any]:
    return [constraint, value, constraints.satisfies(msgspec.convert(constraint, Constraint), value)]


def _narrows(one: dict[str, Any], other: dict[str, Any]) -> list[Any]:
    made = [msgspec.convert(constraint, Constraint) for constraint in (one, other)]
    return [one, other, constraints.narrows(made[0], made[1])]


# Standing

LIVES: Final[dict[str, list[tuple[float, str, dict[str, Any]]]]] = {
    "a month of honest work, then a moderate refusal": [
        *((day + 0.5, "outcome", {"risk": risk}) for day in range(30) for risk in (0, 1, 2, 2, 3)),
        (30.5, "refusal", {"severity": "moderate", "policy": "p", "resource": "files", "count": 2}),
    ],
    "ten thousand equal denials": [
        (0.5, "refusal", {"severity": "benign", "policy": "p", "resource": "files", "count": 10_000})
    ],
    "every severity": [
        (n + 0.25, "refusal", {"severity": severity, "policy": "p", "resource": "files", "count": 3})
        for n, severity in enumerate(rules.SEVERITIES)
    ],
    "a critical event that is cleared": [
        *((day + 0.5, "outcome", {"risk": 3}) for day in range(60) for _ in range(2)),
        (60.1, "refusal", {"severity": "critical", "policy": "p", "resource": "files", "count": 1}),
        (70.0, "cleared", {}),
    ],
    "verified": [
        *((day + 0.5, "outcome", {"risk": 3}) for day in range(120) for _ in range(2)),
        (120.0, "granted", {}),
        *((day + 0.5, "outcome", {"risk": 3}) for day in range(120, 240) for _ in range(2)),
    ],
}


def standing_vectors() -> dict[str, Any]:
    return {
        "day_0": FIRST_DAY * DAY_S,
        "weights": {str(half_life): list(decay.table(half_life)) for half_life in (30, 90)},
        "lives": {name: _life(events) for name, events in LIVES.items()},
    }


def _life(events: list[tuple[float, str, dict[str, Any]]]) -> dict[str, Any]:
    book = rules.opened("agent", "ada", [], FIRST_DAY * DAY_S)
    told = []
    for day, kind, details in events:
        at_s = int((FIRST_DAY + day) * DAY_S)
        book = _HAPPEN[kind](book, at_s, details)
        told.append({"day": int(day), "at_s": at_s, "event": kind, **details, **_standing(book, at_s)})
    last = told[-1]["at_s"]
    later = [{"after_days": days, **_standing(book, last + days * DAY_S)} for days in (1, 2, 30, 90, 365)]
    return {"events": told, "later": later}


_HAPPEN: Final[dict[str, Callable[[Book, int, dict[str, Any]], Book]]] = {
    "outcome": lambda book, at_s, given: rules.after_outcome(book, given["risk"], at_s),
    "refusal": lambda book, at_s, given: rules.after_refusals(
        book, given["severity"], given["policy"], given["resource"], given["count"], at_s
    ),
    "cleared": lambda book, at_s, _: rules.cleared(book, at_s),
    "granted": lambda book, at_s, _: rules.granted(book, True, at_s),
}


def _standing(book: Book, at_s: int) -> dict[str, Any]:
    held = score.standing(book, at_s)
    return {"score": held.score, "tier": held.tier}


def made() -> dict[str, str]:
    """Every file by its name."""
    everything = {"delegation.json": delegation_vectors(), "standing.json": standing_vectors()}
    return {name: json.dumps(vectors, indent=1, ensure_ascii=False) + "\n" for name, vectors in everything.items()}


if __name__ == "__main__":
    for name, text in made().items():
        (HERE / name).write_text(text)
        print(f"{HERE / name}: {len(text)} bytes")
