"""The architecture, executable: who may import whom, what is pure, one door per dependency, who mints a permit."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from tests.house import PACKAGES, REPOSITORY, Module, drawn, modules
from tests.test_promises_break import BREAKS

MAY_IMPORT = {
    "trust": {"trust"},
    "edge": {"edge", "trust"},
    "gateway": {"gateway", "edge", "trust"},
    "sidecar": {"sidecar", "edge", "trust"},
    "licet": {"licet", "gateway", "sidecar", "edge", "trust"},
}
"""The arrows. Gateway and sidecar never import each other."""

NOT_IN_TRUST = {
    "socket",
    "asyncio",
    "time",
    "random",
    "secrets",
    "subprocess",
    "aiohttp",
    "urllib",
    "http",
    "ssl",
    "selectors",
    "sqlite3",
}
"""trust has no sockets, no clock, no randomness of its own, no environment."""

DOORS = {
    "cedarpy": {"trust.policy.cedar"},
    "cryptography": {"trust.identity.keys", "trust.personal", "gateway.authority"},
    "jwt": {"trust.identity.jws", "trust.identity.oauth"},
    "webauthn": {"trust.identity.passkeys"},
    "base58": {"trust.identity.keys"},
    "rfc8785": {"trust.canonical"},
    "crc32c": {"trust.ledger.frames"},
    "yaml": {"trust.policy.cases"},
    "aiohttp": {"edge.http", "edge.client", "edge.reverse"},
    "yarl": {"edge.client", "edge.reverse"},
    "uvloop": {"edge.run"},
    "pydantic": {"edge.config", "gateway.config", "sidecar.config", "licet.mesh.functions"},
    "openai": {"licet.mesh.chat", "licet.mesh.model_server"},
    "agent_framework": {"licet.mesh.middleware"},
    "sqlite3": {"gateway.store", "gateway.index", "gateway.subjects"},
    "asyncpg": {"gateway.postgres"},
    "redis": {"edge.shared"},
    "duckdb": {"gateway.duck"},
    "opentelemetry": {"edge.otlp"},
    "prometheus_client": {"edge.metrics"},
    "jinja2": {"gateway.console.pages"},
    "numpy": {"trust.product", "sidecar.node.multiplying"},
    "mcp": {
        "licet.workbench.server",
        "licet.workbench.service",
        "licet.demo",
        "licet.lab.__main__",
        "licet.lab.servers",
        "licet.mesh.model_server",
        "licet.mesh.stubs",
    },
}
"""One module, or a stated few, per outside library."""

MINTS_PERMITS = "trust.verdict"
FORWARDS = {"sidecar.forward": "forward"}
DISK = {"trust.ledger.disk", "trust.ledger.segments", "trust.ledger.tiles", "trust.ledger.log", "trust.identity.keys"}
"""The only modules of trust that touch files."""

ALL = list(modules().values())


@pytest.mark.parametrize("module", ALL, ids=lambda m: m.name)
def test_every_module_says_what_it_is_in_one_line(module: Module) -> None:
    assert module.line, f"{module.name} has no docstring"
    assert module.line.endswith((".", ":", "?"))
    assert len(module.line) <= 120


@pytest.mark.parametrize("module", ALL, ids=lambda m: m.name)
def test_the_arrows_point_one_way(module: Module) -> None:
    ours = {name.partition(".")[0] for name in module.imports} & set(PACKAGES)
    assert ours <= MAY_IMPORT[module.package], f"{module.name} imports {ours - MAY_IMPORT[module.package]}"


@pytest.mark.parametrize("module", [m for m in ALL if m.package == "trust"], ids=lambda m: m.name)
def test_trust_is_pure(module: Module) -> None:
    assert not {name.partition(".")[0] for name in module.imports} & NOT_IN_TRUST
    source = module.path.read_text()
    assert "os.environ" not in source
    assert module.name == "trust.identity.keys" or "urandom" not in source
    if module.name not in DISK:
        assert not {name.partition(".")[0] for name in module.imports} & {"os", "fcntl", "tempfile"}, (
            "only the ledger and keys touch files"
        )
        assert not re.search(r"\bopen\(", source.replace("._open(", "")) or module.name in DISK


def test_each_dependency_has_its_doors() -> None:
    for library, doors in DOORS.items():
        importers = {m.name for m in ALL if any(n.partition(".")[0] == library for n in m.imports)}
        assert importers == doors, library


def test_the_command_line_starts_without_what_servers_need() -> None:
    asked = "import sys, licet.cli.agents, licet.cli.approvals, licet.cli.asking; print('aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_duckdb_runs_in_a_process_of_its_own() -> None:
    """It is started by its path: nobody imports it, least of all who holds a key."""
    assert not {m.name for m in ALL if "gateway.duck" in m.imports}
    asked = "import sys, gateway.app, sidecar.app, licet.cli; print('duckdb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_permits_are_minted_in_one_place() -> None:
    minting = {
        m.name
        for m in ALL
        for node in ast.walk(m.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
        and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr) == "Permit"
    }  # fmt: skip
    assert minting == {MINTS_PERMITS}


def test_nothing_is_forwarded_without_a_permit() -> None:
    for name, function in FORWARDS.items():
        found = [
            n for n in ast.walk(modules()[name].tree) if isinstance(n, ast.AsyncFunctionDef) and n.name == function
        ]
        arguments = {a.arg: ast.unparse(a.annotation) for a in found[0].args.args if a.annotation}
        assert arguments["permit"] == "Permit"
    dispatching = {m.name for m in ALL if '"/v1/dispatch"' in m.path.read_text()}
    assert dispatching == {"sidecar.forward", "gateway.api.workloads"}
    executing = {m.name for m in ALL if "/v1/execute" in ast.unparse(_without_docstrings(m.tree))}
    assert executing == {"gateway.attempts", "sidecar.node.app"}


def _without_docstrings(tree: ast.Module) -> ast.Module:
    class Strip(ast.NodeTransformer):
        def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
            return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node

    return ast.fix_missing_locations(Strip().visit(ast.parse(ast.unparse(tree))))


@pytest.mark.parametrize("module", ALL, ids=lambda m: m.name)
def test_nothing_is_safe_by_assert_and_nothing_is_left_for_somebody(module: Module) -> None:
    assert not [n for n in ast.walk(module.tree) if isinstance(n, ast.Assert)], "assert disappears under -O"
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b", module.path.read_text())
    assert module.path.stem not in {"utils", "helpers", "common_utils", "models", "misc"}


def test_every_break_of_a_promise_finds_the_line_that_it_breaks() -> None:
    """The breaks themselves run in the soak; that they would break something is known here."""
    gone = [name for name, (file, old, _, _) in BREAKS.items() if (REPOSITORY / file).read_text().count(old) != 1]
    assert not gone


def test_the_map_in_the_readme_is_current() -> None:
    assert drawn() in (REPOSITORY / "README.md").read_text(), "run `make map`"


def test_the_readmes_table_of_changes_names_things_that_exist() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    section = readme.partition("## I want to change")[2].partition("\n## ")[0]
    named = re.findall(r"`([\w./-]+\.(?:py|cedar|yaml|toml|cedarschema))`", section)
    assert len(named) >= 10
    for name in named:
        assert (REPOSITORY / name).exists(), name


def test_everything_the_readme_links_to_exists() -> None:
    for document in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} → {target}"


def test_the_house_imports_under_optimisation() -> None:
    subprocess.run(
        [sys.executable, "-OO", "-c", "import gateway.app, sidecar.app, sidecar.node.app, licet.cli"],
        check=True,
        cwd=REPOSITORY,
    )


def test_no_registry_host_stands_in_the_repository() -> None:
    hosts = ("pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "debian" + ".org", "proxy.golang" + ".org")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in listed:
        path = REPOSITORY / name
        if path.is_file() and path.suffix not in (".png",):
            text = path.read_text("utf-8", "replace")
            assert not [host for host in hosts if host in text], name
