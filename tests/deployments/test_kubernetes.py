"""The manifests for Kubernetes fit the schemas of its API and of KubeRay, and give pods few rights."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from flows.jobs.job import DreamJob

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deployments" / "kubernetes"
SCHEMAS = json.loads((ROOT / "tests" / "fixtures" / "kuberay" / "schemas.json").read_text())
KUBERNETES = "1.37"
Manifest = dict[str, Any]


def manifests() -> list[Manifest]:
    """Return every manifest of the folder, and the Job that Prefect makes from its template."""
    files = sorted(FOLDER.glob("*.yaml"))
    return [each for file in files for each in yaml.safe_load_all(file.read_text())] + [job_of_template()]


def job_of_template(**variables: str) -> Manifest:
    """Return the Job that Prefect makes from the job template with these variables, and defaults for the others."""
    template = json.loads((FOLDER / "base-job-template.json").read_text())
    declared = template["variables"]["properties"]
    values = {name: field["default"] for name, field in declared.items() if "default" in field}
    values |= {"command": "prefect flow-run execute", "name": "run", "labels": {}, "image": "image", **variables}
    values |= {"env": [{"name": "AWS_DEFAULT_REGION", "value": "eu-central-1"}], "service_account_name": "dreamgrid"}
    values["command"] = shlex.split(values["command"])

    def fill(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: fill(each) for name, each in part.items()}
        if isinstance(part, list):
            return [fill(each) for each in part]
        whole = re.fullmatch(r"\{\{ (\w+) \}\}", part) if isinstance(part, str) else None
        if whole:
            return values[whole[1]]
        return re.sub(r"\{\{ (\w+) \}\}", lambda found: str(values[found[1]]), part) if isinstance(part, str) else part

    job: Manifest = fill(template["job_configuration"]["job_manifest"])
    return job


def pods(manifest: Manifest) -> Iterator[Manifest]:
    """Yield the template of every pod that a manifest makes."""
    spec = manifest.get("spec", {})
    groups = [spec.get("headGroupSpec", {}), *spec.get("workerGroupSpecs", ()), spec]
    yield from (group["template"] for group in groups if "template" in group)


def named(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata'].get('name', '')}".strip()


def check(manifest: Manifest) -> None:
    """Raise `ValidationError` if a manifest does not fit the schema of its kind; unknown fields do not fit."""
    if manifest["apiVersion"].startswith("ray.io/"):
        schema = {"$ref": f"#/{manifest['kind']}", **SCHEMAS}
        jsonschema.Draft202012Validator(schema).validate(manifest)
        for pod in pods(manifest):
            check({"apiVersion": "v1", "kind": "Pod", **pod})
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("manifest", manifests(), ids=named)
def test_every_manifest_fits_its_schema(manifest: Manifest) -> None:
    check(manifest)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "minReplica"), 0),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "minReplicas"), "none"),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "template", "spec", "terminationGracePeriod"), 60),
        ("RayCluster", ("spec", "headGroupSpec", "template", "spec", "containers", 0, "lifecycle", "preStop"), "stop"),
        ("RayJob", ("spec", "submissionMode"), 1),
        ("RayJob", ("spec", "entryPoint"), "dreamgrid"),
        ("Role", ("rules", 0, "verb"), ["get"]),
        ("Job", ("spec", "template", "spec", "containers", 0, "resources", "limit"), {}),
    ],
)
def test_a_wrong_field_does_not_fit(kind: str, path: tuple[str | int, ...], value: object) -> None:
    (manifest,) = (each for each in manifests() if each["kind"] == kind)
    *folders, name = path
    place: Any = manifest
    for folder in folders:
        place = place[folder]
    place[name] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(manifest)


PODS = {f"{named(each)} {pod['spec']['containers'][0]['name']}": pod for each in manifests() for pod in pods(each)}


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS.keys())
def test_every_pod_is_restricted_and_ends_in_order(pod: Manifest) -> None:
    spec, (container,) = pod["spec"], pod["spec"]["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/home/dreamgrid"}
    assert spec["terminationGracePeriodSeconds"] >= 60, "a run ends within 25 s of SIGTERM"
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "dreamgrid", "the network policy selects it"


def test_only_the_head_has_a_token_of_the_kubernetes_api() -> None:
    have = [name for name, pod in PODS.items() if pod["spec"].get("automountServiceAccountToken", True)]
    assert have == ["RayCluster dreamgrid ray-head"]


def test_accounts_are_declared_and_roles_have_no_wildcard() -> None:
    found = manifests()
    accounts = {each["metadata"]["name"] for each in found if each["kind"] == "ServiceAccount"}
    assert {pod["spec"]["serviceAccountName"] for each in found for pod in pods(each)} < accounts
    rules = [rule for each in found if each["kind"] == "Role" for rule in each["rules"]]
    words = {word for rule in rules for name in ("apiGroups", "resources", "verbs") for word in rule[name]}
    assert not words & {"*", "secrets", "pods/exec", "escalate", "bind", "impersonate"}
    assert not [each for each in found if each["kind"].startswith("Cluster")], "no right beyond the namespace"


def test_spot_workers_come_and_go() -> None:
    (cluster,) = (each["spec"] for each in manifests() if each["kind"] == "RayCluster")
    (workers,) = cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"]
    assert (workers["replicas"], workers["minReplicas"]) == (0, 0) < (1, workers["maxReplicas"])
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "no shard runs on the head"


def test_the_ray_job_passes_a_job_file_that_asks_for_gpus() -> None:
    (spec,) = (each["spec"] for each in manifests() if each["kind"] == "RayJob")
    (cluster,) = (each for each in manifests() if each["kind"] == "RayCluster")
    assert spec["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    script = spec["entrypoint"].replace("dreamgrid run ", "cat ", 1)
    job = yaml.safe_load(subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout)
    executor = DreamJob.model_validate(job).executor
    assert (executor.name, executor.address, executor.gpus) == ("ray", "auto", 1)


def test_the_run_of_a_prefect_deployment_may_have_no_gpu() -> None:
    pattern = json.loads((FOLDER / "base-job-template.json").read_text())["variables"]["properties"]["gpus"]["pattern"]
    assert all(re.fullmatch(pattern, number) for number in ("0", "1", "16"))
    assert not any(re.fullmatch(pattern, number) for number in ("", "-1", "01", "many"))
