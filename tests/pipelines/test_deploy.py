"""The files that start clusters are what KubeRay and 'ray up' take, and keep strangers out.

``rayjob_schema.yaml`` beside this file is of our own: the fields that our manifest uses, with
their types and what is required, compared by hand with KubeRay's CRD (the types of ray.io/v1 and
the field reference of KubeRay 1.6.2) when it was written. It refuses every other field, so a new
field has to be looked up there and added. The cluster file is checked by Ray itself.
"""

import copy
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

jsonschema = pytest.importorskip("jsonschema")

DEPLOY = Path(__file__).parents[2] / "pipelines/deploy"
SCHEMA = yaml.safe_load(Path(__file__).with_name("rayjob_schema.yaml").read_text(encoding="utf-8"))
BYTES = {"Gi": 2**30, "Mi": 2**20}

Change = Callable[[Any], object]


@pytest.fixture
def manifest() -> dict[str, Any]:
    """The documents of rayjob.yaml by kind; no aliases are shared."""
    text = (DEPLOY / "rayjob.yaml").read_text(encoding="utf-8")
    return {document["kind"]: copy_of(document) for document in yaml.safe_load_all(text)}


@pytest.fixture
def cluster() -> dict[str, Any]:
    """The cluster file."""
    text = (DEPLOY / "cluster.yaml").read_text(encoding="utf-8")
    found = copy_of(yaml.safe_load(text))
    assert isinstance(found, dict)
    return found


def copy_of(value: Any) -> Any:
    """Without the sharing that YAML's aliases make, so that a change is a change in one place."""
    if isinstance(value, dict):
        return {key: copy_of(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copy_of(item) for item in value]
    return value


def templates(job: dict[str, Any]) -> dict[str, Any]:
    spec = job["spec"]["rayClusterSpec"]
    workers = {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    return {
        "submitter": job["spec"]["submitterPodTemplate"],
        "head": spec["headGroupSpec"]["template"],
        **workers,
    }


def containers(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for template in templates(job).values():
        yield from template["spec"]["containers"]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_ray_job_fits_its_schema(manifest: dict[str, Any]) -> None:
    jsonschema.validate(manifest["RayJob"], SCHEMA, cls=jsonschema.Draft202012Validator)


WRONG: dict[str, Change] = {
    "another version": lambda job: job.update(apiVersion="ray.io/v1alpha1"),
    "an unknown field": lambda job: job["spec"].update(entryPoint="x"),
    "no entrypoint": lambda job: job["spec"].pop("entrypoint"),
    "a misspelt mode": lambda job: job["spec"].update(submissionMode="K8SJobMode"),
    "a mode of authentication": lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(
        mode="tokens"
    ),
    "numbers as start parameters": lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"][
        "rayStartParams"
    ].update({"num-cpus": 0}),
    "a worker group without a name": lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][
        0
    ].pop("groupName"),
    "a number as an environment variable": lambda job: next(
        c for c in containers(job) if "env" in c
    )["env"][0].update(value=0),
    "a quantity that is none": lambda job: next(containers(job))["resources"]["limits"].update(
        memory="16GB"
    ),
    "a name that is too long": lambda job: job["metadata"].update(name="x" * 48),
    "a security setting in the wrong place": lambda job: next(containers(job))[
        "securityContext"
    ].update(fsGroup=100),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_the_schema_is_not_blind(change: Change, manifest: dict[str, Any]) -> None:
    change(manifest["RayJob"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest["RayJob"], SCHEMA, cls=jsonschema.Draft202012Validator)


def test_the_cluster_asks_for_a_token_that_is_not_in_the_file(manifest: dict[str, Any]) -> None:
    auth = manifest["RayJob"]["spec"]["rayClusterSpec"]["authOptions"]
    assert auth == {"mode": "token", "secretName": "pbe-fast-ray-token"}
    assert set(manifest) == {"PersistentVolumeClaim", "ServiceAccount", "RayJob"}  # no Secret
    for container in containers(manifest["RayJob"]):
        for variable in container.get("env", []):
            assert not re.search("TOKEN|KEY|SECRET|PASSWORD", variable["name"])


def test_authentication_is_in_this_version_of_ray(manifest: dict[str, Any]) -> None:
    version = manifest["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"]
    assert tuple(map(int, version.split("."))) >= (2, 52)
    for container in containers(manifest["RayJob"]):
        assert container["image"].endswith(f"ray{version}")


def test_pods_are_confined_and_limited(manifest: dict[str, Any]) -> None:
    job = manifest["RayJob"]
    for name, template in templates(job).items():
        security = template["spec"]["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        mounts_token = template["spec"].get("automountServiceAccountToken", True)
        assert mounts_token == (name == "head"), name  # where the autoscaler runs
    autoscaler = job["spec"]["rayClusterSpec"]["autoscalerOptions"]
    for container in [*containers(job), autoscaler]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][kind])


def test_what_is_mounted_exists(manifest: dict[str, Any]) -> None:
    claim = manifest["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name, template in templates(manifest["RayJob"]).items():
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        for container in template["spec"]["containers"]:
            mounts = {m["name"]: m["mountPath"] for m in container.get("volumeMounts", [])}
            assert set(mounts) == set(volumes), name
        if name == "submitter":
            continue
        assert mounts["runs"] == "/runs"
        assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        store, most = volumes["shared-memory"]["emptyDir"]["sizeLimit"], container["resources"]
        assert bytes_of(store) <= bytes_of(most["limits"]["memory"]) / 2, name
        account = template["spec"]["serviceAccountName"]
        assert account == manifest["ServiceAccount"]["metadata"]["name"]


def bytes_of(quantity: str) -> int:
    return int(quantity[:-2]) * BYTES[quantity[-2:]]


def test_workers_come_and_go(manifest: dict[str, Any]) -> None:
    spec = manifest["RayJob"]["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_the_entrypoint_is_a_command_of_ours(manifest: dict[str, Any]) -> None:
    from pipelines.cli import app

    words = shlex.split(manifest["RayJob"]["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "pipelines"]
    commands: Any = typer.main.get_command(app)
    given = commands.commands[words[3]].make_context(words[3], words[4:]).params
    assert str(given["out"]).startswith("/runs/")
    assert given["ray"] == "auto"  # the cluster that the job runs on
    spec = manifest["RayJob"]["spec"]["rayClusterSpec"]
    (group,) = spec["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    limits = worker["resources"]["limits"]
    assert given["workers"] <= group["maxReplicas"]
    # The defaults are those of the head, which has no GPU.
    assert given["gpus_per_worker"] == limits["nvidia.com/gpu"]
    assert given["cpus_per_worker"] == int(limits["cpu"])
    env = yaml.safe_load(manifest["RayJob"]["spec"]["runtimeEnvYAML"])["env_vars"]
    assert all(isinstance(value, str) for value in env.values())


def prepared(cluster: dict[str, Any]) -> dict[str, Any]:
    util = pytest.importorskip("ray.autoscaler._private.util")
    config: dict[str, Any] = util.prepare_config(copy.deepcopy(cluster))
    util.validate_config(config)
    return config


def test_ray_takes_the_cluster_file(cluster: dict[str, Any]) -> None:
    config = prepared(cluster)
    assert config["setup_commands"] == []  # Ray's defaults would install another Ray
    assert config["head_start_ray_commands"] == cluster["head_start_ray_commands"]


WRONG_CLUSTER: dict[str, Change] = {
    "an unknown field": lambda c: c.update(idle_timeout=5),
    "a head that is not there": lambda c: c.update(head_node_type="main"),
    "a word for a number": lambda c: c.update(max_workers="many"),
    "resources in words": lambda c: c["available_node_types"]["head"].update(resources="none"),
    "more workers than allowed": lambda c: c["available_node_types"]["gpu-spot"].update(
        min_workers=c["max_workers"] + 1
    ),
    "no provider": lambda c: c.pop("provider"),
}


@pytest.mark.parametrize("change", WRONG_CLUSTER.values(), ids=WRONG_CLUSTER)
def test_ray_refuses_a_wrong_cluster_file(change: Change, cluster: dict[str, Any]) -> None:
    change(cluster)
    with pytest.raises((ValueError, KeyError, jsonschema.ValidationError)):
        prepared(cluster)


def test_every_node_asks_for_the_token(cluster: dict[str, Any]) -> None:
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [command for command in cluster[commands] if "ray start" in command]
        assert "RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 ray start" in start
        if "--head" in start:
            assert "--dashboard-host=127.0.0.1" in start
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def test_gpu_nodes_come_and_go(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    gpu = types["gpu-spot"]
    assert gpu["min_workers"] == 0 < gpu["max_workers"] <= cluster["max_workers"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_runs_lie_where_all_nodes_see_them(cluster: dict[str, Any]) -> None:
    (mount,) = [command for command in cluster["initialization_commands"] if "nfs4" in command]
    assert "amazonaws.com:/ /mnt/runs)" in mount
    assert cluster["docker"]["run_options"] == ["--volume=/mnt/runs:/runs"]


def test_both_use_the_same_image(cluster: dict[str, Any], manifest: dict[str, Any]) -> None:
    images = {container["image"] for container in containers(manifest["RayJob"])}
    assert images == {cluster["docker"]["image"]}


@pytest.mark.parametrize("name", ["rayjob.yaml", "cluster.yaml"])
def test_what_to_change_is_said(name: str) -> None:
    text = (DEPLOY / name).read_text(encoding="utf-8")
    for line in text.splitlines():
        if re.search(r"example\.com|123456789012|us-west-2", line):
            around = text[max(0, text.index(line) - 300) : text.index(line) + len(line)]
            assert "CHANGE" in around, line
