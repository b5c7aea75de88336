"""``make bench``: what Licet costs, as ratios within one run on one machine, beside a bare pass-through.

Every part is a process of its own, pinned to a core: what is measured has one core, load and everything behind it
the other. Rounds of the things that are compared alternate, and medians are taken, because machines are noisy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console
from rich.table import Table

from edge.clock import SystemClock, new_nonce
from edge.durable import DurableLedger
from edge.run import calm_the_collector
from gateway.candidate import read_directory, to_request
from gateway.router.choice import choose
from gateway.router.measured import Measured
from licet.client import Api
from loadtests import million
from trust.identity import httpsig, wit
from trust.identity.keys import SecretKey
from trust.identity.replay import Nonces
from trust.identity.wit import Workload
from trust.ledger.entries import Outcome
from trust.policy.bundle import Content, Sources, compile_bundle
from trust.policy.cedar import Uid
from trust.policy.engine import Request
from trust.policy.inventory import Inventory, Manifest, Server, Tool, pin

REPOSITORY = Path(__file__).resolve().parent.parent
SUBJECT, REST = 1, 0
"""Cores: what is measured, and everything else."""


def percentiles(took: list[float]) -> dict[str, float]:
    ordered = sorted(took)
    return {"p50_us": ordered[len(ordered) // 2] * 1e6, "p99_us": ordered[int(len(ordered) * 0.99)] * 1e6}


def timed(call: Callable[[], object], count: int) -> dict[str, float]:
    took = []
    for _ in range(count):
        begin = time.perf_counter()
        call()
        took.append(time.perf_counter() - begin)
    return percentiles(took)


# Policy, identity, ledger: in this process


def bundle_of(policies: int, in_slice: int = 20) -> Any:
    """A bundle with *policies* policies, about *in_slice* of which concern one agent."""
    schema = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
    tool = Tool("read", pin("read", "", schema), schema, Manifest("fs", "read", False, 0, ()))
    agents = max(1, policies // in_slice)
    text = "\n".join(
        f'@id("p{i}") permit(principal == Agent::"a{i % agents}", action in Action::"fs", resource) '
        f'when {{ context.args.path like "/x{i}/*" && context.trust.score > 300 }};'
        for i in range(policies)
    )
    base = (REPOSITORY / "policies" / "schema.cedarschema").read_text()
    inventory = Inventory({"s": Server("s", {"read": tool})})
    return compile_bundle(Content(1, 0, 2**40, Sources(base, {"bench.cedar": text}, {}), inventory), "bench")


def measure_choice(nodes: int = 1000, count: int = 20_000) -> float:
    """One choice among so many nodes that all have been measured: microseconds, the median of five rounds."""
    measured = Measured()
    names = [f"n{number:04}" for number in range(nodes)]
    for number, name in enumerate(names):
        measured.know(name, "cloud", 16, 1.0)
        for at in range(number % 7 + 1):
            measured.started(name, str(at), number)
        measured.succeeded(name, "0", "s/t", 90_000 + number)

    rounds = []
    for number in range(5):
        begin = time.perf_counter()
        for seed in range(count):
            choose(names, measured.seer("s/t", 5_000_000), seed * 7919 + number)
        rounds.append((time.perf_counter() - begin) / count * 1e6)
    return statistics.median(rounds)


def measure_policy(sizes: list[int], count: int) -> dict[str, Any]:
    """Facts in memory to verdict."""
    found = {}
    for size in sizes:
        bundle = bundle_of(size)
        owner = {"__entity": {"type": "Human", "id": "h"}}
        attributes = {"owner": owner, "purpose": "", "environment": "", "attested": False}
        world = bundle.engine.world([{"uid": {"type": "Agent", "id": "a0"}, "attrs": attributes, "parents": []}])
        zero = {"minute": 1, "hour": 1, "day": 1, "tool_minute": 1, "tool_hour": 1, "tool_day": 1}
        context = {
            "args": {"path": "/x0/file"},
            "trust": {"score": 400, "tier": "probation", "ring": 3},
            "run": {"id": "r", "calls": 1, "denied": 0, "labels": [], "spent_cents": 0, "seconds": 1},
            "rate": zero,
            "authority": {"principal": owner, "depth": 0, "scopes": []},
            "now": {"__extn": {"fn": "datetime", "arg": "2026-01-01T00:00:00Z"}},
            "risk": 0,
        }
        request = Request(Uid("Agent", "a0"), "s/read", Uid("Server", "s"), context)
        finding = bundle.engine.evaluate(request, world)
        if finding.outcome != "permit":
            raise SystemExit(f"the benchmark's policy answers {finding}")
        slice_size = len(bundle.engine.in_scope(request, world))
        found[str(size)] = {"slice": slice_size, **timed(lambda: bundle.engine.evaluate(request, world), count)}  # noqa: B023
    return found


def measure_identity(count: int) -> dict[str, Any]:
    """One request, signed and verified: in the strong form (WIT already verified and cached), and in a session."""
    key, now = SecretKey.generate(), int(time.time())
    workload = Workload("bench.test", "agent", "a", "did:web:bench.test:agents:a", key.public, 1, now + 600)
    token = wit.issue(workload, now=now, token_id="t", key=key)
    asked = httpsig.Request("POST", "g:1", "/v1/dispatch", [("content-type", "application/x")], b"x" * 1500)

    def sign() -> dict[str, str]:
        return httpsig.sign(asked, wit=token, key=key, audience="g", created=now, nonce=new_nonce())

    signed = httpsig.Request(asked.method, asked.authority, asked.target, [*asked.headers, *sign().items()], asked.body)
    secret = bytes(range(32))
    added = httpsig.mac(asked, session="ses_1", key=secret, audience="g", created=now, nonce=new_nonce())
    maced = httpsig.Request(asked.method, asked.authority, asked.target, [*asked.headers, *added.items()], asked.body)
    nonces = Nonces()

    def authenticate() -> None:
        """Everything that a session request costs its receiver; the nonces differ, as they do in life."""
        claim = httpsig.read(maced, audience="g", now=now)
        httpsig.prove(claim, maced, secret)
        nonces.spend(new_nonce(), claim.expires_at, now)

    return {
        "sign": timed(sign, count),
        "verify": timed(lambda: httpsig.verify(signed, key=key.public, audience="g", now=now), count),
        "session": timed(authenticate, count),
    }


def measure_ledger(writers: list[int], count: int) -> dict[str, Any]:
    """Awaited appends of 600-byte entries from *writers* tasks at once."""

    async def measure(home: Path, tasks: int) -> dict[str, float]:
        key = SecretKey.generate()
        ledger = DurableLedger(home, origin="bench/ledger/x", key=key, clock=SystemClock())
        entry = Outcome("act_" + "a" * 26, "dec_" + "d" * 26, "run", "done", detail="x" * 400)
        took: list[float] = []

        async def write() -> None:
            for _ in range(count // tasks):
                begin = time.perf_counter()
                await ledger.append(entry)
                took.append(time.perf_counter() - begin)

        begin = time.perf_counter()
        await asyncio.gather(*(write() for _ in range(tasks)))
        elapsed = time.perf_counter() - begin
        await ledger.close()
        return {**percentiles(took), "per_s": len(took) / elapsed}

    sys.setswitchinterval(0.0005)
    found = {}
    for tasks in writers:
        with tempfile.TemporaryDirectory(dir=REPOSITORY) as home:
            found[str(tasks)] = asyncio.run(measure(Path(home), tasks))
    return found


# Whole processes


@contextmanager
def part(name: str, core: int | str, log: Path, **given: Any) -> Iterator[tuple[int, int]]:
    """(port, process id) of a started part."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "loadtests.parts", name, str(core), json.dumps(given)],
            stdout=subprocess.PIPE,
            stderr=out,
            cwd=REPOSITORY,
        )
    try:
        line = process.stdout.readline() if process.stdout else b""
        if not line.strip().isdigit():
            raise SystemExit(f"{name} did not start:\n{log.read_text()[-2000:]}")
        yield int(line), process.pid
    finally:
        process.terminate()
        process.wait(10)


def load(port: int, request: bytes, connections: int, seconds: float) -> dict[str, float]:
    given = {"port": port, "request": request.hex(), "connections": connections, "seconds": seconds}
    made = subprocess.run(
        [sys.executable, "-m", "loadtests.parts", "load", str(REST), json.dumps(given)],
        capture_output=True,
        cwd=REPOSITORY,
        check=True,
        timeout=seconds + 60,
    )
    found: dict[str, float] = json.loads(made.stdout)
    if found["bad"]:
        raise SystemExit(f"{found['bad']} of {found['count']} requests were not answered with 200")
    return found


PATHS: Final = ("direct", "pass_through", "three_pass_throughs", "full_path")
BODY = json.dumps({"tool": "bench/echo", "args": {"text": "hello"}}).encode()


def http(port: int, path: str, body: bytes, token: str = "") -> bytes:
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{bearer}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


MANIFEST = '[tools.echo]\ncategory = "data"\neffect = "read"\nprivileged = false\nrisk = 0\nlabels = []\n'
POLICY = (
    '@id("bench") permit(principal, action in Action::"server/bench", resource) when { context.trust.score >= 300 };\n'
)


def prepare(home: Path, gateway_port: int, policies: int) -> tuple[Api, str, str]:
    """Policies, an agent and a node; (operator's API, agent's and node's enrolment tokens)."""
    api = Api(f"http://127.0.0.1:{gateway_port}", (home / "operator.token").read_text().strip())
    for name in ("approver-1", "approver-2"):
        api.call("POST", "/v1/people", {"name": name, "roles": ["operations"]})
    node = api.call("POST", "/v1/nodes", {"name": "bench-node", "servers": ["bench"]}).body["enrolment_token"]
    agent = api.call("POST", "/v1/agents", {"name": "bench", "owner": "ada"}).body["enrolment_token"]
    files = {k: v for k, v in read_directory(REPOSITORY / "policies").items() if not k.startswith("cases/")}
    # The benchmark is a newcomer that calls without a pause: its ring's rate is asked as always, and never reached.
    files["rings.cedar"] = files["rings.cedar"].replace(
        "context.rate.minute >= 600", "context.rate.minute >= 1000000000"
    )
    files["bench.cedar"] = POLICY + "\n".join(
        f'@id("filler{i}") permit(principal == Agent::"other{i}", action in Action::"fs", resource);'
        for i in range(policies)
    )
    request = to_request(files)
    echo_schema = {"type": "object", "properties": {"text": {"type": "string"}}}
    manifest = Manifest("data", "read", False, 0, ())
    tool = Tool("echo", pin("echo", "Echo.", echo_schema), echo_schema, manifest, "Echo.")
    from trust.policy.inventory import to_json

    request["sources"]["expected"]["servers"]["bench"] = to_json(Server("bench", {"echo": tool}))
    api.call("POST", "/v1/bundles", request)
    return api, agent, node


def wait_ready(port: int, token: str) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            answer = Api(f"http://127.0.0.1:{port}", token).call("POST", "/v1/actions", json.loads(BODY))
            if answer.status == 200:
                return
        except Exception as bad:
            last = bad
            time.sleep(0.1)
    raise SystemExit(f"the sidecar does not answer: {last}")


def measure_mesh(seconds: float, rounds: int, actions: int) -> dict[str, Any]:
    """The sidecar alone against a bare pass-through, the full path against direct, and memory."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=REPOSITORY) as work, ExitStack() as stack:
        home, log = Path(work), Path(work) / "log"
        (home / "bench.toml").write_text(MANIFEST)
        start = stack.enter_context
        tool, _ = start(part("tool", REST, log))
        url = f"http://127.0.0.1:{tool}/mcp"
        served = {"tool": url, "manifest": str(home / "bench.toml")}

        # What the first gateway still has to index would be measured with the second: it ends with its part.
        with ExitStack() as alone_only:
            begin = alone_only.enter_context
            instant, _ = begin(part("instant", REST, log, home=str(home / "instant")))
            _, agent, node = prepare(home / "instant", instant, 1000)
            # The instant gateway needs the tool in its inventory, so a node joins it once.
            gateway_url = f"http://127.0.0.1:{instant}"
            begin(part("node", REST, log, home=str(home / "n0"), gateway=gateway_url, token=node, **served))
            alone, pid = begin(part("sidecar", SUBJECT, log, home=str(home / "s0"), gateway=gateway_url, token=agent))
            bare, _ = begin(part("pass", SUBJECT, log, target=f"{gateway_url}/v1/dispatch"))
            token = (home / "s0" / "agent.token").read_text().strip()
            wait_ready(alone, token)
            governed_request, bare_request = http(alone, "/v1/actions", BODY, token), http(bare, "/", BODY)
            for connections in (1, 16):
                pairs = [
                    (
                        load(bare, bare_request, connections, seconds),
                        load(alone, governed_request, connections, seconds),
                    )
                    for _ in range(rounds)
                ]
                found[f"sidecar_{connections}"] = compared(pairs)

            found["memory"] = measure_memory(pid, lambda: load(alone, governed_request, 16, 1.0), actions)

        gateway, _ = start(part("gateway", REST, log, home=str(home / "g1")))
        _, agent, node = prepare(home / "g1", gateway, 1000)
        gateway_url = f"http://127.0.0.1:{gateway}"
        start(part("node", SUBJECT, log, home=str(home / "n1"), gateway=gateway_url, token=node, **served))
        full, _ = start(part("sidecar", SUBJECT, log, home=str(home / "s1"), gateway=gateway_url, token=agent))
        through, _ = start(part("pass", SUBJECT, log, target=url))
        second, _ = start(part("pass", REST, log, target=f"http://127.0.0.1:{through}/"))
        third, _ = start(part("pass", SUBJECT, log, target=f"http://127.0.0.1:{second}/"))
        token = (home / "s1" / "agent.token").read_text().strip()
        wait_ready(full, token)
        call = b'{"jsonrpc":"2.0","id":"x","method":"tools/call","params":{"name":"echo","arguments":{"text":"hello"}}}'
        runs = [
            (
                load(tool, http(tool, "/mcp", call), 1, seconds),
                load(through, http(through, "/", call), 1, seconds),
                load(third, http(third, "/", call), 1, seconds),
                load(full, http(full, "/v1/actions", BODY, token), 1, seconds),
            )
            for _ in range(rounds)
        ]
        names = PATHS
        found["path"] = {n: medians([run[i] for run in runs]) for i, n in enumerate(names)}
        found["path"]["added_p50_ms"] = found["path"]["full_path"]["p50_ms"] - found["path"]["direct"]["p50_ms"]
        found["path"]["added_p99_ms"] = found["path"]["full_path"]["p99_ms"] - found["path"]["direct"]["p99_ms"]
    return found


def compared(pairs: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, Any]:
    bare, governed = medians([p[0] for p in pairs]), medians([p[1] for p in pairs])
    ratio = statistics.median(g["rate"] / b["rate"] for b, g in pairs)
    return {"bare": bare, "governed": governed, "ratio": ratio}


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in ("rate", "p50_ms", "p99_ms")}


def measure_memory(pid: int, some: Callable[[], dict[str, float]], actions: int) -> dict[str, Any]:
    """Resident memory of the sidecar (1,000 policies) as actions go by."""
    process = psutil.Process(pid)
    done, samples = 0.0, []
    while done < actions:
        done += some()["count"]
        samples.append((int(done), process.memory_info().rss / 2**20))
    return {"actions": int(done), "first_mb": samples[0][1], "last_mb": samples[-1][1], "samples": samples}


# What is shown


def least_ms(found: dict[str, Any]) -> float:
    """What the promises alone cost on the full path on these libraries, whatever the code around them: two entries that
    are durable before anything leaves, two policy checks, a request and a ticket authenticated within a session, and
    three times HTTP in and out. Medians, in milliseconds."""
    path = found["path"]
    hops = path["three_pass_throughs"]["p50_ms"] - path["direct"]["p50_ms"]
    entry, check, session = found["ledger"]["1"], found["policy"]["1000"], found["identity"]["session"]
    return float(hops + 2 * (entry["p50_us"] + check["p50_us"] + session["p50_us"]) / 1000)


def rows(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(what, measured, aim, holds)."""
    policy, ledger, path = found["policy"], found["ledger"], found["path"]
    sixteen, memory = found["sidecar_16"], found["memory"]

    def row(what: str, value: float, form: str, aim: float, below: bool) -> tuple[str, str, str, str]:
        holds = value <= aim if below else value >= aim
        return what, form.format(value), f"{'≤' if below else '≥'} {form.format(aim)}", "yes" if holds else "no"

    made = [
        row(
            "governed sidecar / bare pass-through, 16 connections, requests per s",
            sixteen["ratio"],
            "{:.2f}",
            0.5,
            False,
        ),
        ("governed sidecar / bare pass-through, 1 connection", f"{found['sidecar_1']['ratio']:.2f}", "", ""),
        (
            "full path adds / three bare pass-throughs in a row add, 1 connection, p50",
            f"{path['added_p50_ms'] / (path['three_pass_throughs']['p50_ms'] - path['direct']['p50_ms']):.1f}",
            "",
            "",
        ),
        row("full path adds to direct, 1 connection, p50", path["added_p50_ms"], "{:.2f} ms", 1.0, True),
        row("full path adds to direct, 1 connection, p99", path["added_p99_ms"], "{:.2f} ms", 5.0, True),
        (
            "  of which three pass-throughs, two durable entries, two policy checks and two MACs take",
            f"{least_ms(found):.2f} ms",
            "",
            "",
        ),
    ]
    for size, one in policy.items():
        if size == "10000":
            made.append(
                row(
                    f"policy check, {size} policies ({one['slice']} in the slice), p99",
                    one["p99_us"],
                    "{:.0f} µs",
                    100,
                    True,
                )
            )
        else:
            made.append(
                (f"policy check, {size} policies ({one['slice']} in the slice), p99", f"{one['p99_us']:.0f} µs", "", "")
            )
    made += [
        row("ledger, 16 writers, p50", ledger["16"]["p50_us"] / 1000, "{:.2f} ms", 0.5, True),
        row("ledger, 64 writers, durable entries per s", ledger["64"]["per_s"], "{:,.0f}", 50_000, False),
        row(
            f"sidecar memory after {memory['actions']:,} actions, 1,000 policies",
            memory["last_mb"],
            "{:.0f} MB",
            150,
            True,
        ),
        ("  growth since the first second", f"{memory['last_mb'] - memory['first_mb']:+.1f} MB", "", ""),
        row("router, one choice at 1,000 nodes, median", found["router"], "{:.1f} µs", 10, True),
        row("request authentication on a session, p99", found["identity"]["session"]["p99_us"], "{:.0f} µs", 50, True),
        ("strong request authentication, verify p99", f"{found['identity']['verify']['p99_us']:.0f} µs", "", ""),
        ("strong request signature, sign p99", f"{found['identity']['sign']['p99_us']:.0f} µs", "", ""),
    ]
    large = found["million"]
    for what, name in (
        ("by agent", "by_agent_ms"),
        ("by run", "by_run_ms"),
        ("by decision", "by_decision_ms"),
        ("by time range", "by_time_ms"),
        ("refused deletions by agents of one owner in a day", "refused_deletions_of_one_owner_ms"),
    ):
        made.append(row(f"{large['entries']:,} entries, found {what}, median", large[name], "{:.1f} ms", 100, True))
    made += [
        row("  verified, entries per s", large["verify_per_s"], "{:,.0f}", 50_000, False),
        row("  memory that reading a log from end to end takes", large["tailing"]["grown_mb"], "{:.1f} MB", 16, True),
        ("  put into the index, entries per s", f"{large['fill_per_s']:,.0f}", "", ""),
    ]
    for name, one in (("bare pass-through", sixteen["bare"]), ("governed sidecar", sixteen["governed"])):
        made.append(
            (
                f"  {name}, 16 connections",
                f"{one['rate']:,.0f}/s, p50 {one['p50_ms']:.2f} ms, p99 {one['p99_ms']:.2f} ms",
                "",
                "",
            )
        )
    for name in PATHS:
        one = path[name]
        made.append(
            (
                f"  {name.replace('_', ' ')}, 1 connection",
                f"p50 {one['p50_ms']:.2f} ms, p99 {one['p99_ms']:.2f} ms",
                "",
                "",
            )
        )
    return made


def draw(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(16, 3.8))
    sizes = list(found["policy"])
    axes[0].plot(sizes, [found["policy"][s]["p50_us"] for s in sizes], "o-", label="p50")
    axes[0].plot(sizes, [found["policy"][s]["p99_us"] for s in sizes], "s--", label="p99")
    axes[0].set(title="policy check", xlabel="policies", ylabel="µs", ylim=(0, None))
    axes[0].legend()
    names = ["bare\npass-through", "governed\nsidecar"]
    axes[1].bar(names, [found["sidecar_16"][k]["rate"] for k in ("bare", "governed")], color=["#999", "#2a6"])
    axes[1].set(title=f"16 connections: ratio {found['sidecar_16']['ratio']:.2f}", ylabel="requests/s")
    kinds = PATHS
    axes[2].bar(
        [k.replace("_", "\n") for k in kinds],
        [found["path"][k]["p50_ms"] for k in kinds],
        color=["#999", "#999", "#999", "#2a6"],
    )
    axes[2].set(title="one connection", ylabel="p50 ms")
    samples = found["memory"]["samples"]
    axes[3].plot([s[0] for s in samples], [s[1] for s in samples])
    axes[3].set(title="sidecar memory", xlabel="actions", ylabel="MB", ylim=(0, 200))
    figure.tight_layout()
    figure.savefig(path, dpi=80)


DOCUMENT = REPOSITORY / "docs" / "performance.md"
BEGIN, END = "<!-- figures: written by `make bench` -->", "<!-- end of figures -->"


def write_document(found: dict[str, Any]) -> None:
    """Put the table into docs/performance.md."""
    machine = found["machine"]
    lines = [
        BEGIN,
        f"`make bench` on {machine['cores']} cores, Python {machine['python']}, Linux {machine['kernel']}:",
        "",
        "| what | measured | aim | holds |",
        "|---|---|---|---|",
        *(f"| {what.strip()} | {measured} | {aim} | {holds} |" for what, measured, aim, holds in rows(found)),
        END,
    ]
    text = DOCUMENT.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    DOCUMENT.write_text(before + "\n".join(lines) + rest.partition(END)[2], "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--actions", type=int, default=100_000, help="before memory is read the last time")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build" / "bench.json")
    parser.add_argument("--picture", type=Path, default=REPOSITORY / "docs" / "performance.png")
    asked = parser.parse_args()
    console = Console()
    found: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()},
        "command": "make bench",
    }
    os.sched_setaffinity(0, {SUBJECT % (os.cpu_count() or 1)})
    calm_the_collector()
    console.print("policy, identity, ledger …")
    found["router"] = measure_choice()
    found["policy"] = measure_policy([10, 100, 1000, 10_000], 5000)
    found["identity"] = measure_identity(2000)
    found["ledger"] = measure_ledger([1, 16, 64], 40_000)
    os.sched_setaffinity(0, set(range(os.cpu_count() or 1)))
    console.print("the mesh …")
    found |= measure_mesh(asked.seconds, asked.rounds, asked.actions)
    console.print("a million entries …")
    found["million"] = million.measure()
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(found, indent=1))
    draw(found, asked.picture)
    table = Table("what", "measured", "aim", "holds", box=None)
    for one in rows(found):
        table.add_row(*one)
    console.print(table)
    write_document(found)
    console.print(f"written: {asked.output}, {asked.picture}")


if __name__ == "__main__":
    main()
