"""Agents on the mesh: the surface of the published Agent Mesh tutorial, with every call governed, routed, recorded.

Its four programs run with only their imports changed::

    from licet.mesh import ChatAgent, ai_function, MeshManagementClient
    from licet.mesh import MeshChatClient as FoundryChatClient, MeshCredential as DefaultAzureCredential
"""

from __future__ import annotations

from licet.mesh.agent import AgentResult, ChatAgent
from licet.mesh.calls import RoutedCall
from licet.mesh.chat import MeshChatClient
from licet.mesh.endpoint import Mesh, MeshCredential, MeshError
from licet.mesh.functions import AIFunction, ai_function
from licet.mesh.management import MeshManagementClient

__all__ = [
    "AIFunction",
    "AgentResult",
    "ChatAgent",
    "Mesh",
    "MeshChatClient",
    "MeshCredential",
    "MeshError",
    "MeshManagementClient",
    "RoutedCall",
    "ai_function",
]
