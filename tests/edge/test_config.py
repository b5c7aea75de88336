"""Configuration that cannot be used: each mistake named with its line, what was found and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.config import BadConfig, Source
from licet.settings import SECTIONS, load

MISTAKES = """\
[gatway]
port = 1
[gateway]
port = 70000
[[gateway.credentials]]
server = "git"
header = "X"
value_file = "/nowhere"
[sidecar]
hold_wait_s = -1
prot = 7410
gateway_url = "127.0.0.1:7400"
[node]
lease_ttl_s = "soon"
[[node.servers]]
name = "a"
url = "http://127.0.0.1:1/mcp"
[[node.servers]]
name = "b"
comand = ["x"]
"""


def complaints(path: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    path.write_text(text)
    with pytest.raises(BadConfig) as bad:
        Source(path, environ or {}).sections(SECTIONS)
    return str(bad.value).splitlines()


def test_all_mistakes_are_told_at_once_each_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "licet.toml"
    told = complaints(path, MISTAKES, {"LICET_SIDECAR__PORT": "abc"})
    expected = [
        f"{path}:1: found section [gatway], expected one of gateway, node, sidecar; did you mean gateway?",
        f"{path}:4: [gateway] port: found 70000, expected at most 65535",
        f'{path}:8: [gateway] credentials[0].value_file: found "/nowhere", expected a file that exists',
        'LICET_SIDECAR__PORT: [sidecar] port: found "abc", expected a whole number',
        f"{path}:10: [sidecar] hold_wait_s: found -1, expected more than 0",
        f'{path}:14: [node] lease_ttl_s: found "soon", expected a number',
    ]
    assert [line for line in expected if line not in told] == []
    assert any(line.startswith(f"{path}:11: ") and line.endswith("did you mean port?") for line in told)
    assert any(line.startswith(f"{path}:12: ") and "without path" in line for line in told)
    assert any(line.startswith(f"{path}:20: ") and line.endswith("did you mean command?") for line in told)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[gateway\n", "not TOML"),
        ("gateway = 3\n", "expected a section [gateway]"),
        ('[gateway]\nhost = ""\n', "text that is not empty"),
        ("[gateway]\nport = 1.5\n", "a whole number"),
        ("[gateway]\nhostnames = 3\n", "a list"),
        ("[node]\nheartbeat_s = 9\n", "at most half of lease_ttl_s"),
        ('[[node.servers]]\nname = "x"\n', "either command or url"),
        ('[[node.servers]]\nname = "x"\nurl = "mcp"\n', "an address such as"),
        ('[[node.servers]]\nname = "a b"\nurl = "http://h/"\n', "letters, digits"),
        ('[[node.servers]]\nurl = "http://h/"\n', "servers[0].name: found nothing, expected a value"),
        ('[[node.servers]]\nname = "x"\ncommand = ["x"]\ncwd = "/nowhere"\n', "a directory that exists"),
    ],
)
def test_values_are_refused_in_our_own_words(tmp_path: Path, text: str, says: str) -> None:
    (told,) = complaints(tmp_path / "licet.toml", text)
    assert says in told


def test_processes_that_would_collide_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "licet.toml").write_text("[sidecar]\nport = 7400\n")
    with pytest.raises(BadConfig, match=r"\[gateway\] and \[sidecar\] both listen on 127.0.0.1:7400"):
        load()
    (tmp_path / "licet.toml").write_text('[sidecar]\nhome = ".licet/gateway"\n')
    with pytest.raises(BadConfig, match="expected different directories"):
        load()


def test_what_documentation_shows_is_accepted(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")
    example = document.split("```toml\n")[1].split("```")[0]
    for name in ("git.toml", "github"):
        (tmp_path / name).write_text("x")
    example = example.replace("git.toml", str(tmp_path / "git.toml")).replace(
        "/run/secrets/github", str(tmp_path / "github")
    )
    for folder in ("/srv/code", "/srv/repository"):
        (tmp_path / folder.rpartition("/")[2]).mkdir()
        example = example.replace(f'["{folder}"]', f'["{tmp_path / folder.rpartition("/")[2]}"]')
    (tmp_path / "licet.toml").write_text(example)
    made = Source(tmp_path / "licet.toml", {}).sections(SECTIONS)
    assert [server.name for server in made["node"].servers] == ["git", "tickets"]  # type: ignore[attr-defined]


def test_a_complaint_about_several_keys_shows_none_of_their_values() -> None:
    from sidecar.config import SidecarConfig

    environ = {
        "LICET_SIDECAR__GATEWAY_URL": "https://127.0.0.1:7400",
        "LICET_SIDECAR__ENROLMENT_TOKEN": "very-secret-token",
    }
    with pytest.raises(BadConfig) as bad:
        Source(None, environ).sections({"sidecar": SidecarConfig})
    assert "very-secret-token" not in str(bad.value)
    assert "LICET_SIDECAR__GATEWAY_URL" in str(bad.value)
    assert "gateway_ca" in str(bad.value)
