"""The tasks of ``caption-and-train``: each a thin verb over a plain function that needs no Prefect.

The disk is the truth and Prefect's record is bookkeeping: a task's cache key is the fingerprint of its artefact, and a
record counts only while that artefact is intact (``flows.pipeline``), so losing Prefect's database costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from prefect import task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.tasks import Task

from captioning.audit.stage import AuditConfig, audit
from captioning.config import CaptionConfig
from captioning.stage.stage import caption
from data.artifacts.fingerprint import digest
from data.artifacts.stages import StageName
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.datasets import DatasetConfig
from data.device import CPU
from data.errors import RetryableError
from data.files import read_json
from data.index.stage import index
from data.progress import ProgressFn
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
from flows.report.stage import ReportConfig, ReportInputs, report
from flows.terminal import progress_bar
from reid.config.evaluate import EvaluateConfig
from reid.config.train import TrainConfig
from reid.evaluation.stage import evaluate
from reid.training.stage import train

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


def _slot(
    store: ArtifactStore, stage: StageName, fingerprint: str, device: str, slots: int = 1
) -> AbstractContextManager[None]:
    """Hold the GPUs that a stage needs: none where its artifact is there and Prefect only lost its record."""
    found = store.find(stage, fingerprint) is not None
    return gpu_slot(CPU if found else device, f"{stage}.device", slots)


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
    store = ArtifactStore(Path(home))
    with _slot(store, "caption", fingerprint, config.local_device), _progress("caption") as progress:
        outcome = caption(store, images=images, images_root=Path(images_root), config=config, progress=progress)
    show_captions(outcome.made.ref)
    return {"ref": outcome.made.ref.to_json(), "note": str(outcome)}


@_stage_task("audit")
def audit_task(
    *, home: str, fingerprint: str, captions: ArtifactRef, images: ArtifactRef, images_root: str, config: AuditConfig
) -> Result:
    """Measure how far the captions of one identity agree, and flag the doubtful ones."""
    with _progress("audit") as progress:
        made = audit(
            ArtifactStore(Path(home)),
            captions=captions,
            images=images,
            images_root=Path(images_root),
            config=config,
            progress=progress,
        )
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
    with _slot(store, "train", fingerprint, config.device, processes):
        if processes > 1 and store.find("train", fingerprint) is None:
            launch_training(store, **what, processes=processes)
        with _progress("train") as progress:
            made = train(store, **what, progress=progress)  # finds what several processes have trained
    show_training(made.ref)
    return {"ref": made.ref.to_json(), "note": _started_from(made.ref)}


def _started_from(model: ArtifactRef) -> str:
    """Return a note for a model that goes on from another one's CLIP: what of that one was not taken over."""
    left_out = read_json(model.folder / "config.json")["provenance"]["weights"].get("left_out")
    return f"started from the CLIP of a train artifact, without its {', '.join(sorted(left_out))}" if left_out else ""


@_stage_task("evaluate")
def evaluate_task(
    *, home: str, fingerprint: str, images: ArtifactRef, model: ArtifactRef, images_root: str, config: EvaluateConfig
) -> Result:
    """Rank the gallery for every query, before and after training, in every inference mode."""
    store = ArtifactStore(Path(home))
    with _slot(store, "evaluate", fingerprint, config.device), _progress("evaluate") as progress:
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
