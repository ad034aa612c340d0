"""The steps of ``caption-and-train`` and the one Prefect task that runs each of them.

A step is a stage with what only a flow needs to know: its device, its processes, and what Prefect's UI shows of it. The
disk is the truth and Prefect's record is bookkeeping: the cache key of the task is the fingerprint of the artifact, and
a record counts only while that artifact is intact (``flows.pipeline``), so losing Prefect's database costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypedDict

from prefect import task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.tasks import Task

from captioning.audit.stage import AuditStage
from captioning.stage.stage import CaptionStage
from data.artifacts.fingerprint import digest
from data.artifacts.stages import StageName
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.datasets import DatasetConfig
from data.device import CPU
from data.errors import RetryableError
from data.index.stage import index
from data.progress import ProgressFn
from data.stages.stage import Plan, RunContext, Stage
from flows.execution.gpu import gpu_slot
from flows.execution.launch import launch_training
from flows.execution.ui import (
    progress_artifact,
    show_audit,
    show_captions,
    show_cmc,
    show_metrics,
    show_rankings,
    show_training,
)
from flows.recipes import Recipe
from flows.report.stage import ReportInputs, ReportStage
from flows.terminal import progress_bar
from reid.evaluation.stage import EvaluateStage
from reid.training.stage import TrainStage, started_from

Finished = Mapping[StageName, ArtifactRef]
"""The artifacts of the stages that have run."""


def _show_nothing(run: RunContext, made: ArtifactRef) -> None:
    """Show nothing in Prefect's UI."""


def _no_note(made: ArtifactRef) -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stage in a flow.

    device: its ``device`` setting; as many GPUs as `processes` are held while it runs. assist: work of other processes
    before the stage is made in this one, which then finds it. show: writes artifacts into Prefect's UI. note: what an
    artifact tells about itself, in a few words.
    """

    stage: Stage
    device: str = CPU
    processes: int = 1
    assist: Callable[[RunContext], None] | None = None
    show: Callable[[RunContext, ArtifactRef], None] = _show_nothing
    note: Callable[[ArtifactRef], str] = _no_note


def caption_step(recipe: Recipe, _: Finished) -> Step:
    """Caption every image that has no caption by this captioner yet."""
    stage = CaptionStage(config=recipe.caption)
    return Step(stage=stage, device=recipe.caption.local_device, show=lambda _, made: show_captions(made))


def audit_step(recipe: Recipe, made: Finished) -> Step:
    """Measure how far the captions of one identity agree, and flag the doubtful ones."""
    return Step(stage=AuditStage(captions=made["caption"], config=recipe.audit), show=lambda _, made: show_audit(made))


def train_step(recipe: Recipe, made: Finished) -> Step:
    """Train the recipe's method, continuing from the last checkpoint of a killed run."""
    stage, processes = TrainStage(captions=made.get("caption"), config=recipe.train), recipe.scale.train_processes
    return Step(
        stage=stage,
        device=recipe.train.device,
        processes=processes,
        assist=partial(launch_training, stage, processes=processes) if processes > 1 else None,
        show=lambda _, made: show_training(made),
        note=started_from,
    )


def evaluate_step(recipe: Recipe, made: Finished) -> Step:
    """Rank the gallery for every query, before and after training, in every inference mode."""
    stage = EvaluateStage(model=made["train"], config=recipe.evaluate)
    return Step(stage=stage, device=recipe.evaluate.device, show=_show_evaluation)


def _show_evaluation(run: RunContext, evaluation: ArtifactRef) -> None:
    show_metrics(run.store, evaluation)
    show_cmc(evaluation)
    show_rankings(evaluation, images_root=run.images.root)


def report_step(recipe: Recipe, made: Finished) -> Step:
    """Write the page about the run."""
    inputs = ReportInputs(
        captions=made.get("caption"),
        audit=made.get("audit"),
        model=made["train"],
        evaluation=made["evaluate"],
        recipe=recipe.identity(),
    )
    return Step(stage=ReportStage(inputs=inputs, config=recipe.report))


STEPS: Final[Mapping[StageName, Callable[[Recipe, Finished], Step]]] = {
    "caption": caption_step,
    "audit": audit_step,
    "train": train_step,
    "evaluate": evaluate_step,
    "report": report_step,
}
"""The stages after the index: how each is built from a recipe and the artifacts of those before it."""


class StageResult(TypedDict):
    """What the task of a stage returns, as plain JSON data that Prefect stores. ref: fields of ArtifactRef."""

    ref: dict[str, str]
    note: str


class IndexResult(StageResult):
    """What the task of the index returns. images: fields of `IndexedImages`."""

    images: dict[str, Any]
    cached: bool


def _cache_key(_: TaskRunContext, parameters: dict[str, Any]) -> str:
    # The result holds absolute paths, so a record serves only the artifact root it was made in.
    plan, run = parameters["plan"], parameters["run"]
    return f"clip-scgi-{plan.fingerprint}-{digest(str(run.store.root))[:8]}"


def _worth_retrying(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Return True for errors that may not occur again; bad input and bad settings fail at once."""
    try:
        state.result()
    except (RetryableError, ConnectionError, TimeoutError):
        return True
    except Exception:
        return False
    return False


@contextmanager
def _progress(stage: str) -> Iterator[ProgressFn]:
    """Yield a progress callback that moves a bar in the terminal and one in Prefect's UI."""
    with progress_bar(stage) as bar, progress_artifact(stage, bar) as both:
        yield both


@task(
    name="index",
    task_run_name="index",
    persist_result=False,
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=_worth_retrying,
)
def index_task(store: ArtifactStore, config: DatasetConfig, *, reread: bool) -> IndexResult:
    """Index the dataset. Always looks at the folder (that is how a change is seen), reads only what changed."""
    with _progress("index") as progress:
        outcome = index(store, config=config, progress=progress, reread=reread)
    return IndexResult(
        ref=outcome.made.ref.to_json(),
        note=outcome.found.note,
        images=outcome.images.to_json(),
        cached=outcome.made.cached,
    )


@task(
    name="stage",
    persist_result=True,
    result_serializer="json",  # never pickle
    cache_key_fn=_cache_key,
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=_worth_retrying,
)
def stage_task(*, step: Step, plan: Plan, run: RunContext) -> StageResult:
    """Make the artifact that `plan` names, holding the GPUs that it needs, and show it in Prefect's UI."""
    name, is_made = step.stage.name, plan.find(run.store) is not None
    with gpu_slot(CPU if is_made else step.device, f"{name}.device", step.processes):
        if step.assist is not None and not is_made:
            step.assist(run)
        with _progress(name) as progress:
            made = plan.make(run.with_progress(progress))
    step.show(run, made.ref)
    return StageResult(ref=made.ref.to_json(), note=made.produced.note or step.note(made.ref))
