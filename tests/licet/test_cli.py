"""The command line where no mesh is needed: errors that say what was found, what was expected, what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from licet.cli import app
from tests.mesh import REPOSITORY

runner = CliRunner()


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / "policies", tmp_path / "policies", ignore=shutil.ignore_patterns("__*"))
    return tmp_path / "policies"


def run(*arguments: str, code: int = 0) -> str:
    done = runner.invoke(app, list(arguments))
    assert done.exit_code == code, done.output
    return done.output


def test_the_default_policies_are_fine_formatted_and_guarded(policies: Path) -> None:
    assert "25 policies are fine" in run("policy", "check", str(policies))
    assert "cases hold" in run("policy", "test", str(policies))
    told = json.loads(run("policy", "test", str(policies), "--json"))
    assert told["failed"] == 0
    assert set(told["unguarded"]) <= {"place-anywhere-ready", "no-exfiltration"}


def test_an_error_has_file_line_column_and_hint(policies: Path) -> None:
    (policies / "bad.cedar").write_text(
        '// one\n@id("b")\npermit (principal, action, resource)\nwhen { context.trst.score > 3 };\n'
    )
    output = run("policy", "check", str(policies), code=3)
    assert "bad.cedar:4:16: error: attribute `trst`" in output
    assert "did you mean `trust`?" in output
    found = json.loads(run("policy", "check", str(policies), "--json", code=3))
    assert [(p["file"], p["line"], p["column"]) for p in found if p["level"] == "error"] == [("bad.cedar", 4, 16)]


def test_a_failing_case_exits_with_4(policies: Path) -> None:
    (policies / "more.cedar").write_text('@id("no-reading") forbid (principal, action in Action::"read", resource);')
    output = run("policy", "test", str(policies), code=4)
    assert "expected permit, found refuse by no-reading" in output


def test_formatting_changes_nothing_that_is_decided(policies: Path) -> None:
    run("policy", "fmt", str(policies))
    run("policy", "fmt", "--check", str(policies))
    run("policy", "test", str(policies))
    (policies / "ugly.cedar").write_text(
        '@id("u") permit(principal,action in Action::"fs",resource)when{context.trust.score>999};'
    )
    assert "would change" in run("policy", "fmt", "--check", str(policies), code=3)


def test_a_bundle_is_signed_and_written(policies: Path, tmp_path: Path) -> None:
    told = json.loads(
        run("policy", "bundle", "-o", str(tmp_path / "b"), "--key", str(tmp_path / "key"), "--json", str(policies))
    )
    assert len(told["digest"]) == 64
    assert (tmp_path / "b").read_bytes().count(b"\n") == 1


def test_a_bad_configuration_names_line_found_and_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "licet.toml"
    path.write_text('[gateway]\n\nport = "x"\n')
    monkeypatch.setenv("LICET_CONFIG", str(path))
    said = run("config", "check", code=2)
    assert 'licet.toml:3: [gateway] port: found "x", expected a whole number' in said


def test_the_environment_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "licet.toml").write_text("[gateway]\nport = 1\n")
    monkeypatch.setenv("LICET_CONFIG", str(tmp_path / "licet.toml"))
    monkeypatch.setenv("LICET_GATEWAY__PORT", "2345")
    assert json.loads(run("config", "check", "--json"))["gateway"]["port"] == 2345
    monkeypatch.setenv("LICET_GATEWAY__PORT", "many")
    assert 'LICET_GATEWAY__PORT: [gateway] port: found "many"' in run("config", "check", code=2)


def test_tables_are_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    from licet.cli.output import table

    identifiers = [f"apr_{number:026}" for number in range(3)]
    table(("A", "B", "C"), [(one, one, one) for one in identifiers], "")
    assert capsys.readouterr().out.count(identifiers[0]) == 3


def test_nobody_there_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LICET_HOME", str(tmp_path))
    assert "has the gateway been started here, with this LICET_HOME" in run("agents", "list", code=2)
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "operator.token").write_text("x" * 43)
    monkeypatch.setenv("LICET_GATEWAY_URL", "http://127.0.0.1:9")
    assert "licet check" in run("agents", "list", code=5)
    assert "there is no ledger here" in run("audit", "verify", code=1)
    assert "no such ledger" in run("audit", "tail", code=1)


def test_a_file_that_holds_no_token_is_named_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LICET_HOME", str(tmp_path))
    (tmp_path / "agent.env").write_text("LICET_URL=x\nLICET_TOKEN=very-secret-very-secret\n")
    output = run("approvals", "list", "--as", str(tmp_path / "agent.env"), code=2)
    assert "does not hold the token" in output
    assert "very-secret" not in output


def test_the_inventory_beside_the_policies_is_that_of_the_workbench() -> None:
    from licet.lab.__main__ import inventory

    assert json.loads((REPOSITORY / "policies" / "inventory.json").read_text()) == json.loads(
        json.dumps(inventory())
    ), "run `make inventory`"
