"""Reading a directory of policies: parse, name by ``@id``, validate, lint; every complaint with its place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal

from trust.policy import cedar, terms
from trust.policy.cedar import CedarError, Schema, pst
from trust.policy.positions import Statement, statements
from trust.policy.slicing import context_reads
from trust.policy.terms import BadAnnotation
from trust.policy.validation import SYNTAX, clean, complaints, did_you_mean, needle_of
from trust.standing.rules import SEVERITIES

_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One complaint about one policy file."""

    level: Literal["error", "warning"]
    file: str
    line: int
    column: int
    message: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f"\n    hint: {self.hint}" if self.hint else ""
        return f"{self.file}:{self.line}:{self.column}: {self.level}: {self.message}{hint}"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a policy came from."""

    file: str
    statement: Statement


@dataclass(frozen=True, slots=True)
class Read:
    """What reading found: ``nodes`` are named by ``@id`` and complete only if ``errors`` is empty, and only then
    ``schema`` is there for sure."""

    nodes: pst.PolicySet
    sources: Mapping[str, Source]
    problems: tuple[Problem, ...]
    schema: Schema | None

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(p for p in self.problems if p.level == "error")


def read_policies(files: Mapping[str, str], schema_text: str, *, validated: bool = False) -> Read:
    """Read policy *files* (name → text) against the complete schema *schema_text*. *validated*: they were, which takes
    most of the time."""
    problems: list[Problem] = []
    schema = _schema(schema_text, problems)
    named: dict[str, pst.Template] = {}
    sources: dict[str, Source] = {}
    for file, text in sorted(files.items()):
        for statement in statements(text):
            source = Source(file, statement)
            node = _parse(source, problems)
            if node is not None:
                _name(node, source, named, sources, problems)
    if not any(True for text in files.values() for _ in statements(text)):
        first = min(files, default="policies")
        problems.append(Problem("error", first, 1, 1, "there is no policy", "an empty policy set must not start"))
    for key, node in named.items():
        problems += _lint(node, sources[key])
    if schema is not None and not validated:
        for key, node in named.items():
            for found in complaints(sources[key].statement, node, schema, schema_text):
                problems.append(_problem("error", sources[key], found.message, found.needle, found.hint))
    templates = {key: node for key, node in named.items() if _slots(node)}
    static = {key: node for key, node in named.items() if key not in templates}
    return Read(pst.PolicySet(templates, static, ()), sources, tuple(problems), schema)


def _schema(text: str, problems: list[Problem]) -> Schema | None:
    try:
        return cedar.parse_schema(text)
    except CedarError as bad:
        problems.append(Problem("error", "schema.cedarschema", 1, 1, str(bad)))
        return None


def _problem(
    level: Literal["error", "warning"], source: Source, message: str, needle: str = "", hint: str = ""
) -> Problem:
    place = source.statement.place(needle)
    return Problem(level, source.file, place.line, place.column, message, hint)


def _parse(source: Source, problems: list[Problem]) -> pst.Template | None:
    try:
        return _node(source.statement.text)
    except CedarError as bad:
        message = clean(str(bad))
        swallowed = source.statement.second_head() if message.startswith("unexpected token") else None
        if swallowed is not None:
            hint = "a semicolon is missing before this"
            problems.append(Problem("error", source.file, swallowed.line, swallowed.column, message, hint))
        elif message.startswith("unexpected end of input"):
            end = source.statement.end()
            hint = "every policy ends with a semicolon, every brace is closed"
            problems.append(Problem("error", source.file, end.line, end.column, message, hint))
        else:
            needle = needle_of(message, source.statement)
            problems.append(_problem("error", source, message, needle, did_you_mean(needle, SYNTAX)))
        return None


@lru_cache(maxsize=20_000)
def _node(text: str) -> pst.Template:
    """One statement; most of them stand in several editions, and in the next one too."""
    nodes = cedar.parse_policies(text)
    return next(iter((*nodes.static_policies.values(), *nodes.templates.values())))


def _name(
    node: pst.Template,
    source: Source,
    named: dict[str, pst.Template],
    sources: dict[str, Source],
    problems: list[Problem],
) -> None:
    key = node.annotations.get("id", "")
    if not _ID.fullmatch(key):
        message = f'"{key}" is not an id' if key else "the policy has no @id"
        problems.append(_problem("error", source, message, "@id" if key else "", 'begin it with @id("a-unique-name")'))
    elif key in named:
        other = sources[key]
        where = f"{other.file}:{other.statement.place().line}"
        problems.append(_problem("error", source, f'the id "{key}" is used twice', key, f"first in {where}"))
    else:
        named[key] = replace(node, id=key)
        sources[key] = source


def _slots(node: pst.Template) -> bool:
    return any(
        isinstance(getattr(constraint, "entity", None), pst.Slot) for constraint in (node.principal, node.resource)
    )


def _lint(node: pst.Template, source: Source) -> Iterable[Problem]:
    for key in node.annotations:
        if key not in terms.KNOWN:
            hint = did_you_mean(key, terms.KNOWN)
            yield _problem("warning", source, f"@{key} means nothing to Licet", key, hint)
    mode = node.annotations.get("mode", "shadow")
    if mode != "shadow":
        yield _problem("error", source, f'@mode("{mode}") is not known', "mode", 'only @mode("shadow") is')
    severity = node.annotations.get("severity", "minor")
    if severity not in SEVERITIES:
        expected = f"expected one of {', '.join(SEVERITIES)}"
        yield _problem("error", source, f'@severity("{severity}") is not known; {expected}', "severity")
    elif "severity" in node.annotations and node.effect != "forbid":
        yield _problem("warning", source, "@severity is read of a forbid only", "severity")
    reads = context_reads(pst.PolicySet({}, {node.id: node}, ()))
    reads_approved = reads is None or "approved" in reads
    if "approval" in node.annotations:
        try:
            terms.parse_terms(node.annotations["approval"])
        except BadAnnotation as bad:
            yield _problem(
                "error", source, f"@approval: {bad}", "approval", 'such as @approval("of=operations ttl=15m")'
            )
        if not reads_approved:
            hint = f"add: {_WAITING[node.effect]} {{ context.approved }}"
            yield _problem(
                "warning",
                source,
                "@approval has no effect: the policy never reads context.approved",
                "approval",
                hint,
            )
    elif reads_approved:
        hint = 'add @approval("of=<role>") so that somebody can approve'
        yield _problem("error", source, "it reads context.approved but has no @approval", "approved", hint)
    for clause in node.clauses:
        inverted = pst.Unless if node.effect == "permit" else pst.When
        if isinstance(clause, inverted) and _is_approved(clause.expr):
            wrong = f"this {node.effect} waits for a person the wrong way round"
            yield _problem("error", source, wrong, "approved", f"{_WAITING[node.effect]} {{ context.approved }}")
    if node.effect == "permit" and not node.clauses and _unconstrained(node):
        yield _problem("warning", source, "it permits everything to everybody", "permit")


_WAITING: Final = {"permit": "when", "forbid": "unless"}
"""How a policy of each effect waits for a person."""


def _is_approved(expression: pst.Expr) -> bool:
    match expression:
        case pst.GetAttr(pst.Var("context"), "approved"):
            return True
    return False


def _unconstrained(node: pst.Template) -> bool:
    return all(isinstance(c, pst.ScopeAny) for c in (node.principal, node.action, node.resource))
