"""Deployments for `prefect deployment run caption-and-train/<dataset>`, on a work pool or served by this process.

A worker imports the flow from the installed package (a module path), so code is neither stored nor fetched. One run per
dataset at a time: a second one is cancelled, because a run of an unchanged dataset does nothing, and ``watch-datasets``
announces a changed one until it has been indexed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from prefect import Flow, serve
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger, EventTrigger, Posture
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.types.entrypoint import EntrypointType
from prefect.workers.process import ProcessWorker

from data.artifacts.root import HOME_VARIABLE
from data.errors import ConfigError
from flows.deploy.watch import CHANGED, WATCH_FLOW, resource_id, watch_datasets
from flows.execution.gpu import ensure_limit
from flows.pipeline import caption_and_train
from flows.recipes import Recipe

POOL: Final = "clip-scgi"
TAG: Final = "clip-scgi"
WATCH_CRON: Final = "*/5 * * * *"
CRASHED_AFTER: Final = timedelta(seconds=540)
"""A run without a heartbeat for this long counts as crashed; a busy machine may delay heartbeats for minutes."""
HEARTBEAT_SECONDS: Final = "30"
_FORBIDDEN: Final = "/%"
_ZOMBIES: Final = "clip-scgi: runs without a heartbeat have crashed"


def deployment_name(recipe: Recipe) -> str:
    """Return the name of the deployment of `recipe`: the name of its dataset."""
    name = recipe.data.label
    if any(letter in name for letter in _FORBIDDEN):
        raise ConfigError(f"data.name={name!r} cannot name a deployment: use a name without {' and '.join(_FORBIDDEN)}")
    return name


def recipe_parameters(recipe: Recipe) -> dict[str, Any]:
    """Return `recipe` as plain data without its defaults; Prefect's form fills them in from the schema."""
    return recipe.model_dump(mode="json", exclude_defaults=True)


def recipe_deployment(
    recipe: Recipe, *, cron: str | None = None, pool: str | None = POOL, home: str | None = None
) -> RunnerDeployment:
    """Return the deployment ``caption-and-train/<dataset>`` of `recipe`.

    cron: a schedule in addition to the change trigger. pool: work pool; None to serve it. home: artifact root of the
    worker; None for the one that the worker's own environment names.
    """
    name = deployment_name(recipe)
    parameters: dict[str, Any] = {"recipe": recipe_parameters(recipe)}
    what = "Index, caption, audit, train, evaluate and report on"
    if not recipe.data.has_identities:  # a model cannot be trained
        parameters["until"], what = "caption", "Index and caption"
    return _deployment(
        caption_and_train,
        name,
        description=f"{what} {name}.",
        tags=[TAG, f"dataset:{name}"],
        parameters=parameters,
        cron=cron,
        triggers=[change_trigger(name)],
        pool=pool,
        home=home,
    )


def watch_deployment(
    *, cron: str | None = WATCH_CRON, pool: str | None = POOL, home: str | None = None
) -> RunnerDeployment:
    """Return the deployment ``watch-datasets/watch-datasets``, by default every five minutes."""
    return _deployment(
        watch_datasets,
        WATCH_FLOW,
        description="Look at every dataset with a deployment and announce those that changed.",
        tags=[TAG],
        cron=cron,
        pool=pool,
        home=home,
    )


def _deployment(
    flow: Flow[..., Any], name: str, *, pool: str | None, home: str | None, **what: Any
) -> RunnerDeployment:
    """Return a deployment of `flow` that runs one at a time, on a work pool or, without one, in this process."""
    # A served run inherits the environment of this process; a worker has its own.
    where: dict[str, Any] = (
        {} if pool is None else {"work_pool_name": pool, "job_variables": {"env": environment(home)}}
    )
    made = RunnerDeployment.from_flow(
        flow,
        name,
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        entrypoint_type=EntrypointType.MODULE_PATH,
        **what,
        **where,
    )
    if pool is None:
        # An earlier `deploy` may have put it on a pool. Assigned, because Prefect sends only fields that were set.
        made.work_pool_name = None
    return made


def change_trigger(name: str) -> DeploymentEventTrigger:
    """Return the trigger that starts a run when dataset `name` is announced as changed."""
    return DeploymentEventTrigger(
        name=f"{name} changed", expect={CHANGED}, match={"prefect.resource.id": resource_id(name)}
    )


def register(*deployments: RunnerDeployment, crashed_after: timedelta = CRASHED_AFTER) -> list[str]:
    """Register `deployments` with the server, and the work pool, GPU limit and crash automation that they need.

    Return their full names, ``<flow>/<deployment>``. Safe to repeat. crashed_after: time without a heartbeat after
    which a run counts as crashed.
    """
    for pool in sorted({item.work_pool_name for item in deployments if item.work_pool_name}):
        ensure_pool(pool)
    ensure_limit()
    ensure_crash_automation(crashed_after)
    for deployment in deployments:
        deployment.apply()
    return [deployment.full_name for deployment in deployments]


def serve_here(*deployments: RunnerDeployment, limit: int) -> None:
    """Register `deployments` and run them in subprocesses of this process until it is stopped, without a work pool.

    limit: runs at the same time. Schedules stay active after this process stops; runs that become due then wait for the
    next one.
    """
    ensure_limit()
    ensure_crash_automation()
    serve(*deployments, limit=limit, pause_on_shutdown=False, print_starting_message=False)


def ensure_pool(name: str) -> None:
    """Create the work pool `name` of type "process" unless it exists; an existing pool is not changed."""
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            pool = WorkPoolCreate(name=name, type=ProcessWorker.type, base_job_template=template)
            try:
                client.create_work_pool(pool)
            except ObjectAlreadyExists:
                return


def crash_automation(within: timedelta = CRASHED_AFTER) -> AutomationCore:
    """Return the automation that marks a run as crashed when its heartbeats stop without a final state.

    A worker that loses power cannot report it. Without the automation its run would stay Running and, with a
    concurrency limit of 1, block every later run of its dataset. Runs send heartbeats if
    ``PREFECT_FLOWS_HEARTBEAT_FREQUENCY`` (seconds) is set, as it is in these deployments.
    """
    ends = {"Completed", "Failed", "Cancelled", "Crashed"}
    return AutomationCore(
        name=_ZOMBIES,
        description="The process of the run ended. Run the deployment again: finished stages are found, not repeated.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in ends)},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                state=StateType.CRASHED,
                force=False,
                message="No heartbeat: the process of the run ended. Run the deployment again to continue the run.",
            )
        ],
    )


def ensure_crash_automation(within: timedelta = CRASHED_AFTER) -> None:
    """Create the crash automation, or update the existing one."""
    wanted = crash_automation(within)
    with get_client(sync_client=True) as client:
        present = client.read_automations_by_name(_ZOMBIES)
        if not present:
            client.create_automation(wanted)
        for extra in present:
            if extra.trigger != wanted.trigger:
                client.delete_automation(extra.id)
                client.create_automation(wanted)


def environment(home: str | None) -> dict[str, str]:
    """Return the environment variables that a deployment adds to the worker's own."""
    fixed = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": HEARTBEAT_SECONDS, "DO_NOT_TRACK": "1"}
    # The root is absolute: a worker runs each flow in a temporary folder.
    return fixed | ({HOME_VARIABLE: home} if home else {})
