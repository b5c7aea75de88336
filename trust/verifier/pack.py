"""An evidence pack: each entry proved in its log, each decision made again, each approval counted."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from . import jcs, notes
from .approvals import Approvals
from .bundle import Bundle, Undecidable
from .cedar import Unsupported
from .notes import Checkpoint, Fault, Proof
from .text import Unread

FORMAT = "licet-evidence/1"
LATE_US = 60 * 1_000_000
"""A sidecar hears of new policies within seconds, and its clock may differ by some."""
_EXPECTED = {"intent": "permit", "hold": "hold", "refusal": "refuse"}


class Report:
    """``faults`` is empty if nothing contradicts anything; ``said`` is what was found, in sentences; ``open`` what was
    not looked at, or cannot be seen; ``partly``: what should have been decided again and could not; ``by``: by whose
    key, if that is only the pack's word."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.said: list[str] = []
        self.open: list[str] = []
        self.partly: list[str] = []
        self.by = ""

    def words(self) -> str:
        """The last line."""
        if self.faults:
            return f"NOT VERIFIED: {len(self.faults)} faults"
        if self.partly:
            return f"VERIFIED IN PART{self.by}: {len(self.partly)} things could not be checked"
        return f"VERIFIED{self.by}"


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

    @property
    def when(self) -> tuple[int, int]:
        """What changed the gateways' state is in one order: by turn where several share it, else as one log has it."""
        return self.stamp.get("turn", 0), self.index


class Pack:
    """*read* gives the bytes of a file of the pack by its name (:class:`KeyError` if there is none)."""

    def __init__(
        self, read: Callable[[str], bytes], log_keys: Iterable[str] = (), witness_key: str | None = None
    ) -> None:
        self._read = read
        self._log_keys = list(log_keys)
        self._witness_key = witness_key
        self._asking: dict[str, list[str]] = {}
        self.report = Report()

    def verify(self) -> Report:
        """Check everything; the report. Whatever goes wrong on the way is a fault: a pack may hold anything."""
        report = self.report
        try:
            manifest = jcs.read(self._read("manifest.json"))
            if manifest["format"] != FORMAT:
                raise Fault(f"a pack of the format {manifest['format']!r}; this verifier knows {FORMAT}")
            self._keys(manifest)
            entries = self._entries(manifest)
            self._proofs(manifest, entries)
            self._decisions(manifest, entries)
            self._approvals(entries)
            self._stories(entries)
        except RecursionError:
            report.faults.append("the pack cannot be read: something in it is nested too deeply")
        except Exception as bad:
            report.faults.append(f"the pack cannot be read: {_why(bad)}")
        report.open.append("that nothing of this run was left out cannot be seen from a pack, only from the logs")
        return report

    def _keys(self, manifest: Any) -> None:
        """Everything hangs on the witness's key: it is the gateway's own, it signed the bundles, it cosigned every log,
        the gateway's own log too. Keys of logs that were given from elsewhere must be those of the pack."""
        self._gateway, _, public = notes.key_of(manifest["witness"], notes.WITNESS)
        if base64.urlsafe_b64decode(manifest["gateway_key"] + "=") != public:
            raise Fault("the key that signs bundles is not the witness's")
        if manifest["gateway"] != self._gateway:
            raise Fault(f"the pack names the gateway {manifest['gateway']}, and its witness is {self._gateway}")
        for one in self._log_keys:
            origin = notes.key_of(one, notes.LOG)[0]
            if origin in manifest["logs"] and manifest["logs"][origin] != one.strip():
                raise Fault(f"the pack has another key for {origin} than the one that you gave")
        if self._witness_key and manifest["witness"] != self._witness_key.strip():
            raise Fault("the pack has another key for the witness than the one that you gave")
        if not self._witness_key:
            self.report.by = f" by the key {manifest['witness']}, which comes from the pack: give the one that you hold"

    def _entries(self, manifest: Any) -> list[Entry]:
        found: list[Entry] = []
        self._run = manifest["run"]
        for one in manifest["entries"]:
            entry = Entry(one["origin"], one["index"], self._read(one["file"]))
            if (entry.stamp["origin"], entry.stamp["seq"]) != (entry.origin, entry.index):
                raise Fault(f"{entry.place} says that it is {entry.stamp['origin']}#{entry.stamp['seq']}")
            _require_place(entry, self._gateway)
            if "deed" in entry.body and entry.body["deed"]["run"] != self._run:
                raise Fault(f"{entry.place} is of the run {entry.body['deed']['run']}, not of {self._run}")
            found.append(entry)
        if not found:
            raise Fault("there is no entry in it")
        if len({entry.place for entry in found}) != len(found):
            raise Fault("an entry stands twice in it")
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
            except Exception as bad:
                self.report.faults.append(f"{entry.place}: {_why(bad)}")
        for origin, count in sorted(counts.items()):
            self.report.said.append(f"{count} entries stand in the log {origin}, as it was sealed and signed")

    def _checkpoint(self, manifest: Any, note: str) -> Checkpoint:
        checkpoint = Checkpoint(note)
        vkey = manifest["logs"].get(checkpoint.origin)
        if vkey is None:
            raise Fault(f"there is no key of {checkpoint.origin}")
        checkpoint.require_signed(vkey)
        checkpoint.cosigned_at(manifest["witness"])
        return checkpoint

    # 2. Every decision follows from its facts

    def _decisions(self, manifest: Any, entries: list[Entry]) -> None:
        bundles = self._bundles(manifest)
        active = _Active(_changes(entries))
        again = 0
        for entry in entries:
            if entry.kind not in _EXPECTED or (entry.kind == "refusal" and entry.body["step"] != 5):
                if entry.kind == "refusal":
                    self.report.open.append(f"{entry.place}: refused at step {entry.body['step']}, not by policy")
                continue
            try:
                active.require(entry)
                self._decide(entry, bundles)
                again += 1
            except (Undecidable, Unsupported) as bad:
                self.report.partly.append(f"{entry.place} could not be decided again: {bad}")
            except Exception as bad:
                self.report.faults.append(f"{entry.place}: {_why(bad)}")
        self.report.said.append(f"{again} decisions were made again from their recorded facts and came out the same")

    def _bundles(self, manifest: Any) -> dict[str, Bundle]:
        public = notes.key_of(manifest["witness"], notes.WITNESS)[2]
        found = {}
        for name in manifest["bundles"]:
            try:
                bundle = Bundle(self._read(f"bundles/{name}.bundle"), public)
                found[bundle.digest] = bundle
            except (Unread, Unsupported) as bad:
                self.report.partly.append(f"bundle {name}: this verifier cannot read it: {bad}")
            except Exception as bad:
                self.report.faults.append(f"bundle {name}: {_why(bad)}")
        return found

    def _decide(self, entry: Entry, bundles: dict[str, Bundle]) -> None:
        deed, judgement = dict(entry.body["deed"]), entry.body["judgement"]
        agent = judgement["facts"]["agent"]
        if agent["name"] != deed["agent"]:
            raise Fault(f"it was asked by {deed['agent']} and decided with the facts of {agent['name']}")
        if not deed.get("authority") and agent["owner"] != deed["principal"]:
            raise Fault(
                f"it was asked for {deed['principal']}, and nobody handed that on: its owner is {agent['owner']}"
            )
        salt = self._complete(deed)
        if jcs.digest(deed["arguments"], salt) != deed["arguments_sha256"]:
            raise Fault("the arguments are not those whose digest was recorded")
        bundle = bundles.get(judgement["bundle"])
        if bundle is None:
            raise Undecidable(f"the bundle {judgement['bundle']} is not in the pack")
        if bundle.action_digest(deed, salt) != deed["action_digest"]:
            raise Fault("the digest that people approve is not the one of this action")
        outcome, policies = bundle.decide(deed, judgement, entry.body.get("approval") is not None)
        expected = _EXPECTED[entry.kind]
        recorded = sorted(judgement.get("policies", []))
        if outcome != expected or policies != recorded:
            told = f"recorded as {expected} by {recorded}, but its facts and bundle give {outcome} by {policies}"
            raise Fault(f"it was {told}")
        if entry.body.get("approval") is not None:
            self._asking[entry.place] = bundle.asks(deed, judgement)

    def _complete(self, deed: Any) -> bytes:
        """Give *deed* the arguments that its entry does not hold in plain; the salt of its digests."""
        if deed.get("sealed") is not None:
            try:
                opened = jcs.read(self._read(f"opened/{deed['arguments_sha256']}.json"))
            except KeyError:
                raise Undecidable("its arguments are personal, and the pack does not open them") from None
            plain = deed.get("arguments") or {}
            shown = {name: value for name, value in opened["arguments"].items() if name in plain}
            if jcs.canonical(shown) != jcs.canonical(plain):
                raise Fault("the arguments that were opened are not those that stand there in plain")
            deed["arguments"] = opened["arguments"]
            salt = bytes.fromhex(opened["salt"])
            if len(salt) != 32:
                raise Fault("the salt of its digests is none")
            return salt
        if deed.get("arguments") is None:
            try:
                deed["arguments"] = jcs.read(self._read(f"arguments/{deed['arguments_sha256']}.json"))
            except KeyError:
                raise Undecidable("its arguments are not in the pack") from None
        return b""

    # 3. What needed people had them

    def _approvals(self, entries: list[Entry]) -> None:
        approvals = Approvals(_changes(entries))
        dispatched = {entry.body["action_id"] for entry in entries if entry.kind == "dispatch"}
        claimed = {entry.body.get("claim") for entry in entries if entry.kind == "approval"}
        for entry in entries:
            approval = entry.body.get("approval") if entry.kind == "intent" else None
            if approval is not None and entry.body["deed"]["action_id"] not in dispatched | claimed:
                self.report.open.append(f"{entry.place}: it was to run under {approval}, and was refused before it did")
            elif approval is not None:
                try:
                    people = ", ".join(sorted(approvals.require(entry, self._asking.get(entry.place, ()))))
                    self.report.said.append(f"{entry.place} ran under {approval}, approved by {people}")
                except Exception as bad:
                    self.report.faults.append(f"{entry.place}: {approval}: {_why(bad)}")

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


class _Active:
    """Which bundle was active when, by the gateway's own log."""

    def __init__(self, entries: list[Entry]) -> None:
        activated = [e for e in entries if e.kind == "bundle" and e.body["event"] in ("activated", "rolled_back")]
        ordered = sorted(activated, key=lambda entry: entry.when)
        until = [entry.stamp["wall_us"] for entry in ordered[1:]] + [None]
        self._spans = [(e.body["digest"], e.stamp["wall_us"], end) for e, end in zip(ordered, until)]

    def require(self, entry: Entry) -> None:
        """That a decision was made by a bundle that was active, or had been until just before."""
        digest, when = entry.body["judgement"]["bundle"], entry.stamp["wall_us"]
        for known, begin, end in self._spans:
            if known == digest and begin <= when + LATE_US and (end is None or when <= end + LATE_US):
                return
        raise Fault("it was decided by policies that were not active then")


def _changes(entries: list[Entry]) -> list[Entry]:
    """All but what a gateway said and did not come to be, because others had that turn."""
    void = {(entry.origin, entry.body["seq"]) for entry in entries if entry.kind == "void"}
    found = [entry for entry in entries if (entry.origin, entry.index) not in void]
    turns: dict[int, Entry] = {}
    for entry in found:
        other = turns.setdefault(entry.when[0], entry)
        if entry.when[0] and other is not entry:
            raise Fault(f"{entry.place} and {other.place} say that they are the same change")
    return found


def _require_place(entry: Entry, gateway: str) -> None:
    """Votes and dispatches are the gateway's word; what an agent did is its sidecar's; what ran is the node's."""
    kind = "gateway" if entry.origin == gateway else entry.origin.split("/")[1]
    step = entry.body.get("step")
    allowed = {
        "gateway": entry.kind not in ("intent", "hold") and not (entry.kind == "dispatch" and step == 9),
        "sidecar": entry.kind in ("intent", "hold", "refusal", "outcome", "start", "end", "gap"),
        "node": entry.kind in ("dispatch", "outcome", "refusal", "start", "end", "gap") and step in (None, 9),
    }
    if not allowed.get(kind, False):
        raise Fault(f"{entry.place} is an entry that no {kind} writes")


def _why(bad: Exception) -> str:
    return str(bad) if isinstance(bad, Fault) else f"{type(bad).__name__}: {bad}"


def fingerprint(data: bytes) -> str:
    """SHA-256, to compare files by."""
    return hashlib.sha256(data).hexdigest()
