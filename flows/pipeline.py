"""The Prefect flow ``caption-and-train``: index -> caption -> audit -> train -> evaluate -> report.

A method that does not read captions does not need caption and audit; these run only if requested. With
``caption.corrections=use``, a step after caption applies the corrections (``captioning.corrections``). Prefect's record
of a task is used only while its artifact is intact (``refresh_cache``), so losing an artifact reruns its stage.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, runtime

from data.artifacts.stages import StageName
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.errors import ConfigError, DataError
from data.stages.images import IndexedImages
from data.stages.stage import RunContext
from data.synthetic.world import WorldConfig
from flows.execution.ui import log_stage, name_run
from flows.preflight.check import check_run, planned
from flows.preflight.inspection import check_after, check_early
from flows.reasons.reason import ELSEWHERE, Purpose, index_reason, reason
from flows.recipes import ExaminedRecipe, Recipe
from flows.report.sentences import CAPTION_REMEDY, not_measured
from flows.stage_tasks import STEPS, Step, correct_step, index_task, stage_task
from flows.summary import RunSummary, StageRun
from flows.terminal import notice_line, plain_console, stage_line, waiting
from flows.workers.captions import caption_together
from flows.worlds import ensure_world, world_folder
from reid.evaluation.sentences.source import NoSentences, find_sentences

FLOW_NAME = "caption-and-train"


def _first_name() -> str:
    """Return the first name of a run: recipe, dataset and time. The hash of the dataset is added after the index."""
    recipe = runtime.flow_run.parameters.get("recipe")
    if isinstance(recipe, Recipe):
        return run_name(recipe.name, recipe.data.label)
    values = recipe if isinstance(recipe, Mapping) else {}
    data = values.get("data") or {}
    return run_name(values.get("name") or "unnamed", data.get("name") or data.get("reader") or "")


def run_name(recipe: str, dataset: str) -> str:
    """Return the name of a run that starts now; omit the dataset if the name of the recipe starts with it."""
    is_named = not dataset or recipe == dataset or recipe.startswith(f"{dataset}_")
    return "-".join([recipe, *([] if is_named else [dataset]), time.strftime("%Y%m%d-%H%M%S")])


@flow(name=FLOW_NAME, flow_run_name=_first_name, persist_result=False, retries=0)
def caption_and_train(
    recipe: Recipe, home: str | None = None, until: StageName = "report", reread: bool = False
) -> dict[str, Any]:
    """Run the stages that the method of `recipe` needs, in order, up to and including `until`.

    home: artifact root (default ``CLIP_SCGI_HOME``, else ``./artifacts``). reread: hash every image again, even if its
    size and times are unchanged. Returns a `RunSummary` as plain data.

    Raises ConfigError after the index and before any other stage for everything that would fail later
    (`flows.preflight`).
    """
    store = ArtifactStore(Path(home)) if home else ArtifactStore.default()
    check_early(store, ExaminedRecipe(recipe), until)
    indexed, images = _checked_index(store, recipe, until, reread)
    run, finished = RunContext(store=store, indexed=images), [indexed]
    name_run(f"{run_name(recipe.name, recipe.data.label)}-{images.description.dataset_hash[:8]}")
    _tell(indexed)
    for notice in _notices(run, recipe, until):
        plain_console(stderr=True).print(notice_line(notice), soft_wrap=True)
    made: dict[StageName, ArtifactRef] = {}
    for name in planned(recipe, until):
        step, started = STEPS[name](recipe, made), time.perf_counter()
        note = _caption_together(run, recipe, step) if name == "caption" else ""
        finished.append(_run(run, step, _purpose(recipe), started, note))
        made[name] = finished[-1].artifact
        _tell(finished[-1])
        if name == "caption" and recipe.caption.corrections == "use":
            finished.append(_run(run, correct_step(recipe, made), _purpose(recipe), time.perf_counter()))
            made[name] = finished[-1].artifact  # what the later stages read
            _tell(finished[-1])
    why = _no_text_to_image(run, recipe, made)
    return RunSummary(recipe=recipe.name, stages=finished, no_text_to_image=why).model_dump(mode="json")


def _no_text_to_image(run: RunContext, recipe: Recipe, made: Mapping[StageName, ArtifactRef]) -> str:
    """Return why the evaluation of a run did not measure text to image, "" if it did or did not take place."""
    if "evaluate" not in made:
        return ""
    found = find_sentences(run.images, made.get("caption"), recipe.evaluate)
    return not_measured(found, CAPTION_REMEDY) if isinstance(found, NoSentences) else ""


def _tell(stage: StageRun) -> None:
    """Print the outcome of a stage, and write it to the log of the run."""
    line = stage_line(stage.stage, stage.status, stage.seconds, stage.note, stage.reason)
    plain_console(stderr=True).print(line, soft_wrap=True)
    log_stage(stage)


def _notices(run: RunContext, recipe: Recipe, until: StageName) -> Iterator[str]:
    """Yield notices about the dataset, then about the next stages. Raises ConfigError for what would fail."""
    yield from run.images.description.notices
    yield from check_run(run, recipe, until)


def _checked_index(
    store: ArtifactStore, recipe: Recipe, until: StageName, reread: bool
) -> tuple[StageRun, IndexedImages]:
    """Run the index stage; if the dataset is unusable, raise that together with everything else that would fail."""
    try:
        return _index(store, recipe, reread)
    except (ConfigError, DataError) as error:
        check_after(store, recipe, until, error)
        raise


def _index(store: ArtifactStore, recipe: Recipe, reread: bool) -> tuple[StageRun, IndexedImages]:
    """Run the index stage, which is never replayed because it detects changes of the images."""
    started = time.perf_counter()
    data, known, purpose = recipe.data, store.known("index"), _purpose(recipe)
    if recipe.synthetic is not None and not data.root:
        data = data.model_copy(update={"root": str(_drawn(store, recipe.synthetic))})
    found = index_task(store, data, reread=reread)
    images, cached = IndexedImages.from_json(found["images"]), found["cached"]
    why = "" if cached else index_reason(store, images.ref, known, purpose)
    store.record_use(images.ref, dataset=purpose.dataset, recipe=purpose.recipe)
    done = StageRun(
        stage="index",
        status="cached" if cached else "ran",
        seconds=time.perf_counter() - started,
        note=found["note"],
        reason=why,
        ref=found["ref"],
        images_root=str(images.root),
    )
    return done, images


def _drawn(store: ArtifactStore, world: WorldConfig) -> Path:
    folder = world_folder(store, world)
    with nullcontext() if folder.is_dir() else waiting(f"drawing synthetic people in {folder}"):
        return ensure_world(store, world)


def _purpose(recipe: Recipe) -> Purpose:
    return Purpose(dataset=recipe.data.label, recipe=recipe.name)


def _caption_together(run: RunContext, recipe: Recipe, step: Step) -> str:
    """Fill the caption store with several workers if the recipe sets them; return a note about it."""
    wanted = recipe.caption.uses_model and recipe.scale.shares(recipe.scale.caption_workers)
    if not wanted or step.stage.find(run) is not None:
        return ""
    return caption_together(run, recipe.scale, recipe.caption)


def _run(run: RunContext, step: Step, purpose: Purpose, started: float, note: str = "") -> StageRun:
    """Run one step, or let Prefect replay it if its artifact is intact.

    purpose: selects the predecessor to compare with. started: when the stage began, workers that prepare it included
    (`time.perf_counter`). note: replaces the note of the stage if not empty.
    """
    name, store = step.stage.name, run.store
    plan = step.stage.plan(run)
    found = plan.find(store)
    why = "" if found else reason(store, plan, purpose)
    if why == ELSEWHERE:
        plain_console(stderr=True).print(notice_line(f"{name}: another process is making it; waiting"), soft_wrap=True)
    if why:
        get_run_logger().info("%s runs: %s", name, why)
    task = stage_task.with_options(name=name, task_run_name=name, refresh_cache=found is None)
    result = task(step=step, plan=plan, run=run)
    ref = found or ArtifactRef(**result["ref"])
    store.record_use(ref, dataset=purpose.dataset, recipe=purpose.recipe)
    return StageRun(
        stage=name,
        status="cached" if found else "ran",
        seconds=time.perf_counter() - started,
        note="" if found else note or result["note"],
        reason=why,
        ref=ref.to_json(),
    )
