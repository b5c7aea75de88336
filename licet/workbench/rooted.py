"""Files below one folder, with no way out: not by ``..``, not by links, not by a race between check and use.

Every path is walked one component at a time from a descriptor of the root, without following links, so what
was opened is what was named.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

MAX_READ_BYTES: Final = 1 << 20
MAX_LISTED: Final = 2000
_STEP: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Outside(PermissionError):
    """The path does not lie inside the root, or passes through a link."""


class Root:
    """One folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve(strict=True)
        self._fd = os.open(self.path, _STEP)

    @contextmanager
    def parent(self, path: str) -> Iterator[tuple[int, str]]:
        """A descriptor of the folder that holds *path*, and the last name in it."""
        parts = _parts(path)
        if not parts:
            raise Outside(f"{path!r} is the root itself")
        with self._folder(parts[:-1], path) as fd:
            yield fd, parts[-1]

    @contextmanager
    def _folder(self, parts: list[str], path: str) -> Iterator[int]:
        fd = os.dup(self._fd)
        try:
            for part in parts:
                try:
                    inner = os.open(part, _STEP, dir_fd=fd)
                except NotADirectoryError:
                    raise Outside(f"{path!r}: {part!r} is not a folder (links are not followed)") from None
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    def read(self, path: str) -> bytes:
        with self.parent(path) as (folder, name):
            fd = _open(name, os.O_RDONLY, folder, path)
            with os.fdopen(fd, "rb") as file:
                data = file.read(MAX_READ_BYTES + 1)
        if len(data) > MAX_READ_BYTES:
            raise ValueError(f"{path!r} is larger than {MAX_READ_BYTES} bytes")
        return data

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file, in one step."""
        with self.parent(path) as (folder, name):
            temporary = f".{name}.{os.urandom(4).hex()}.tmp"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(_open(temporary, flags, folder, path), "wb") as file:
                file.write(data)
            os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)

    def delete(self, path: str) -> None:
        """A file, or an empty folder."""
        with self.parent(path) as (folder, name):
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)

    def move(self, source: str, destination: str) -> None:
        with self.parent(source) as (from_fd, old), self.parent(destination) as (to_fd, new):
            if _exists(new, to_fd):
                raise FileExistsError(f"{destination!r} exists already")
            os.rename(old, new, src_dir_fd=from_fd, dst_dir_fd=to_fd)

    def make_folder(self, path: str) -> None:
        with self.parent(path) as (folder, name):
            os.mkdir(name, dir_fd=folder)

    def list(self, path: str) -> list[str]:
        """Names in one folder, folders with a trailing slash, links with ``@``."""
        with self._folder(_parts(path), path) as fd:
            found = [_shown(entry) for entry in os.scandir(fd)]
        return sorted(found)[:MAX_LISTED]

    def walk(self, path: str) -> Iterator[str]:
        """Every file below *path*, links left out."""
        stack = [PurePosixPath(*_parts(path))]
        while stack:
            folder = stack.pop()
            for name in self.list(str(folder)):
                if name.endswith("/"):
                    stack.append(folder / name[:-1])
                elif not name.endswith("@"):
                    yield str(folder / name)


def _parts(path: str) -> list[str]:
    if "\0" in path or path.startswith("/"):
        raise Outside(f"{path!r}: expected a path relative to the root")
    if path == ".":
        return []
    parts = path.split("/")
    if ".." in parts:
        raise Outside(f"{path!r} leads outside of the root")
    if "" in parts or "." in parts:
        # A second way to write a path would be a way around a policy that knows the first.
        raise Outside(f"{path!r}: expected a plain relative path, without empty or dot parts")
    return parts


def _open(name: str, flags: int, folder: int, path: str) -> int:
    try:
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o644, dir_fd=folder)
    except OSError as bad:
        if os.path.islink(name) or bad.errno == 40:
            raise Outside(f"{path!r} is a link; links are not followed") from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Outside(f"{path!r} is not a regular file")
    return fd


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _shown(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return entry.name + "@"
    return entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name
