"""``licet audit``: tail, show, verify."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import typer

from edge.judging import Judge
from gateway.subjects import FILE as SUBJECTS
from gateway.subjects import keys_below
from licet import ledgers
from licet.cli.output import FAILED, USAGE, Json, console, fail, reporting, say, show
from licet.settings import load
from trust.ledger import checkpoint, words
from trust.ledger.entries import Line
from trust.ledger.verify import verify as verify_ledger

app = typer.Typer(name="audit", help="The ledger: what happened, and the proof of it.", no_args_is_help=True)


@app.command("tail")
@reporting
def tail(
    count: int = typer.Option(20, "-n", help="How many entries."),
    part: str = typer.Option("sidecar", help="Whose ledger: gateway, sidecar or node (a directory of LICET_HOME)."),
    follow: bool = typer.Option(False, "-f", help="Go on as entries come."),
    as_json: bool = Json,
) -> None:
    """The last entries of one ledger, one line each."""
    root = _root(part)
    found = list(ledgers.lines(root))[-count:]
    for index, line in found:
        _print(index, line, as_json)
    following = found[-1][0] + 1 if found else 0
    while follow:
        time.sleep(0.3)
        for index, line in ledgers.lines(root, following):
            _print(index, line, as_json)
            following = index + 1


def _root(part: str) -> Path:
    settings = load()
    homes = {"sidecar": settings.sidecar.home, "node": settings.node.home, "gateway": settings.gateway.home}
    home = settings.home
    root = homes.get(part, home / part) / "ledger"
    if not root.is_dir():
        known = ", ".join(path.parent.name for path in ledgers.roots(home)) or "none"
        raise FileNotFoundError(f"{root}: there is no such ledger; here are: {known}")
    return root


def _print(index: int, line: Line, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"index": index, **msgspec.to_builtins(line)}))
    else:
        say(words.line(index, line))


@app.command("show")
@reporting
def show_entries(
    what: str = typer.Argument(help="A decision id, or ORIGIN#INDEX as the Licet-Audit header gives it."),
    as_json: bool = Json,
) -> None:
    """Everything that all ledgers here say of one decision, or one entry by its place."""
    home = load().home
    if "#" in what:
        origin, _, index = what.rpartition("#")
        found = [
            (root, at, line)
            for root in ledgers.roots(home)
            if checkpoint.parse_vkey((root / "vkey").read_text())[0] == origin
            for at, line in ledgers.lines(root, int(index))
            if at == int(index)
        ]
    else:
        found = ledgers.find_decision(home, what)
    if not found:
        raise fail(f"no ledger below {home} has {what}", FAILED)
    shown = [{"origin": line.stamp.origin, "index": index, **msgspec.to_builtins(line)} for _, index, line in found]

    def people() -> None:
        for entry in shown:
            say(f"{entry['origin']}#{entry['index']}", "bold")
            console.print_json(json.dumps(entry["entry"]))

    show(shown, as_json, people)


def _judge(root: Path, copy: bool) -> Judge:
    """With the bundles of the home that the ledger is in, or of the gateway's if it is a copy; and the keys of subjects
    that the gateway has, if it is on this machine."""
    home = root.parent.parent if copy else root.parent
    gateway_home = load().gateway.home
    return Judge(home, keys_below(home if (home / SUBJECTS).exists() else gateway_home))


def _is_copy(root: Path) -> bool:
    """The gateway keeps copies of other logs below ``logs/``."""
    return root.absolute().parent.name == "logs" and not (root / "wal").exists()


@app.command("verify")
@reporting
def verify(
    path: Path | None = typer.Argument(None, help="A ledger directory; without it, all ledgers of LICET_HOME."),
    key: str | None = typer.Option(
        None, "--key", help="The log's verifier key (vkey), or a file that holds it, from somewhere you trust."
    ),
    copy: bool = typer.Option(False, "--copy", help="PATH is a copy of a log; those in gateway/logs/ are known."),
    against: Path | None = typer.Option(
        None, "--against", help="A directory with checkpoints of this ledger that were kept (checkpoints_to)."
    ),
    as_json: bool = Json,
) -> None:
    """Check frames, tiles, root, signature and schema, and make every decision again; says what it verified."""
    found = [path] if path is not None else ledgers.roots(load().home)
    if not found:
        raise fail("there is no ledger here; give a path or set LICET_HOME", FAILED)
    if key is not None and path is None:
        raise fail("--key is the key of one ledger: give its PATH too", USAGE)
    if key is not None and Path(key).is_file():
        key = Path(key).read_text("utf-8").strip()
    origin, public = checkpoint.parse_vkey(key) if key is not None else (None, None)
    if against is not None and path is None:
        raise fail("--against names checkpoints of one ledger: give its PATH too", USAGE)
    kept = [one.read_bytes() for one in sorted(against.glob("*.checkpoint"))] if against is not None else []
    if against is not None and not kept:
        raise fail(f"{against}: no *.checkpoint is there", USAGE)
    reports = [
        verify_ledger(root, key=public, origin=origin, judge=_judge(root, as_copy), kept=kept, copy=as_copy)
        for root, as_copy in ((one, copy or _is_copy(one)) for one in found)
    ]
    told = [
        {
            "path": str(report.root),
            "origin": report.origin,
            "holds": report.holds,
            "sealed": report.sealed,
            "entries": report.entries,
            "decided_again": report.decided_again,
            "not_decidable": report.not_decidable,
            "faults": report.faults,
            "words": report.words(),
        }
        for report in reports
    ]

    def people() -> None:
        for report in reports:
            for number, sentence in enumerate(report.words()):
                fault = number < len(report.faults) or not report.holds
                say(sentence if number == 0 or fault else f"  {sentence}", "red" if fault else "green")
        if key is None:
            say("The keys were read from beside the logs; give --key from elsewhere to prove more.", "dim")

    show(told, as_json, people)
    if not all(report.holds for report in reports):
        raise typer.Exit(FAILED)
