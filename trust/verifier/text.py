"""Cedar policies as text, read into trees: the grammar of the Cedar Policy Language, version 4."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Tuple

Tree = Tuple[Any, ...]

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
    |(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<number>\d+)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<mark>::|&&|\|\||==|!=|<=|>=|[-+*<>!=.,;:?@(){}\[\]])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:u\{([0-9a-fA-F]{1,6})\}|x([0-7][0-9a-fA-F])|(.))", re.DOTALL)
_SIMPLE = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "\\": "\\", "'": "'", '"': '"'}
_VARIABLES = frozenset(["principal", "action", "resource", "context"])
_MAX = 2**63
_EXTENSIONS = frozenset(["decimal", "ip", "datetime", "duration"])
STAR = None
"""The wildcard in a pattern."""


class Unread(Exception):
    """Text that is no policy this reader knows."""


class Policy:
    """One policy. ``scope``: (principal, action, resource), each a tree; ``conditions``: ("when"|"unless", tree)."""

    def __init__(
        self,
        effect: str,
        annotations: dict[str, str],
        scope: tuple[Tree, ...],
        conditions: tuple[tuple[str, Tree], ...],
    ) -> None:
        self.effect = effect
        self.annotations = annotations
        self.scope = scope
        self.conditions = conditions


def policies(source: str) -> list[Policy]:
    """Every policy in *source*, in order."""
    return _Reader(source).policies()


def tokens(source: str) -> list[tuple[str, str]]:
    """(kind, text) of everything in *source* but space and comments."""
    found = []
    at = 0
    while at < len(source):
        match = _TOKEN.match(source, at)
        if match is None:
            raise Unread(f"unexpected {source[at : at + 20]!r}")
        if match.lastgroup != "space":
            found.append((str(match.lastgroup), match.group()))
        at = match.end()
    return found


def action_groups(schema: str) -> dict[str, list[str]]:
    """Of each action that a Cedar schema declares, the actions that it is declared to be in."""
    return _Reader(schema).action_groups()


class _Reader:
    def __init__(self, source: str) -> None:
        self._tokens = tokens(source)
        self._at = 0

    # Tokens

    def _peek(self, ahead: int = 0) -> tuple[str, str]:
        place = self._at + ahead
        return self._tokens[place] if place < len(self._tokens) else ("end", "")

    def _is(self, text: str, ahead: int = 0) -> bool:
        kind, found = self._peek(ahead)
        return found == text and kind in ("mark", "name")

    def _take(self, text: str) -> bool:
        if self._is(text):
            self._at += 1
            return True
        return False

    def _need(self, text: str) -> None:
        if not self._take(text):
            raise Unread(f"expected {text!r}, found {self._peek()[1]!r}")

    def _next(self, kind: str) -> str:
        found = self._peek()
        if found[0] != kind:
            raise Unread(f"expected a {kind}, found {found[1]!r}")
        self._at += 1
        return found[1]

    # Schemas, as far as actions go

    def action_groups(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        depth = 0
        while self._peek()[0] != "end":
            kind, text = self._peek()
            self._at += 1
            if kind == "mark":
                depth += (text in "({[") - (text in ")}]")
            elif depth == 0 and text == "action" and self._peek()[0] in ("name", "string"):
                names = [self._name()]
                while self._take(","):
                    names.append(self._name())
                above = self._above() if self._take("in") else []
                found.update(dict.fromkeys(names, above))
        return found

    def _name(self) -> str:
        kind, text = self._peek()
        if kind not in ("name", "string"):
            raise Unread(f"expected the name of an action, found {text!r}")
        self._at += 1
        return unescaped(text) if kind == "string" else text

    def _above(self) -> list[str]:
        return self._list("]", self._reference) if self._take("[") else [self._reference()]

    def _reference(self) -> str:
        """The last part of ``Action::"name"`` or of a name alone."""
        name = self._name()
        while self._take("::"):
            name = self._name()
        return name

    # Policies

    def policies(self) -> list[Policy]:
        found = []
        while self._peek()[0] != "end":
            found.append(self._policy())
        return found

    def _policy(self) -> Policy:
        annotations = {}
        while self._take("@"):
            name = self._next("name")
            annotations[name] = ""
            if self._take("("):
                annotations[name] = unescaped(self._next("string"))
                self._need(")")
        effect = self._next("name")
        if effect not in ("permit", "forbid"):
            raise Unread(f"expected permit or forbid, found {effect!r}")
        self._need("(")
        scope = [self._scope("principal")]
        self._need(",")
        scope.append(self._scope("action"))
        self._need(",")
        scope.append(self._scope("resource"))
        self._take(",")
        self._need(")")
        conditions = []
        while not self._take(";"):
            kind = self._next("name")
            if kind not in ("when", "unless"):
                raise Unread(f"expected when or unless, found {kind!r}")
            self._need("{")
            conditions.append((kind, self._expression()))
            self._need("}")
        return Policy(effect, annotations, tuple(scope), tuple(conditions))

    def _scope(self, name: str) -> Tree:
        self._need(name)
        me = ("var", name)
        if self._is("?"):
            raise Unread("templates are not read here")
        if self._take("=="):
            return ("==", me, self._entity())
        if self._take("is"):
            kind = self._path()
            return ("is", me, kind, self._entity() if self._take("in") else None)
        if self._take("in"):
            if self._take("["):
                return ("in", me, ("set", self._list("]", self._entity)))
            return ("in", me, self._entity())
        return ("lit", True)

    def _path(self) -> str:
        parts = [self._next("name")]
        while self._is("::") and self._peek(1)[0] == "name":
            self._at += 1
            parts.append(self._next("name"))
        return "::".join(parts)

    def _entity(self) -> Tree:
        if self._is("?"):
            raise Unread("templates are not read here")
        kind = self._path()
        self._need("::")
        return ("ent", kind, unescaped(self._next("string")))

    def _list(self, end: str, item: Callable[[], Any]) -> list[Any]:
        found = []
        while not self._take(end):
            found.append(item())
            if not self._take(","):
                self._need(end)
                break
        return found

    # Expressions, from the loosest to the tightest

    def _expression(self) -> Tree:
        if self._take("if"):
            condition = self._expression()
            self._need("then")
            yes = self._expression()
            self._need("else")
            return ("if", condition, yes, self._expression())
        left = self._all_of()
        while self._take("||"):
            left = ("||", left, self._all_of())
        return left

    def _all_of(self) -> Tree:
        left = self._relation()
        while self._take("&&"):
            left = ("&&", left, self._relation())
        return left

    def _relation(self) -> Tree:
        left = self._sum()
        for operator in ("==", "!=", "<=", ">=", "<", ">", "in"):
            if self._take(operator):
                return (operator, left, self._sum())
        if self._take("has"):
            if self._peek()[0] == "string":
                return ("has", left, [unescaped(self._next("string"))])
            path = [self._next("name")]
            while self._take("."):
                path.append(self._next("name"))
            return ("has", left, path)
        if self._take("like"):
            return ("like", left, pattern(self._next("string")))
        if self._take("is"):
            kind = self._path()
            return ("is", left, kind, self._sum() if self._take("in") else None)
        return left

    def _sum(self) -> Tree:
        left = self._product()
        while self._is("+") or self._is("-"):
            operator = self._next("mark")
            left = (operator, left, self._product())
        return left

    def _product(self) -> Tree:
        left = self._signed()
        while self._take("*"):
            left = ("*", left, self._signed())
        return left

    def _signed(self) -> Tree:
        if self._take("!"):
            return ("not", self._signed())
        if self._is("-"):
            self._at += 1
            if self._peek()[0] == "number" and int(self._peek()[1]) == _MAX:
                self._at += 1
                return self._accesses(("lit", -_MAX))
            return ("neg", self._signed())
        return self._accesses(self._primary())

    def _accesses(self, found: Tree) -> Tree:
        while True:
            if self._take("."):
                name = self._next("name")
                found = (
                    ("call", found, name, self._list(")", self._expression))
                    if self._take("(")
                    else ("get", found, name)
                )
            elif self._take("["):
                found = ("get", found, unescaped(self._next("string")))
                self._need("]")
            else:
                return found

    def _primary(self) -> Tree:
        kind, text = self._peek()
        if kind == "number":
            self._at += 1
            if int(text) >= _MAX:
                raise Unread(f"{text} does not fit 64 bits")
            return ("lit", int(text))
        if kind == "string":
            self._at += 1
            return ("lit", unescaped(text))
        if self._take("("):
            found = self._expression()
            self._need(")")
            return found
        if self._take("["):
            return ("set", self._list("]", self._expression))
        if self._take("{"):
            pairs = self._list("}", self._pair)
            if len({name for name, _ in pairs}) != len(pairs):
                raise Unread("a record names an attribute twice")
            return ("rec", pairs)
        if kind == "name":
            return self._named(text)
        raise Unread(f"unexpected {text!r}")

    def _pair(self) -> tuple[str, Tree]:
        name = unescaped(self._next("string")) if self._peek()[0] == "string" else self._next("name")
        self._need(":")
        return name, self._expression()

    def _named(self, text: str) -> Tree:
        if text in ("true", "false"):
            self._at += 1
            return ("lit", text == "true")
        if text in _VARIABLES and not self._is("::", 1):
            self._at += 1
            return ("var", text)
        if text in _EXTENSIONS and self._is("(", 1):
            self._at += 2
            return ("ext", text, self._list(")", self._expression))
        return self._entity()


def unescaped(token: str) -> str:
    """What a string literal means."""

    def one(match: re.Match[str]) -> str:
        if match.group(1) is not None:
            return chr(int(match.group(1), 16))
        if match.group(2) is not None:
            return chr(int(match.group(2), 16))
        if match.group(3) not in _SIMPLE:
            raise Unread(f"an escape that is not known: {match.group()}")
        return _SIMPLE[match.group(3)]

    return _ESCAPE.sub(one, token[1:-1])


def pattern(token: str) -> list[str | None]:
    """What a literal after ``like`` means: characters, and :data:`STAR` for each wildcard."""
    found: list[str | None] = []
    at, body = 0, token[1:-1]
    while at < len(body):
        if body[at] == "*":
            found.append(STAR)
            at += 1
        elif body.startswith("\\*", at):
            found.append("*")
            at += 2
        elif body[at] == "\\":
            match = _ESCAPE.match(body, at)
            if match is None:
                raise Unread("a pattern ends in a backslash")
            meant = unescaped(f'"{match.group()}"')
            found.append(STAR if meant == "*" else meant)  # Cedar unescapes first, and then looks for wildcards
            at = match.end()
        else:
            found.append(body[at])
            at += 1
    return found
