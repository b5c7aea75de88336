"""The model that an agent thinks with: OpenAI Responses at any compatible endpoint, or through the mesh itself.

With the sidecar's own address as endpoint a model call is an action like any other: policy sees it, it runs on the node
that the router picks for the server ``models``, its tokens are metered, and it stands in the run's trail.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final

from openai import AsyncOpenAI

from licet.client.api import ApiError
from licet.mesh.endpoint import Mesh, MeshCredential, MeshError, same_place, token_of

RESPOND: Final = "models/respond"


@dataclass(frozen=True)
class FunctionCall:
    """``arguments`` as the model wrote them: a text that should be a JSON object."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Reply:
    """One turn of the model: its text so far, what it wants called, and the items to send back to it."""

    text: str
    calls: list[FunctionCall]
    items: list[dict[str, Any]]


class MeshChatClient:
    """*endpoint*: of a server that speaks OpenAI Responses (``…/v1``), or the sidecar's. *credential*: a text, anything
    with ``get_token``, or nothing; a :class:`MeshCredential` never goes to anybody but the sidecar. *mesh*: the agent's
    sidecar, if the environment does not say it."""

    def __init__(self, endpoint: str, model: str, credential: Any = None, *, mesh: Mesh | None = None) -> None:
        own = isinstance(credential, MeshCredential)
        self.mesh = mesh or Mesh(token=token_of(credential, "mesh") if own else "")
        self.model = model
        self._openai: AsyncOpenAI | None = None
        if not same_place(endpoint, self.mesh.url):
            key = token_of(credential, f"{endpoint.rstrip('/')}/.default") if credential is not None else "none"
            self._openai = AsyncOpenAI(base_url=endpoint, api_key=key)

    async def respond(
        self, items: list[dict[str, Any]], instructions: str, tools: list[dict[str, Any]], run: str
    ) -> Reply:
        """The model's next turn in a conversation of *items*."""
        asked = {"model": self.model, "input": items, "instructions": instructions, "tools": tools}
        return read(await self._ask(asked, run))

    async def _ask(self, asked: dict[str, Any], run: str) -> list[dict[str, Any]]:
        if self._openai is not None:
            made = await self._openai.responses.create(**asked)
            return [item.model_dump(mode="json", exclude_none=True) for item in made.output]
        try:
            answer = await asyncio.to_thread(self.mesh.act, RESPOND, asked, run, {}, 0)
        except ApiError as no:
            raise MeshError(f"the model was not asked: {no}") from None
        if answer.status == 202:
            raise MeshError(f"asking the model waits for a person: {answer.body['detail']}")
        told = answer.body["result"]
        if told.get("isError") or "structuredContent" not in told:
            raise MeshError(f"the model's server failed: {json.dumps(told)[:500]}")
        output: list[dict[str, Any]] = told["structuredContent"]["output"]
        return output


def read(output: list[dict[str, Any]]) -> Reply:
    """The output items of a response; kinds that nobody here knows are sent back as they are."""
    texts = [
        part["text"]
        for item in output
        if item.get("type") == "message"
        for part in item.get("content", [])
        if part.get("type") == "output_text"
    ]
    calls = [
        FunctionCall(item["call_id"], item["name"], item["arguments"])
        for item in output
        if item.get("type") == "function_call"
    ]
    return Reply("\n".join(texts), calls, output)
