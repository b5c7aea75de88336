"""Nodes of three kinds are registered, and listed with what they hold and whether they get work."""

import os

from licet.mesh import MeshCredential as DefaultAzureCredential
from licet.mesh import MeshManagementClient

NODES = [
    {
        "node_id": "hq-server",
        "kind": "on_prem",
        "capabilities": {"data_locality": "hq", "tools": ["records/read_audit_log"]},
        "routing_weight": 1.0,
    },
    {
        "node_id": "ada-cloud-pc",
        "kind": "windows_365",
        "capabilities": {"region": "eu-west", "tools": ["desk/file_report"]},
        "routing_weight": 0.8,
        "cloud_pc_id": "8d9f2c51-0000-4000-8000-6a1e4b7c9d20",
    },
    {
        "node_id": "plant-edge",
        "kind": "azure_arc",
        "capabilities": {"gpu": True, "region": "eu-west", "tools": ["analysis/classify_risk"]},
        "routing_weight": 1.5,
        "arc_resource_id": "/subscriptions/0000/resourceGroups/plant/providers/Microsoft.HybridCompute/machines/edge",
    },
]


def main() -> None:
    mesh = MeshManagementClient(endpoint=os.environ["LICET_MANAGEMENT_URL"], credential=DefaultAzureCredential())
    known = {node.node_id for node in mesh.list_nodes()}
    for node in NODES:
        if node["node_id"] in known:
            print(f"{node['node_id']}: registered before")
        else:
            made = mesh.register_node(**node)
            print(f"{made.node_id}: registered as {made.kind}, enrols once with {made.enrolment_token[:6]}…")
    for node in mesh.list_nodes():
        held = ", ".join(name if value == "true" else f"{name}={value}" for name, value in node.capabilities.items())
        print(f"{node.node_id:<14} {node.kind:<9} {node.health:<10} {held}")


if __name__ == "__main__":
    main()
