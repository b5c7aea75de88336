"""``python -m licet.mesh.stubs PROGRAM.py``: a program's own functions as a server, for development.

Behind a node as the server ``client-stub`` it lists every ``ai_function`` of the program. A call of one is decided,
recorded and routed like any other; its answer says that whoever called may run the function now, and
``report_result`` then records the digest of what that returned. No node offers this server unless somebody says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from licet.mesh.functions import AIFunction

_DIGEST = re.compile(r"[0-9a-f]{64}")


def functions_of(program: Path) -> list[AIFunction]:
    """Every function that *program* marks; what it does when it is run itself is not done."""
    spec = importlib.util.spec_from_file_location("licet_stub_program", program)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{program}: expected a Python program")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [value for value in vars(module).values() if isinstance(value, AIFunction)]


def build(functions: list[AIFunction]) -> MCPServer:
    """A server that lists *functions* and runs none of them."""
    server = MCPServer("licet-client-stub", instructions="Functions of a program.", version="1", log_level="ERROR")
    for function in functions:
        server.tool(name=function.name, description=function.description)(_permitted(function))

    @server.tool()
    async def report_result(decision_id: str, sha256: str) -> dict[str, Any]:
        """Record the digest of what a permitted function returned where it was called."""
        if _DIGEST.fullmatch(sha256) is None:
            raise ToolError("sha256: expected 64 hexadecimal digits")
        return {"client_stub": True, "decision_id": decision_id, "sha256": sha256}

    return server


def _permitted(function: AIFunction) -> Callable[..., Any]:
    """Something of the same parameters that does nothing."""

    async def permitted(**_arguments: Any) -> dict[str, Any]:
        return {"client_stub": True}

    parameters = inspect.signature(function.function, eval_str=True)
    permitted.__name__ = function.name
    permitted.__annotations__ = {name: one.annotation for name, one in parameters.parameters.items()}
    permitted.__annotations__["return"] = dict[str, Any]
    vars(permitted)["__signature__"] = parameters.replace(return_annotation=dict[str, Any])
    return permitted


def main() -> None:
    parser = argparse.ArgumentParser(prog="licet-client-stub")
    parser.add_argument("program", type=Path)
    build(functions_of(parser.parse_args().program)).run()


if __name__ == "__main__":
    main()
