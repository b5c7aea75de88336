"""``python -m licet.mesh.model_server --endpoint URL``: a model as an MCP server, so that asking it is an action.

Behind a node as the server ``models``: policy sees who asks which model, the router picks the node, tokens are metered,
and the key of the endpoint stays on the node. It speaks OpenAI Responses to any compatible endpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from openai import AsyncOpenAI, OpenAIError

MANIFEST: Final = Path(__file__).with_name("models.toml")
MAX_KEY_BYTES: Final = 4096


def build(endpoint: str, key: str, models: frozenset[str]) -> MCPServer:
    """*models*: the only ones that may be asked; empty: all that *endpoint* has."""
    client = AsyncOpenAI(base_url=endpoint, api_key=key)
    server = MCPServer("licet-models", instructions="Models, asked as actions.", version="1", log_level="ERROR")

    @server.tool()
    async def respond(
        model: str,
        input: list[dict[str, Any]],
        instructions: str = "",
        tools: list[dict[str, Any]] = [],  # noqa: B006
    ) -> dict[str, Any]:
        """Ask a model for its next turn (OpenAI Responses); what it wants called is told, not called."""
        if models and model not in models:
            raise ToolError(f"model {model}: expected one of {', '.join(sorted(models))}")
        asked: dict[str, Any] = {"model": model, "input": input, "instructions": instructions, "tools": tools}
        try:
            made = await client.responses.create(**asked, store=False)
        except OpenAIError as bad:
            raise ToolError(f"the model's endpoint failed: {bad}") from None
        usage = made.usage.model_dump(mode="json") if made.usage is not None else None
        output = [item.model_dump(mode="json", exclude_none=True) for item in made.output]
        return {"id": made.id, "model": made.model, "output": output, "usage": usage}

    return server


def main() -> None:
    parser = argparse.ArgumentParser(prog="licet-models")
    parser.add_argument("--endpoint", required=True, help="where OpenAI Responses is spoken: https://host/v1")
    parser.add_argument("--key-file", type=Path, help="a file with the key of that endpoint")
    parser.add_argument("--model", action="append", default=[], help="a model that may be asked; default: all")
    asked = parser.parse_args()
    key = asked.key_file.read_text("utf-8")[:MAX_KEY_BYTES].strip() if asked.key_file else "none"
    build(asked.endpoint, key, frozenset(asked.model)).run()


if __name__ == "__main__":
    main()
