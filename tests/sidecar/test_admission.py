"""Manifests: what an operator says of tools, and how mistakes in it are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.config import ToolServer
from sidecar.node.admission import BadManifest, inventory_of, read_manifest, unlisted
from sidecar.node.upstream import UpstreamFailed

GOOD = '[tools.t]\ncategory = "data"\neffect = "read"\nprivileged = false\nrisk = 1\n'


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (("category", "categry"), ":1: [tools.t] Object contains unknown field `categry`; members are category"),
        (('"read"', '"reed"'), "effect one of read, write, destructive"),
        (("risk = 1", "risk = 9"), "risk from 0 to 3"),
        (('"data"', '"dta"'), "category one of fs, net"),
        (("[tools.t]", "[tool.t]"), "found [tool], expected [tools.NAME]"),
        (("= false", "="), "Invalid value"),
    ],
)
def test_a_mistake_is_named_with_its_tool_and_what_was_expected(
    tmp_path: Path, changed: tuple[str, str], says: str
) -> None:
    path = tmp_path / "m.toml"
    path.write_text(GOOD.replace(*changed))
    with pytest.raises(BadManifest) as bad:
        read_manifest(path)
    assert says in str(bad.value)


def test_a_manifest_of_a_tool_that_is_not_there_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(GOOD + GOOD.replace("tools.t", "tools.typo"))
    config = ToolServer(name="s", url="http://127.0.0.1:1/", manifest=path)
    made = inventory_of(config, [{"name": "t"}, {"name": "other"}])
    assert unlisted(config, made) == ["typo"]
    assert made.tools["other"].manifest.risk == 3, "what the manifest does not mention is taken for the worst"


def test_a_tool_listed_twice_is_refused() -> None:
    with pytest.raises(UpstreamFailed, match="lists the tool t twice"):
        inventory_of(ToolServer(name="s", url="http://127.0.0.1:1/"), [{"name": "t"}, {"name": "t"}])
