"""The Prefect flow ``caption-and-train``: index -> caption -> audit -> train -> evaluate -> report.

A method that reads no captions needs neither caption nor audit; these two then run only when asked for.

Every task is a thin verb over a plain function that needs no Prefect. The disk is the truth and Prefect's record is
bookkeeping: a task's cache key is the fingerprint of its artefact, and a record counts only while that artefact is
intact (``refresh_cache``), so losing Prefect's database costs nothing and losing an artefact reruns its stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, runtime, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.tasks import Task
from rich.console import Console

from captioning.audit import AuditConfig, audit, audit_ingredients
from captioning.config import CaptionConfig
from captioning.stage import caption, caption_ingredients
from data.artifacts import ArtifactRef, ArtifactStore, fingerprint_of
from data.datasets import DatasetConfig
from data.errors import RetryableError
from data.files import read_json
from data.fingerprint import digest
from data.index import index
from data.progress import ProgressFn
from flows.fanout import caption_together
from flows.gpu import gpu_slot
from flows.launch import launch_training
from flows.recipes import Recipe
from flows.report import ReportConfig, ReportInputs, report, report_ingredients
from flows.summary import RunSummary, StageName, StageRun
from flows.terminal import notice_line, progress_bar, stage_line
from flows.ui import (
    name_run,
    progress_artifact,
    show_audit,
    show_captions,
    show_cmc,
    show_metrics,
    show_rankings,
    show_training,
)
from flows.worlds import ensure_world
from reid.config import TrainConfig
from reid.config_evaluate import EvaluateConfig
from reid.stage_evaluate import evaluate, evaluate_ingredients
from reid.stage_train import train, train_ingredients

FLOW_NAME = "caption-and-train"
Result = dict[str, Any]


def _cache_key(_: TaskRunContext, parameters: dict[str, Any]) -> str:
    # The result holds absolute paths, so a record serves only the artefact root it was made in.
    return f"clip-scgi-{parameters['fingerprint']}-{digest(parameters['home'])[:8]}"


def _worth_retrying(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Retry what may pass next time; bad input and bad settings fail at once."""
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


def _stage_task(name: str) -> Callable[[Callable[..., Result]], Task[..., Result]]:
    """Return the decorator every stage's task wears: JSON results (never pickle), cached by fingerprint."""
    return task(
        name=name,
        task_run_name=name,
        persist_result=True,
        result_serializer="json",
        cache_key_fn=_cache_key,
        retries=2,
        retry_delay_seconds=[5, 30],
        retry_condition_fn=_worth_retrying,
    )


@task(
    name="index",
    task_run_name="index",
    persist_result=False,
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=_worth_retrying,
)
def index_task(*, home: str, config: DatasetConfig, reread: bool) -> Result:
    """Index the data set. Always looks at the folder (that is how a change is seen), reads only what changed."""
    with _progress("index") as progress:
        outcome = index(ArtifactStore(Path(home)), config=config, progress=progress, reread=reread)
    note = f"{outcome.n_images} images, {outcome.n_rejected} rejected, {outcome.n_read} read"
    return {
        "ref": outcome.made.ref.to_json(),
        "note": note,
        "cached": outcome.made.cached,
        "images_root": str(outcome.images_root),
    }


@_stage_task("caption")
def caption_task(
    *, home: str, fingerprint: str, images: ArtifactRef, images_root: str, config: CaptionConfig
) -> Result:
    """Caption every image that has no caption by this captioner yet."""
    with gpu_slot(config.local_device), _progress("caption") as progress:
        outcome = caption(
            ArtifactStore(Path(home)), images=images, images_root=Path(images_root), config=config, progress=progress
        )
    show_captions(outcome.made.ref)
    return {"ref": outcome.made.ref.to_json(), "note": str(outcome)}


@_stage_task("audit")
def audit_task(*, home: str, fingerprint: str, captions: ArtifactRef, config: AuditConfig) -> Result:
    """Measure how far the captions of one identity agree, and flag the doubtful ones."""
    with _progress("audit") as progress:
        made = audit(ArtifactStore(Path(home)), captions=captions, config=config, progress=progress)
    show_audit(made.ref)
    return {"ref": made.ref.to_json(), "note": ""}


@_stage_task("train")
def train_task(
    *,
    home: str,
    fingerprint: str,
    images: ArtifactRef,
    captions: ArtifactRef | None,
    images_root: str,
    config: TrainConfig,
    processes: int,
) -> Result:
    """Train the recipe's method, going on from the last checkpoint of a killed run."""
    what: dict[str, Any] = {
        "images": images,
        "captions": captions,
        "images_root": Path(images_root),
        "config": config,
    }
    store = ArtifactStore(Path(home))
    with gpu_slot(config.device, processes):
        if processes > 1 and store.find("train", fingerprint) is None:
            launch_training(store, **what, processes=processes)
        with _progress("train") as progress:
            made = train(store, **what, progress=progress)  # finds what several processes have trained
    show_training(made.ref)
    return {"ref": made.ref.to_json(), "note": ""}


@_stage_task("evaluate")
def evaluate_task(
    *, home: str, fingerprint: str, images: ArtifactRef, model: ArtifactRef, images_root: str, config: EvaluateConfig
) -> Result:
    """Rank the gallery for every query, before and after training, in every inference mode."""
    store = ArtifactStore(Path(home))
    with gpu_slot(config.device), _progress("evaluate") as progress:
        made = evaluate(
            store,
            images=images,
            model=model,
            images_root=Path(images_root),
            config=config,
            progress=progress,
        )
    show_metrics(store, made.ref)
    show_cmc(made.ref)
    show_rankings(made.ref, images_root=Path(images_root))
    return {"ref": made.ref.to_json(), "note": ""}


@_stage_task("report")
def report_task(*, home: str, fingerprint: str, inputs: ReportInputs, images_root: str, config: ReportConfig) -> Result:
    """Write the page that shows it all."""
    with _progress("report") as progress:
        made = report(
            ArtifactStore(Path(home)), inputs=inputs, images_root=Path(images_root), config=config, progress=progress
        )
    return {"ref": made.ref.to_json(), "note": ""}


def _first_name() -> str:
    """Name a run after its recipe and the hour; the data set's hash joins them when it is known."""
    recipe = runtime.flow_run.parameters.get("recipe")
    name = recipe.get("name") if isinstance(recipe, Mapping) else getattr(recipe, "name", None)
    return f"{name or 'unnamed'}-{time.strftime('%Y%m%d-%H%M%S')}"


def _full_name(images: ArtifactRef) -> str:
    found = read_json(images.folder / "dataset.json")
    return f"{_first_name()}-{found['dataset_hash'][:8]}"


@flow(name=FLOW_NAME, flow_run_name=_first_name, persist_result=False)
def caption_and_train(
    recipe: Recipe, home: str | None = None, until: StageName = "report", reread: bool = False
) -> dict[str, Any]:
    """Run the stages of `recipe` that its method needs in order, up to and including `until`.

    home: artefact root (default ``CLIP_SCGI_HOME``, else ``./artifacts``). reread: hash every image again, even where
    size and times are unchanged. Returns a `RunSummary` as plain data.
    """
    store = ArtifactStore(Path(home)) if home else ArtifactStore.default()
    console = Console(stderr=True)
    finished: list[StageRun] = []
    for stage in _stages(store, recipe, reread, until):
        finished.append(stage)
        console.print(stage_line(stage.stage, stage.status, stage.seconds, stage.note), soft_wrap=True)
        if stage.stage == "index":
            for notice in read_json(stage.artifact.folder / "dataset.json")["notices"]:
                console.print(notice_line(notice), soft_wrap=True)
        if stage.stage == until:
            break
    return RunSummary(recipe=recipe.name, stages=finished).model_dump(mode="json")


def _stages(store: ArtifactStore, recipe: Recipe, reread: bool, until: StageName) -> Iterator[StageRun]:
    """Run one stage after the other; each is done when it is yielded."""
    indexed = _index(store, recipe, reread)
    name_run(_full_name(indexed.artifact))
    yield indexed
    images, where = indexed.artifact, {"images_root": indexed.images_root}
    captions = audited = None
    if recipe.train.needs_captions or until in ("caption", "audit"):
        step = _caption(store, recipe, images, where)
        yield step
        captions = step.artifact
        step = _run(store, audit_task, audit_ingredients, captions=captions, config=recipe.audit, how={})
        yield step
        audited = step.artifact
    step = _run(
        store,
        train_task,
        partial(train_ingredients, store),
        images=images,
        captions=captions,
        config=recipe.train,
        how={**where, "processes": recipe.scale.train_processes},
    )
    yield step
    model = step.artifact
    step = _run(
        store,
        evaluate_task,
        partial(evaluate_ingredients, store),
        images=images,
        model=model,
        config=recipe.evaluate,
        how=where,
    )
    yield step
    inputs = ReportInputs(
        images=images,
        captions=captions,
        audit=audited,
        model=model,
        evaluation=step.artifact,
        recipe=recipe.identity(),
    )
    yield _run(store, report_task, report_ingredients, inputs=inputs, config=recipe.report, how=where)


def _index(store: ArtifactStore, recipe: Recipe, reread: bool) -> StageRun:
    """Run the first stage, which is never replayed: it is what sees that the images have changed."""
    started = time.perf_counter()
    data = recipe.data
    if recipe.synthetic is not None and not data.root:
        data = data.model_copy(update={"root": str(ensure_world(store, recipe.synthetic))})
    found = index_task(home=str(store.root), config=data, reread=reread)
    return StageRun(
        stage="index",
        status="cached" if found["cached"] else "ran",
        seconds=time.perf_counter() - started,
        note=found["note"],
        ref=found["ref"],
        images_root=found["images_root"],
    )


def _caption(store: ArtifactStore, recipe: Recipe, images: ArtifactRef, where: Mapping[str, Any]) -> StageRun:
    """Run the caption stage; several workers fill the caption store first where the recipe wants them."""
    started = time.perf_counter()
    what: dict[str, Any] = {"images": images, "config": recipe.caption}
    ingredients = partial(caption_ingredients, store)
    workers, made = recipe.scale.caption_workers, 0
    if workers > 1 and store.find("caption", fingerprint_of("caption", ingredients(**what))) is None:
        made = caption_together(recipe.scale, home=str(store.root), **where, **what)
    step = _run(store, caption_task, ingredients, how=where, **what)
    if not made:
        return step
    note = f"{made} captions generated by {workers} workers ({recipe.scale.runner})"
    return step.model_copy(update={"note": note, "seconds": time.perf_counter() - started})


def _run(
    store: ArtifactStore,
    stage_task: Task[..., Result],
    ingredients: Callable[..., Mapping[str, Any]],
    *,
    how: Mapping[str, Any],
    **inputs: Any,
) -> StageRun:
    """Run one task on `inputs`, or let Prefect replay it where its artefact is intact.

    ingredients: what its fingerprint is made of, as a function of `inputs`. how: what else the task is told, and no
    fingerprint depends on: where the images lie, how many processes it may use.
    """
    started = time.perf_counter()
    stage = stage_task.name
    fingerprint = fingerprint_of(stage, ingredients(**inputs))
    intact = store.find(stage, fingerprint) is not None
    options = stage_task.with_options(refresh_cache=not intact)
    result = options(home=str(store.root), fingerprint=fingerprint, **how, **inputs)
    return StageRun(
        stage=stage,
        status="cached" if intact else "ran",
        seconds=time.perf_counter() - started,
        note="" if intact else result["note"],
        ref=result["ref"],
    )
