"""The workbench's tools, on the official MCP SDK."""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from licet.workbench import processes
from licet.workbench.network import AllowList, Network
from licet.workbench.rooted import Root

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _plainly(tool: Callable[_P, _R]) -> Callable[_P, _R]:
    """What the file system says of a call is an answer for the agent, not a crash of the server."""

    @wraps(tool)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return tool(*args, **kwargs)
        except OSError as bad:
            raise ToolError(f"{bad.strerror}: {bad.filename}" if bad.strerror else str(bad)) from None
        except ValueError as bad:
            raise ToolError(str(bad)) from None

    return wrapped


def build(root_path: Path, hosts: tuple[str, ...] = ()) -> MCPServer:
    """An MCP server over the folder *root_path* and the network as far as *hosts*."""
    root, network = Root(root_path), Network(AllowList(hosts))
    server = MCPServer(
        "licet-workbench",
        instructions="Files and processes in one folder, requests to hosts that are allowed. Paths are relative.",
        version="1",
        log_level="ERROR",
    )

    @server.tool()
    @_plainly
    def read_file(path: str) -> str:
        """Read a text file (at most 1 MiB)."""
        return root.read(path).decode("utf-8", "replace")

    @server.tool()
    @_plainly
    def list_directory(path: str = ".") -> list[str]:
        """List a folder; folders end with a slash, links with an @."""
        return root.list(path)

    @server.tool()
    @_plainly
    def search_files(pattern: str, path: str = ".") -> list[str]:
        """Find files below a folder by a shell pattern such as *.txt."""
        return sorted(p for p in root.walk(path) if fnmatch.fnmatch(p.rsplit("/", 1)[-1], pattern))

    @server.tool()
    @_plainly
    def write_file(path: str, content: str) -> str:
        """Create or replace a text file."""
        root.write(path, content.encode("utf-8"))
        return f"wrote {len(content.encode('utf-8'))} bytes to {path}"

    @server.tool()
    @_plainly
    def make_directory(path: str) -> str:
        """Create a folder."""
        root.make_folder(path)
        return f"created {path}"

    @server.tool()
    @_plainly
    def move_file(source: str, destination: str) -> str:
        """Rename or move a file; an existing destination is not replaced."""
        root.move(source, destination)
        return f"moved {source} to {destination}"

    @server.tool()
    @_plainly
    def delete_file(path: str) -> str:
        """Delete a file or an empty folder."""
        root.delete(path)
        return f"deleted {path}"

    @server.tool()
    async def run_process(argv: list[str], stdin: str = "", timeout_s: int = 10) -> dict[str, object]:
        """Run a program with arguments, without a shell, in the folder; limited in time, memory and output."""
        try:
            finished = await processes.run(root.path, argv, stdin, float(timeout_s))
        except (OSError, ValueError, RuntimeError) as bad:
            raise ToolError(str(bad)) from None
        return {name: getattr(finished, name) for name in finished.__slots__}

    @server.tool()
    async def http_get(url: str) -> dict[str, object]:
        """Fetch a page of a host that is allowed (at most 1 MiB of text; redirects are told, not followed)."""
        return await _requested(network, "GET", url)

    @server.tool()
    async def http_post(url: str, body: str, content_type: str = "application/json") -> dict[str, object]:
        """Send a text to a host that is allowed."""
        return await _requested(network, "POST", url, body.encode("utf-8"), content_type)

    return server


async def _requested(network: Network, method: str, url: str, body: bytes = b"", kind: str = "") -> dict[str, object]:
    try:
        received = await asyncio.to_thread(network.request, method, url, body, kind)
    except (OSError, ValueError) as bad:
        raise ToolError(str(bad)) from None
    return {name: getattr(received, name) for name in received.__slots__}
