"""``licet policy``: check, fmt, test, explain, bundle, activate, rollback, status."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
import typer

from edge.judging import Judge
from gateway.candidate import read_directory, to_request
from licet import ledgers
from licet.cli.gateway_api import As, gateway
from licet.cli.output import BAD_POLICY, CASES_FAILED, FAILED, Json, fail, reporting, say, show, table
from licet.cli.stories import tell
from licet.client import ApiError
from licet.settings import load
from trust.identity.keys import SecretKey
from trust.policy import bundle, cases, cedar, schema
from trust.policy.bundle import BundleRejected, Compiled, Content
from trust.policy.explain import explain as explain_request
from trust.policy.lint import Problem

app = typer.Typer(name="policy", help="Policies: written, checked, tested, activated.", no_args_is_help=True)

Directory = typer.Argument(None, help="The directory with policies; by default that of the configuration.")
Namespace = typer.Option("", help="Whose policies; without it those of the mesh, or of your own namespace.")
_OFFLINE_TTL_S: Final = 86_400


def _directory(given: Path | None) -> Path:
    return given if given is not None else load().gateway.policies


def _compile(directory: Path) -> Compiled:
    """The directory, typed after the inventory that it was written against."""
    sources = bundle.sources_from_files(read_directory(directory))
    now = int(time.time())
    return bundle.compile_bundle(Content(1, now, now + _OFFLINE_TTL_S, sources, sources.expected))


@contextmanager
def _placed(directory: Path) -> Iterator[None]:
    """Complaints name files as the author would open them."""
    try:
        yield
    except BundleRejected as bad:
        moved = [replace(problem, file=f"{directory}/{problem.file}") for problem in bad.problems]
        raise BundleRejected(moved) from None


def _problem(problem: Problem) -> dict[str, Any]:
    return dict(msgspec.to_builtins(problem))


@app.command("check")
@reporting
def check(directory: Path | None = Directory, as_json: bool = Json) -> None:
    """Parse, validate and lint; every complaint with file, line, column and a hint. Exit code 3 on errors."""
    where = _directory(directory)
    try:
        compiled = _compile(where)
        problems, count = compiled.read.problems, len(compiled.read.sources)
        cases.read_cases(compiled.content.sources.cases)
    except BundleRejected as bad:
        problems, count = bad.problems, 0
    errors = [p for p in problems if p.level == "error"]

    def people() -> None:
        for problem in problems:
            say(f"{where}/{problem}", "red" if problem.level == "error" else "yellow")
        if not errors:
            say(f"{count} policies are fine", "green")

    show([_problem(p) for p in problems], as_json, people)
    if errors:
        raise typer.Exit(BAD_POLICY)


@app.command("fmt")
@reporting
def fmt(
    directory: Path | None = Directory,
    check_only: bool = typer.Option(False, "--check", help="Change nothing; exit code 3 if something would change."),
) -> None:
    """Cedar's own formatting of every .cedar file."""
    changed = []
    for path in sorted(_directory(directory).rglob("*.cedar")):
        text = path.read_text("utf-8")
        try:
            formatted = cedar.format_policies(text, 100, 2).rstrip() + "\n"
        except ValueError as bad:
            raise fail(f"{path}: {bad} (see `licet policy check`)", BAD_POLICY) from None
        if formatted != text:
            changed.append(path)
            if not check_only:
                path.write_text(formatted, "utf-8")
    for path in changed:
        say(f"{'would change' if check_only else 'formatted'} {path}")
    if changed and check_only:
        raise typer.Exit(BAD_POLICY)


@app.command("test")
@reporting
def test(directory: Path | None = Directory, as_json: bool = Json) -> None:
    """Run all cases, then drop each policy in turn to see which no case would miss. Exit code 4 if a case fails."""
    where = _directory(directory)
    with _placed(where):
        compiled = _compile(where)
        found = cases.read_cases(compiled.content.sources.cases)
    results = cases.run(compiled, found)
    failed = [r for r in results if not r.holds]
    unguarded = [] if failed else cases.unguarded(compiled, found)
    idle = cases.idle(compiled)
    told = {
        "cases": [{"file": r.case.file, "line": r.case.line, "case": str(r), "holds": r.holds} for r in results],
        "failed": len(failed),
        "unguarded": unguarded,
        "idle": idle,
    }

    def people() -> None:
        for result in failed:
            say(f"{where}/{result.case.file}:{result.case.line}: {result}", "red")
        say(f"{len(results) - len(failed)} of {len(results)} cases hold", "red" if failed else "green")
        for key in unguarded:
            say(f"every case holds without the policy {key}: add one that only it decides", "yellow")
        for key in idle:
            say(f"{key} decides nothing yet: no tool of the inventory is in its action group", "dim")

    show(told, as_json, people)
    if failed or not results:
        raise typer.Exit(CASES_FAILED)


@app.command("schema")
@reporting
def show_schema(directory: Path | None = Directory) -> None:
    """The complete Cedar schema, with one typed action per tool."""
    sources = bundle.sources_from_files(read_directory(_directory(directory)))
    print(schema.complete(sources.schema, sources.expected))


@app.command("explain")
@reporting
def explain(decision: str = typer.Argument(help="A decision id."), as_json: bool = Json) -> None:
    """Why it was decided so: each policy in scope, each clause with what Cedar made of it."""
    home = load().home
    for root, _, line in ledgers.find_decision(home, decision):
        entry: Any = line.entry
        if getattr(entry, "judgement", None) is None or entry.deed is None:
            continue
        asked, request, world = Judge(root.parent).request(entry.deed, entry.judgement)
        approved = getattr(entry, "approval", None) is not None
        finding, stories = explain_request(asked, request, world, approved=approved)
        told = {
            "decision_id": decision,
            "action": request.action,
            "agent": request.principal.id,
            "outcome": finding.outcome,
            "policies": list(finding.policies),
            "errors": list(finding.errors),
            "stories": [msgspec.to_builtins(story) for story in stories],
        }

        def people() -> None:
            by = f"by {', '.join(finding.policies)}" if finding.policies else "because no policy permits it"
            say(f"{request.principal.id} {request.action}: {finding.outcome} {by}", "bold")
            for story in stories:
                tell(story, finding)

        show(told, as_json, people)
        return
    for _, _, line in ledgers.find_decision(home, decision):
        entry = line.entry
        if getattr(entry, "reason", ""):
            say(f"refused at step {entry.step} before policy was asked: {entry.reason}: {entry.detail}")
            return
    raise fail(f"no ledger below {home} has a decision {decision}", FAILED)


@app.command("bundle")
@reporting
def make_bundle(
    output: Path = typer.Option(..., "-o", help="The file to write."),
    key: Path = typer.Option(..., help="The signing key (made if it is not there)."),
    version: int = typer.Option(1, help="Must be higher than every version before."),
    directory: Path | None = Directory,
    as_json: bool = Json,
) -> None:
    """Check everything, then write a signed bundle to a file."""
    where = _directory(directory)
    with _placed(where):
        compiled = _compile(where)
        cases.require(compiled)
    content = msgspec.structs.replace(compiled.content, version=version)
    sealed = bundle.seal(content, SecretKey.load_or_create(key))
    output.write_bytes(sealed.data)
    told = {"file": str(output), "digest": sealed.digest, "version": version}
    show(told, as_json, lambda: say(f"{output}: version {version}, digest {sealed.digest}"))


@app.command("activate")
@reporting
def activate(
    directory: Path | None = Directory,
    namespace: str = Namespace,
    without: list[str] = typer.Option([], help="A namespace that may be left without policies, if it cannot follow."),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Hand the directory to the gateway: it becomes active if it parses, validates, lints and passes its cases.
    Policies of a namespace come beside those of the mesh, without a schema."""
    where = _directory(directory)
    with _placed(where):
        request = to_request(read_directory(where), namespace)
    try:
        left = {"namespace": namespace, "without": ",".join(without)}
        query = urlencode({name: value for name, value in left.items() if value})
        told = gateway(token_file).call("POST", "/v1/bundles" + (f"?{query}" if query else ""), request).body
    except ApiError as bad:
        if bad.status != 422:
            raise
        found = [str(msgspec.convert(problem, Problem)) for problem in bad.problem["problems"]]
        said = "\n".join(f"{where}/{problem.removeprefix(f':{namespace}/')}" for problem in found)
        said = said or str(bad.problem["rejected"])
        raise fail(f"not activated, the last good bundle stays:\n{said}", BAD_POLICY) from None
    _show_status(told, as_json)


@app.command("rollback")
@reporting
def rollback(namespace: str = Namespace, token_file: Path | None = As, as_json: bool = Json) -> None:
    """Make the policies before the active ones active again, as a new version."""
    try:
        told = gateway(token_file).call("POST", f"/v1/bundles/rollback{_of(namespace)}", {}).body
    except ApiError as bad:
        raise fail(str(bad), BAD_POLICY if bad.status == 422 else FAILED) from None
    _show_status(told, as_json)


@app.command("status")
@reporting
def status(namespace: str = Namespace, token_file: Path | None = As, as_json: bool = Json) -> None:
    """Which bundle is active, since when and until when."""
    _show_status(gateway(token_file).call("GET", f"/v1/bundles{_of(namespace)}").body, as_json)


def _of(namespace: str) -> str:
    return f"?namespace={namespace}" if namespace else ""


def _show_status(told: dict[str, Any], as_json: bool) -> None:
    def people() -> None:
        if told["active"] is None:
            say(told["degraded"], "red")
            return
        rows = [(key, told[key]) for key in ("version", "active", "policies", "servers")]
        rows.append(("until", time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(told["not_after"]))))
        table(("BUNDLE", ""), [(k, json.dumps(v) if not isinstance(v, str) else v) for k, v in rows], "")
        if told["degraded"]:
            say(told["degraded"], "red")

    show(told, as_json, people)
