"""The Prefect flow ``caption-and-train``: index -> caption -> audit -> train -> evaluate -> report.

A method that reads no captions needs neither caption nor audit; these two then run only when asked for. Prefect's
record of a task counts only while its artefact is intact (``refresh_cache``): losing an artefact reruns its stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, runtime
from prefect.tasks import Task

from captioning.audit.stage import audit_ingredients
from captioning.stage.stage import caption_ingredients
from data.artifacts.stages import StageName
from data.artifacts.store import ArtifactRef, ArtifactStore, fingerprint_of
from data.files import read_json
from data.synthetic.world import WorldConfig
from flows.execution.fanout import caption_together
from flows.execution.ui import log_stage, name_run
from flows.preflight.check import check_devices, check_run
from flows.reasons.reason import ELSEWHERE, Purpose, index_reason, reason
from flows.recipes import Recipe
from flows.report.stage import ReportInputs, report_ingredients
from flows.stage_tasks import Result, audit_task, caption_task, evaluate_task, index_task, report_task, train_task
from flows.summary import RunSummary, StageRun
from flows.terminal import notice_line, plain_console, stage_line, waiting
from flows.worlds import ensure_world, world_folder
from reid.evaluation.stage import evaluate_ingredients
from reid.training.stage import train_ingredients

FLOW_NAME = "caption-and-train"


def _first_name() -> str:
    """Name a run that begins: recipe, dataset and hour. The dataset's hash joins them once it is known."""
    recipe = runtime.flow_run.parameters.get("recipe")
    if isinstance(recipe, Recipe):
        return run_name(recipe.name, recipe.data.label)
    values = recipe if isinstance(recipe, Mapping) else {}
    data = values.get("data") or {}
    return run_name(values.get("name") or "unnamed", data.get("name") or data.get("reader") or "")


def run_name(recipe: str, dataset: str) -> str:
    """Return the name of a run that begins now; a recipe that is named after its dataset names it once."""
    is_named = not dataset or recipe == dataset or recipe.startswith(f"{dataset}_")
    return "-".join([recipe, *([] if is_named else [dataset]), time.strftime("%Y%m%d-%H%M%S")])


def _full_name(recipe: Recipe, images: ArtifactRef) -> str:
    found = read_json(images.folder / "dataset.json")
    return f"{run_name(recipe.name, recipe.data.label)}-{found['dataset_hash'][:8]}"


@flow(name=FLOW_NAME, flow_run_name=_first_name, persist_result=False, retries=0)
def caption_and_train(
    recipe: Recipe, home: str | None = None, until: StageName = "report", reread: bool = False
) -> dict[str, Any]:
    """Run the stages of `recipe` that its method needs in order, up to and including `until`.

    home: artefact root (default ``CLIP_SCGI_HOME``, else ``./artifacts``). reread: hash every image again, even where
    size and times are unchanged. Returns a `RunSummary` as plain data.

    Raises ConfigError after the index, before any other stage, for all that is known to fail later (`flows.preflight`).
    """
    store = ArtifactStore(Path(home)) if home else ArtifactStore.default()
    console = plain_console(stderr=True)
    finished: list[StageRun] = []
    check_devices(store, recipe, until)
    for stage in _stages(store, recipe, reread, until):
        finished.append(stage)
        console.print(stage_line(stage.stage, stage.status, stage.seconds, stage.note, stage.reason), soft_wrap=True)
        log_stage(stage)
        if stage.stage == "index":
            for notice in _notices(store, recipe, stage.artifact, until):
                console.print(notice_line(notice), soft_wrap=True)
        if stage.stage == until:
            break
    return RunSummary(recipe=recipe.name, stages=finished).model_dump(mode="json")


def _notices(store: ArtifactStore, recipe: Recipe, images: ArtifactRef, until: StageName) -> Iterator[str]:
    """Yield what a person should know of the data set, then of the stages to come; raise what they cannot do."""
    yield from read_json(images.folder / "dataset.json")["notices"]
    yield from check_run(store, recipe, images, until)


def _stages(store: ArtifactStore, recipe: Recipe, reread: bool, until: StageName) -> Iterator[StageRun]:
    """Run one stage after the other; each is done when it is yielded."""
    indexed = _index(store, recipe, reread)
    name_run(_full_name(recipe, indexed.artifact))
    yield indexed
    images, where, purpose = indexed.artifact, {"images_root": indexed.images_root}, _purpose(recipe)
    captions = audited = None
    if recipe.train.needs_captions or until in ("caption", "audit"):
        step = _caption(store, recipe, images, where)
        yield step
        captions = step.artifact
        step = _run(
            store,
            audit_task,
            audit_ingredients,
            captions=captions,
            images=images,
            config=recipe.audit,
            purpose=purpose,
            how=where,
        )
        yield step
        audited = step.artifact
    step = _run(
        store,
        train_task,
        partial(train_ingredients, store),
        images=images,
        captions=captions,
        config=recipe.train,
        purpose=purpose,
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
        purpose=purpose,
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
    yield _run(store, report_task, report_ingredients, inputs=inputs, config=recipe.report, purpose=purpose, how=where)


def _index(store: ArtifactStore, recipe: Recipe, reread: bool) -> StageRun:
    """Run the first stage, which is never replayed: it is what sees that the images have changed."""
    started = time.perf_counter()
    data, known = recipe.data, store.known("index")
    if recipe.synthetic is not None and not data.root:
        data = data.model_copy(update={"root": str(_drawn(store, recipe.synthetic))})
    found = index_task(home=str(store.root), config=data, reread=reread)
    made, cached, purpose = ArtifactRef(**found["ref"]), found["cached"], _purpose(recipe)
    why = "" if cached else index_reason(store, made, known, purpose)
    store.record_use(made, dataset=purpose.dataset, recipe=purpose.recipe)
    return StageRun(
        stage="index",
        status="cached" if cached else "ran",
        seconds=time.perf_counter() - started,
        note=found["note"],
        reason=why,
        ref=found["ref"],
        images_root=found["images_root"],
    )


def _drawn(store: ArtifactStore, world: WorldConfig) -> Path:
    folder = world_folder(store, world)
    with nullcontext() if folder.is_dir() else waiting(f"drawing synthetic people in {folder}"):
        return ensure_world(store, world)


def _purpose(recipe: Recipe) -> Purpose:
    return Purpose(dataset=recipe.data.label, recipe=recipe.name)


def _caption(store: ArtifactStore, recipe: Recipe, images: ArtifactRef, where: Mapping[str, Any]) -> StageRun:
    """Run the caption stage; several workers fill the caption store first where the recipe wants them."""
    started = time.perf_counter()
    what: dict[str, Any] = {"images": images, "config": recipe.caption}
    ingredients = partial(caption_ingredients, store)
    workers, made = recipe.scale.caption_workers, 0
    if workers > 1 and store.find("caption", fingerprint_of("caption", ingredients(**what))) is None:
        made = caption_together(recipe.scale, home=str(store.root), **where, **what)
    step = _run(store, caption_task, ingredients, purpose=_purpose(recipe), how=where, **what)
    if not made:
        return step
    note = f"{made} captions generated by {workers} workers ({recipe.scale.runner})"
    return step.model_copy(update={"note": note, "seconds": time.perf_counter() - started})


def _run(
    store: ArtifactStore,
    stage_task: Task[..., Result],
    ingredients: Callable[..., Mapping[str, Any]],
    *,
    purpose: Purpose,
    how: Mapping[str, Any],
    **inputs: Any,
) -> StageRun:
    """Run one task on `inputs`, or let Prefect replay it where its artefact is intact.

    ingredients: what its fingerprint is made of, as a function of `inputs`. purpose: by which a predecessor is found.
    how: what else the task is told, and no fingerprint depends on: where the images lie, how many processes it may use.
    """
    started = time.perf_counter()
    stage, made_of = stage_task.name, ingredients(**inputs)
    fingerprint = fingerprint_of(stage, made_of)
    found = store.find(stage, fingerprint)
    why = "" if found else reason(store, stage, made_of, purpose)
    if why == ELSEWHERE:
        plain_console(stderr=True).print(notice_line(f"{stage}: another process is making it; waiting"), soft_wrap=True)
    if why:
        get_run_logger().info("%s runs: %s", stage, why)
    options = stage_task.with_options(refresh_cache=found is None)
    result = options(home=str(store.root), fingerprint=fingerprint, **how, **inputs)
    ref = found or ArtifactRef(**result["ref"])
    store.record_use(ref, dataset=purpose.dataset, recipe=purpose.recipe)
    return StageRun(
        stage=stage,
        status="cached" if found else "ran",
        seconds=time.perf_counter() - started,
        note="" if found else result["note"],
        reason=why,
        ref=ref.to_json(),
    )
