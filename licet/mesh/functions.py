"""Functions that a model may call: a Python function, what it is for, and the JSON Schema of its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, overload

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from licet.mesh.endpoint import MeshError


class AIFunction:
    """``name`` is what the model and the mesh know it by; ``tool``: which tool of the mesh it is (``server/tool``), if
    several servers offer one of its name. Calling it runs the function here, as if it were not decorated."""

    def __init__(self, function: Callable[..., Any], name: str, description: str, tool: str) -> None:
        self.function = function
        self.name = name
        self.description = description
        self.tool = tool
        self._parameters = _parameters(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<ai_function {self.tool or self.name}>"

    @property
    def schema(self) -> dict[str, Any]:
        """JSON Schema of the parameters."""
        made = self._parameters.model_json_schema()
        return {**made, "type": "object", "additionalProperties": False}

    def checked(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """*arguments* as the mesh gets them: of the right types, defaults left out; :class:`MeshError` if not."""
        try:
            return self._parameters.model_validate(arguments).model_dump(mode="json", exclude_unset=True)
        except ValidationError as bad:
            first = bad.errors()[0]
            where = ".".join(map(str, first["loc"])) or "arguments"
            raise MeshError(
                f"{self.name}: {where}: {first['msg']}; expected {sorted(self.schema['properties'])}"
            ) from None

    async def here(self, arguments: dict[str, Any]) -> Any:
        """What the function itself returns, in this process."""
        parsed = self._parameters.model_validate(arguments)
        made = self.function(**{name: getattr(parsed, name) for name in type(parsed).model_fields})
        return await made if inspect.isawaitable(made) else made


@overload
def ai_function(function: Callable[..., Any], /) -> AIFunction: ...
@overload
def ai_function(
    *, name: str | None = None, description: str | None = None, tool: str = ""
) -> Callable[[Callable[..., Any]], AIFunction]: ...
def ai_function(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    tool: str = "",
) -> AIFunction | Callable[[Callable[..., Any]], AIFunction]:
    """Mark a function as a tool; *description* is its docstring if there is none."""

    def made(of: Callable[..., Any]) -> AIFunction:
        return AIFunction(of, name or of.__name__, description or inspect.getdoc(of) or "", tool)

    return made(function) if function is not None else made


def _parameters(function: Callable[..., Any]) -> type[BaseModel]:
    """The parameters as a model; those without annotation are texts."""
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise MeshError(f"{function.__name__}: *{parameter.name} has no schema; name each parameter")
        kind = str if parameter.annotation is parameter.empty else parameter.annotation
        fields[parameter.name] = (kind, ... if parameter.default is parameter.empty else parameter.default)
    return create_model(f"{function.__name__}_parameters", __config__=ConfigDict(extra="forbid"), **fields)
