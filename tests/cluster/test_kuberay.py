"""The manifests of ``cluster/kuberay`` against KubeRay's own resource definitions (``tests/schemas``)."""

from __future__ import annotations

import copy
import functools
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from cluster_files import CLUSTER, ROOT, documents, submissions
from jsonschema import Draft202012Validator
from packaging.requirements import Requirement
from ray import __version__ as ray_version

MANIFESTS = sorted((CLUSTER / "kuberay").glob("*.yaml"))
KINDS = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}
SUBMISSION_MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
"""The definition says string."""


def closed(schema: Any) -> Any:
    """Return a schema that knows no keys but those it names, unless Kubernetes keeps what it does not know."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    open_ended = (
        schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    )
    if isinstance(schema.get("properties"), dict) and "type" in schema and not open_ended:
        made["additionalProperties"] = False
    return made


@functools.cache
def definition(kind: str) -> Draft202012Validator:
    """Return what checks a kind's version v1."""
    text = (ROOT / "tests" / "schemas" / KINDS[kind]).read_text(encoding="utf-8")
    versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1"]
    return Draft202012Validator(closed(schema))


def errors(resource: dict[str, Any]) -> list[str]:
    """Return where a resource breaks its definition."""
    assert resource["apiVersion"] == "ray.io/v1"
    found = [error.message[:200] for error in definition(resource["kind"]).iter_errors(resource)]
    if resource["spec"].get("submissionMode", "K8sJobMode") not in SUBMISSION_MODES:
        found.append("submissionMode")
    return found


def resource(kind: str) -> dict[str, Any]:
    """Return the manifest of a kind."""
    every = [document for path in MANIFESTS for document in documents(path)]
    (only,) = [document for document in every if document["kind"] == kind]
    return copy.deepcopy(only)


def cluster_of(found: dict[str, Any]) -> dict[str, Any]:
    """Return what a resource says of its cluster."""
    return found["spec"].get("rayClusterSpec", found["spec"])


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Yield what a manifest says of each of its pods."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from pods(value)


@pytest.mark.parametrize("kind", KINDS)
def test_manifests_are_what_kuberay_defines(kind: str) -> None:
    assert errors(resource(kind)) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["workerGroupSpecs"][0].update(maxReplica=3),
        lambda c: c["workerGroupSpecs"][0].update(minReplicas="0"),
        lambda c: c["workerGroupSpecs"][0].pop("maxReplicas"),
        lambda c: c["autoscalerOptions"].update(version="v3"),
        lambda c: c["autoscalerOptions"].update(upscalingMode="aggressive"),
        lambda c: c["authOptions"].update(mode="Token"),
        lambda c: c["authOptions"].update({"secret": "x"}),
        lambda c: c["headGroupSpec"].update(rayStartParams={"num-cpus": 0}),
        lambda c: c["headGroupSpec"]["template"]["spec"]["containers"][0].update(envs=[]),
        lambda c: c["headGroupSpec"]["template"]["spec"].update(runAsNonRoot=True),
    ],
)
def test_what_kuberay_does_not_define_is_refused(kind: str, change: Any) -> None:
    found = resource(kind)
    change(cluster_of(found))
    assert len(errors(found)) == 1


def test_a_way_to_submit_that_does_not_exist_is_refused() -> None:
    found = resource("RayJob")
    found["spec"]["submissionMode"] = "K8SJobMode"
    assert errors(found) == ["submissionMode"]


@pytest.mark.parametrize("kind", KINDS)
def test_clusters_grow_shrink_and_ask_for_a_token(kind: str) -> None:
    cluster = cluster_of(resource(kind))
    assert cluster["rayVersion"] == ray_version
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert 60 <= cluster["autoscalerOptions"]["idleTimeoutSeconds"] <= 900
    assert cluster["authOptions"] == {"mode": "token", "secretName": "raydd-token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    spot, fallback = cluster["workerGroupSpecs"]
    assert (spot["groupName"], fallback["groupName"]) == ("spot", "on-demand")
    assert spot["priority"] > fallback["priority"]
    for group in (spot, fallback):
        assert (group["replicas"], group["minReplicas"]) == (0, 0), "idle clusters cost a head"
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_job_has_the_clusters_machines() -> None:
    cluster, job = cluster_of(resource("RayCluster")), cluster_of(resource("RayJob"))
    redis = cluster.pop("gcsFaultToleranceOptions")
    assert cluster == job
    assert redis["redisPassword"]["valueFrom"]["secretKeyRef"]["name"] == "raydd-redis"
    services = [d for path in MANIFESTS for d in documents(path) if d["kind"] == "Service"]
    assert redis["redisAddress"] == f"redis://{services[0]['metadata']['name']}:6379"


def test_the_jobs_entrypoint_is_what_its_comments_submit() -> None:
    (told,) = submissions(CLUSTER / "kuberay" / "rayjob.yaml")
    made = shlex.split(resource("RayJob")["spec"]["entrypoint"].replace("raydd-bucket", "BUCKET"))
    assert made == told.entrypoint


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_pods_run_without_rights_within_limits(path: Any) -> None:
    for pod in pods(documents(path)):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] >= 999
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            for what in ("requests", "limits"):
                assert {"cpu", "memory"} <= container["resources"][what].keys()


def test_all_of_it_is_in_one_namespace_that_others_do_not_reach() -> None:
    every = [document for path in MANIFESTS for document in documents(path)]
    kinds = [document["kind"] for document in every]
    assert {d["metadata"].get("namespace") for d in every if d["kind"] != "Namespace"} == {"raydd"}
    (policy,) = [d["spec"] for d in every if d["kind"] == "NetworkPolicy"]
    assert policy["podSelector"] == {}
    assert policy["policyTypes"] == ["Ingress"]
    assert [source.keys() for rule in policy["ingress"] for source in rule["from"]] == [
        {"podSelector"},
        {"podSelector", "namespaceSelector"},
    ]
    accounts = {d["metadata"]["name"] for d in every if d["kind"] == "ServiceAccount"}
    used = {pod.get("serviceAccountName") for pod in pods(every)} - {None}
    assert used == accounts
    assert kinds.count("RayCluster") == kinds.count("RayJob") == 1


def test_the_ray_of_manifests_is_the_projects() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (ray,) = [need for text in project["dependencies"] if (need := Requirement(text)).name == "ray"]
    assert all(cluster_of(resource(kind))["rayVersion"] in ray.specifier for kind in KINDS)
