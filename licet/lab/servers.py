"""The tool servers of the lab: an office's records, an analysis that wants a GPU, a desk where reports are filed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from licet.workbench.rooted import Root

FINDINGS: Final = (
    ("account_number", re.compile(r"\b[A-Z]{2}\d{2}[A-Z0-9]{11,30}\b"), 2),
    ("mail_address", re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.]+\b"), 1),
    ("export_of_many_rows", re.compile(r"\baction=export\b.*\brows=(\d{4,})"), 4),
    ("administrator_at_night", re.compile(r"T(?:2[0-3]|0[0-5]):\d\d:\d\dZ .*\brole=admin\b"), 4),
    ("just_below_a_threshold", re.compile(r"\bamount=(?:9[5-9]\d\d)\b"), 3),
)
"""What the analysis looks for in a line, and how much it weighs."""
LEVELS: Final = ((8, "high"), (3, "medium"), (0, "low"))


def _new(name: str) -> MCPServer:
    return MCPServer(f"licet-lab-{name}", version="1", log_level="ERROR")


def records(root: Path, sealed: Path) -> MCPServer:
    """Logs that stay where they are."""
    server, open_logs, sealed_logs = _new("records"), Root(root), Root(sealed)

    def read(where: Root, path: str) -> str:
        try:
            return where.read(path).decode("utf-8", "replace")
        except (OSError, ValueError) as bad:
            raise ToolError(f"{path}: {bad}") from None

    @server.tool()
    def list_audit_logs() -> list[str]:
        """The names of the office's audit logs."""
        return open_logs.list(".")

    @server.tool()
    def read_audit_log(path: str) -> str:
        """Read an audit log of the office."""
        return read(open_logs, path)

    @server.tool()
    def read_sealed_log(path: str) -> str:
        """Read a log that may not leave the premises; nothing that has seen it may run elsewhere afterwards."""
        return read(sealed_logs, path)

    return server


def analyse(text: str) -> dict[str, Any]:
    """What is remarkable in the lines of *text*, by kind, and the risk that adds up."""
    found: dict[str, int] = {}
    weight = 0
    for line in text.splitlines():
        for name, pattern, heavy in FINDINGS:
            if pattern.search(line):
                found[name] = found.get(name, 0) + 1
                weight += heavy
    risk = next(level for least, level in LEVELS if weight >= least)
    return {"risk": risk, "weight": weight, "lines": len(text.splitlines()), "findings": found}


def analysis() -> MCPServer:
    """Reads logs for what an auditor would ask about."""
    server = _new("analysis")

    @server.tool()
    def classify_risk(text: str) -> dict[str, Any]:
        """Say how much risk stands in the lines of a log, and of which kind."""
        return analyse(text)

    return server


def desk(root: Path) -> MCPServer:
    """Where reports are filed."""
    server, filed = _new("desk"), Root(root)

    @server.tool()
    def file_report(title: str, body: str) -> str:
        """File a report."""
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "report"
        try:
            filed.write(f"{name}.md", f"# {title}\n\n{body}\n".encode())
        except (OSError, ValueError) as bad:
            raise ToolError(str(bad)) from None
        return f"filed {name}.md"

    return server
