"""One agent with one tool. The function says what it is for; where it runs is decided by the mesh."""

import asyncio
import os

from licet.mesh import ChatAgent, ai_function
from licet.mesh import MeshChatClient as FoundryChatClient
from licet.mesh import MeshCredential as DefaultAzureCredential


@ai_function(description="The names of the office's audit logs")
def list_audit_logs() -> list[str]:
    raise RuntimeError("this runs on a node that offers it, never here")


async def main() -> None:
    agent = ChatAgent(
        chat_client=FoundryChatClient(
            endpoint=os.environ["LICET_URL"],
            model=os.environ.get("LICET_MODEL", "scripted"),
            credential=DefaultAzureCredential(),
        ),
        name="first-agent",
        instructions="You know where the office keeps its logs.",
        tools=[list_audit_logs],
        additional_properties={"mesh_routing": "auto", "emit_routing_trace": True},
    )
    result = await agent.run("Tell me which logs there are.")
    print(result.text)
    print(f"ran on: {', '.join(step.node_id for step in result.routing_trace)}")


if __name__ == "__main__":
    asyncio.run(main())
