"""A tool server as a child that stops speaking while it lives: noticed at once, never waited for."""

from __future__ import annotations

import asyncio
import sys

import pytest

from sidecar.node.stdio_upstream import StdioUpstream
from sidecar.node.upstream import UpstreamFailed

# It shakes hands, then closes its output and lives on.
SILENT = """
import json, os, sys, time
asked = json.loads(sys.stdin.readline())
print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": {"protocolVersion": "2025-11-25"}}), flush=True)
os.close(1)
time.sleep(60)
"""


async def test_a_child_that_closed_its_output_counts_as_dead() -> None:
    upstream = StdioUpstream((sys.executable, "-c", SILENT), {}, None)
    await upstream.start()
    try:
        async with asyncio.timeout(30):
            while upstream.alive:
                await asyncio.sleep(0.01)
            with pytest.raises(UpstreamFailed, match="is not running"):
                await upstream.list_tools()
    finally:
        await upstream.close()


async def test_a_child_that_does_not_shake_hands_is_ended() -> None:
    upstream = StdioUpstream((sys.executable, "-c", "print('no'); import sys; sys.stdin.read(1)"), {}, None)
    with pytest.raises(UpstreamFailed):
        await upstream.start()
    async with asyncio.timeout(30):
        while upstream.alive:
            await asyncio.sleep(0.01)
    await upstream.close()
