"""Reading a directory of policies: parse, name by ``@id``, validate, lint; every complaint with its place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from trust.policy import cedar, terms
from trust.policy.cedar import CedarError, Schema, pst
from trust.policy.positions import Place, Statement, statements
from trust.policy.slicing import context_reads
from trust.policy.terms import BadAnnotation

_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_QUOTED: Final = re.compile(r"`([^`]+)`|variable in the policy scope: (\w+)|condition: (\w+)")
_WORD: Final = re.compile(r"[A-Za-z_]\w*")
_RECORD_ATTRIBUTE: Final = re.compile(r'"?([A-Za-z_]\w*)"?\??\s*:')


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
    """What reading found: ``nodes`` are named by ``@id`` and complete only if ``errors`` is empty."""

    nodes: pst.PolicySet
    sources: Mapping[str, Source]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(p for p in self.problems if p.level == "error")


def read_policies(files: Mapping[str, str], schema_text: str) -> Read:
    """Read policy *files* (name → text) against the complete schema *schema_text*."""
    problems: list[Problem] = []
    schema = _schema(schema_text, problems)
    named: dict[str, pst.Template] = {}
    sources: dict[str, Source] = {}
    for file, text in sorted(files.items()):
        for statement in statements(text):
            source = Source(file, statement)
            node = _parse(source, schema_text, problems)
            if node is not None:
                _name(node, source, named, sources, problems)
    if not any(True for text in files.values() for _ in statements(text)):
        first = min(files, default="policies")
        problems.append(Problem("error", first, 1, 1, "there is no policy", "an empty policy set must not start"))
    for key, node in named.items():
        problems += _lint(node, sources[key])
    if schema is not None:
        for key in named:
            problems += _validate(sources[key], schema, schema_text)
    templates = {key: node for key, node in named.items() if _slots(node)}
    static = {key: node for key, node in named.items() if key not in templates}
    return Read(pst.PolicySet(templates, static, ()), sources, tuple(problems))


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


def _parse(source: Source, schema_text: str, problems: list[Problem]) -> pst.Template | None:
    try:
        nodes = cedar.parse_policies(source.statement.text)
    except CedarError as bad:
        needle = _needle(str(bad), source.statement)
        problems.append(_problem("error", source, _clean(str(bad)), needle, _did_you_mean(needle, _SYNTAX)))
        return None
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
            hint = _did_you_mean(key, terms.KNOWN)
            yield _problem("warning", source, f"@{key} means nothing to Licet", key, hint)
    mode = node.annotations.get("mode", "shadow")
    if mode != "shadow":
        yield _problem("error", source, f'@mode("{mode}") is not known', "mode", 'only @mode("shadow") is')
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
            hint = "add: unless { context.approved }"
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
    if node.effect == "permit" and not node.clauses and _unconstrained(node):
        yield _problem("warning", source, "it permits everything to everybody", "permit")


def _unconstrained(node: pst.Template) -> bool:
    return all(isinstance(c, pst.ScopeAny) for c in (node.principal, node.action, node.resource))


def _validate(source: Source, schema: Schema, schema_text: str) -> Iterable[Problem]:
    """One problem a place: the validator repeats itself for every action that a scope covers."""
    seen: set[Place] = set()
    for invalid in cedar.validate(source.statement.text, schema):
        message = _clean(invalid.message)
        if message.startswith(_NO_ACTION):
            # A group of the schema that no tool belongs to yet; a name that is unknown has its own error.
            hint = "no tool of the inventory belongs to it; the policy matches nothing until one does"
            yield _problem("warning", source, "the action group is empty", "action", hint)
            continue
        needle = _needle(message, source.statement)
        place = source.statement.place(needle)
        if place not in seen:
            seen.add(place)
            yield _problem("error", source, message, needle, _did_you_mean(needle, _known_words(schema_text)))


_NO_ACTION: Final = "unable to find an applicable action"
_GENERAL_WORDS: Final = frozenset({"Action", "args", "context"})
_SYNTAX: Final = frozenset(
    [
        "permit",
        "forbid",
        "when",
        "unless",
        "principal",
        "action",
        "resource",
        "context",
        "in",
        "is",
        "has",
        "like",
        "if",
        "then",
        "else",
        "true",
        "false",
    ]
)


def _known_words(schema_text: str) -> frozenset[str]:
    code = re.sub(r"//[^\n]*", "", schema_text)
    return frozenset(_RECORD_ATTRIBUTE.findall(code)) | frozenset(re.findall(r'"([^"\n]+)"', code))


def _needle(message: str, statement: Statement) -> str:
    """The word of the statement that a message of Cedar is about, as far as the message names one."""
    named = [word for groups in _QUOTED.findall(message) for part in groups for word in _WORD.findall(part)]
    standing = [word for word in named if re.search(rf"\b{re.escape(word)}\b", statement.text)]
    return min(standing, key=_GENERAL_WORDS.__contains__, default="")


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    if not word or word in set(known):
        return ""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else ""


def _clean(message: str) -> str:
    """Cedar's message without positional ids, which mean nothing to an author."""
    return re.sub(r"(?:for|in|of) policy `policy\d+`,?\s*", "", message).strip()
