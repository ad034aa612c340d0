"""The manifests for Kubernetes: valid by KubeRay's schema, in step with each other and the lock."""

from __future__ import annotations

import copy
import json
import re

import jsonschema
import pytest
import yaml

from flows.recipes import build_recipe
from tests.helpers.places import REPO

FOLDER = REPO / "deploy" / "kuberay"
SCHEMA = json.loads((REPO / "tests" / "golden" / "kuberay_schema.json").read_text())
NAMES = ("ray-cluster.yaml", "ray-job.yaml")


def manifest(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text())


def problems(content: dict) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(SCHEMA[content["kind"]]).iter_errors(content)]


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_follows_the_schema(name):
    content = manifest(name)
    assert content["apiVersion"] == "ray.io/v1"
    assert problems(content) == []


def test_the_schema_refuses_what_is_wrong():
    cluster = manifest("ray-cluster.yaml")
    misspelled = copy.deepcopy(cluster)
    misspelled["spec"]["workerGroupSpecs"][0]["replica"] = 4
    assert "'replica' was unexpected" in problems(misspelled)[0]
    text = copy.deepcopy(cluster)
    text["spec"]["workerGroupSpecs"][0]["maxReplicas"] = "16"
    assert problems(text) == ["'16' is not of type 'integer'"]
    del cluster["spec"]["headGroupSpec"]["template"]
    assert problems(cluster) == ["'template' is a required property"]


def test_the_job_makes_the_cluster_of_the_other_manifest():
    assert manifest("ray-job.yaml")["spec"]["rayClusterSpec"] == manifest("ray-cluster.yaml")["spec"]


def test_pods_see_the_same_folders_and_workers_have_a_gpu():
    spec = manifest("ray-cluster.yaml")["spec"]
    (group,) = spec["workerGroupSpecs"]
    pods = [spec["headGroupSpec"]["template"]["spec"], group["template"]["spec"]]
    for pod in pods:
        (container,) = pod["containers"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/artifacts", "/data"}
        assert pod["securityContext"]["runAsUser"] == 10001
        assert {"name": "CLIP_SCGI_HOME", "value": "/artifacts"} in container["env"]
    assert pods[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}


def test_versions_are_those_of_the_lock():
    (locked,) = re.findall(r"^ray==(\S+)$", (REPO / "requirements.lock").read_text(), re.MULTILINE)
    assert manifest("ray-cluster.yaml")["spec"]["rayVersion"] == locked
    assert f"ray[default]=={locked}" in (FOLDER / "Dockerfile").read_text()


def test_the_command_of_the_job_is_one():
    program, command, recipe, *options = manifest("ray-job.yaml")["spec"]["entrypoint"].split()
    assert (program, command) == ("clip-scgi", "caption")
    built = build_recipe(recipe, [word for word in options if word != "--set"])
    assert built.scale.runner == "ray"
