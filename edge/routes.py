"""Routes: which function answers which method and path. What no route matches is refused like anything else."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

from edge.http import Incoming, StreamResponse
from trust.reasons import Reason, Unverifiable, visible

_PARAMETER: Final = re.compile(r"\{([a-z_]+)\}")

RouteHandler = Callable[..., Awaitable[StreamResponse]]
"""Called with the request and the path's parameters by name."""


class Routes:
    """Parameters match one path segment of letters, digits and ``_.-``."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, RouteHandler]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, RouteHandler]]] = []

    def add(self, method: str, path: str, handler: RouteHandler) -> None:
        if "{" not in path:
            self._exact.setdefault(path, {})[method] = handler
            return
        pattern = re.compile(_PARAMETER.sub(r"(?P<\1>[A-Za-z0-9_.-]{1,128})", path))
        for known, methods in self._patterns:
            if known.pattern == pattern.pattern:
                methods[method] = handler
                return
        self._patterns.append((pattern, {method: handler}))

    def find(self, incoming: Incoming) -> Callable[[], Awaitable[StreamResponse]]:
        """What answers *incoming*, or :class:`Unverifiable`."""
        methods, parameters = self._match(incoming.path)
        handler = methods.get(incoming.method)
        if handler is None:
            raise Unverifiable(
                Reason.METHOD_NOT_ALLOWED, f"{visible(incoming.method)}; accepted: {', '.join(sorted(methods))}"
            )
        return lambda: handler(incoming, **parameters)

    def _match(self, path: str) -> tuple[dict[str, RouteHandler], dict[str, str]]:
        exact = self._exact.get(path)
        if exact is not None:
            return exact, {}
        for pattern, methods in self._patterns:
            match = pattern.fullmatch(path)
            if match is not None:
                return methods, match.groupdict()
        raise Unverifiable(Reason.NOT_FOUND, visible(path))
