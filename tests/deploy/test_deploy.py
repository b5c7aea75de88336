"""What deploys Licet, against the real schemas and linters that can be installed; and pods as the webhook makes them."""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import compose_spec
import jsonpatch
import kubernetes_validate
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from edge.config import Source
from gateway.app import Gateway
from gateway.config import GatewayConfig, InjectConfig
from gateway.injection import AGENT, CONTAINER, Injected, reviewed, validated
from gateway.sql import MAX_PARQUET_BYTES
from licet.settings import SECTIONS
from loadtests.servers import free_port
from sidecar.app import Sidecar
from sidecar.config import SidecarConfig
from tests.mesh import REPOSITORY, Mesh
from tests.stories.test_agents_cli import fine
from trust.identity.keys import SecretKey
from trust.reasons import Unverifiable

DEPLOY: Final = REPOSITORY / "deploy"
BIN: Final = Path(sys.executable).parent
HELM: Final = DEPLOY / "npm" / "node_modules" / ".bin" / "helm"
VERSIONS: Final = ("1.29", "1.31", "1.33")
VALUES: Final = {
    "agentNamespaces": [{"name": "shop", "create": True}, {"name": "bank"}],
    "imagePullSecrets": [{"name": "registry"}],
    "gateway": {
        "hostnames": ["licet.example.com"],
        "publicUrl": "https://licet.example.com",
        "storageClass": "fast",
        "settings": "keep_days = 30\n",
        "extraEnv": [{"name": "LICET_GATEWAY__OTLP", "value": "http://collector:4318"}],
        "extraVolumes": [{"name": "secrets", "secret": {"secretName": "upstream"}}],
        "extraVolumeMounts": [{"name": "secrets", "mountPath": "/secrets", "readOnly": True}],
        "extraEgress": [{"ports": [{"port": 4318}]}],
    },
    "injection": {"caBundle": base64.b64encode(b"a certificate").decode()},
    "nodes": [
        {
            "name": "node-1",
            "servers": '[[node.servers]]\nname = "workbench"\n'
            'command = ["python", "-m", "licet.workbench", "--root", "/data/sandbox"]\n',
        },
        {
            "name": "node-2",
            "servers": '[[node.servers]]\nname = "records"\nurl = "http://records.shop.svc:8080/mcp"\n',
            "image": "registry.example/licet-with-tools:1",
            "manifests": {"records.toml": '[tools.look]\ncategory = "data"\neffect = "read"\n'},
            "extraEnv": [{"name": "LICET_NODE__GPU", "value": "numpy"}],
            "extraVolumes": [{"name": "secrets", "secret": {"secretName": "records"}}],
            "extraVolumeMounts": [{"name": "secrets", "mountPath": "/secrets", "readOnly": True}],
            "storageClass": "fast",
            "egress": [{"ports": [{"port": 8080}]}],
        },
    ],
}
INJECTED: Final = Injected("licet:test", "http://gateway.licet.svc:7400")


def run(*command: object) -> str:
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# The image


def test_the_dockerfile_is_good_style() -> None:
    run(BIN / "hadolint", DEPLOY / "Dockerfile")


def copied() -> dict[str, str]:
    """What the image holds: source → place."""
    lines = re.findall(r"^COPY (?!--from)(\S+) (\S+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    return dict(lines)


def test_the_image_has_all_that_a_gateway_needs(tmp_path: Path) -> None:
    """What is copied into it, alone in a directory that nobody may write to but for its data."""
    app = tmp_path / "app"
    for source, place in copied().items():
        assert (REPOSITORY / source).exists(), source
        if place.startswith("/opt/licet/app/"):
            shutil.copytree(
                REPOSITORY / source,
                app / place.removeprefix("/opt/licet/app/"),
                ignore=shutil.ignore_patterns("node_modules", "__pycache__"),
            )
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(app),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LICET_HOME": str(tmp_path / "data"),
        "LICET_GATEWAY__PORT": str(port),
        "LICET_GATEWAY__POLICIES": str(app / "policies"),
    }
    (tmp_path / "data").mkdir()
    command = [sys.executable, "-P", "-m", "licet", "gateway"]
    with subprocess.Popen(
        command, cwd=tmp_path / "data", env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert "listens on" in process.stdout.readline()
            where = "import gateway, licet, policies; print(gateway.__file__, licet.__file__)"
            done = subprocess.run(
                [sys.executable, "-P", "-c", where], env=environment, cwd=tmp_path, capture_output=True, text=True
            )
            assert all(one.startswith(str(app)) for one in done.stdout.split()), done
            licet = [sys.executable, "-P", "-m", "licet"]
            ready = subprocess.run(
                [*licet, "ready", "gateway"], env=environment, cwd=tmp_path, capture_output=True, text=True
            )
            assert (ready.returncode, "not ready" in ready.stdout) == (1, True), "no policies are active yet"
            # What compose's enrol.sh does, with the image's own command line.
            (tmp_path / "bin").mkdir()
            (tmp_path / "bin" / "licet").write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m licet "$@"\n')
            (tmp_path / "bin" / "licet").chmod(0o755)
            (tmp_path / "bin" / "python").symlink_to(sys.executable)
            (tmp_path / "enrol").mkdir()
            script = (DEPLOY / "enrol.sh").read_text()
            for volume in ("/enrol/", "/people/"):
                script = script.replace(volume, f"{tmp_path}/enrol/")
            there = environment | {"PATH": f"{tmp_path / 'bin'}:{environment['PATH']}"}
            for _ in range(2):  # it may be run again
                done = subprocess.run(["sh", "-c", script], env=there, cwd=tmp_path, capture_output=True, text=True)
                assert done.returncode == 0, done.stdout + done.stderr
            handed = {path.name: path.read_text() for path in (tmp_path / "enrol").iterdir()}
            assert set(handed) == {"approver-1.token", "approver-2.token", "node.token", "agent.token"}
            assert all(len(text) > 20 for text in handed.values())
            subprocess.run([*licet, "ready", "gateway"], env=environment, cwd=tmp_path, check=True, capture_output=True)
        finally:
            process.terminate()


def test_the_image_runs_as_nobody_and_says_how_it_is() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    final = text.rpartition("\nFROM ")[2]
    assert "\nUSER 10001:10001\n" in final
    assert "HEALTHCHECK" in final
    assert "--require-hashes" in text


# Compose


def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_the_compose_file_is_of_the_schema() -> None:
    made = compose_spec.PyCompose.from_yaml(yaml.safe_dump(compose()))  # with what `<<` merges
    made.to_spec()
    run(
        BIN / "yamllint",
        "-c",
        REPOSITORY / ".yamllint.yaml",
        "-s",
        DEPLOY / "compose.yaml",
        DEPLOY / "helm/licet/values.yaml",
    )


def test_the_services_of_compose_are_locked_and_wait_for_each_other() -> None:
    made = compose()
    for name, service in made["services"].items():
        assert set(service.get("networks", [])) <= set(made["networks"])
        for waited in service.get("depends_on", {}):
            assert waited in made["services"]
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in made["volumes"] or (DEPLOY / source).exists(), volume
        if name not in ("postgres", "redis"):
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]
            assert service["user"] == "10001:10001"
    assert made["networks"]["agents"]["internal"], "an agent there reaches nothing but its sidecar"
    on_data = {name for name, service in made["services"].items() if "data" in service.get("networks", [])}
    assert on_data == {"gateway-a", "gateway-b", "postgres", "redis"}, "no tool reaches what gateways share"
    assert all(made["services"][name]["networks"] == ["data"] for name in ("postgres", "redis"))


def _read_settings(environment: dict[str, str], files: dict[str, Path], text: str = "") -> dict[str, Any]:
    """Through the real configuration, with files of this machine in the place of those of the container."""
    for path, here in files.items():
        environment = {name: value.replace(path, str(here)) for name, value in environment.items()}
        text = text.replace(path, str(here))
    tomllib.loads(text)
    path = None
    if text:
        path = next(iter(files.values())).with_name("licet.toml")
        path.write_text(text)
    return Source(path, environment).sections(SECTIONS)


@pytest.fixture
def stand_ins(tmp_path: Path) -> dict[str, Path]:
    names = {"/keys/gateway.key": "key", "/webhook/tls.crt": "crt", "/webhook/tls.key": "tls"}
    for name in names.values():
        (tmp_path / name).write_text("x")
    found = {path: tmp_path / name for path, name in names.items()}
    return found | {"/opt/licet/app": REPOSITORY}


def test_what_compose_sets_is_configuration(stand_ins: dict[str, Path]) -> None:
    for name, service in compose()["services"].items():
        environment = {
            key: str(value) for key, value in service.get("environment", {}).items() if key.startswith("LICET_")
        }
        made = _read_settings(environment, stand_ins)
        if name.startswith("gateway"):
            assert (made["gateway"].name, bool(made["gateway"].database)) == (name[-1], True)
        if name == "node":
            assert made["node"].servers[0].manifest.exists()


# Kubernetes


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    assert HELM.exists(), "make test installs helm from deploy/npm"
    values = tmp_path_factory.mktemp("chart") / "values.yaml"
    values.write_text(yaml.safe_dump(VALUES))
    run(HELM, "lint", DEPLOY / "helm" / "licet", "-f", values)
    text = run(
        HELM, "template", "lic", DEPLOY / "helm" / "licet", "-n", "licet", "-f", values, "--kube-version", "1.33.0"
    )
    return [one for one in yaml.safe_load_all(text) if one]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_chart_renders_what_clusters_know(rendered: list[Any], version: str) -> None:
    for one in rendered:
        kubernetes_validate.validate(one, version, strict=True)
    assert {"StatefulSet", "PodDisruptionBudget", "NetworkPolicy", "MutatingWebhookConfiguration"} <= {
        one["kind"] for one in rendered
    }


def test_the_chart_renders_without_what_is_optional() -> None:
    text = run(
        HELM,
        "template",
        "lic",
        DEPLOY / "helm" / "licet",
        "--set",
        "injection.enabled=false",
        "--kube-version",
        "1.33.0",
    )
    kinds = {one["kind"] for one in yaml.safe_load_all(text) if one}
    assert "MutatingWebhookConfiguration" not in kinds
    assert "webhook" not in text


def restricted(spec: dict[str, Any]) -> Iterator[str]:
    """What of a pod the standard `restricted` refuses (Kubernetes Pod Security Standards)."""
    for wrong in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(wrong):
            yield wrong
    for volume in spec.get("volumes", []):
        allowed = {
            "configMap",
            "csi",
            "downwardAPI",
            "emptyDir",
            "ephemeral",
            "persistentVolumeClaim",
            "projected",
            "secret",
        }
        if not set(volume) - {"name"} <= allowed:
            yield f"volume {volume}"
    pod = spec.get("securityContext", {})
    for one in [*spec.get("initContainers", []), *spec["containers"]]:
        own = one.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{one['name']}: allowPrivilegeEscalation"
        if "ALL" not in own.get("capabilities", {}).get("drop", []):
            yield f"{one['name']}: capabilities"
        if not own.get("runAsNonRoot", pod.get("runAsNonRoot")):
            yield f"{one['name']}: runAsNonRoot"
        if (own.get("seccompProfile") or pod.get("seccompProfile") or {}).get("type") not in (
            "RuntimeDefault",
            "Localhost",
        ):
            yield f"{one['name']}: seccompProfile"


def test_what_the_chart_runs_is_restricted(rendered: list[Any]) -> None:
    pods = [one["spec"]["template"]["spec"] for one in rendered if one["kind"] == "StatefulSet"]
    assert len(pods) == 3
    for spec in pods:
        assert not list(restricted(spec))
        assert all(one["securityContext"]["readOnlyRootFilesystem"] for one in spec["containers"])
        assert spec["automountServiceAccountToken"] is False


def test_what_the_chart_sets_is_configuration(rendered: list[Any], stand_ins: dict[str, Path]) -> None:
    for one in rendered:
        if one["kind"] == "ConfigMap":
            shared = {"LICET_GATEWAY__DATABASE": "postgresql://x/y", "LICET_GATEWAY__REDIS": "redis://x"}
            made = _read_settings(
                shared if "gateway" in one["metadata"]["name"] else {}, stand_ins, one["data"]["licet.toml"]
            )
            assert made["gateway"].inject or made["node"].servers
            assert (made["gateway"].inject or made["node"]).keep_days == 2, "no volume fills up for ever"
            if made["gateway"].inject:
                assert made["gateway"].inject.pull_secrets == ("registry",)
                assert made["gateway"].public_url == "https://licet.example.com"


def test_whoever_is_told_to_end_has_the_time_that_it_may_take(rendered: list[Any]) -> None:
    texts = {one["metadata"]["name"]: one["data"]["licet.toml"] for one in rendered if one["kind"] == "ConfigMap"}
    for one in rendered:
        if one["kind"] == "StatefulSet":
            spec, told = one["spec"]["template"]["spec"], tomllib.loads(texts[one["metadata"]["name"]])
            [own] = [told[part] for part in ("gateway", "node") if part in told]
            hook = spec["containers"][0].get("lifecycle", {}).get("preStop", {"exec": {"command": ["sleep", "0"]}})
            before = int(hook["exec"]["command"][1])
            assert own["drain_s"] > 0
            assert spec["terminationGracePeriodSeconds"] >= before + own["drain_s"] + 5
            assert {"livenessProbe", "readinessProbe", "startupProbe"} <= spec["containers"][0].keys()


def test_a_node_of_the_chart_gets_what_its_servers_need(rendered: list[Any]) -> None:
    own = {one["kind"]: one for one in rendered if one["metadata"]["name"] == "lic-node-2"}
    assert set(tomllib.loads(own["ConfigMap"]["data"]["records.toml"])["tools"]) == {"look"}
    [container] = own["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/licet-with-tools:1"
    assert {"mountPath": "/secrets", "name": "secrets", "readOnly": True} in container["volumeMounts"]
    assert own["StatefulSet"]["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"] == "fast"
    rule = own["NetworkPolicy"]["spec"]
    ports = [port["port"] for one in rule["egress"] for port in one["ports"]]
    assert (rule["policyTypes"], ports) == (["Ingress", "Egress"], [7400, 53, 53, 8080])


def test_an_export_fits_into_the_directory_for_passing_files(rendered: list[Any]) -> None:
    """Beyond its limit a cluster evicts the pod."""
    [own] = [one for one in rendered if one["kind"] == "StatefulSet" and one["metadata"]["name"] == "lic-gateway"]
    volumes = {one["name"]: one for one in own["spec"]["template"]["spec"]["volumes"]}
    limit = volumes["tmp"]["emptyDir"]["sizeLimit"]
    assert limit.endswith("Gi")
    assert int(limit.removesuffix("Gi")) << 30 > 2.2 * MAX_PARQUET_BYTES


def test_what_keeps_agents_in_outlives_the_release(rendered: list[Any]) -> None:
    kept = {one["kind"] for one in rendered if "helm.sh/resource-policy" in one["metadata"].get("annotations", {})}
    assert kept == {"Namespace", "NetworkPolicy"}


def test_services_and_rules_meet_what_they_are_for(rendered: list[Any]) -> None:
    def fits(selector: dict[str, str], labels: dict[str, str]) -> bool:
        return selector.items() <= labels.items()

    pods = {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for one in rendered
        if one["kind"] == "StatefulSet"
    }
    for one in rendered:
        if one["kind"] == "Service":
            assert sum(fits(one["spec"]["selector"], labels) for labels in pods.values()) == 1
        if one["kind"] in ("PodDisruptionBudget", "StatefulSet"):
            assert sum(fits(one["spec"]["selector"]["matchLabels"], labels) for labels in pods.values()) == 1
    out = next(one for one in rendered if one["metadata"]["name"] == "licet-only-way-out")
    to_gateway, to_names = out["spec"]["egress"]
    assert fits(to_gateway["to"][0]["podSelector"]["matchLabels"], pods["lic-gateway"])
    assert not fits(to_gateway["to"][0]["podSelector"]["matchLabels"], pods["lic-node-1"]), (
        "no node is reached around it"
    )
    assert {port["port"] for rule in (to_gateway, to_names) for port in rule["ports"]} == {7400, 53}
    hook = next(one for one in rendered if one["kind"] == "MutatingWebhookConfiguration")["webhooks"][0]
    assert (hook["failurePolicy"], hook["clientConfig"]["service"]["path"]) == ("Fail", "/v1/kubernetes/inject")
    after = next(one for one in rendered if one["kind"] == "ValidatingWebhookConfiguration")["webhooks"][0]
    assert (after["failurePolicy"], after["clientConfig"]["service"]["path"]) == ("Fail", "/v1/kubernetes/validate")
    assert after["namespaceSelector"] == hook["namespaceSelector"]
    asked = next(
        one
        for one in rendered
        if (one["kind"], one["metadata"]["name"]) == ("Service", hook["clientConfig"]["service"]["name"])
    )
    assert asked["spec"]["publishNotReadyAddresses"], "pods are looked at before there are policies"
    made = [one for one in rendered if one["kind"] == "Namespace"]
    assert [(one["metadata"]["name"], one["metadata"]["annotations"]) for one in made] == [
        ("shop", {"helm.sh/resource-policy": "keep"})
    ], "agents outlive the release, and what is there already stays whose it is"


def test_a_webhook_that_nobody_would_believe_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text(yaml.safe_dump({**VALUES, "injection": {}}))
    chart = DEPLOY / "helm" / "licet"
    done = subprocess.run(
        [HELM, "template", "lic", chart, "-f", tmp_path / "values.yaml", "--kube-version", "1.33.0"],
        capture_output=True,
        text=True,
    )
    assert done.returncode
    assert "caBundle" in done.stderr


def test_the_command_of_the_units_finds_what_the_readme_copies(tmp_path: Path) -> None:
    """As installed, from another directory: the packages lie beside, in no environment."""
    for name in ("trust", "edge", "gateway", "sidecar", "licet"):
        (tmp_path / "app").mkdir(exist_ok=True)
        (tmp_path / "app" / name).symlink_to(REPOSITORY / name)
    script = tmp_path / "licet"
    told = (DEPLOY / "licet").read_text().replace("/opt/licet/bin/python", sys.executable)
    script.write_text(told.replace("/opt/licet/app", str(tmp_path / "app")))
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(["sh", script, "--help"], cwd=tmp_path, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Pods


def pod(agent: str = "demo", **spec: Any) -> dict[str, Any]:
    locked = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    made = {"containers": [{"name": "agent", "image": "agent:1", "securityContext": locked}], **spec}
    annotations = {AGENT: agent} if agent else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "shop", "annotations": annotations},
        "spec": made,
    }


def review(asked: Any) -> bytes:
    request = {"uid": "u-1", "object": asked}
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()


def admitted(asked: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The pod as it is made, or why not."""
    answer = reviewed(review(asked), INJECTED)["response"]
    assert answer["uid"] == "u-1"
    if not answer["allowed"]:
        return None, answer["status"]["message"]
    return jsonpatch.apply_patch(asked, json.loads(base64.b64decode(answer["patch"]))), ""


@pytest.mark.parametrize(
    "asked",
    [
        pod(),
        pod(volumes=[{"name": "own", "emptyDir": {}}]),
        pod(
            initContainers=[
                {"name": "first", "image": "x:1", "securityContext": pod()["spec"]["containers"][0]["securityContext"]}
            ]
        ),
        pod(containers=[{**pod()["spec"]["containers"][0], "env": [{"name": "LICET_URL", "value": "mine"}]}]),
    ],
)
def test_a_pod_gets_a_sidecar_first_and_stays_restricted(asked: dict[str, Any]) -> None:
    made, _ = admitted(asked)
    assert made is not None
    kubernetes_validate.validate(made, "1.33", strict=True)
    spec = made["spec"]
    first = spec["initContainers"][0]
    assert (first["name"], first["restartPolicy"]) == (CONTAINER, "Always"), "it is there before the agent, and goes on"
    assert not list(restricted(spec))
    agent = spec["containers"][0]
    assert [one["name"] for one in agent["env"]].count("LICET_URL") == 1
    mounts = [
        one for one in spec["containers"] if any(m["name"] == "licet-identity" for m in one.get("volumeMounts", []))
    ]
    assert not mounts, "the agent does not hold its key"
    assert len(spec["initContainers"]) == 1 + len(asked["spec"].get("initContainers", []))


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (pod(agent=""), "name the agent in licet.dev/agent"),
        (pod(agent="../x"), "name the agent"),
        (pod(agent="UPPER"), "name the agent"),
        (pod(hostNetwork=True), "hostNetwork would go around"),
        (pod(hostPID=True), "hostPID"),
        (pod(shareProcessNamespace=True), "shareProcessNamespace"),
        (pod(securityContext={"runAsUser": 10001}), "the user 10001 is the sidecar's"),
        (pod(containers=[{"name": "a", "image": "a:1", "securityContext": {"runAsUser": 10001}}]), "the user 10001"),
        (
            pod(
                containers=[
                    {"name": "a", "image": "a:1", "volumeMounts": [{"name": "licet-identity", "mountPath": "/k"}]}
                ]
            ),
            "are the sidecar's",
        ),
        (
            pod(
                initContainers=[
                    {"name": "a", "image": "a:1", "volumeMounts": [{"name": "licet-data", "mountPath": "/k"}]}
                ]
            ),
            "are the sidecar's",
        ),
        (pod(containers=[{"name": CONTAINER, "image": "mine:1"}]), "as only the injected one may be"),
        (pod(initContainers=[{"name": CONTAINER, "image": "mine:1"}]), "as only the injected one may be"),
        (pod(volumes=[{"name": "licet-identity", "emptyDir": {}}]), "are the sidecar's"),
        (pod(volumes=[{"name": "k", "secret": {"secretName": "licet-agent-other"}}]), "for sidecars only"),
        (
            pod(volumes=[{"name": "k", "projected": {"sources": [{"secret": {"name": "licet-agent-demo"}}]}}]),
            "for sidecars only",
        ),
        (
            pod(containers=[{"name": "a", "image": "a:1", "envFrom": [{"secretRef": {"name": "licet-agent-demo"}}]}]),
            "for sidecars only",
        ),
        (
            pod(
                containers=[
                    {
                        "name": "a",
                        "image": "a:1",
                        "env": [
                            {
                                "name": "K",
                                "valueFrom": {"secretKeyRef": {"name": "licet-agent-x", "key": "identity.key"}},
                            }
                        ],
                    }
                ]
            ),
            "for sidecars only",
        ),
        ({"kind": "Deployment", "spec": {}}, "expected a Pod"),
        ({}, "expected a Pod"),
    ],
)
def test_a_pod_that_would_act_without_its_sidecar_is_refused(asked: dict[str, Any], why: str) -> None:
    made, told = admitted(asked)
    assert made is None
    assert why in told


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"apiVersion":"admission.k8s.io/v1beta1","request":{"uid":"x"}}', b"\xff"]
)
def test_what_is_no_review_is_refused(body: bytes) -> None:
    with pytest.raises(Unverifiable):
        reviewed(body, INJECTED)


def completed(made: dict[str, Any]) -> dict[str, Any]:
    """As a cluster fills it in: defaults, and the token of its service account in every container."""
    spec = made["spec"]
    for one in (*spec["initContainers"], *spec["containers"]):
        one.update(terminationMessagePath="/dev/termination-log", terminationMessagePolicy="File")
        one["imagePullPolicy"] = "IfNotPresent"
        mount = {"name": "kube-api-access-x", "readOnly": True}
        one.setdefault("volumeMounts", []).append(
            {**mount, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
        )
        for each in one.get("env", []):
            if "fieldRef" in each.get("valueFrom", {}):
                each["valueFrom"]["fieldRef"]["apiVersion"] = "v1"
        one.get("startupProbe", {}).update(successThreshold=1)
    spec["volumes"].append({"name": "kube-api-access-x", "projected": {"sources": [{"serviceAccountToken": {}}]}})
    return made


def looked_at(asked: Any, before: Any = None) -> str:
    """Why it may not be made so; empty if it may."""
    request = {"uid": "u-2", "object": asked, "operation": "CREATE" if before is None else "UPDATE"}
    request |= {} if before is None else {"oldObject": before}
    body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    answer = validated(json.dumps(body).encode(), INJECTED)["response"]
    assert answer["uid"] == "u-2"
    return "" if answer["allowed"] else str(answer["status"]["message"])


@pytest.mark.parametrize("image", ["licet:next", "licet:test@sha256:" + "0" * 64, "licet"])
def test_while_gateways_are_replaced_one_accepts_what_another_injected(image: str) -> None:
    changed = made()
    changed["spec"]["initContainers"][0]["image"] = image
    assert looked_at(changed) == ""


@pytest.mark.parametrize("image", ["evil/licet:test", "licet.evil:test", "registry:5000/licet:test", "licet2:test"])
def test_another_image_is_none_of_ours(image: str) -> None:
    changed = made()
    changed["spec"]["initContainers"][0]["image"] = image
    assert "after it was injected: image" in looked_at(changed)


@pytest.mark.parametrize("own", [None, [{"name": "own"}], [{"name": "registry"}]])
def test_the_sidecars_image_is_pulled_with_its_own_secret(own: list[dict[str, str]] | None) -> None:
    asked = pod() if own is None else pod(imagePullSecrets=own)
    private = Injected("registry.example:5000/licet:1", "http://gateway:7400", ("registry",), "512Mi", 9)
    answer = reviewed(review(asked), private)["response"]
    spec = jsonpatch.apply_patch(asked, json.loads(base64.b64decode(answer["patch"])))["spec"]
    names = [one["name"] for one in spec["imagePullSecrets"]]
    assert names == [*(one["name"] for one in own or [] if one["name"] != "registry"), "registry"]
    assert spec["volumes"][-1]["emptyDir"]["sizeLimit"] == "512Mi"
    assert {"name": "LICET_SIDECAR__KEEP_DAYS", "value": "9"} in spec["initContainers"][0]["env"]


def made() -> dict[str, Any]:
    found, _ = admitted(pod())
    assert found is not None
    return completed(json.loads(json.dumps(found)))


def with_other(kind: str, **container: Any) -> Callable[[dict[str, Any]], None]:
    def change(spec: dict[str, Any]) -> None:
        spec.setdefault(kind, []).append({"name": "other", "image": "x:1", **container})

    return change


def sidecar_with(**changed: Any) -> Callable[[dict[str, Any]], None]:
    return lambda spec: spec["initContainers"][0].update(changed)


ENV = {"name": "PYTHONPATH", "value": "/evil"}
TAMPERED: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda spec: spec["initContainers"].pop(0), "0 containers are called licet-sidecar"),
    (lambda spec: spec["initContainers"].append(dict(spec["initContainers"][0])), "2 containers are called"),
    (sidecar_with(image="evil:1"), "after it was injected: image"),
    (sidecar_with(command=["sleep"]), "after it was injected: command"),
    (sidecar_with(args=["--help"]), "after it was injected: args"),
    (sidecar_with(envFrom=[{"configMapRef": {"name": "x"}}]), "after it was injected: envFrom"),
    (sidecar_with(lifecycle={"postStart": {"exec": {"command": ["cp"]}}}), "after it was injected: lifecycle"),
    (sidecar_with(restartPolicy="Never"), "after it was injected: restartPolicy"),
    (sidecar_with(securityContext={"privileged": True}), "after it was injected: securityContext"),
    (
        lambda spec: spec["initContainers"][0]["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
        "after it was injected: securityContext",
    ),
    (lambda spec: spec["initContainers"][0]["env"].append(ENV), "after it was injected: env"),
    (lambda spec: spec["initContainers"][0]["env"][1].update(value="http://evil"), "after it was injected: env"),
    (
        lambda spec: spec["initContainers"][0]["volumeMounts"].append({"name": "own", "mountPath": "/usr"}),
        "after it was injected: volumeMounts",
    ),
    (lambda spec: spec["volumes"][1].update(emptyDir=None, hostPath={"path": "/"}), "the volume licet-data"),
    (lambda spec: spec["volumes"][0]["secret"].update(secretName="licet-agent-x"), "the volume licet-identity"),
    (with_other("containers", volumeMounts=[{"name": "licet-identity", "mountPath": "/k"}]), "are the sidecar's"),
    (with_other("ephemeralContainers", volumeMounts=[{"name": "licet-data", "mountPath": "/k"}]), "are the sidecar's"),
    (with_other("ephemeralContainers", targetContainerName=CONTAINER), "nobody looks into"),
    (with_other("ephemeralContainers", securityContext={"runAsUser": 10001}), "the user 10001"),
    (with_other("initContainers", envFrom=[{"secretRef": {"name": "licet-agent-demo"}}]), "for sidecars only"),
    (
        with_other(
            "containers",
            env=[{"name": "K", "valueFrom": {"secretKeyRef": {"name": "licet-agent-demo", "key": "identity.key"}}}],
        ),
        "for sidecars only",
    ),
    (lambda spec: spec.update(shareProcessNamespace=True), "shareProcessNamespace"),
]


def test_a_pod_that_was_made_as_it_was_injected_is_made() -> None:
    assert looked_at(made()) == ""
    more = made()
    more["spec"]["ephemeralContainers"] = [{"name": "debug", "image": "busybox", "targetContainerName": "agent"}]
    assert looked_at(more, made()) == "", "the agent itself may be looked into"
    assert "name the agent" in looked_at(pod(agent=""))
    assert "expected a Pod" in looked_at({"kind": "Deployment"})


@pytest.mark.parametrize(("container", "why"), [("agent", ""), ("", ""), (CONTAINER, "nobody enters")])
def test_nobody_enters_the_sidecar(container: str, why: str) -> None:
    asked = {"kind": "PodExecOptions", "command": ["sh"], **({"container": container} if container else {})}
    request = {"uid": "u-3", "operation": "CONNECT", "subResource": "exec", "object": asked}
    body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    answer = validated(json.dumps(body).encode(), INJECTED)["response"]
    assert answer["allowed"] == (not why)
    assert why in answer.get("status", {}).get("message", "")


@pytest.mark.parametrize(("change", "why"), TAMPERED)
def test_what_somebody_does_to_a_pod_after_it_was_injected_is_refused(
    change: Callable[[dict[str, Any]], Any], why: str
) -> None:
    tampered = made()
    change(tampered["spec"])
    assert why in looked_at(tampered)
    later = looked_at(tampered, made())
    assert why in later or "stays as it was injected" in later
    other = made()
    other["metadata"]["annotations"][AGENT] = "another"
    assert "licet" in looked_at(other, made())


def certificate(home: Path, name: str) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = home / "tls.crt", home / "tls.key"
    paths[0].write_bytes(made.public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths


@pytest.mark.slow
async def test_the_gateway_answers_an_api_server_over_tls(tmp_path: Path) -> None:
    crt, key = certificate(tmp_path, "licet-gateway.licet.svc")
    inject = InjectConfig(
        port=free_port(),
        tls_certificate=crt,
        tls_key=key,
        hostnames=("licet-gateway.licet.svc",),
        image="licet:test",
        gateway_url="http://licet-gateway.licet.svc:7400",
    )
    gateway = Gateway(GatewayConfig(home=tmp_path / "gateway", port=0, inject=inject))
    await gateway.start()
    try:
        context = ssl.create_default_context(cafile=str(crt))
        async with aiohttp.ClientSession() as http:

            async def ask(path: str, body: bytes, host: str = "licet-gateway.licet.svc:443") -> tuple[int, Any]:
                url = f"https://127.0.0.1:{gateway.admission.port}{path}?timeout=5s"
                headers = {"Host": host, "Content-Type": "application/json"}
                async with http.post(
                    url, data=body, headers=headers, ssl=context, server_hostname="licet-gateway.licet.svc"
                ) as reply:
                    return reply.status, await reply.json(content_type=None)

            status, told = await ask("/v1/kubernetes/inject", review(pod()))
            assert (status, told["response"]["allowed"], told["response"]["patchType"]) == (200, True, "JSONPatch")
            assert (await ask("/v1/kubernetes/inject", b"{}"))[0] == 400
            status, told = await ask("/v1/kubernetes/validate", review(pod()))
            assert (status, told["response"]["allowed"]) == (200, False), "it has no sidecar"
            assert (await ask("/v1/people", b"{}"))[0] == 404, "nothing else is served there"
            assert (await ask("/v1/kubernetes/inject", review(pod()), "evil.example"))[0] == 400
    finally:
        await gateway.stop()


@pytest.mark.slow
async def test_an_injected_sidecar_acts_with_what_its_secret_holds(mesh: Mesh, tmp_path: Path) -> None:
    """What ``licet agents secret`` prints, mounted as the patch says, is all that a pod's sidecar needs."""
    printed = json.loads(await fine(mesh, "agents", "secret", "shop", "--owner", "ada", "--namespace", "shop"))
    kubernetes_validate.validate(printed, "1.33", strict=True)
    made, _ = admitted(pod("shop"))
    assert made is not None
    container = made["spec"]["initContainers"][0]
    volume = next(one for one in made["spec"]["volumes"] if one["name"] == "licet-identity")
    assert volume["secret"]["secretName"] == printed["metadata"]["name"]
    mounted = tmp_path / "identity"
    mounted.mkdir()
    for name, text in printed["stringData"].items():
        (mounted / name).write_text(text)
        (mounted / name).chmod(volume["secret"]["defaultMode"])
    environment = {one["name"]: one.get("value", "pod-1") for one in container["env"]}
    environment |= {"LICET_SIDECAR__IDENTITY_FROM": str(mounted), "LICET_SIDECAR__GATEWAY_URL": mesh.gateway_url}
    config = Source(None, environment).sections(SECTIONS)["sidecar"]
    assert isinstance(config, SidecarConfig)
    sidecar = Sidecar(config.model_copy(update={"home": tmp_path / "data", "port": 0}))
    await sidecar.start()
    try:
        assert sidecar.token == printed["stringData"]["agent.token"], "the agent is known by its own Secret's token"
        async with asyncio.timeout(30):
            while not all(sidecar.checks().values()):
                await asyncio.sleep(0.01)
        answer = await mesh.act(sidecar, "workbench/read_file", {"path": "notes.txt"})
        assert (answer.status, answer.json["audit"]["origin"]) == (200, "licet.local/sidecar/shop/pod-1")
        # A Secret that others have seen is replaced by the next: pods with the former can do nothing any more.
        renewed = json.loads(await fine(mesh, "agents", "secret", "shop", "--renew", "--namespace", "shop"))
        assert renewed["metadata"] == printed["metadata"]
        assert renewed["stringData"]["identity.key"] != printed["stringData"]["identity.key"]
        assert (await mesh.act(sidecar, "workbench/read_file", {"path": "notes.txt"})).status != 200
        for name, text in renewed["stringData"].items():
            (mounted / name).write_text(text)
        other = Sidecar(config.model_copy(update={"home": tmp_path / "other", "port": 0, "instance": "pod-2"}))
        await other.start()
        try:
            async with asyncio.timeout(30):
                while not all(other.checks().values()):
                    await asyncio.sleep(0.01)
            assert (await mesh.act(other, "workbench/read_file", {"path": "notes.txt"})).status == 200
        finally:
            await other.stop()
    finally:
        await sidecar.stop()


@pytest.mark.slow
async def test_a_gateway_in_a_pod_is_asked_through_a_forwarded_port(tmp_path: Path) -> None:
    """As docs/deploy.md does it: the pod listens everywhere, and whoever forwards its port asks 127.0.0.1."""
    gateway = Gateway(GatewayConfig(home=tmp_path / "gateway", host="0.0.0.0", port=0, hostnames=("lic-gateway",)))
    await gateway.start()
    try:
        token = tmp_path / "gateway" / "operator.token"
        environment = os.environ | {"LICET_GATEWAY__PORT": str(gateway.port), "LICET_PERSON": str(token)}
        command = [BIN / "licet", "people", "register", "ada", "--role", "operations", "--token-file", tmp_path / "ada"]
        process = await asyncio.create_subprocess_exec(*command, env=environment, cwd=tmp_path)
        assert await process.wait() == 0
        assert gateway.console == f"http://licet.localhost:{gateway.port}", "where a browser here finds it"
    finally:
        await gateway.stop()


def test_a_key_as_a_cluster_mounts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gateway.key"
    SecretKey.load_or_create(path)
    path.chmod(0o440)
    with pytest.raises(PermissionError):
        SecretKey.load(path)  # as root, whose file it is
    if os.geteuid() == 0:
        monkeypatch.setattr(os, "geteuid", lambda: 10001)
        SecretKey.load(path)
        for mode in (0o444, 0o460, 0o640 | 0o004):
            path.chmod(mode)
            with pytest.raises(PermissionError):
                SecretKey.load(path)


# systemd


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="only where systemd is")
def test_the_units_are_sound_and_locked(tmp_path: Path) -> None:
    for unit in (DEPLOY / "systemd").glob("*.service"):
        there = tmp_path / unit.name
        there.write_text(unit.read_text().replace("/opt/licet/bin/licet", "/bin/true"))
        run("systemd-analyze", "verify", "--man=no", there)
        said = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(there)],
            capture_output=True,
            text=True,
        )
        assert said.returncode == 0, said.stdout[-300:]
        (tmp_path / f"{unit.name}.d").mkdir()
        shutil.copy(DEPLOY / "systemd" / "sandbox.conf", tmp_path / f"{unit.name}.d")
        run("systemd-analyze", "verify", "--man=no", there)


# The way around


def test_a_way_around_the_sidecar_is_found(tmp_path: Path) -> None:
    import socket

    closed = free_port()
    environment = {**os.environ, "LICET_HOME": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as node:
        target = f"127.0.0.1:{node.getsockname()[1]}"
        command = [sys.executable, "-m", "licet", "check", "--bypass", "--json"]
        found = subprocess.run(
            [*command, "--target", target, "--target", f"127.0.0.1:{closed}"],
            cwd=REPOSITORY, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        told = {one["what"]: one["fine"] for one in json.loads(found.stdout)}
        assert (found.returncode, told) == (1, {target: False, f"127.0.0.1:{closed}": True})
        locked = subprocess.run(
            [*command, "--target", f"127.0.0.1:{closed}"], cwd=REPOSITORY, env=environment, capture_output=True
        )
        assert locked.returncode == 0
        wrong = subprocess.run(
            [*command, "--target", "nowhere"], cwd=REPOSITORY, env=environment, capture_output=True, text=True
        )
        assert (wrong.returncode, "expected HOST:PORT" in wrong.stderr) == (2, True)
