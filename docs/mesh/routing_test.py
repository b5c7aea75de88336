"""Which node won for each call, and why: the trace of every choice, with its parts."""

import asyncio
import os

from licet.mesh import ChatAgent, ai_function
from licet.mesh import MeshChatClient as FoundryChatClient
from licet.mesh import MeshCredential as DefaultAzureCredential


@ai_function(description="Say how much risk stands in the lines of a log")
def classify_risk(text: str) -> dict[str, object]:
    raise RuntimeError("this runs on a node with a GPU, never here")


@ai_function(description="File a report")
def file_report(title: str, body: str) -> str:
    raise RuntimeError("this runs on a desk, never here")


async def main() -> None:
    agent = ChatAgent(
        chat_client=FoundryChatClient(
            endpoint=os.environ["LICET_URL"],
            model=os.environ.get("LICET_MODEL", "scripted"),
            credential=DefaultAzureCredential(),
        ),
        name="routing-test",
        instructions="Classify the sample and file a report.",
        tools=[classify_risk, file_report],
        additional_properties={"mesh_routing": "auto", "emit_routing_trace": True},
    )
    result = await agent.run("Run the sample.")
    for step in result.routing_trace:
        print(
            f"{step.tool_name:<24} -> {step.node_id:<8} {step.latency_ms:6.1f} ms  "
            f"gpu_match={step.gpu_match} locality_match={step.locality_match} score={step.score:.2f}"
        )
        left = ", ".join(f"{count} {why}" for why, count in step.trace["eliminated"].items()) or "nobody"
        print(f"{'':<27} {step.trace['why']}; fell out: {left}")
    for outcome in result.outcomes:
        if outcome.decision != "allow":
            print(f"{outcome.decision}: {outcome.text}")
    print(result.text)


if __name__ == "__main__":
    asyncio.run(main())
