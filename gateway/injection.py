"""Sidecars for pods: what a Kubernetes API server asks before it makes a pod, and the patch that adds a sidecar.

A pod of a namespace with the label ``licet.dev/inject=enabled`` that names its agent in the annotation
``licet.dev/agent`` gets one. What the pod says of itself decides nothing here: the agent's identity comes from a Secret
that only operators make. A pod in such a namespace that names no agent, or brings a container of the sidecar's name, is
refused: it would be one without a sidecar. After everybody else has changed the pod, and whenever somebody changes its
containers later, it is looked at again: the sidecar must be as it was injected, and what is its own nobody else's.
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
    """What each sidecar gets: its *image*, the Secrets with which that is pulled, where it reaches the gateway, how
    much room its ledger has, and for how many days what the gateway has stays there too."""

    image: str
    gateway_url: str
    pull_secrets: tuple[str, ...] = ()
    data_size: str = "2Gi"
    keep_days: int = 2


def reviewed(body: bytes, injected: Injected) -> dict[str, Any]:
    """The answer to an ``AdmissionReview`` (admission.k8s.io/v1), or :class:`Unverifiable` for what is none."""
    request = _request(body)
    answer: dict[str, Any] = {"allowed": True}
    try:
        patch = _patch(request.get("object"), injected)
        answer |= {"patchType": "JSONPatch", "patch": base64.b64encode(msgspec.json.encode(patch)).decode("ascii")}
    except _Refused as no:
        answer = _no(no)
    return _answered(request, answer)


def validated(body: bytes, injected: Injected) -> dict[str, Any]:
    """The same for a pod that nobody changes any more before it is made, whose containers somebody changes, or that
    somebody enters."""
    request = _request(body)
    answer: dict[str, Any] = {"allowed": True}
    try:
        if request.get("operation") == "CONNECT":
            _require_not_entered(request.get("object"))
        else:
            before = request.get("oldObject") if request.get("operation") == "UPDATE" else None
            _require_guarded(request.get("object"), before, injected)
    except _Refused as no:
        answer = _no(no)
    return _answered(request, answer)


def _request(body: bytes) -> dict[str, Any]:
    review = read_object(body)
    request = review.get("request")
    if review.get("apiVersion") != "admission.k8s.io/v1" or not isinstance(request, dict) or "uid" not in request:
        raise Unverifiable(
            Reason.MALFORMED_REQUEST, "expected an AdmissionReview of admission.k8s.io/v1 with a request"
        )
    return request


def _no(why: _Refused) -> dict[str, Any]:
    return {"allowed": False, "status": {"code": 403, "message": str(why)}}


def _answered(request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    response = {"uid": request["uid"], **answer}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


class _Refused(Exception):
    """Why a pod may not be made so."""


def _read(pod: Any) -> tuple[str, dict[str, Any]]:
    """The agent that a pod names, and its spec."""
    if not isinstance(pod, dict) or pod.get("kind", "Pod") != "Pod" or not isinstance(pod.get("spec"), dict):
        raise _Refused("licet: expected a Pod")
    agent = ((pod.get("metadata") or {}).get("annotations") or {}).get(AGENT, "")
    if not isinstance(agent, str) or _NAME.fullmatch(agent) is None:
        found = f'found "{visible(str(agent), 64)}"' if agent else "found none"
        raise _Refused(f"licet: this namespace has only pods with a sidecar; name the agent in {AGENT} ({found})")
    return agent, pod["spec"]


def _require_apart(spec: dict[str, Any], containers: list[dict[str, Any]]) -> None:
    """None of these *containers* is the sidecar's, or could go around it."""
    if any(one.get("name") == CONTAINER for one in containers):
        raise _Refused(f"licet: a container is called {CONTAINER}, as only the injected one may be")
    for wrong in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if spec.get(wrong):
            raise _Refused(f"licet: {wrong} would go around the sidecar")
    for one in containers:
        # The cluster looks for the volume only after it was added here.
        if any(mount.get("name") in (IDENTITY, DATA) for mount in one.get("volumeMounts") or []):
            raise _Refused(f"licet: volumes called {IDENTITY} and {DATA} are the sidecar's")
        if one.get("targetContainerName") == CONTAINER:
            raise _Refused(f"licet: nobody looks into {CONTAINER}, which holds the agent's key")
    users = [(one.get("securityContext") or {}).get("runAsUser") for one in [spec, *containers]]
    if _FREE["runAsUser"] in users:
        raise _Refused(f"licet: the user {_FREE['runAsUser']} is the sidecar's")


def _require_no_identity(value: Any) -> None:
    """Nothing in *value* names the Secret of an agent."""
    own = sorted(name for name in _secrets(value) if name.startswith(IDENTITY_OF))
    if own:
        raise _Refused(f"licet: {own[0]} is for sidecars only: with it the agent could act without one")


def _everything(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for kind in ("initContainers", "containers", "ephemeralContainers") for one in spec.get(kind) or []]


def _require_not_entered(options: Any) -> None:
    """What somebody wants to run or see is not in the sidecar; where no container is named it is the agent's."""
    if not isinstance(options, dict) or options.get("container") == CONTAINER:
        raise _Refused(f"licet: nobody enters {CONTAINER}, which holds the agent's key")


def _require_guarded(pod: Any, before: Any, injected: Injected) -> None:
    """The *pod* has its sidecar as it was injected, or as it was *before*, if it is there already."""
    agent, spec = _read(pod)
    sidecars = [one for one in spec.get("initContainers") or [] if one.get("name") == CONTAINER]
    if len(sidecars) != 1:
        raise _Refused(f"licet: {len(sidecars)} containers are called {CONTAINER}; expected the injected one")
    others = [one for one in _everything(spec) if one is not sidecars[0]]
    _require_apart(spec, others)
    volumes = {one.get("name"): one for one in spec.get("volumes") or []}
    _require_no_identity([one for name, one in volumes.items() if name != IDENTITY])
    token = _token(agent)
    for one in others:
        told = [each for each in one.get("env") or [] if each != {"name": "LICET_TOKEN", "valueFrom": token}]
        _require_no_identity({**one, "env": told})
    if before is not None:
        _, was = _read(before)
        old = [one for one in was.get("initContainers") or [] if one.get("name") == CONTAINER]
        if old != sidecars or was.get("volumes") != spec.get("volumes") or _read(before)[0] != agent:
            raise _Refused(f"licet: {CONTAINER} stays as it was injected")
        return
    expected = _sidecar(agent, injected)
    if (wrong := _differs(sidecars[0], expected)) != "":
        raise _Refused(f"licet: somebody changed {CONTAINER} after it was injected: {wrong}")
    for volume in _volumes(agent, injected):
        if not _contains(volumes.get(volume["name"]), volume):
            raise _Refused(f"licet: somebody changed the volume {volume['name']} after it was injected")


_GIVEN: Final = frozenset({"terminationMessagePath", "terminationMessagePolicy", "imagePullPolicy"})
"""What a cluster adds to every container."""
_SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"


def _differs(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Which part of a container is not as *expected*, but for what a cluster itself adds."""
    for name in sorted(found.keys() | expected.keys()):
        there, wanted = found.get(name), expected.get(name)
        if name == "volumeMounts":
            there = [one for one in there or [] if one.get("mountPath") != _SERVICE_ACCOUNT]
        if name in ("env", "volumeMounts") and len(there or []) != len(wanted or []):
            return name
        if wanted is None and name not in _GIVEN:
            return name
        if name == "image":
            # While gateways are replaced one injects another version than the next; digests are put in by others too.
            if _repository(there) != _repository(wanted):
                return name
        elif wanted is not None and not (there == wanted if name == "securityContext" else _contains(there, wanted)):
            return name
    return ""


def _repository(image: Any) -> str:
    """Of an image, without tag and digest."""
    path, slash, name = str(image).partition("@")[0].rpartition("/")
    return path + slash + name.partition(":")[0]


def _contains(found: Any, wanted: Any) -> bool:
    """Whether *found* is *wanted*, with defaults filled in."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(_contains(found.get(name), one) for name, one in wanted.items())
    if isinstance(wanted, list):
        same = isinstance(found, list) and len(found) == len(wanted)
        return same and all(map(_contains, found, wanted))
    return bool(found == wanted)


def _volumes(agent: str, injected: Injected) -> list[dict[str, Any]]:
    """Only the sidecar mounts them; whatever user the pod runs as, the sidecar's own can read its identity."""
    return [
        {"name": IDENTITY, "secret": {"secretName": f"{IDENTITY_OF}{agent}", "defaultMode": 0o444}},
        {"name": DATA, "emptyDir": {"sizeLimit": injected.data_size}},
    ]


def _patch(pod: Any, injected: Injected) -> list[dict[str, Any]]:
    agent, spec = _read(pod)
    _require_apart(spec, _everything(spec))
    _require_no_identity(spec)
    if any(one.get("name") in (IDENTITY, DATA) for one in spec.get("volumes") or []):
        raise _Refused(f"licet: volumes called {IDENTITY} and {DATA} are the sidecar's")
    patch: list[dict[str, Any]] = []
    if not spec.get("volumes"):
        patch.append({"op": "add", "path": "/spec/volumes", "value": []})
    patch += [{"op": "add", "path": "/spec/volumes/-", "value": volume} for volume in _volumes(agent, injected)]
    pulled = spec.get("imagePullSecrets") or []
    missing = [{"name": name} for name in injected.pull_secrets if {"name": name} not in pulled]
    if missing:
        patch.append({"op": "add", "path": "/spec/imagePullSecrets", "value": [*pulled, *missing]})
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
        "LICET_SIDECAR__KEEP_DAYS": str(injected.keep_days),
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


def _token(agent: str) -> dict[str, Any]:
    """The one thing of its Secret that an agent is given: what it is known by at its sidecar."""
    return {"secretKeyRef": {"name": f"{IDENTITY_OF}{agent}", "key": "agent.token"}}


def _told(number: int, container: dict[str, Any], agent: str) -> list[dict[str, Any]]:
    """Where the agent finds its sidecar, and the token that it is known by there; what the pod says itself stays."""
    named = {one.get("name") for one in container.get("env") or []}
    url = f"http://127.0.0.1:{PORT}"
    told: list[dict[str, Any]] = [
        {"name": "LICET_URL", "value": url},
        {"name": "LICET_MCP_URL", "value": f"{url}/mcp"},
        {"name": "LICET_TOKEN", "valueFrom": _token(agent)},
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
