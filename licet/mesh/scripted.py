"""A small OpenAI-compatible server that plays back scripted turns: models for tests and demonstrations, without any.

A script is JSON: ``{"scripts": [{"when": "compliance", "turns": [TURN, …]}]}``. The first script of which ``when``
stands in the instructions or the user's message is played; a TURN is ``{"say": "text"}`` or ``{"call": [{"name": …,
"arguments": {…}}]}``. ``{0}``, ``{1}`` … in its texts stand for what the first, second … call returned. Which turn
it is follows from the conversation: all of it, or what goes on after a response that it names.
"""

from __future__ import annotations

import argparse
import json
import threading
import uuid
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

MAX_BODY: Final = 16 << 20
MAX_CONVERSATIONS: Final = 1000
CHARACTERS_OF_A_TOKEN: Final = 4
"""Roughly; a script has no tokenizer."""


def play(scripts: list[dict[str, Any]], asked: dict[str, Any]) -> dict[str, Any]:
    """The response (OpenAI Responses) to *asked*."""
    items = _items(asked)
    said = f"{asked.get('instructions') or ''}\n" + "\n".join(_text(i) for i in items if i.get("role") == "user")
    outputs = [str(i.get("output", "")) for i in items if i.get("type") == "function_call_output"]
    script = next((one for one in scripts if one["when"] in said), None)
    if script is None:
        known = ", ".join(repr(one["when"]) for one in scripts)
        return _response(
            asked, [_message(f"No script is played for this; there are scripts for messages with {known}.")]
        )
    turn = script["turns"][min(_turns(items), len(script["turns"]) - 1)]
    if "say" in turn:
        return _response(asked, [_message(str(_filled(turn["say"], outputs)))])
    number = len(outputs)
    return _response(asked, [_call(number + at, call, outputs) for at, call in enumerate(turn["call"])])


def _items(asked: dict[str, Any]) -> list[dict[str, Any]]:
    items = asked.get("input", [])
    return [{"role": "user", "content": items}] if isinstance(items, str) else list(items)


def _text(item: dict[str, Any]) -> str:
    content = item.get("content", "")
    return content if isinstance(content, str) else "\n".join(str(part.get("text", "")) for part in content)


def _turns(items: list[dict[str, Any]]) -> int:
    """How many turns of the model there were: runs of items that are not answers to it."""
    kinds = [item.get("type") for item in items]
    return sum(
        one == "function_call" and before != "function_call" for before, one in zip([None, *kinds], kinds, strict=False)
    )


def _filled(value: Any, outputs: list[str]) -> Any:
    if isinstance(value, str):
        for number, output in enumerate(outputs):
            value = value.replace(f"{{{number}}}", output)
        return value
    if isinstance(value, dict):
        return {name: _filled(one, outputs) for name, one in value.items()}
    return [_filled(one, outputs) for one in value] if isinstance(value, list) else value


def _message(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "id": "msg_0", "role": "assistant", "status": "completed", "content": [part]}


def _call(number: int, call: dict[str, Any], outputs: list[str]) -> dict[str, Any]:
    arguments = json.dumps(_filled(call.get("arguments", {}), outputs))
    return {
        "type": "function_call",
        "id": f"fc_{number}",
        "call_id": f"call_{number}",
        "name": call["name"],
        "arguments": arguments,
        "status": "completed",
    }


def _response(asked: dict[str, Any], output: list[dict[str, Any]]) -> dict[str, Any]:
    read, written = (len(json.dumps(one)) // CHARACTERS_OF_A_TOKEN for one in (asked.get("input", ""), output))
    return {
        "id": "resp_scripted",
        "object": "response",
        "created_at": 0,
        "status": "completed",
        "model": asked.get("model", "scripted"),
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": asked.get("tools", []),
        "usage": {
            "input_tokens": read,
            "output_tokens": written,
            "total_tokens": read + written,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }


class Conversations:
    """What was said before each response, for clients that only send what is new."""

    def __init__(self) -> None:
        self._before: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def play(self, scripts: list[dict[str, Any]], asked: dict[str, Any]) -> dict[str, Any]:
        """The response to *asked*, with whatever went before it."""
        with self._lock:
            said = [*self._before.get(str(asked.get("previous_response_id")), []), *_items(asked)]
            made = play(scripts, {**asked, "input": said}) | {"id": f"resp_{uuid.uuid4().hex}"}
            self._before[made["id"]] = [*said, *made["output"]]
            if len(self._before) > MAX_CONVERSATIONS:
                self._before.popitem(last=False)
        return made


class ScriptedModel:
    """``with ScriptedModel(scripts) as model``: ``model.url`` is an endpoint on loopback."""

    def __init__(self, scripts: list[dict[str, Any]], port: int = 0) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(scripts))
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> ScriptedModel:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self) -> None:
        """Until the process ends."""
        self._server.serve_forever()


def _handler(scripts: list[dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    conversations = Conversations()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            if not self.path.endswith("/responses") or length > MAX_BODY:
                self._answer(404, {"error": {"message": f"POST …/responses is all that there is, not {self.path}"}})
                return
            try:
                self._answer(200, conversations.play(scripts, json.loads(self.rfile.read(length))))
            except (ValueError, KeyError, TypeError, AttributeError) as bad:
                self._answer(400, {"error": {"message": f"not a request for a response: {bad}"}})

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Nothing: what is asked of a model is not for a terminal."""

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(prog="licet-scripted-model")
    parser.add_argument("script", type=Path)
    parser.add_argument("--port", type=int, default=7490)
    asked = parser.parse_args()
    ScriptedModel(json.loads(asked.script.read_text("utf-8"))["scripts"], asked.port).serve()


if __name__ == "__main__":
    main()
