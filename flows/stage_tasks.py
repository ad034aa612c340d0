"""The steps of ``caption-and-train`` and the one Prefect task that runs each of them.

A step is a stage with the settings that only a flow needs: its device, its processes, and what Prefect's UI shows about
it. The artifacts on disk decide, not Prefect's records: the cache key of the task is the fingerprint of the artifact,
and a record is used only while that artifact is intact (``flows.pipeline``). Losing Prefect's database costs nothing.
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
from captioning.corrections.stage import CorrectStage
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
from flows.workers.together import encode_together
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

    device: the ``device`` setting; the step holds one GPU per process while it runs. assist: makes the artifact, or the
    part of it that takes long, in other processes, after which this process finds it. show: writes Prefect artifacts
    for the UI. note: returns a short text about a finished artifact.
    """

    stage: Stage
    device: str = CPU
    processes: int = 1
    assist: Callable[[RunContext], None] | None = None
    show: Callable[[RunContext, ArtifactRef], None] = _show_nothing
    note: Callable[[ArtifactRef], str] = _no_note


def caption_step(recipe: Recipe, _: Finished) -> Step:
    """Caption every image that does not have a caption by this captioner yet."""
    stage = CaptionStage(config=recipe.caption)
    return Step(stage=stage, device=recipe.caption.local_device, show=lambda _, made: show_captions(made))


def correct_step(recipe: Recipe, made: Finished) -> Step:
    """Apply the corrections of the images to the captions that the caption stage has written."""
    stage = CorrectStage(captions=made["caption"], config=recipe.caption)
    return Step(stage=stage, show=lambda _, made: show_captions(made))


def audit_step(recipe: Recipe, made: Finished) -> Step:
    """Measure how well the captions of each identity agree, and flag doubtful ones."""
    return Step(stage=AuditStage(captions=made["caption"], config=recipe.audit), show=lambda _, made: show_audit(made))


def train_step(recipe: Recipe, made: Finished) -> Step:
    """Train the method of the recipe; continue from the last checkpoint of a killed run."""
    stage, scale = TrainStage(captions=made.get("caption"), config=recipe.train), recipe.scale
    return Step(
        stage=stage,
        device=recipe.train.device,
        processes=scale.train_processes,
        assist=partial(launch_training, stage, scale=scale) if scale.trainers > 1 else None,
        show=lambda _, made: show_training(made),
        note=started_from,
    )


def evaluate_step(recipe: Recipe, made: Finished) -> Step:
    """Rank the gallery for every query, before and after training, in every inference mode."""
    stage = EvaluateStage(model=made["train"], config=recipe.evaluate, captions=made.get("caption"))
    shares = recipe.scale.shares(recipe.scale.embed_workers)
    together = partial(encode_together, stage, recipe.scale) if shares else None
    return Step(stage=stage, device=recipe.evaluate.device, assist=together, show=_show_evaluation)


def _show_evaluation(run: RunContext, evaluation: ArtifactRef) -> None:
    show_metrics(run.store, evaluation)
    show_cmc(evaluation)
    show_rankings(evaluation, images_root=run.images.root)


def report_step(recipe: Recipe, made: Finished) -> Step:
    """Write the report of the run."""
    inputs = ReportInputs(
        captions=made.get("caption"),
        audit=made.get("audit"),
        model=made["train"],
        evaluation=made["evaluate"],
        recipe=recipe.identity(),
    )
    stage = ReportStage(inputs=inputs, config=recipe.report, device=recipe.evaluate.device)
    return Step(stage=stage, device=recipe.evaluate.device if recipe.report.relevance else CPU)


STEPS: Final[Mapping[StageName, Callable[[Recipe, Finished], Step]]] = {
    "caption": caption_step,
    "audit": audit_step,
    "train": train_step,
    "evaluate": evaluate_step,
    "report": report_step,
}
"""Builders of the steps after the index, from a recipe and the artifacts of earlier stages."""


class StageResult(TypedDict):
    """Result of a stage task, as plain JSON data that Prefect stores. ref: fields of `ArtifactRef`."""

    ref: dict[str, str]
    note: str


class IndexResult(StageResult):
    """Result of the index task. images: fields of `IndexedImages`."""

    images: dict[str, Any]
    cached: bool


def _cache_key(_: TaskRunContext, parameters: dict[str, Any]) -> str:
    # The result contains absolute paths, so a record is valid for one artifact root only.
    plan, run = parameters["plan"], parameters["run"]
    return f"clip-scgi-{plan.fingerprint}-{digest(str(run.store.root))[:8]}"


def _worth_retrying(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Return True for errors that a retry may avoid, not for bad input or settings."""
    try:
        state.result()
    except (RetryableError, ConnectionError, TimeoutError):
        return True
    except Exception:
        return False
    return False


@contextmanager
def _progress(stage: str) -> Iterator[ProgressFn]:
    """Yield a progress callback that updates the bar in the terminal and the one in Prefect's UI."""
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
    """Index the dataset. Always lists the folder, to detect changes, but reads only changed files."""
    with _progress("index") as progress:
        outcome = index(store, config=config, progress=progress, reread=reread)
    return IndexResult(
        ref=outcome.made.ref.to_json(),
        note=outcome.note,
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
    """Make the artifact of `plan` while holding the GPUs that it needs, and show it in Prefect's UI."""
    name, is_made = step.stage.name, plan.find(run.store) is not None
    with gpu_slot(CPU if is_made else step.device, f"{name}.device", step.processes):
        if step.assist is not None and not is_made:
            step.assist(run)
        with _progress(name) as progress:
            # Weights may have changed while this step waited for a GPU, and the fingerprint names those that it reads.
            current = plan if is_made else step.stage.plan(run)
            made = current.make(run.with_progress(progress))
    step.show(run, made.ref)
    return StageResult(ref=made.ref.to_json(), note=made.produced.note or step.note(made.ref))
