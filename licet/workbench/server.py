"""The workbench's tools, on the official MCP SDK."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from mcp.server import MCPServer

from licet.workbench import processes
from licet.workbench.rooted import Root


def build(root_path: Path) -> MCPServer:
    """An MCP server over the folder *root_path*."""
    root = Root(root_path)
    server = MCPServer(
        "licet-workbench",
        instructions="Files and processes inside one folder. Paths are relative to it and never leave it.",
        version="1",
        log_level="ERROR",
    )

    @server.tool()
    def read_file(path: str) -> str:
        """Read a text file (at most 1 MiB)."""
        return root.read(path).decode("utf-8", "replace")

    @server.tool()
    def list_directory(path: str = ".") -> list[str]:
        """List a folder; folders end with a slash, links with an @."""
        return root.list(path)

    @server.tool()
    def search_files(pattern: str, path: str = ".") -> list[str]:
        """Find files below a folder by a shell pattern such as *.txt."""
        return sorted(p for p in root.walk(path) if fnmatch.fnmatch(p.rsplit("/", 1)[-1], pattern))

    @server.tool()
    def write_file(path: str, content: str) -> str:
        """Create or replace a text file."""
        root.write(path, content.encode("utf-8"))
        return f"wrote {len(content.encode('utf-8'))} bytes to {path}"

    @server.tool()
    def make_directory(path: str) -> str:
        """Create a folder."""
        root.make_folder(path)
        return f"created {path}"

    @server.tool()
    def move_file(source: str, destination: str) -> str:
        """Rename or move a file; an existing destination is not replaced."""
        root.move(source, destination)
        return f"moved {source} to {destination}"

    @server.tool()
    def delete_file(path: str) -> str:
        """Delete a file or an empty folder."""
        root.delete(path)
        return f"deleted {path}"

    @server.tool()
    async def run_process(argv: list[str], stdin: str = "", timeout_s: int = 10) -> dict[str, object]:
        """Run a program with arguments, without a shell, in the folder; limited in time, memory and output."""
        finished = await processes.run(root.path, argv, stdin, float(timeout_s))
        return {name: getattr(finished, name) for name in finished.__slots__}

    return server
