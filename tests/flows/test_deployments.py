"""Deployments in code, in prefect.yaml and on the server."""

from __future__ import annotations

import os
import shlex
import subprocess
from datetime import timedelta

import pytest
import yaml

from data.errors import ConfigError
from flows.cli import deploy as commands_deploy
from flows.cli.app import main
from flows.recipes import RECIPES, Recipe, build_recipe
from reid.config.renamed import RENAMED
from tests.helpers.places import REPO

PATHS = {
    "PKU_REID_ROOT": "/data/PKU-Reid",
    "MARKET1501_ROOT": "/data/Market-1501",
    "MSMT17_ROOT": "/data/MSMT17",
}

pytestmark = pytest.mark.xdist_group("flow")


def _code(home: str) -> dict:
    from flows.deploy.deployments import recipe_deployment, watch_deployment

    recipes = [
        build_recipe("demo"),
        build_recipe("pku_reid", [f"data.root={PATHS['PKU_REID_ROOT']}"]),
        build_recipe("market1501", [f"data.root={PATHS['MARKET1501_ROOT']}"]),
        build_recipe("msmt17", [f"data.root={PATHS['MSMT17_ROOT']}"]),
    ]
    made = [recipe_deployment(recipe, home=home) for recipe in recipes]
    return {deployment.name: deployment for deployment in [*made, watch_deployment(home=home)]}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_parameters_are_the_recipe_without_its_defaults(name):
    from flows.deploy.deployments import recipe_deployment

    recipe = RECIPES[name]()
    deployment = recipe_deployment(recipe)
    assert deployment.full_name == f"caption-and-train/{recipe.data.label}"
    assert Recipe.model_validate(deployment.parameters["recipe"]) == recipe
    # The schema of Prefect's form: the whole recipe, typed and described.
    schema = deployment._parameter_openapi_schema.model_dump()
    assert schema["required"] == ["recipe"]
    assert "epochs" in str(schema["definitions"])


def test_the_deployment_of_images_without_identities_ends_after_captions():
    from flows.deploy.deployments import recipe_deployment

    images, people = (recipe_deployment(build_recipe(name)) for name in ("images", "folders"))
    assert (images.name, images.parameters["until"]) == ("images", "caption")
    assert images.description == "Index and caption images."
    assert "until" not in people.parameters


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_a_run_of_a_deployment_with_old_keys_gets_the_recipe(old):
    """Prefect validates the saved parameters of a deployment against the flow of the installed release."""
    from flows.pipeline import caption_and_train

    recipe = build_recipe("demo")
    parameters = recipe.model_dump(mode="json")
    *path, new = RENAMED[old].split(".")
    group = parameters
    for part in path:
        group = group[part]
    group[old.rpartition(".")[2]] = group.pop(new)
    assert caption_and_train.validate_parameters({"recipe": parameters})["recipe"] == recipe


def test_the_worker_imports_the_flow_and_does_not_fetch_code():
    from flows.deploy.deployments import recipe_deployment, watch_deployment

    for deployment in (recipe_deployment(RECIPES["demo"]()), watch_deployment()):
        assert ":" not in deployment.entrypoint
        assert deployment.storage is None
    assert recipe_deployment(RECIPES["demo"]()).entrypoint == "flows.pipeline.caption_and_train"


def test_prefect_yaml_matches_the_code(monkeypatch):
    """Every deployment of prefect.yaml, resolved like `prefect deploy` does, equals the one made in code."""
    from prefect.utilities.templating import apply_values

    text = (REPO / "prefect.yaml").read_text()
    content = yaml.safe_load(text)
    assert content["pull"] == []  # explicit: nothing is fetched
    for variable, value in (PATHS | {"CLIP_SCGI_HOME": "/srv/clip-scgi"}).items():
        monkeypatch.setenv(variable, value)
    found = {item["name"]: apply_values(item, {}) for item in content["deployments"]}
    code = _code("/srv/clip-scgi")
    assert sorted(found) == sorted(code)
    for name, wanted in code.items():
        item = found[name]
        assert item["entrypoint"] == wanted.entrypoint
        assert item["description"] == wanted.description
        assert item["tags"] == wanted.tags
        assert item.get("parameters", {}) == wanted.parameters
        assert item["concurrency_limit"]["limit"] == wanted.concurrency_limit == 1
        assert item["concurrency_limit"]["collision_strategy"] == wanted.concurrency_options.collision_strategy.value
        assert item["work_pool"]["name"] == wanted.work_pool_name
        assert item["work_pool"]["job_variables"] == wanted.job_variables
        crons = [schedule["cron"] for schedule in item.get("schedules", [])]
        assert crons == [schedule.schedule.cron for schedule in wanted.schedules or []]
        triggers = item.get("triggers", [])
        assert len(triggers) == len(wanted.triggers)
        for trigger, expected in zip(triggers, wanted.triggers, strict=True):
            assert trigger["name"] == expected.name
            assert set(trigger["expect"]) == expected.expect
            assert trigger["match"] == expected.match.model_dump(mode="json")


def test_a_root_variable_that_is_not_set_leaves_the_root_empty(monkeypatch):
    from prefect.utilities.templating import apply_values

    monkeypatch.delenv("PKU_REID_ROOT", raising=False)
    content = yaml.safe_load((REPO / "prefect.yaml").read_text())
    item = next(item for item in content["deployments"] if item["name"] == "pku_reid")
    assert Recipe.model_validate(apply_values(item, {})["parameters"]["recipe"]) == RECIPES["pku_reid"]()


@pytest.mark.parametrize(("home", "status"), [("/srv/clip-scgi", 0), ("artifacts", 1), (None, 1)])
def test_prefect_yaml_is_not_deployed_without_an_absolute_root(home, status):
    content = yaml.safe_load((REPO / "prefect.yaml").read_text())
    (step,) = content["build"]
    script = step["prefect.deployments.steps.run_shell_script"]["script"]
    environment = {"PATH": os.environ["PATH"]} | ({"CLIP_SCGI_HOME": home} if home else {})
    done = subprocess.run(shlex.split(script), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert ("set CLIP_SCGI_HOME" in done.stderr) == bool(status)


def test_a_served_deployment_has_no_pool_and_a_deployed_one_an_absolute_root():
    from flows.deploy.deployments import recipe_deployment

    served = recipe_deployment(RECIPES["demo"](), pool=None)
    assert served.work_pool_name is None
    assert served.job_variables == {}
    deployed = recipe_deployment(RECIPES["demo"](), home="/srv/a", cron="0 3 * * *")
    assert deployed.job_variables["env"]["CLIP_SCGI_HOME"] == "/srv/a"
    assert [schedule.schedule.cron for schedule in deployed.schedules] == ["0 3 * * *"]


def test_a_run_waits_540_seconds_for_a_heartbeat_before_it_counts_as_crashed():
    from flows.deploy.deployments import crash_automation, environment

    automation = crash_automation()
    assert automation.trigger.within == timedelta(seconds=540)
    assert {"prefect.flow-run.Completed", "prefect.flow-run.heartbeat"} <= automation.trigger.expect
    assert automation.actions[0].state.value == "CRASHED"
    assert float(environment(None)["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) * 3 < 540


def test_names_that_prefect_cannot_use_are_refused():
    from flows.deploy.deployments import recipe_deployment

    with pytest.raises(ConfigError, match="cannot name a deployment"):
        recipe_deployment(build_recipe("demo", ["data.name=a/b"]))
    with pytest.raises(ConfigError, match="2 recipes use the dataset name 'x'"):
        commands_deploy.deploy(["demo", "pku_reid"], ["data.name=x"])


def test_without_a_server_the_message_names_the_command_to_start_one(monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(ConfigError, match="prefect server start"):
        commands_deploy.deploy(["demo"], [])


def test_deploying_twice_leaves_one_of_everything(prefect_server, tmp_path, capsys):
    from prefect.client.orchestration import get_client

    words = ["deploy", "demo", "--home", str(tmp_path), "--set", "data.name=people", "--cron", "0 3 * * *"]
    for _ in range(2):
        assert main(words) == 0
    assert "prefect deployment run 'caption-and-train/people' --watch" in capsys.readouterr().out
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("caption-and-train/people")
        assert deployment.global_concurrency_limit.limit == 1
        assert deployment.concurrency_options.collision_strategy.value == "CANCEL_NEW"
        assert deployment.entrypoint == "flows.pipeline.caption_and_train"
        assert not deployment.pull_steps
        assert deployment.enforce_parameter_schema
        assert deployment.work_pool_name == "clip-scgi"
        assert deployment.job_variables["env"]["CLIP_SCGI_HOME"] == str(tmp_path)
        assert {"clip-scgi", "dataset:people"} == set(deployment.tags)
        assert client.read_deployment_by_name("watch-datasets/watch-datasets").schedules[0].active
        pool = client.read_work_pool("clip-scgi")
        assert pool.type == "process"
        assert pool.base_job_template
        names = [automation.name for automation in client.read_automations()]
        assert sorted(names) == ["clip-scgi: runs without a heartbeat have crashed", "people changed"]
        assert client.read_global_concurrency_limit_by_name("gpu").limit == 1


def test_serving_a_deployment_removes_it_from_the_pool_and_deploying_returns_it(prefect_server):
    from prefect.client.orchestration import get_client

    from flows.deploy.deployments import recipe_deployment, register, watch_deployment

    recipe = build_recipe("demo", ["data.name=moved"])
    with get_client(sync_client=True) as client:

        def pools() -> list[str | None]:
            """Return the pools that new runs of the two deployments go to."""
            names = ("caption-and-train/moved", "watch-datasets/watch-datasets")
            found = [client.read_deployment_by_name(name) for name in names]
            return [client.create_flow_run_from_deployment(item.id).work_pool_name for item in found]

        register(recipe_deployment(recipe, home="/srv/a"), watch_deployment(home="/srv/a"))
        assert pools() == ["clip-scgi", "clip-scgi"]
        for served in (recipe_deployment(recipe, pool=None), watch_deployment(pool=None)):
            served.apply()
        assert pools() == [None, None]
        register(recipe_deployment(recipe, home="/srv/b"), watch_deployment(home="/srv/b"))
        assert pools() == ["clip-scgi", "clip-scgi"]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ((), "recipe pku_reid has no images: set data.root to their folder, such as data.root=/data/images"),
        (
            ("--set", "data.root=people"),
            "data.root=people is relative, but runs start in other folders: set data.root={at}/people",
        ),
    ],
)
def test_a_deployment_that_could_never_find_its_images_is_refused(settings, problem, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for verb in ("deploy", "serve"):
        assert main([verb, "pku_reid", *settings, "--home", str(tmp_path)]) == 1
        assert capsys.readouterr().err == f"clip-scgi: the deployment: {problem.format(at=tmp_path)}\n"
