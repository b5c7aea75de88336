"""The demonstration: the official MCP client makes three calls (allowed, refused, held), then the ledger speaks."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from mcp import Client
from mcp.types import CallToolResult, TextContent

from licet.client import Api


@dataclass(frozen=True, slots=True)
class Played:
    """What was asked, and what the client was told."""

    title: str
    call: str
    is_error: bool
    text: str


async def play(mcp_url: str, approver: Api, draft: str) -> list[Played]:
    """The three calls; the held deletion of *draft* is approved over the API while the client waits."""
    async with Client(mcp_url) as client:
        read = await client.call_tool("read_file", {"path": "notes.txt"})
        key = await client.call_tool("read_file", {"path": "server.pem"})
        deleting = asyncio.create_task(client.call_tool("delete_file", {"path": draft}))
        approving = asyncio.create_task(asyncio.to_thread(_approve, approver))
        deleted = await deleting
        await approving
    return [
        _played("allowed", 'read_file {"path": "notes.txt"}', read),
        _played("refused", 'read_file {"path": "server.pem"}', key),
        _played("held, then approved by approver-1", f'delete_file {{"path": "{draft}"}}', deleted),
    ]


def _approve(approver: Api) -> None:
    """Wait for the request to stand in the queue, then approve it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        waiting = approver.call("GET", "/v1/approvals?state=pending").body["approvals"]
        if waiting:
            asked = waiting[-1]
            body = {"decision": "approve", "reason": "the draft may go", "presented": asked["presented"]}
            approver.call("POST", f"/v1/approvals/{asked['id']}/votes", body)
            return
        time.sleep(0.05)


def _played(title: str, call: str, result: object) -> Played:
    if not isinstance(result, CallToolResult):
        return Played(title, call, True, str(result))
    text = " ".join(block.text for block in result.content if isinstance(block, TextContent))
    return Played(title, call, bool(result.is_error), text.strip())
