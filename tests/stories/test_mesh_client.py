"""The mesh client against a real mesh: what a model hears, stubs, endpoints outside, and the real Agent Framework."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from agent_framework import Agent
from agent_framework.openai import OpenAIChatClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from licet.client import Answer, ApiError
from licet.mesh import (
    AIFunction,
    ChatAgent,
    Mesh,
    MeshChatClient,
    MeshCredential,
    MeshError,
    MeshManagementClient,
    ai_function,
)
from licet.mesh.calls import STUB, Calls, place_of
from licet.mesh.middleware import MeshFunctionMiddleware
from licet.mesh.scripted import ScriptedModel, play
from licet.mesh.stubs import functions_of
from sidecar.config import ToolServer
from tests.mesh import REPOSITORY, policy_files
from tests.mesh import Mesh as Machines
from trust.canonical import sha256_hex
from trust.ledger.entries import Dispatch, Intent

slow = pytest.mark.slow

PROGRAM = """
from licet.mesh import ai_function

@ai_function(description="Add two numbers")
def add(a: int, b: int = 2) -> int:
    return a + b

if __name__ == "__main__":
    raise SystemExit("this is not run by whoever lists the functions")
"""
STUBS = "\n".join(
    f'[tools.{name}]\ncategory = "data"\neffect = "read"\nprivileged = false\nrisk = 0\ngroups = ["lab"]\n'
    for name in ("add", "report_result")
)


def script(*turns: Any) -> list[dict[str, Any]]:
    return [{"when": "", "turns": [{"call": [t]} if isinstance(t, dict) else {"say": t} for t in turns]}]


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


@ai_function(description="Read a file")
def read_file(path: str) -> str:
    raise AssertionError("this runs on a node, never here")


@ai_function(description="Delete a file")
def delete_file(path: str) -> str:
    raise AssertionError("this runs on a node, never here")


@ai_function(description="Add two numbers")
def add(a: int, b: int = 2) -> int:
    return a + b


class Started:
    """A mesh with the workbench, and one node that offers the functions of a program."""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self.mesh = Mesh(machines.url, machines.sidecar.token)

    def agent(self, model: ScriptedModel, *tools: AIFunction, **properties: Any) -> ChatAgent:
        client = MeshChatClient(model.url, "scripted", "a key", mesh=self.mesh)
        told = {"emit_routing_trace": True, **properties}
        return ChatAgent(client, "test", "work", tools, additional_properties=told)

    def intents(self) -> list[Intent]:
        return [e for e in self.machines.entries() if isinstance(e, Intent)]


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[Started]:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "stubs.toml").write_text(STUBS)
    async with Machines(tmp_path) as machines:
        (machines.sandbox / "notes.txt").write_text("buy milk")
        command = (sys.executable, "-m", "licet.mesh.stubs", str(tmp_path / "program.py"))
        stub = ToolServer(name=STUB, command=command, cwd=REPOSITORY, manifest=tmp_path / "stubs.toml")
        await machines.add_node("laptop", stub, kind="cloud_pc")
        await machines.ready()
        yield Started(machines)


# What a model hears


@slow
async def test_a_call_runs_on_a_node_and_the_model_hears_what_it_said(started: Started) -> None:
    with ScriptedModel(script(call("read_file", path="notes.txt"), "it says: {0}")) as model:
        result = await started.agent(model, read_file).run("what do the notes say?")
    assert result.text == "it says: buy milk"
    [step] = result.routing_trace
    assert (step.tool_name, step.node_id, step.client_stub) == ("workbench/read_file", "node-1", False)
    assert 0 < step.score <= 1
    assert step.latency_ms > 0
    [intent] = started.intents()
    assert intent.deed.run == result.correlation_id


@slow
async def test_a_refusal_is_told_to_the_model_and_ends_nothing(started: Started) -> None:
    with ScriptedModel(script(call("read_file", path="server.pem"), "no: {0}")) as model:
        result = await started.agent(model, read_file).run("read the key")
    told = json.loads(result.text.removeprefix("no: "))
    assert (told["decision"], told["retryable"]) == ("deny", False)
    assert "no-key-files" in told["policy_ids"]
    assert result.routing_trace == []


@slow
async def test_a_call_that_waits_for_a_person_says_so_or_waits(started: Started) -> None:
    machines = started.machines
    (machines.sandbox / "draft.txt").write_text("x")
    with ScriptedModel(script(call("delete_file", path="draft.txt"), "{0}")) as model:
        result = await started.agent(model, delete_file).run("delete it")
        told = json.loads(result.text)
        assert (told["decision"], result.outcomes[0].decision) == ("hold", "hold")
        assert (machines.sandbox / "draft.txt").exists()

        waiting = asyncio.create_task(started.agent(model, delete_file, approval_wait_s=20).run("delete it"))
        async with asyncio.timeout(30):
            while len(found := (await machines.admin("GET", "/v1/approvals?state=pending")).json["approvals"]) < 2:
                await asyncio.sleep(0.05)
        for one in found:
            await machines.vote(one["id"])
        assert (await waiting).text == "deleted draft.txt"


@slow
async def test_a_model_that_calls_what_is_not_there_or_nonsense_is_told_what_is(started: Started) -> None:
    turns = script(call("launch", at="moon"), call("read_file", file="x"), call("read_file", path=7), "{0} {1} {2}")
    with ScriptedModel(turns) as model:
        result = await started.agent(model, read_file).run("do it")
    assert "there is no function launch; there are: read_file" in result.text
    assert "expected ['path']" in result.text
    assert result.text.count("read_file: path") == 2
    assert started.intents() == [], "nothing of it was an action"


@slow
async def test_a_place_narrows_where_calls_run(started: Started) -> None:
    with ScriptedModel(script(call("read_file", path="notes.txt"), "{0}")) as model:
        result = await started.agent(model, read_file, mesh_routing={"kind": "cloud"}).run("read")
    assert json.loads(result.text)["reason"] == "no_eligible_node"


# Stubs: the function runs here, once it is permitted


@slow
async def test_a_stub_runs_here_after_the_permit_and_reports_its_digest(started: Started) -> None:
    with ScriptedModel(script(call("add", a=40), "the sum is {0}")) as model:
        result = await started.agent(model, add).run("add")
    assert result.text == "the sum is 42"
    [step] = result.routing_trace
    assert (step.tool_name, step.client_stub, step.node_id) == ("client-stub/add", True, "laptop")
    permitted, reported = started.intents()
    assert permitted.deed.tool == "add"
    assert reported.deed.tool == "report_result"
    assert reported.deed.arguments == {"decision_id": step.decision_id, "sha256": sha256_hex(b"42")}


@slow
async def test_a_stub_that_nobody_offers_or_policy_refuses_does_not_run(tmp_path: Path) -> None:
    ran = []

    @ai_function(description="Spend")
    def spend(amount: int) -> str:
        ran.append(amount)
        return "spent"

    async with Machines(tmp_path) as machines:
        started = Started(machines)
        with ScriptedModel(script(call("spend", amount=5), "{0}")) as model:
            result = await started.agent(model, spend).run("spend")
        assert "this agent may call no such tool" in result.text
        (tmp_path / "program.py").write_text(
            PROGRAM.replace("add(", "spend(").replace("a: int, b: int = 2", "amount: int")
        )
        command = (sys.executable, "-m", "licet.mesh.stubs", str(tmp_path / "program.py"))
        await machines.add_node(
            "laptop", ToolServer(name=STUB, command=command, cwd=REPOSITORY)
        )  # of nothing is known what it does
        await machines.ready()
        with ScriptedModel(script(call("spend", amount=5), "{0}")) as model:
            result = await started.agent(model, spend).run("spend")
        assert json.loads(result.text)["decision"] == "hold", "what nobody described is taken for the worst"
    assert ran == []


class Says(Mesh):
    """A sidecar that answers as it is told; what it was asked stands in ``asked``."""

    def __init__(self, *answers: Any) -> None:
        self.url, self.answers, self.asked = "http://127.0.0.1:1", list(answers), []

    def tools(self) -> dict[str, dict[str, Any]]:
        return {"client-stub/add": {}}

    def act(self, tool: str, *_: Any) -> Any:
        self.asked.append(tool)
        said = self.answers.pop(0)
        if isinstance(said, Exception):
            raise said
        return said


def stubbed(stub: Any, error: bool = False) -> Answer:
    result = {"isError": error, "content": [], "structuredContent": {"client_stub": stub}}
    return Answer(200, {}, {"decision": "allow", "decision_id": "dec_1", "result": result})


@pytest.mark.parametrize(
    "no",
    [stubbed(True, error=True), stubbed(False), stubbed("true"), ApiError(403, {"reason": "x"}), Answer(202, {}, {})],
)
async def test_a_function_runs_only_if_its_stub_says_so(no: Any) -> None:
    ran = []

    @ai_function(name="add")
    def spy(a: int) -> int:
        ran.append(a)
        return a

    outcome = await Calls(Says(no), "run", {}).do(spy, {"a": 1})
    assert (outcome.decision in ("deny", "hold"), outcome.routed, ran) == (True, None, [])


@pytest.mark.parametrize("lost", [ApiError(403, {}), MeshError("nobody"), Answer(202, {}, {})])
async def test_what_ran_here_is_told_as_having_run_though_it_could_not_be_reported(lost: Any) -> None:
    """Told that it was denied, a model would do it twice."""
    outcome = await Calls(Says(stubbed(True), lost), "run", {}).do(add, {"a": 40})
    assert (outcome.text, outcome.decision, outcome.reported) == ("42", "allow", False)


def test_the_agents_token_goes_to_its_sidecar_and_to_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LICET_URL", "http://127.0.0.1:7410")
    monkeypatch.setenv("LICET_TOKEN", "secret-of-the-agent-123")
    for outside in (
        "https://api.example.com/v1",
        "http://127.0.0.1:7411",
        "https://127.0.0.1:7410",
        "http://127.0.0.1.example.com:7410",
    ):
        with pytest.raises(MeshError, match="give that its own key"):
            MeshChatClient(outside, "m", MeshCredential())
    for own in ("http://127.0.0.1:7410", "http://localhost:7410/", "http://[::1]:7410"):
        assert MeshChatClient(own, "m", MeshCredential())._openai is None, "all names of this machine are the sidecar"


def test_a_program_is_listed_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(PROGRAM)
    [found] = functions_of(tmp_path / "p.py")
    assert (found.name, found.schema["required"]) == ("add", ["a"])


# Endpoints


@slow
async def test_asking_the_model_is_an_action_where_the_endpoint_is_the_mesh(tmp_path: Path) -> None:
    with ScriptedModel(script("hello")) as model:
        manifest = REPOSITORY / "licet" / "mesh" / "models.toml"
        command = (sys.executable, "-m", "licet.mesh.model_server", "--endpoint", model.url, "--model", "small")
        async with Machines(tmp_path) as machines:
            server = ToolServer(name="models", command=command, cwd=REPOSITORY, manifest=manifest)
            await machines.add_node("brain", server)
            await machines.ready()
            mesh = Mesh(machines.url, machines.sidecar.token)
            agent = ChatAgent(MeshChatClient(machines.url, "small", mesh=mesh), "test", "work")
            result = await agent.run("hi")
            assert result.text == "hello"
            [sent] = [e for e in machines.entries("gateway") if isinstance(e, Dispatch)]
            assert (sent.server, sent.tool, sent.node, sent.run) == (
                "models",
                "respond",
                "brain",
                result.correlation_id,
            )
            with pytest.raises(MeshError, match="expected one of small"):
                await ChatAgent(MeshChatClient(machines.url, "large", mesh=mesh)).run("hi")


@slow
async def test_the_management_client_says_what_there_is_and_whose_trail_it_is(started: Started) -> None:
    machines = started.machines
    operator = MeshManagementClient(machines.gateway_url, MeshCredential(machines.tokens["operator"]))

    def manage() -> None:
        made = operator.register_node(
            "edge-1",
            "azure_arc",
            {"gpu": True, "tools": ["analysis/classify"]},
            2.0,
            arc_resource_id="/subscriptions/1/x",
        )
        assert (made.kind, made.health, len(made.enrolment_token) > 20) == ("edge", "not enrolled", True)
        assert made.enrolment_token not in repr(made)
        by_name = {one.node_id: one for one in operator.list_nodes()}
        assert by_name["edge-1"].capabilities == {"gpu": "true"}
        assert (by_name["node-1"].health, by_name["edge-1"].health) == ("healthy", "pending")
        with pytest.raises(MeshError, match="expected one of on_prem"):
            operator.register_node("x", "mainframe")
        with pytest.raises(MeshError, match="no trail of run_nothing"):
            operator.get_audit_trail("run_nothing")

    await asyncio.to_thread(manage)
    assert (await machines.admin("GET", "/v1/nodes/edge-1")).json["reference"] == "/subscriptions/1/x"
    with ScriptedModel(script(call("read_file", path="notes.txt"), "done")) as model:
        run = (await started.agent(model, read_file).run("read")).correlation_id
    trail = await asyncio.to_thread(operator.get_audit_trail, run)
    [hop] = trail.hops
    assert (hop.actor_object_id, hop.node_id, hop.action) == (
        "did:web:licet.local:agents:demo",
        "node-1",
        "workbench/read_file",
    )
    assert hop.purview_record_id.startswith("licet.local/gateway/main#")
    assert all(isinstance(value, str) for value in vars(hop).values())


# What an agent may call, by the native interface


@slow
async def test_the_tools_of_an_agent_are_those_that_it_may_call(started: Started) -> None:
    machines = started.machines
    told = await machines.request("GET", f"{machines.url}/v1/tools", token=machines.sidecar.token)
    names = [tool["name"] for tool in told.json["tools"]]
    assert {"workbench/read_file", "workbench/delete_file", "client-stub/add"} <= set(names)
    assert not [name for name in names if "mcp:" in name]
    assert (await machines.request("GET", f"{machines.url}/v1/tools")).status == 401
    forbidding = policy_files() | {
        "no.cedar": '@id("no") forbid (principal, action == Action::"workbench/read_file", resource);'
    }
    del forbidding["cases/workbench.yaml"], forbidding["cases/rings.yaml"]
    assert (await machines.activate(forbidding)).status == 200
    await machines.ready()
    told = await machines.request("GET", f"{machines.url}/v1/tools", token=machines.sidecar.token)
    assert "workbench/read_file" not in [tool["name"] for tool in told.json["tools"]]


# Microsoft's Agent Framework


@slow
async def test_the_agent_framework_calls_through_the_mesh_with_one_line_more(started: Started) -> None:
    ran = []

    def read_file(path: Annotated[str, Field(description="which")]) -> str:
        """Read a file."""
        ran.append(path)
        return "read here"

    def add(a: int, b: int = 2) -> int:
        """Add two numbers."""
        ran.append(a)
        return a + b

    turns = script(
        call("read_file", path="notes.txt"), call("read_file", path="server.pem"), call("add", a=40), "{0} / {1} / {2}"
    )
    with ScriptedModel(turns) as model:
        through = MeshFunctionMiddleware(started.mesh)
        client = OpenAIChatClient(model="scripted", api_key="k", base_url=model.url)
        agent = Agent(client=client, instructions="work", tools=[read_file, add], middleware=[through])
        result = await agent.run("do it")
    assert " / " in result.text, result.text
    read, refused, added = result.text.split(" / ")
    assert read == "buy milk"
    assert json.loads(refused)["decision"] == "deny"
    assert added == "42"
    assert ran == [40], "only the stub ran here, and after its permit"
    assert [step.tool_name for step in through.routing_trace] == ["workbench/read_file", "client-stub/add"]
    assert {e.deed.run for e in started.intents()} == {through.correlation_id}


# Parts


@given(st.integers(), st.integers())
def test_a_function_is_still_a_function(a: int, b: int) -> None:
    assert add(a, b) == a + b
    assert add.checked({"a": a, "b": b}) == {"a": a, "b": b}
    assert add.checked({"a": a}) == {"a": a}, "what the caller left out is left to the tool"
    assert asyncio.run(add.here({"a": a, "b": b})) == a + b


def test_what_has_no_schema_is_refused_when_it_is_marked() -> None:
    with pytest.raises(MeshError, match="name each parameter"):

        @ai_function
        def anything(*things: str) -> None: ...


@pytest.mark.parametrize("bad", ["office", {"node": "office"}, 7])
def test_a_place_that_is_none_says_what_is(bad: Any) -> None:
    with pytest.raises(MeshError, match=r'expected "auto", or some of kind, pin'):
        place_of(bad)


def test_without_a_sidecar_or_token_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LICET_URL", "LICET_TOKEN", "LICET_MANAGEMENT_TOKEN", "LICET_MANAGEMENT_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MeshError, match="start the program with `licet run"):
        Mesh()
    with pytest.raises(MeshError, match="expected one in \\$LICET_TOKEN"):
        Mesh("http://127.0.0.1:1")
    with pytest.raises(MeshError, match="LICET_MANAGEMENT_TOKEN or \\$LICET_MANAGEMENT_TOKEN_FILE"):
        MeshManagementClient("http://127.0.0.1:1")
    with pytest.raises(MeshError, match="additional_properties speed: expected some of"):
        ChatAgent(
            MeshChatClient("http://127.0.0.1:1/v1", "m", mesh=Mesh("http://127.0.0.1:2", "t" * 20)),
            additional_properties={"speed": 1},
        )


def test_a_script_is_played_by_what_was_said_before() -> None:
    scripts = script(call("one"), call("two", of="{0}"), "{0} {1}")
    items: list[dict[str, Any]] = [{"role": "user", "content": "go"}]
    for expected in ("one", "two"):
        [made] = play(scripts, {"input": items})["output"]
        assert made["name"] == expected
        items += [made, {"type": "function_call_output", "call_id": made["call_id"], "output": f"<{expected}>"}]
    assert json.loads(made["arguments"]) == {"of": "<one>"}
    [said] = play(scripts, {"input": items})["output"]
    assert said["content"][0]["text"] == "<one> <two>"
    [said] = play([{"when": "never", "turns": []}], {"input": "go"})["output"]
    assert "there are scripts for messages with 'never'" in said["content"][0]["text"]
