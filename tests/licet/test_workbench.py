"""The workbench: no way out of its folder, and programs inside limits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from licet.workbench import processes
from licet.workbench.rooted import MAX_READ_BYTES, Outside, Root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret").write_text("secret")
    (inside / "file").write_text("text")
    (inside / "folder").mkdir()
    (inside / "link-out").symlink_to(tmp_path / "secret")
    (inside / "folder-out").symlink_to(tmp_path)
    (inside / "link-in").symlink_to("file")
    os.mkfifo(inside / "pipe")
    return Root(inside)


WAYS_OUT = [
    "../secret",
    "folder/../../secret",
    "/etc/passwd",
    "link-out",
    "folder-out/secret",
    "link-in",
    "a\0b",
    "..",
    "folder/..",
    "pipe",
    "file/",
    "./file",
    "folder//x",
    "folder/./x",
    "",
]


@pytest.mark.parametrize("path", WAYS_OUT)
def test_no_path_leads_out(root: Root, path: str) -> None:
    for attempt in (
        lambda: root.read(path),
        lambda: (
            root.write(path + ("" if path else "/"), b"x")
            if path not in ("pipe", "link-out", "link-in")
            else root.read(path)
        ),
        lambda: root.delete(path) if path not in ("link-out", "link-in", "pipe") else root.read(path),
        lambda: root.make_folder(path) if path not in ("link-out", "link-in", "pipe") else root.read(path),
    ):
        with pytest.raises((OSError, ValueError)):
            attempt()
    assert (root.path.parent / "secret").read_text() == "secret"


def test_a_link_is_deleted_or_replaced_itself_never_its_target(root: Root) -> None:
    root.delete("link-out")
    root.write("link-in", b"new")
    assert (root.path.parent / "secret").read_text() == "secret"
    assert (root.path / "file").read_text() == "text"
    assert not (root.path / "link-in").is_symlink()


def test_what_is_inside_can_be_used(root: Root) -> None:
    root.write("folder/new", b"1")
    root.make_folder("folder/deep")
    root.move("folder/new", "folder/deep/moved")
    assert root.read("folder/deep/moved") == b"1"
    assert root.list("folder") == ["deep/"]
    assert sorted(root.walk(".")) == ["file", "folder/deep/moved"] + (["pipe"] if "pipe" in root.walk(".") else [])
    with pytest.raises(FileExistsError):
        root.move("file", "folder/deep/moved")
    root.delete("folder/deep/moved")
    root.delete("folder/deep")


def test_a_large_file_is_refused(root: Root) -> None:
    root.write("big", b"x" * (MAX_READ_BYTES + 1))
    with pytest.raises(ValueError, match="larger than"):
        root.read("big")


def test_a_folder_swapped_for_a_link_between_calls_leads_nowhere(root: Root) -> None:
    (root.path / "folder").rmdir()
    (root.path / "folder").symlink_to(root.path.parent)
    with pytest.raises(Outside):
        root.read("folder/secret")


@pytest.mark.slow
async def test_a_program_runs_without_a_shell_and_without_the_world(tmp_path: Path) -> None:
    done = await processes.run(tmp_path, ["echo", "$HOME; id", "|", "cat"], "", 5)
    assert (done.exit_code, done.stdout) == (0, "$HOME; id | cat\n")
    assert done.sandboxed
    outside = await processes.run(tmp_path, ["ls", "/root", "/home", "/etc/passwd"], "", 5)
    assert outside.exit_code != 0
    network = await processes.run(tmp_path, ["cat", "/proc/net/dev"], "", 5)
    assert "eth" not in network.stdout


@pytest.mark.slow
async def test_a_program_is_limited_in_time_output_and_memory(tmp_path: Path) -> None:
    slow = await processes.run(tmp_path, ["sleep", "20"], "", 0.5)
    assert slow.timed_out
    loud = await processes.run(tmp_path, ["head", "-c", "2000000", "/dev/zero"], "", 5)
    assert loud.truncated
    assert len(loud.stdout) <= processes.MAX_OUTPUT_BYTES
    greedy = await processes.run(tmp_path, ["dd", "if=/dev/zero", "of=/dev/null", "bs=2G", "count=1"], "", 10)
    assert greedy.exit_code != 0


async def test_without_a_sandbox_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "sandbox", lambda root: [])
    with pytest.raises(RuntimeError, match="install bubblewrap"):
        await processes.run(tmp_path, ["true"], "", 5)


@pytest.mark.parametrize(("argv", "timeout"), [([], 1), ([""], 1), (["true"], 0), (["true"], 1e9)])
async def test_a_call_that_makes_no_sense_is_refused(tmp_path: Path, argv: list[str], timeout: float) -> None:
    with pytest.raises(ValueError, match=r"argv|timeout"):
        await processes.run(tmp_path, argv, "", timeout)
