"""What needed people had them: the votes on a request counted again, from the gateway's own entries."""

from __future__ import annotations

import hashlib
from typing import Any, Iterable

from .notes import Fault
from .passkeys import require_signed

ONCE = "once"


class Approvals:
    """All steps of all approvals in a pack, and who was who when they were taken."""

    def __init__(self, entries: Iterable[Any]) -> None:
        self._steps: dict[str, list[Any]] = {}
        self._people: list[Any] = []
        self._deputies: list[Any] = []
        self._passkeys: list[Any] = []
        for entry in sorted(entries, key=lambda one: one.when):
            if entry.kind == "approval":
                self._steps.setdefault(entry.body["approval"], []).append(entry)
            elif entry.kind == "person" and entry.body["event"] in ("registered", "removed"):
                self._people.append(entry)
                self._passkeys += [entry] if entry.body["event"] == "removed" else []  # nobody's key outlives them
            elif entry.kind == "deputy":
                self._deputies.append(entry)
            elif entry.kind == "passkey":
                self._passkeys.append(entry)

    def require(self, intent: Any, asking: Iterable[str]) -> set[str]:
        """Who approved *intent*: enough of each group, of exactly this; nobody denied it, and it was used for this,
        once. *asking*: the ``@approval`` of each policy that asked when it ran. :class:`Fault` otherwise."""
        approval, deed = intent.body["approval"], intent.body["deed"]
        steps = self._of(approval)
        asked = _last(steps, "requested", "edited")
        if asked is None or asked.body["action_digest"] != deed["action_digest"]:
            raise Fault("it was asked for something else, or not at all")
        if _all(steps, "denied"):
            raise Fault("it was denied")
        claims = _all(steps, "claimed")
        if len(claims) != 1 or claims[0].body.get("claim") != deed["action_id"]:
            raise Fault("it was not used exactly once, for this action")
        own = {deed["agent"], deed["principal"], intent.body["judgement"]["facts"]["agent"]["owner"]}
        under = _first(steps).body.get("under", "")
        terms = [asked.body["request"]["terms"], *(terms_of(text) for text in asking)]
        if under:
            if any(one.get("step_up") for one in terms):
                raise Fault("each of these is signed for, and it was given as part of something else")
            self._require_covered(_first(steps), under)
        found: set[str] = set()
        for one in terms:
            found |= self._decided(self._of(under) if under else steps, one, own)
        return found

    def _of(self, approval: str) -> list[Any]:
        steps = self._steps.get(approval, [])
        if len(_all(steps, "requested")) != 1:
            raise Fault("it was asked for something else, or not at all")
        return steps

    def _decided(self, steps: list[Any], terms: Any, own: set[str]) -> set[str]:
        """Whose seats approved it, if those are enough for *terms*."""
        if _all(steps, "denied") or not _all(steps, "approved"):
            raise Fault("it was denied, or nobody approved it")
        changed, decided = _last(steps, "requested", "edited").when, _last(steps, "approved").when
        barred = own | {step.body["by"] for step in _all(steps, "edited")}
        escalated = {group for step in _all(steps, "escalated") for group in step.body.get("groups", [])}
        seats: dict[str, str] = {}
        for vote in _all(steps, "vote"):
            by, seat = vote.body["by"], vote.body.get("seat") or vote.body["by"]
            if vote.when < changed or vote.body["decision"] != "approve" or {by, seat} & barred:
                continue
            if seat != by and not self._stands_in(by, seat, vote.stamp["wall_us"]):
                raise Fault(f"{by} voted for {seat}, and was nobody's deputy then")
            if terms.get("step_up"):
                if seat != by:
                    continue  # nobody signs for somebody else
                self._require_signed(vote, _before(steps, vote).body)
            if seat not in seats and by not in seats.values():
                seats[seat] = by
        if not terms["quorum"]:
            raise Fault("it says of nobody that they should approve")
        for group, count in terms["quorum"].items():
            fitting = [seat for seat in seats if self._groups(seat, decided) & ({group} | escalated)]
            if len(fitting) < count:
                raise Fault(f"{len(fitting)} of {count} people of the role {group} approved")
        return {by if by == seat else f"{by} for {seat}" for seat, by in seats.items()}

    def _require_signed(self, vote: Any, asked: Any) -> None:
        """That a passkey of whoever voted signed exactly this."""
        by, signed = vote.body["by"], vote.body.get("signed")
        credential = signed["credential"] if signed else ""
        known = [
            one.body
            for one in self._passkeys
            if one.when < vote.when
            and (one.body["person"] == by if one.kind == "person" else one.body["credential"] == credential)
        ]
        if not signed or not known or known[-1]["event"] != "added" or known[-1]["person"] != by:
            raise Fault(f"{by} did not sign with a passkey that was theirs")
        text = "|".join((asked["action_digest"], "approve", by, vote.body["approval"], asked["presented"]))
        challenge = hashlib.sha256(text.encode()).digest()
        require_signed(signed, known[-1]["key"], known[-1]["party"], challenge)

    def _groups(self, name: str, before: tuple[int, int]) -> set[str]:
        """What *name* was of when entry *before* was written."""
        known = [one.body for one in self._people if one.body["person"] == name and one.when < before]
        if not known or known[-1]["event"] != "registered":
            return set()
        return set(known[-1].get("roles", [])) | {"team:" + team for team in known[-1].get("teams", [])}

    def _stands_in(self, by: str, seat: str, when_us: int) -> bool:
        """By what was named last before then."""
        known = [
            one.body
            for one in self._deputies
            if (one.body["deputy"], one.body["person"]) == (by, seat) and one.stamp["wall_us"] <= when_us
        ]
        if not known or known[-1]["event"] != "named":
            return False
        return bool(known[-1]["since_us"] <= when_us < known[-1]["until_us"])

    def _require_covered(self, asked: Any, under: str) -> None:
        """That what was given with another approval goes so far."""
        steps = self._of(under)
        given, yes = _last(steps, "requested", "edited"), _last(steps, "approved")
        scope = yes.body.get("scope", {}) if yes is not None else {}
        before, now = given.body["request"], asked.body["request"]
        for name in ("agent", "principal", "authority", "run", "server", "tool"):
            if before[name] != now[name]:
                raise Fault(f"{under} was given for another {name}")
        if not set(now.get("policies", [])) <= set(before.get("policies", [])):
            raise Fault(f"{under} was given on what other policies asked")
        after_us = asked.stamp["wall_us"] - yes.stamp["wall_us"] if yes is not None else -1
        if scope.get("kind", ONCE) == ONCE or not 0 <= after_us < scope.get("minutes", 0) * 60_000_000:
            raise Fault(f"{under} does not go so far")
        if any(step.when < asked.when for step in _all(steps, "revoked")):
            raise Fault(f"{under} was taken back before")
        if scope["kind"] == "uses":
            used = [one for one in self._steps.values() if _first(one).body.get("under") == under]
            if given.body["action_digest"] != asked.body["action_digest"] or len(used) >= scope.get("uses", 0):
                raise Fault(f"{under} was given for these arguments and so many uses only")


def terms_of(text: str) -> Any:
    """An ``@approval`` as the terms that a request has of it."""
    words = dict(word.partition("=")[::2] for word in text.split())
    count = int(words.get("quorum", "1"))
    return {"quorum": {words["of"]: count}, "step_up": "step_up" in words}


def _all(steps: list[Any], event: str) -> list[Any]:
    return [step for step in steps if step.body["event"] == event]


def _first(steps: list[Any]) -> Any:
    return _all(steps, "requested")[0]


def _before(steps: list[Any], vote: Any) -> Any:
    """What was asked when *vote* was given."""
    return _last([step for step in steps if step.when < vote.when], "requested", "edited")


def _last(steps: list[Any], *events: str) -> Any:
    found = [step for step in steps if step.body["event"] in events]
    return found[-1] if found else None
