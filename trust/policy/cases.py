"""Cases: what policy must answer, written beside the policies, run before a bundle may become active.

A case file is YAML. ``agents`` names agents with their attributes; ``now`` freezes time; each case says who,
does what, with which facts, and what is expected. A list under ``each`` makes one case per combination.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import msgspec
import yaml

from trust.facts import Agent, Facts, Mandate, Rate, Run
from trust.policy import judge, schema
from trust.policy.bundle import BundleRejected, Compiled
from trust.policy.lint import Problem
from trust.policy.slicing import action_keys
from trust.policy.validation import did_you_mean
from trust.reasons import Unverifiable
from trust.standing.score import NEWCOMER, Standing

OF_NODES: Final = {"place", "admit"}
"""The action that placement policies are about; cases are about tools."""
Expectation = Literal["permit", "hold", "refuse"]
MAX_CASES: Final = 5_000
"""Of one bundle: whoever activates something for the same namespace waits for them."""


class AgentCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    owner: str = "somebody"
    purpose: str = ""
    environment: str = "development"
    teams: tuple[str, ...] = ()
    attested: bool = False


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    expect: Expectation
    agent: str = ""
    action: str = ""
    args: dict[str, Any] = {}
    trust: int = NEWCOMER
    labels: tuple[str, ...] = ()
    calls: int = 0
    denied: int = 0
    rate: int = 0
    in_flight: int = 0
    spent_cents: int = 0
    principal: str = ""
    depth: int = 0
    approved: bool = False
    policies: tuple[str, ...] | None = None
    each: dict[str, list[Any]] = {}


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cases: list[_Written]
    agents: dict[str, AgentCase] = msgspec.field(default_factory=lambda: {"agent": AgentCase()})
    now: datetime.datetime = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True)
class Case:
    """One combination, ready to run."""

    file: str
    name: str
    agent: Agent
    written: _Written
    now_s: int
    line: int


@dataclass(frozen=True, slots=True)
class Result:
    """``found`` is what policy answered; ``policies`` which decided."""

    case: Case
    found: Expectation
    policies: tuple[str, ...]
    detail: str

    @property
    def holds(self) -> bool:
        wanted = self.case.written.policies
        return self.found == self.case.written.expect and (wanted is None or set(wanted) == set(self.policies))

    def __str__(self) -> str:
        by = ", ".join(self.policies) or "no policy"
        state = "ok  " if self.holds else "FAIL"
        return f"{state} {self.case.name}: expected {self.case.written.expect}, found {self.found} by {by}" + (
            f" ({self.detail})" if self.detail else ""
        )


_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C where there is one: cases are read whenever a node joins."""


def read_cases(files: Mapping[str, str]) -> list[Case]:
    """All cases of *files* (name → YAML), or :class:`BundleRejected`."""
    found: list[Case] = []
    for file, text in sorted(files.items()):
        for case in _read_file(file, text):
            found.append(case)
            if len(found) > MAX_CASES:
                told = f"there are more than {MAX_CASES} cases, every combination counted; ask for fewer"
                raise BundleRejected([Problem("error", file, case.line, 1, told)])
    return found


def _read_file(file: str, text: str) -> Iterator[Case]:
    try:
        tree = yaml.compose(text, Loader=_Loader)
        written = msgspec.convert(yaml.load(text, Loader=_Loader), _File, strict=False)  # noqa: S506 (both are safe)
        for number, one in enumerate(written.cases):
            yield from _expand(file, written, one, _place(tree, f"$.cases[{number}]")[0])
    except yaml.YAMLError as bad:
        mark = getattr(bad, "problem_mark", None)
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise BundleRejected([Problem("error", file, line, column, str(bad).splitlines()[0])]) from None
    except msgspec.ValidationError as bad:
        message, _, path = str(bad).partition(" - at `")
        problem = Problem("error", file, *_place(tree, path.rstrip("`")), message, _hint(message))
        raise BundleRejected([problem]) from None


def _hint(message: str) -> str:
    """What could have been meant."""
    if "enum value" in message:
        return f"expected one of {', '.join(get_args(Expectation))}"
    unknown = re.search(r"unknown field `(\w+)`", message)
    known = sorted({field.name for kind in (_Written, AgentCase, _File) for field in msgspec.structs.fields(kind)})
    return did_you_mean(unknown[1], known) if unknown else ""


def _place(tree: yaml.Node | None, path: str) -> tuple[int, int]:
    """Line and column of what *path* (``$.cases[3].expect``) names, or of what it is in."""
    node, mark = tree, tree.start_mark if tree is not None else None
    for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        if isinstance(node, yaml.MappingNode):
            node = next((value for name, value in node.value if name.value == key), None)
        elif isinstance(node, yaml.SequenceNode) and index:
            node = node.value[int(index)]
        else:
            node = None
        if node is None:
            break
        mark = node.start_mark
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)


def _expand(file: str, whole: _File, one: _Written, line: int) -> Iterator[Case]:
    keys = list(one.each)
    for values in itertools.product(*one.each.values()):
        chosen = dict(zip(keys, values, strict=True))
        plain = msgspec.convert({**msgspec.to_builtins(one), **chosen, "each": {}}, _Written, strict=False)
        who = plain.agent or next(iter(whole.agents))
        if who not in whole.agents:
            message = f'the case "{one.name}" names the agent "{who}", which is not under agents'
            raise BundleRejected([Problem("error", file, line, 1, message, did_you_mean(who, whole.agents))])
        given = whole.agents[who]
        agent = Agent(
            who,
            f"did:example:{who}",
            given.owner,
            given.purpose,
            given.environment,
            given.teams,
            given.attested,
        )
        suffix = " [" + ", ".join(f"{k}={v}" for k, v in chosen.items()) + "]" if chosen else ""
        yield Case(file, one.name + suffix, agent, plain, int(whole.now.timestamp()), line)


def run(bundle: Compiled, cases: Iterable[Case]) -> list[Result]:
    """Every case against *bundle*."""
    return [_run(bundle, case) for case in cases]


def _run(bundle: Compiled, case: Case) -> Result:
    written = case.written
    server, _, tool_name = written.action.partition("/")
    each = written.rate
    rate = Rate(each, each, each, each, each, each, written.in_flight)
    run_facts = Run("run_case", written.calls, written.denied, written.labels, written.spent_cents, 0)
    try:
        tool = bundle.content.typed_inventory.tool(server, tool_name)
        mandate = Mandate(written.principal or case.agent.owner, ("case",) * written.depth)
        facts = Facts(
            case.agent, Standing.at_once(written.trust), run_facts, rate, mandate, case.now_s, tool.manifest.risk
        )
        finding = judge.evaluate(bundle, tool, written.args, facts, server, approved=written.approved)
    except Unverifiable as bad:
        return Result(case, "refuse", (), f"{bad.reason}: {bad.detail}")
    return Result(case, finding.outcome, finding.policies, "; ".join(finding.errors))


def require(bundle: Compiled) -> list[Result]:
    """All cases of *bundle* hold, or :class:`BundleRejected` names those that do not."""
    results = run(bundle, read_cases(bundle.content.sources.cases))
    failed = [r for r in results if not r.holds]
    if failed:
        raise BundleRejected([Problem("error", r.case.file, r.case.line, 1, str(r)) for r in failed])
    return results


def unguarded(bundle: Compiled, cases: list[Case]) -> list[str]:
    """The policies that no case would miss: dropped one at a time, and every case still holds."""
    reachable = _reached(bundle)
    return [key for key in reachable if all(r.holds for r in run(bundle.without(key), cases))]


def idle(bundle: Compiled) -> list[str]:
    """The policies that decide nothing now, because no tool of the inventory is in their action groups."""
    reachable = {*_reached(bundle), *_reached(bundle, OF_NODES)}
    return sorted(key for key in bundle.read.nodes.static_policies if key not in reachable)


def _reached(bundle: Compiled, names: set[str] | None = None) -> list[str]:
    """The policies whose action scope covers one of *names*: by default the tools and their groups."""
    if names is None:
        names = {
            name
            for server in bundle.content.typed_inventory.servers.values()
            for tool in server.tools.values()
            for name in (schema.action_name(server.name, tool.name), *schema.groups_of(server.name, tool))
        }
    nodes = {**bundle.read.nodes.static_policies, **bundle.read.nodes.templates}
    return [
        key for key, node in nodes.items() if any(uid is None or uid.id in names for uid in action_keys(node.action))
    ]
