"""What is about to be delegated, compared with the tools that there are: a grant that no call can meet is a mistake."""

from __future__ import annotations

import difflib

from trust.identity import constraints
from trust.identity.constraints import Constraint
from trust.identity.delegation import ToolGrants
from trust.policy.arguments import PLAIN_WORDS, Opaque, RecordOf, Scalar, SetOf, Shape, project, shape_of
from trust.policy.inventory import Inventory
from trust.reasons import Reason, Unverifiable, visible


def require_possible(tools: ToolGrants, inventory: Inventory) -> None:
    """Nothing, if every tool exists, and has the arguments that are constrained, of that type; else a message that
    says what there is (:class:`Unverifiable`)."""
    known = {
        f"{server.name}/{tool.name}": tool for server in inventory.servers.values() for tool in server.tools.values()
    }
    for name, arguments in tools.items():
        tool = known.get(name)
        if tool is None:
            near = difflib.get_close_matches(name, known, 3, 0.5)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise Unverifiable(Reason.UNKNOWN_TOOL, f"{visible(name)} is not in the inventory{hint}")
        _require_arguments(name, arguments, shape_of(tool.input_schema))


def _require_arguments(tool: str, arguments: dict[str, Constraint], shape: RecordOf) -> None:
    for name, constraint in arguments.items():
        declared = shape.fields.get(name)
        if declared is not None:
            _require_fits(constraint, declared.shape, f'"{visible(name)}" of {tool}')
        elif not shape.is_open:
            known = f"it has {', '.join(sorted(shape.fields))}" if shape.fields else "it has none"
            raise _mistaken(f'{tool} has no argument "{visible(name)}": {known}')


def _require_fits(constraint: Constraint, shape: Shape, what: str) -> None:
    """Some value of this type meets *constraint*, as far as types tell."""
    match constraint:
        case constraints.Exact(value=value):
            _require_values([value], shape, what)
        case constraints.OneOf(values=values):
            _require_values(values, shape, what)
        case constraints.Range():
            _require_type(shape, what, "a range", ("Long", "decimal"))
        case constraints.Prefix():
            _require_type(shape, what, "a prefix", ("String",))
        case constraints.Contains() | constraints.Subset():
            if not isinstance(shape, SetOf | Opaque):
                raise _mistaken(f"{what} is no list, so its members cannot be constrained")
        case constraints.All(constraints=inner) | constraints.AnyOf(constraints=inner):
            for one in inner:
                _require_fits(one, shape, what)


def _require_values(values: list[object], shape: Shape, what: str) -> None:
    for value in values:
        try:
            project(shape, value, what)  # type: ignore[arg-type]
        except Unverifiable as bad:
            raise _mistaken(bad.detail) from None


def _require_type(shape: Shape, what: str, constraint: str, types: tuple[str, ...]) -> None:
    if isinstance(shape, Opaque) or (isinstance(shape, Scalar) and shape.cedar in types):
        return
    found = (
        PLAIN_WORDS[shape.cedar] if isinstance(shape, Scalar) else "a list" if isinstance(shape, SetOf) else "an object"
    )
    raise _mistaken(f"{what} is {found}, which {constraint} says nothing about")


def _mistaken(detail: str) -> Unverifiable:
    return Unverifiable(Reason.MALFORMED_REQUEST, detail)
