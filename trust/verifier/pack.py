"""An evidence pack: each entry proved in its log, each decision made again, each approval counted."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from . import jcs, notes
from .bundle import Bundle, Undecidable
from .cedar import Unsupported
from .notes import Checkpoint, Fault, Proof
from .text import Unread

FORMAT = "licet-evidence/1"
_EXPECTED = {"intent": "permit", "hold": "hold", "refusal": "refuse"}


class Report:
    """``faults`` is empty if everything holds; ``said`` is what was found, in sentences; ``open`` what was not."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.said: list[str] = []
        self.open: list[str] = []


class Entry:
    """One entry: where it stands, its exact bytes, and what they say."""

    def __init__(self, origin: str, index: int, data: bytes) -> None:
        self.origin, self.index, self.data = origin, index, data
        line = jcs.read(data)
        self.stamp, self.body = line["stamp"], line["entry"]
        self.kind = self.body["kind"]

    @property
    def place(self) -> str:
        return f"{self.origin}#{self.index}"


class Pack:
    """*read* gives the bytes of a file of the pack by its name (:class:`KeyError` if there is none)."""

    def __init__(
        self, read: Callable[[str], bytes], log_keys: Iterable[str] = (), witness_key: str | None = None
    ) -> None:
        self._read = read
        self._log_keys = list(log_keys)
        self._witness_key = witness_key
        self.report = Report()

    def verify(self) -> Report:
        """Check everything; the report."""
        report = self.report
        try:
            manifest = jcs.read(self._read("manifest.json"))
            if manifest.get("format") != FORMAT:
                raise Fault(f"a pack of the format {manifest.get('format')!r}; this verifier knows {FORMAT}")
            self._keys(manifest)
            entries = self._entries(manifest)
        except (Fault, KeyError, ValueError, TypeError) as bad:
            report.faults.append(f"the pack cannot be read: {bad}")
            return report
        self._proofs(manifest, entries)
        self._decisions(manifest, entries)
        self._approvals(entries)
        self._stories(entries)
        report.open.append("that nothing of this run was left out cannot be seen from a pack, only from the logs")
        return report

    def _keys(self, manifest: Any) -> None:
        """The keys that were given from elsewhere must be those of the pack."""
        given = {notes.key_of(one, notes.LOG)[0]: one.strip() for one in self._log_keys}
        for origin, vkey in given.items():
            if manifest["logs"].get(origin) != vkey:
                raise Fault(f"the pack has another key for {origin} than the one that you gave")
        if self._witness_key and manifest["witness"] != self._witness_key.strip():
            raise Fault("the pack has another key for the witness than the one that you gave")
        self._given = given
        if not self._witness_key:
            self.report.open.append(
                "the keys come from the pack itself: compare them with those that you hold (--key, --witness)"
            )

    def _entries(self, manifest: Any) -> list[Entry]:
        found = []
        for one in manifest["entries"]:
            entry = Entry(one["origin"], one["index"], self._read(one["file"]))
            if (entry.stamp["origin"], entry.stamp["seq"]) != (entry.origin, entry.index):
                raise Fault(f"{entry.place} says that it is {entry.stamp['origin']}#{entry.stamp['seq']}")
            found.append(entry)
        if not found:
            raise Fault("there is no entry in it")
        return found

    # 1. Every entry stands in its log

    def _proofs(self, manifest: Any, entries: list[Entry]) -> None:
        checked: dict[str, Checkpoint] = {}
        counts: dict[str, int] = {}
        for entry, one in zip(entries, manifest["entries"]):
            try:
                proof = Proof(self._read(one["proof"]).decode("utf-8"))
                if proof.note not in checked:
                    checked[proof.note] = self._checkpoint(manifest, proof.note)
                checkpoint = checked[proof.note]
                if (checkpoint.origin, proof.index) != (entry.origin, entry.index):
                    raise Fault(f"its proof is one of {checkpoint.origin}#{proof.index}")
                proof.require_holds(entry.data, checkpoint)
                counts[entry.origin] = counts.get(entry.origin, 0) + 1
            except (Fault, KeyError, ValueError) as bad:
                self.report.faults.append(f"{entry.place}: {bad}")
        for origin, count in sorted(counts.items()):
            self.report.said.append(f"{count} entries stand in the log {origin}, as it was sealed and signed")

    def _checkpoint(self, manifest: Any, note: str) -> Checkpoint:
        checkpoint = Checkpoint(note)
        vkey = manifest["logs"].get(checkpoint.origin)
        if vkey is None:
            raise Fault(f"there is no key of {checkpoint.origin}")
        checkpoint.require_signed(vkey)
        if checkpoint.origin != manifest["gateway"]:
            checkpoint.cosigned_at(manifest["witness"])
        return checkpoint

    # 2. Every decision follows from its facts

    def _decisions(self, manifest: Any, entries: list[Entry]) -> None:
        bundles = self._bundles(manifest)
        again = 0
        for entry in entries:
            if entry.kind not in _EXPECTED or "judgement" not in entry.body or "deed" not in entry.body:
                continue
            if entry.kind == "refusal" and entry.body["step"] != 5:
                self.report.open.append(f"{entry.place}: refused at step {entry.body['step']}, not by policy")
                continue
            try:
                self._decide(entry, bundles)
                again += 1
            except (Undecidable, Unsupported) as bad:
                self.report.open.append(f"{entry.place} could not be decided again: {bad}")
            except (Fault, KeyError, TypeError, ValueError) as bad:
                self.report.faults.append(f"{entry.place}: {bad}")
        self.report.said.append(f"{again} decisions were made again from their recorded facts and came out the same")

    def _bundles(self, manifest: Any) -> dict[str, Bundle]:
        public = base64.urlsafe_b64decode(manifest["gateway_key"] + "=")
        witness = notes.key_of(manifest["witness"], notes.WITNESS)[2]
        if public != witness:
            self.report.faults.append("the key that signs bundles is not the witness's")
        found = {}
        for name in manifest["bundles"]:
            try:
                bundle = Bundle(self._read(f"bundles/{name}.bundle"), public)
                found[bundle.digest] = bundle
            except (Fault, KeyError, ValueError, TypeError) as bad:
                self.report.faults.append(f"bundle {name}: {bad}")
            except (Unread, Unsupported) as bad:
                self.report.open.append(f"bundle {name}: this verifier cannot read it: {bad}")
        return found

    def _decide(self, entry: Entry, bundles: dict[str, Bundle]) -> None:
        deed, judgement = dict(entry.body["deed"]), entry.body["judgement"]
        if deed.get("arguments") is None:
            try:
                deed["arguments"] = jcs.read(self._read(f"arguments/{deed['arguments_sha256']}.json"))
            except KeyError:
                raise Undecidable("its arguments are not in the pack") from None
        if jcs.digest(deed["arguments"]) != deed["arguments_sha256"]:
            raise Fault("the arguments are not those whose digest was recorded")
        bundle = bundles.get(judgement["bundle"])
        if bundle is None:
            raise Undecidable(f"the bundle {judgement['bundle']} is not in the pack")
        outcome, policies = bundle.decide(deed, judgement, entry.body.get("approval") is not None)
        expected = _EXPECTED[entry.kind]
        if outcome != expected or policies != sorted(judgement.get("policies", [])):
            told = (expected, sorted(judgement.get("policies", [])), outcome, policies)
            raise Fault("it was recorded as {} by {}, but its facts and bundle give {} by {}".format(*told))

    # 3. What needed people had them

    def _approvals(self, entries: list[Entry]) -> None:
        steps: dict[str, list[Any]] = {}
        for entry in entries:
            if entry.kind == "approval":
                steps.setdefault(entry.body["approval"], []).append(entry.body)
        for entry in entries:
            approval = entry.body.get("approval") if entry.kind == "intent" else None
            if approval is not None:
                try:
                    people = _approved(entry, steps.get(approval, []))
                    told = (entry.place, approval, ", ".join(sorted(people)))
                    self.report.said.append("{} ran under {}, approved by {}".format(*told))
                except (Fault, KeyError, TypeError) as bad:
                    self.report.faults.append(f"{entry.place}: {approval}: {bad}")

    # 4. What was sent on was decided, and what was decided has an end

    def _stories(self, entries: list[Entry]) -> None:
        intents = {entry.body["deed"]["action_id"]: entry for entry in entries if entry.kind == "intent"}
        ends = {entry.body["action_id"]: entry.body["status"] for entry in entries if entry.kind == "outcome"}
        for entry in entries:
            if entry.kind == "dispatch" and entry.body.get("step", 8) == 8:
                intent = intents.get(entry.body["action_id"])
                if intent is None:
                    self.report.faults.append(f"{entry.place} was sent on, and no log says that it was decided")
                elif intent.body["deed"]["action_digest"] != entry.body["action_digest"]:
                    self.report.faults.append(f"{entry.place}: something else was sent on than was decided")
        for action, intent in intents.items():
            if ends.get(action) is None:
                self.report.open.append(f"{intent.place}: no entry says how it ended")
            elif ends[action] == "unknown":
                self.report.open.append(f"{intent.place}: how it ended is not known")
        self.report.said.append(f"{len(intents)} actions were allowed, and everything that was sent on was one of them")


def _approved(intent: Entry, steps: Any) -> set[str]:
    """Who approved, if there were enough of them, of exactly this, and it was used once."""
    by_event: dict[str, list[Any]] = {}
    for step in steps:
        by_event.setdefault(step["event"], []).append(step)
    asked = by_event.get("requested", [])
    if len(asked) != 1 or asked[0]["action_digest"] != intent.body["deed"]["action_digest"]:
        raise Fault("it was asked for something else, or not at all")
    if len(by_event.get("claimed", [])) != 1 or not by_event.get("approved"):
        raise Fault("it was not approved, or not used exactly once")
    votes = by_event.get("vote", [])
    people = {vote["by"] for vote in votes if vote["decision"] == "approve"}
    wanted = max(asked[0]["request"]["terms"]["quorum"].values())
    own = {intent.body["deed"]["agent"], intent.body["deed"]["principal"]}
    if len(people - own) < wanted:
        raise Fault(f"{len(people - own)} of {wanted} people approved")
    return people - own


def fingerprint(data: bytes) -> str:
    """SHA-256, to compare files by."""
    return hashlib.sha256(data).hexdigest()
