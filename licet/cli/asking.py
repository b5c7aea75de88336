"""``licet audit query, export, sql, gaps, timeline, trail, who-approved, prove, logs, close, prune, erase …``."""

from __future__ import annotations

import base64
import functools
import inspect
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
import typer

from licet.cli.audit import app
from licet.cli.gateway_api import As, gateway
from licet.cli.output import FAILED, USAGE, Json, fail, reporting, say, show, table
from trust.canonical import read_object
from trust.ledger import checkpoint, moments, proofs, words
from trust.ledger.rows import Row
from trust.ledger.tiles import write_atomically
from trust.personal import principal_id, subject_id
from trust.reasons import visible

PAGE: Final = 500


def moment(text: str) -> int:
    """What somebody wrote as a moment, as Unix microseconds."""
    try:
        return moments.parse(text, time.time_ns() // 1000)
    except ValueError as bad:
        raise fail(str(bad), USAGE) from None


def asked_for(
    agent: str = typer.Option("", help="Whose."),
    principal: str = typer.Option("", help="For whom."),
    owner: str = typer.Option("", help="Of whose agents."),
    tool: str = typer.Option("", help="server/tool, or the tool's name."),
    server: str = typer.Option(""),
    decision: str = typer.Option("", help="allow, deny, hold; or how it ended: done, failed, unknown …"),
    reason: str = typer.Option("", help="Why it was refused, such as policy_forbids."),
    policy: str = typer.Option("", help="The id of a policy that decided."),
    node: str = typer.Option(""),
    approval: str = typer.Option(""),
    run: str = typer.Option(""),
    kind: str = typer.Option("", help="intent, refusal, hold, outcome, dispatch, approval, kill, …"),
    origin: str = typer.Option("", help="Of one log."),
    by: str = typer.Option("", help="What a person did."),
    subject: str = typer.Option("", help="The key of whom it is about, as `licet audit subject` tells it."),
    since: str = typer.Option("", help="How long ago (2h, 7d), or a time (2026-11-21T10:00, UTC)."),
    until: str = typer.Option("", help="The same, excluded."),
) -> dict[str, str]:
    """What the options of a question come to, as the gateway's filter."""
    texts = {
        "agent": agent, "principal": principal, "owner": owner, "tool": tool, "server": server, "decision": decision,
        "reason": reason, "policy": policy, "node": node, "approval": approval, "run": run, "kind": kind,
        "origin": origin, "by": by, "subject": subject,
    }  # fmt: skip
    times = {"since_us": moment(since) if since else 0, "until_us": moment(until) if until else 0}
    return {name: str(value) for name, value in (texts | times).items() if value}


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """*command* with the options of :func:`asked_for` before its own; its first argument is what they come to."""
    options = inspect.signature(asked_for, eval_str=True).parameters
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @functools.wraps(command)
    def asks(**given: Any) -> None:
        command(asked_for(**{name: given.pop(name) for name in options}), **given)

    asks.__signature__ = inspect.Signature([*options.values(), *own])  # type: ignore[attr-defined]
    asks.__annotations__ = {one.name: one.annotation for one in (*options.values(), *own)}
    return asks


@app.command("query")
@reporting
@asking
def query(
    given: dict[str, str],
    count: int = typer.Option(50, "-n", min=1, help="How many, the newest first."),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Entries of all logs that say this; each can be proved with `licet audit prove`."""
    found = list(_pages(given, count, token_file))
    show([msgspec.to_builtins(row) for row in found], as_json, lambda: _rows(found))


@app.command("export")
@reporting
@asking
def export(
    given: dict[str, str],
    form: str = typer.Option("jsonl", "--format", help="csv, jsonl (the exact entries), parquet, ocsf, cloudevents."),
    evidence: str = typer.Option("", metavar="RUN", help="Instead: all of one run with its proofs, as a pack."),
    personal: bool = typer.Option(False, "--personal", help="With --evidence: what is sealed, opened for good."),
    out: Path = typer.Option(..., "--out", "-o", help="The file to write."),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Everything that says this, as a file for other programs; or one run as evidence for an outsider."""
    if evidence and given:
        raise fail("--evidence takes all of one run: leave out the other filters", USAGE)
    if personal and not evidence:
        raise fail("--personal is for --evidence; other exports leave what is sealed as it is", USAGE)
    asked = f"/v1/ledger/export?{urlencode({**given, 'format': form})}"
    pack = f"/v1/runs/{evidence}/evidence{'?personal=true' if personal else ''}"
    size = _save(gateway(token_file).download(pack if evidence else asked), out)

    def people() -> None:
        say(f"{out}: {size} bytes")
        if evidence:
            say(f"whoever you hand it to verifies it with nothing but Python: python3 {out}", "dim")

    show({"path": str(out), "bytes": size}, as_json, people)


def _save(pieces: Iterator[bytes], out: Path) -> int:
    """How many bytes were written. What was there stays until all of the new is."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    try:
        with partial.open("wb") as file:
            size = sum(file.write(piece) for piece in pieces)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return size


@app.command("sql")
@reporting
def sql(
    question: str = typer.Argument(help="One SELECT over the table `entries`, in DuckDB's SQL."),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Ask in SQL: at most 10,000 rows and 10 seconds; what is asked is recorded."""
    told = gateway(token_file).call("POST", "/v1/ledger/sql", {"sql": question}).body

    def people() -> None:
        rows = [tuple("" if cell is None else str(cell) for cell in row) for row in told["rows"]]
        table(tuple(told["columns"]), rows, "no rows")
        more = ", and there are more" if told["more"] else ""
        part = f", the newest of {told['entries']}" if told["loaded"] < told["entries"] else ""
        say(f"{len(rows)} rows{more}, over {told['loaded']} entries{part}", "dim")

    show(told, as_json, people)


@app.command("gaps")
@reporting
def gaps(
    since: str = typer.Option("7d", help="How long ago (2h, 7d), or a time (2026-11-21T10:00, UTC)."),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """What the logs do not say: lost tails, missing intents, unknown outcomes, clocks that jump, silent logs."""
    found = gateway(token_file).call("GET", f"/v1/ledger/gaps?since_us={moment(since)}").body["gaps"]

    def people() -> None:
        if not found:
            say("nothing is missing: every log is witnessed and searchable, every action has an outcome", "green")
        for gap in found:
            where = f"{gap['origin']}#{gap['index']}" if gap["index"] >= 0 else gap["origin"]
            say(f"{gap['kind'].replace('_', ' '):<12} {where}: {gap['words']}", "yellow")

    show(found, as_json, people)
    if found:
        raise typer.Exit(FAILED)


def _pages(given: dict[str, str], count: int, token_file: Path | None) -> Iterator[Row]:
    """As many rows as are wanted, page by page."""
    after, left = "", count
    while left > 0:
        asked = {**given, "limit": str(min(left, PAGE)), **({"after": after} if after else {})}
        told = gateway(token_file).call("GET", f"/v1/ledger/entries?{urlencode(asked)}").body
        rows = msgspec.convert(told["rows"], list[Row])
        yield from rows
        after, left = told["next"], left - len(rows)
        if not after:
            return


def _rows(found: list[Row]) -> None:
    if not found:
        say("nothing in the ledger says this", "dim")
    for row in found:
        say(f"{words.moment(row.wall_us, '%Y-%m-%d %H:%M:%S')}  {row.kind:<10} {row.words}")
        say(f"    {row.origin}#{row.index}", "dim")


@app.command("timeline")
@reporting
def timeline(run: str, token_file: Path | None = As, as_json: bool = Json) -> None:
    """One run across every hop: what was asked, decided, approved, where it went and how it ended."""
    rows = msgspec.convert(gateway(token_file).call("GET", f"/v1/runs/{run}/timeline").body["rows"], list[Row])
    if not rows:
        raise fail(f"no log has a run {run} (the index is about a second behind)", FAILED)
    show([msgspec.to_builtins(row) for row in rows], as_json, lambda: _along(rows))


def _along(rows: list[Row]) -> None:
    begin = rows[0].wall_us
    say(f"run from {words.moment(begin)}", "bold")
    for row in rows:
        where = row.origin.partition("/")[2]
        say(f"  +{(row.wall_us - begin) / 1e6:8.3f} s  {where:<18} {row.kind:<9} {row.words}")


@app.command("trail")
@reporting
def trail(run: str, token_file: Path | None = As, as_json: bool = Json) -> None:
    """The hops of one run: who acted for whom, on which node and data, and where that is recorded. Exit code 1 if they
    are not all of one identity."""
    told = gateway(token_file).call("GET", f"/v1/runs/{run}/trail").body
    rows = [
        (
            at,
            hop["agent"],
            hop["principal"],
            hop["action"],
            hop["node"],
            hop["node_kind"],
            hop["data_locality"] or "-",
            hop["status"],
            f"{hop['origin'].partition('/')[2]}#{hop['index']}",
        )
        for at, hop in enumerate(told["hops"])
    ]

    def people() -> None:
        table(("HOP", "AGENT", "FOR", "ACTION", "NODE", "KIND", "DATA", "ENDED", "RECORDED"), rows, "no hops")
        if told["one_identity"]:
            say(f"every hop: {told['agent']} for {told['principal']}", "green")
        else:
            say(f"NOT ONE IDENTITY: hops {', '.join(map(str, told['others']))} differ from the first", "red")

    show(told, as_json, people)
    if not told["one_identity"]:
        raise typer.Exit(FAILED)


@app.command("who-approved")
@reporting
def who_approved(
    what: str = typer.Argument(help="An approval's id, or the decision id of the action that ran under it."),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Who decided on an action, when, why, and what they were shown."""
    field = "approval" if what.startswith("apr_") else "decision_id"
    found = list(_pages({field: what}, PAGE, token_file))
    approval = next((row.approval for row in found if row.approval), "")
    if not approval:
        raise fail(f"no approval belongs to {what}: nobody had to decide, or nobody has yet", FAILED)
    steps = list(_pages({"approval": approval, "kind": "approval", "oldest_first": "true"}, PAGE, token_file))
    asked = next((row for row in steps if row.decision == "requested"), None)
    shown = _entry(asked.origin, asked.index, token_file)[0]["entry"] if asked is not None else {}
    request = shown.get("request") or {}
    held = (
        list(_pages({"decision_id": request.get("decision_id", ""), "kind": "hold"}, 1, token_file)) if request else []
    )
    arguments, missing = _arguments(held[0], token_file) if held else (None, "")
    told = {
        "approval": approval,
        "steps": [msgspec.to_builtins(row) for row in steps],
        "shown": shown.get("request"),
        "arguments": arguments,
    }

    def people() -> None:
        say(approval, "bold")
        for row in steps:
            say(f"  {words.moment(row.wall_us)}  {row.words}")
        if request:
            say(f"what was shown: {request['server']}/{request['tool']} for {request['agent']}")
            if arguments is not None:
                say(f"  {visible(json.dumps(arguments, ensure_ascii=False), 4000)}")
            elif missing:
                say(f"  {missing}", "yellow")
            quorum = ", ".join(f"{count} of {role}" for role, count in request["terms"]["quorum"].items())
            say(f"  to be decided by {quorum}; the bytes have the SHA-256 {request['body_sha256']}", "dim")

    show(told, as_json, people)


def _arguments(row: Row, token_file: Path | None) -> tuple[dict[str, Any] | None, str]:
    """What was asked with, opened if some of it is personal; why not, if it is not there."""
    told = gateway(token_file).call("GET", f"/v1/ledger/entry?{urlencode({'origin': row.origin, 'index': row.index})}")
    return told.body["arguments"], told.body["missing"]


def _entry(origin: str, index: int, token_file: Path | None) -> tuple[dict[str, Any], bytes, bytes]:
    """(the entry, its exact bytes, its proof), once the proof holds."""
    asked = urlencode({"origin": origin, "index": index})
    told = gateway(token_file).call("GET", f"/v1/ledger/entry?{asked}").body
    data, proof = base64.b64decode(told["entry"]), told["proof"].encode()
    named, key = checkpoint.parse_vkey(told["vkey"])
    proofs.require_proved(proof, data, named, key)
    return read_object(data), data, proof


@app.command("prove")
@reporting
def prove(
    place: str = typer.Argument(help="ORIGIN#INDEX, as the Licet-Audit header and `licet audit query` give it."),
    out: Path | None = typer.Option(None, "--out", "-o", help="Write FILE.tlog-proof and FILE.json there."),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """A proof (C2SP tlog-proof) that an entry stands in its log, under a checkpoint that the gateway witnessed."""
    origin, mark, index = place.rpartition("#")
    if not mark or not index.isdecimal():
        raise fail(f'"{place}": expected ORIGIN#INDEX, such as licet.local/sidecar/demo#7', USAGE)
    entry, data, proof = _entry(origin, int(index), token_file)
    sealed = proofs.read(proof)[2].decode().split("\n")[1]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out.with_suffix(".tlog-proof"), proof)
        write_atomically(out.with_suffix(".json"), data)

    def people() -> None:
        say(f"{place} is among the first {sealed} entries of its log: the proof was checked", "green")
        if out is not None:
            say(
                f"written: {out.with_suffix('.tlog-proof')} (the proof), {out.with_suffix('.json')} (the entry's bytes)"
            )
        else:
            print(proof.decode(), end="")

    show({"entry": entry, "proof": proof.decode()}, as_json, people)


@app.command("logs")
@reporting
def logs(token_file: Path | None = As, as_json: bool = Json) -> None:
    """Every log that the gateway has: how far it is sealed, witnessed and searchable, and what contradicts it; and the
    witness's key, which outsiders need to verify evidence."""
    told = gateway(token_file).call("GET", "/v1/ledger/logs").body
    rows = [
        (
            log["origin"],
            log["sealed"],
            log["indexed"],
            words.moment(log["witnessed_us"]) if log["witnessed_us"] else "is the witness",
            log["wrong"] or ("closed: " + log["closed"] if log["closed"] else "nothing"),
        )
        for log in told["logs"]
    ]

    def people() -> None:
        table(("LOG", "SEALED", "SEARCHABLE", "LAST WITNESSED", "WRONG"), rows, "no logs")
        say(f"the witness's key: {told['witness']}", "dim")

    show(told, as_json, people)


@app.command("prune")
@reporting
def prune(
    before: str = typer.Option(..., "--before", help="How long ago (90d, 52w), or a time (2026-01-01, UTC)."),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Let the gateway forget old entries of sidecars and nodes: only their hashes stay. It cannot be taken back."""
    found = gateway(token_file).call("POST", "/v1/ledger/prune", {"before_us": moment(before)}).body["first_kept"]

    def people() -> None:
        for origin, first in found.items():
            say(f"{origin}: the entries below {first} are gone, their hashes stay")
        if not found:
            say("no whole tile of 256 entries is that old: nothing was pruned", "dim")

    show(found, as_json, people)


_WHO: Final = typer.Argument(help="As the calls name it, such as a customer's number; of a principal: principal:NAME.")


def _id(name: str) -> str:
    principal = name.removeprefix("principal:")
    return subject_id(name) if principal == name else principal_id(principal)


@app.command("subject")
@reporting
def subject(name: str = _WHO, token_file: Path | None = As, as_json: bool = Json) -> None:
    """By which key what is personal of somebody is sealed: with it `licet audit query --subject` finds all of it."""
    told = gateway(token_file).call("POST", "/v1/subjects/find", {"subject": _id(name)}).body
    show(told, as_json, lambda: say(f"{told['key']}: licet audit query --subject {told['key']}"))


@app.command("erase")
@reporting
def erase(
    name: str = _WHO,
    reason: str = typer.Option(..., "--reason", help="Why, such as the number of the person's request."),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Destroy the key of everything personal that is recorded of somebody. It cannot be taken back."""
    asked = {"subject": _id(name), "reason": reason}
    told = gateway(token_file).call("POST", "/v1/subjects/erase", asked).body

    def people() -> None:
        say(f"{told['erased']} is destroyed: what it had sealed can be read by nobody", "green")
        say("entries and proofs stay as they are; copies of the gateway's home in backups still hold the key", "dim")

    show(told, as_json, people)


@app.command("close")
@reporting
def close(
    origin: str,
    reason: str = typer.Option(..., "--reason", help="Why nothing more comes, such as a pod that was killed."),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Whoever wrote a log is gone for good: nobody misses it, and nothing more is taken. What is there stays."""
    told = gateway(token_file).call("POST", "/v1/ledger/close", {"origin": origin, "reason": reason}).body
    show(told, as_json, lambda: say(f"{origin} is closed; what it says stays"))


@app.command("renew")
@reporting
def renew(
    origin: str,
    reason: str = typer.Option(..., "--reason", help="Why its log begins anew, such as a disk that was replaced."),
    pruned: int = typer.Option(
        0,
        "--pruned-below",
        min=0,
        help="Nobody has its entries below this index any more, as its writer says: who lies about it hides so much.",
    ),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Let a log begin anew under another key; the copy of the former one is kept beside the gateway."""
    asked = {"origin": origin, "reason": reason, "pruned": pruned}
    told = gateway(token_file).call("POST", "/v1/ledger/renew", asked).body
    show(told, as_json, lambda: say(f"{origin} may begin anew; what it was is kept"))
