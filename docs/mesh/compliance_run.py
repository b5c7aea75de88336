"""A compliance run: read where the log is, classify where a GPU is, file where people read; one identity, one trail."""

import asyncio
import os
import sys

from licet.mesh import ChatAgent, MeshManagementClient, ai_function
from licet.mesh import MeshChatClient as FoundryChatClient
from licet.mesh import MeshCredential as DefaultAzureCredential


@ai_function(description="Read an audit log of the office")
def read_audit_log(path: str) -> str:
    raise RuntimeError("this runs where the log is, never here")


@ai_function(description="Read a sealed log of the office")
def read_sealed_log(path: str) -> str:
    raise RuntimeError("this runs where the log is, never here")


@ai_function(description="Say how much risk stands in the lines of a log")
def classify_risk(text: str) -> dict[str, object]:
    raise RuntimeError("this runs on a node with a GPU, never here")


@ai_function(description="File a report")
def file_report(title: str, body: str) -> str:
    raise RuntimeError("this runs on a desk, never here")


async def main(task: str) -> None:
    agent = ChatAgent(
        chat_client=FoundryChatClient(
            endpoint=os.environ["LICET_URL"],
            model=os.environ.get("LICET_MODEL", "scripted"),
            credential=DefaultAzureCredential(),
        ),
        name="compliance",
        instructions="Read the log, classify it, and file a report of what you found.",
        tools=[read_audit_log, read_sealed_log, classify_risk, file_report],
        additional_properties={"mesh_routing": "auto", "emit_routing_trace": True},
    )
    result = await agent.run(task)
    print(result.text)
    for step in result.routing_trace:
        print(f"  {step.tool_name:<24} {step.node_id:<8} {step.latency_ms:6.1f} ms  score {step.score:.2f}")

    mesh = MeshManagementClient(endpoint=os.environ["LICET_MANAGEMENT_URL"], credential=DefaultAzureCredential())
    trail = mesh.get_audit_trail(result.correlation_id)
    print(f"trail of {trail.correlation_id}: {'one identity' if trail.one_identity else 'SEVERAL IDENTITIES'}")
    for hop in trail.hops:
        where = f" (data: {hop.data_locality})" if hop.data_locality else ""
        print(f"  {hop.actor_object_id}  {hop.action:<24} on {hop.node_id}{where}  {hop.purview_record_id}")


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "Run the compliance check of the November payments."))
