"""Sidecars for pods: what a Kubernetes API server asks before it makes a pod, and the patch that adds a sidecar.

A pod of a namespace with the label ``licet.dev/inject=enabled`` that names its agent in the annotation
``licet.dev/agent`` gets one. What the pod says of itself decides nothing here: the agent's identity comes from a Secret
that only operators make. A pod in such a namespace that names no agent, or brings a container of the sidecar's name, is
refused: it would be one without a sidecar.
"""

from __future__ import annotations

import base64
import re
from typing import Any, Final

import msgspec

from trust.canonical import read_object
from trust.reasons import Reason, Unverifiable, visible

AGENT: Final = "licet.dev/agent"
CONTAINER: Final = "licet-sidecar"
IDENTITY: Final = "licet-identity"
DATA: Final = "licet-data"
IDENTITY_OF: Final = "licet-agent-"
"""Before the agent's name: the Secret with its key, enrolment and token."""
PORT: Final = 7410
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_FREE: Final = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001}
_LOCKED: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
    **_FREE,
}


class Injected(msgspec.Struct, frozen=True):
    """What each sidecar gets: its *image*, and where it reaches the gateway."""

    image: str
    gateway_url: str


def reviewed(body: bytes, injected: Injected) -> dict[str, Any]:
    """The answer to an ``AdmissionReview`` (admission.k8s.io/v1), or :class:`Unverifiable` for what is none."""
    review = read_object(body)
    request = review.get("request")
    if review.get("apiVersion") != "admission.k8s.io/v1" or not isinstance(request, dict) or "uid" not in request:
        raise Unverifiable(
            Reason.MALFORMED_REQUEST, "expected an AdmissionReview of admission.k8s.io/v1 with a request"
        )
    answer: dict[str, Any] = {"uid": request["uid"], "allowed": True}
    try:
        patch = _patch(request.get("object"), injected)
        answer |= {"patchType": "JSONPatch", "patch": base64.b64encode(msgspec.json.encode(patch)).decode("ascii")}
    except _Refused as no:
        answer |= {"allowed": False, "status": {"code": 403, "message": str(no)}}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer}


class _Refused(Exception):
    """Why a pod may not be made so."""


def _patch(pod: Any, injected: Injected) -> list[dict[str, Any]]:
    if not isinstance(pod, dict) or pod.get("kind", "Pod") != "Pod" or not isinstance(pod.get("spec"), dict):
        raise _Refused("licet: expected a Pod")
    spec, meta = pod["spec"], pod.get("metadata") or {}
    agent = (meta.get("annotations") or {}).get(AGENT, "")
    if not isinstance(agent, str) or _NAME.fullmatch(agent) is None:
        found = f'found "{visible(str(agent), 64)}"' if agent else "found none"
        raise _Refused(f"licet: this namespace has only pods with a sidecar; name the agent in {AGENT} ({found})")
    containers = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
    if any(one.get("name") == CONTAINER for one in containers):
        raise _Refused(f"licet: a container is called {CONTAINER}, as only the injected one may be")
    for wrong in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if spec.get(wrong):
            raise _Refused(f"licet: {wrong} would go around the sidecar")
    everything = [*containers, *(spec.get("ephemeralContainers") or [])]
    for one in everything:
        # The cluster looks for the volume only after it was added here.
        if any(mount.get("name") in (IDENTITY, DATA) for mount in one.get("volumeMounts") or []):
            raise _Refused(f"licet: volumes called {IDENTITY} and {DATA} are the sidecar's")
    users = [(one.get("securityContext") or {}).get("runAsUser") for one in [spec, *everything]]
    if _FREE["runAsUser"] in users:
        raise _Refused(f"licet: the user {_FREE['runAsUser']} is the sidecar's")
    own = sorted(name for name in _secrets(spec) if name.startswith(IDENTITY_OF))
    if own:
        raise _Refused(f"licet: {own[0]} is for sidecars only: with it the agent could act without one")
    if any(one.get("name") in (IDENTITY, DATA) for one in spec.get("volumes") or []):
        raise _Refused(f"licet: volumes called {IDENTITY} and {DATA} are the sidecar's")
    # Only the sidecar mounts it; whatever user the pod runs as, the sidecar's own can read it.
    volumes = [
        {"name": IDENTITY, "secret": {"secretName": f"{IDENTITY_OF}{agent}", "defaultMode": 0o444}},
        {"name": DATA, "emptyDir": {"sizeLimit": "2Gi"}},
    ]
    patch: list[dict[str, Any]] = []
    if not spec.get("volumes"):
        patch.append({"op": "add", "path": "/spec/volumes", "value": []})
    patch += [{"op": "add", "path": "/spec/volumes/-", "value": volume} for volume in volumes]
    # A sidecar of Kubernetes itself (an init container that goes on): it is there before the agent, and ends after it.
    sidecar = [_sidecar(agent, injected)]
    if spec.get("initContainers"):
        patch.append({"op": "add", "path": "/spec/initContainers/0", "value": sidecar[0]})
    else:
        patch.append({"op": "add", "path": "/spec/initContainers", "value": sidecar})
    for number, one in enumerate(spec.get("containers") or []):
        patch += _told(number, one, agent)
    return patch


def _sidecar(agent: str, injected: Injected) -> dict[str, Any]:
    environment = {
        "LICET_HOME": "/data",
        "LICET_SIDECAR__GATEWAY_URL": injected.gateway_url,
        "LICET_SIDECAR__IDENTITY_FROM": "/identity",
    }
    instance = {"name": "LICET_SIDECAR__INSTANCE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}
    probe = {"exec": {"command": ["licet", "ready", "sidecar"]}, "periodSeconds": 5, "timeoutSeconds": 5}
    return {
        "name": CONTAINER,
        "image": injected.image,
        "args": ["sidecar"],
        "restartPolicy": "Always",
        "env": [*({"name": name, "value": value} for name, value in environment.items()), instance],
        "startupProbe": {**probe, "failureThreshold": 24},
        "securityContext": _LOCKED,
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        "volumeMounts": [
            {"name": IDENTITY, "mountPath": "/identity", "readOnly": True},
            {"name": DATA, "mountPath": "/data"},
        ],
    }


def _told(number: int, container: dict[str, Any], agent: str) -> list[dict[str, Any]]:
    """Where the agent finds its sidecar, and the token that it is known by there; what the pod says itself stays."""
    named = {one.get("name") for one in container.get("env") or []}
    url = f"http://127.0.0.1:{PORT}"
    token = {"secretKeyRef": {"name": f"{IDENTITY_OF}{agent}", "key": "agent.token"}}
    told: list[dict[str, Any]] = [
        {"name": "LICET_URL", "value": url},
        {"name": "LICET_MCP_URL", "value": f"{url}/mcp"},
        {"name": "LICET_TOKEN", "valueFrom": token},
    ]
    new = [one for one in told if one["name"] not in named]
    patch: list[dict[str, Any]] = []
    if new and not container.get("env"):
        patch.append({"op": "add", "path": f"/spec/containers/{number}/env", "value": []})
    return patch + [{"op": "add", "path": f"/spec/containers/{number}/env/-", "value": one} for one in new]


def _secrets(value: Any) -> set[str]:
    """Every name of a Secret, wherever a pod names one."""
    found: set[str] = set()
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("secret", "secretRef", "secretKeyRef") and isinstance(inner, dict):
                found |= {str(inner.get(name, "")) for name in ("name", "secretName")}
            found |= _secrets(inner)
    elif isinstance(value, list):
        for inner in value:
            found |= _secrets(inner)
    return found
