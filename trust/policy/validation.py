"""What Cedar's strict validator says of one policy, as an author can use it: once, where it is, with a hint.

The validator repeats itself for every action that a scope covers, in no stable order, and gives no positions.
So its messages are merged and sorted; a place is found from the word that a message names, or, for messages
that name none, by asking the validator about each condition alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from trust.policy import cedar
from trust.policy.cedar import Schema, pst
from trust.policy.positions import Statement

_NO_ACTION: Final = "unable to find an applicable action"
_FOR_ACTION: Final = re.compile(r' for Action::"([^"]+)"')
_POSITIONAL: Final = re.compile(r"(?:for|in|of) policy `policy\d+`,?\s*")
_INTERNAL_TYPES: Final = "__cedar::internal::AnyEntity, or __cedar::internal::OpenRecord{}"
_QUOTED: Final = re.compile(r"`([^`]+)`|variable in the policy scope: (\w+)|condition: (\w+)|'([=!<>&|+*-]+)'")
_WORD: Final = re.compile(r"[A-Za-z_]\w*|[=!<>&|+*-]+")
_RECORD_ATTRIBUTE: Final = re.compile(r'"?([A-Za-z_]\w*)"?\??\s*:')
_STRING: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_PRIMITIVE: Final = frozenset({"String", "Long", "Bool", "decimal", "datetime", "ipaddr", "duration"})
_GENERAL_WORDS: Final = frozenset({"Action", "args", "context"})
SYNTAX: Final = frozenset(
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
        "contains",
        "containsAll",
        "containsAny",
        "isEmpty",
        "==",
    ]
)


class Complaint(NamedTuple):
    """``needle``: the word of the statement that it is about, if any."""

    message: str
    needle: str
    hint: str


def complaints(statement: Statement, node: pst.Template, schema: Schema, schema_text: str) -> Iterator[Complaint]:
    """Everything that is wrong with one policy, sorted, one complaint a place."""
    merged = sorted(_merged(statement.text, schema).items())
    known = known_words(schema_text) | SYNTAX if merged else SYNTAX  # a large inventory makes a large schema
    seen: set[object] = set()
    for message, actions in merged:
        needle = needle_of(message, statement) or _culprit(message, statement, node, schema)
        place = statement.place(needle)
        if place not in seen:
            seen.add(place)
            hint = _hint_of_types(message) or _hint_of_entity(message, known) or did_you_mean(needle, known)
            yield Complaint(_with_actions(message, actions), needle, hint)


def _hint_of_types(message: str) -> str:
    """An entity is no string, though it is written with one."""
    types = re.fullmatch(r"the types (\w+) and (\w+) are not compatible", message)
    entity = (
        next((t for t in types.groups() if t not in _PRIMITIVE), "") if types and "String" in types.groups() else ""
    )
    return f'an entity is written {entity}::"name"' if entity else ""


def _hint_of_entity(message: str, known: Iterable[str]) -> str:
    """A name in quotes is compared as a whole."""
    named = re.search(r'(\w+)::"([^"]+)"', message)
    if named is None or not message.startswith("unrecognized"):
        return ""
    close = did_you_mean(named[2], known)
    missing = "is its server in inventory.json? (`licet servers export`)"
    return close if named[1] != "Action" else f"{close} {missing}".strip()


def _merged(text: str, schema: Schema) -> dict[str, list[str]]:
    """Message without its action → the actions that it was said of.

    A group of the schema that no tool belongs to yet is no mistake; a name that is unknown has its own message.
    """
    found: dict[str, list[str]] = {}
    for invalid in cedar.validate(text, schema):
        message = clean(invalid.message)
        if not message.startswith(_NO_ACTION):
            found.setdefault(_FOR_ACTION.sub("", message), []).extend(_FOR_ACTION.findall(message))
    return found


def _with_actions(message: str, actions: list[str]) -> str:
    if not actions:
        return message
    first, *more = sorted(set(actions))
    return f"{message} (for {first}{f' and {len(more)} more' if more else ''})"


def _culprit(message: str, statement: Statement, node: pst.Template, schema: Schema) -> str:
    """The last attribute of the first condition that alone gets the same message."""
    for clause in node.clauses:
        for expression in conjuncts(clause.expr):
            alone = pst.Template(
                node.id, node.effect, node.principal, node.action, node.resource, (pst.When(expression),), {}
            )
            text = str(cedar.policy_set(pst.PolicySet({}, {node.id: alone}, ())))
            if message in _merged(text, schema):
                condition = _STRING.sub("", text[text.index("{") :])
                words = [w for w in re.findall(r"[A-Za-z_]\w*", condition) if w not in SYNTAX | _GENERAL_WORDS]
                standing = [w for w in words if re.search(rf"\b{re.escape(w)}\b", statement.text)]
                return standing[-1] if standing else ""
    return ""


def conjuncts(expression: pst.Expr) -> Iterator[pst.Expr]:
    """*expression* split at its ``&&``."""
    match expression:
        case pst.BinaryOp("and", left, right):
            yield from conjuncts(left)
            yield from conjuncts(right)
        case _:
            yield expression


def known_words(schema_text: str) -> frozenset[str]:
    """Attributes and names that the schema declares."""
    code = re.sub(r"//[^\n]*", "", schema_text)
    return frozenset(_RECORD_ATTRIBUTE.findall(code)) | frozenset(re.findall(r'"([^"\n]+)"', code))


def needle_of(message: str, statement: Statement) -> str:
    """The most specific word of the statement that *message* names, as far as it names one."""
    alone = re.search(r"`(\w+)` has no fields", message)
    if alone is not None and statement.holds(alone[1]):
        return alone[1]
    named = [word for groups in _QUOTED.findall(message) for part in groups for word in reversed(_WORD.findall(part))]
    standing = [word for word in named if statement.holds(word)]
    return min(standing, key=_GENERAL_WORDS.__contains__, default="")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    if not word or word in set(known):
        return ""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else ""


def clean(message: str) -> str:
    """Cedar's message without positional ids and internal types, which mean nothing to an author."""
    return _POSITIONAL.sub("", message).replace(_INTERNAL_TYPES, "an entity or a record").strip()
