"""A run in Prefect's UI: progress, log lines, small tables and pictures.

All of it is a copy of what the disk holds, so a server that cannot be reached costs a picture and never the run.
Outside a run (a stage used as a library) every function here does nothing.
"""

from __future__ import annotations

import base64
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Final, ParamSpec
from uuid import UUID

import httpx
import pyarrow.parquet as pq
from prefect import get_run_logger
from prefect.artifacts import (
    create_image_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import PrefectHTTPStatusError

from data.artifacts.store import ArtifactRef, ArtifactStore
from data.errors import counted
from data.files import read_json
from data.progress import ProgressFn, silent
from flows.execution.ui_metrics import (
    Cells,
    Evaluated,
    metrics_note,
    metrics_rows,
    previous_evaluation,
    text_note,
    text_rows,
)
from flows.report.gather import take_rows
from flows.report.scores import METRICS, scores
from flows.report.sentences import TEXT_METRICS, text_scores
from flows.summary import StageRun
from flows.terminal import stage_line

UPDATE_SECONDS: Final = 5.0
_NOT_KEY: Final = re.compile(r"[^a-z0-9]+")
_UNREACHABLE: Final = (httpx.HTTPError, PrefectHTTPStatusError, RuntimeError, TimeoutError)
_LOG = logging.getLogger(__name__)

Given = ParamSpec("Given")


def in_run() -> bool:
    """Return True inside a flow or task run, where Prefect has a page to show something on."""
    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def _during_run(show: Callable[Given, None]) -> Callable[Given, None]:
    """Return `show`, which does nothing, not even read its files, outside a run."""

    @wraps(show)
    def guarded(*args: Given.args, **kwargs: Given.kwargs) -> None:
        if in_run():
            show(*args, **kwargs)

    return guarded


@contextmanager
def progress_artifact(stage: str, show: ProgressFn = silent) -> Iterator[ProgressFn]:
    """Yield a progress callback that calls `show` and, every few seconds, moves the bar of `stage` in Prefect's UI."""
    bar = Bar(stage, show)
    yield bar
    bar.finish()


class Bar:
    """A `ProgressFn`. The bar appears with the first call, so a stage that finds its artifact does not show one."""

    def __init__(self, stage: str, show: ProgressFn, clock: Callable[[], float] = time.monotonic) -> None:
        self.stage = stage
        self.show = show
        self.clock = clock
        self.artifact: UUID | None = None
        self.sent = -UPDATE_SECONDS
        self.active = in_run()
        self.last = (0.0, "")

    def __call__(self, done: int, total: int, note: str) -> None:
        """Call `show`, and move the bar if it has not moved for `UPDATE_SECONDS`."""
        self.show(done, total, note)
        if not self.active or not total:
            return
        self.last = (100.0 * min(done / total, 1.0), f"{self.stage}: {done:,} of {total:,} {note}".rstrip())
        if self.clock() - self.sent >= UPDATE_SECONDS:
            self._send()

    def finish(self) -> None:
        """Show the last state."""
        if self.artifact is not None:
            self._send()

    def _send(self) -> None:
        self.sent = self.clock()
        progress, text = self.last

        def send() -> None:
            if self.artifact is None:
                key = f"{_key(self.stage)}-progress"
                # Typed as a coroutine too, for callers inside an event loop; stages run outside of one.
                self.artifact = create_progress_artifact(progress, key=key, description=text)  # type: ignore[assignment]
            else:
                update_progress_artifact(self.artifact, progress=progress, description=text)

        _try(send)


def name_run(name: str) -> None:
    """Rename the current flow run."""
    from prefect.client.orchestration import get_client

    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    run_id = context.flow_run.id

    def send() -> None:
        with get_client(sync_client=True) as client:
            client.update_flow_run(run_id, name=name)

    _try(send)


def log_stage(stage: StageRun) -> None:
    """Log how a stage ended: its line, the notices of the index, the scores, the paths of captions and report."""
    log = get_run_logger()
    log.info(stage_line(stage.stage, stage.status, stage.seconds, stage.note, stage.reason).plain)
    for line in _details(stage):
        log.info(line)


def _details(stage: StageRun) -> list[str]:
    """Return the log lines of one stage beside the line that every stage has."""
    folder = stage.artifact.folder
    match stage.stage:
        case "index":
            found = read_json(folder / "dataset.json")
            return [str(notice) for notice in found["notices"]]
        case "caption" | "correct":
            return [f"captions: {folder / 'captions.parquet'}"]
        case "evaluate":
            metrics = read_json(folder / "metrics.json")
            images = [(f"{row.model}, {row.mode}", row.percent, METRICS) for row in scores(metrics)]
            found = text_scores(metrics)
            texts = [(f"{row.model}, text to image", row.percent, TEXT_METRICS) for row in found.rows] if found else []
            return [
                f"{name}: {', '.join(f'{label} {percent[key]:.1f}' for key, label in keys)}"
                for name, percent, keys in [*images, *texts]
            ]
        case "report":
            return [f"report: {folder / 'report.html'}"]
    return []


@_during_run
def show_captions(captions: ArtifactRef, *, count: int = 20) -> None:
    """Show `count` captions, evenly spread over the dataset, as a table."""
    file = captions.folder / "captions.parquet"
    total = pq.read_metadata(file).num_rows
    places = range(0, total, max(total // count, 1))[:count]
    rows = take_rows(file, places, ("image_path", "caption", "status", "n_tokens"))
    _table("captions", rows, f"{len(rows)} of {counted(total, 'caption')}")


@_during_run
def show_audit(audited: ArtifactRef) -> None:
    """Show coverage, agreement and entropy of every attribute as a table."""
    result = read_json(audited.folder / "audit.json")
    rows = [
        {
            "attribute": slot,
            "answered %": _percent(entry["coverage"]),
            "agreement %": _percent(entry["agreement"]),
            "entropy (bits)": None if entry["entropy"] is None else round(entry["entropy"], 2),
        }
        for slot, entry in result["slots"].items()
    ]
    flags = ", ".join(f"{name} {count}" for name, count in result["flags"].items())
    _table(
        "audit",
        rows,
        f"{counted(result['images'], 'caption')} of {counted(result['identities'], 'identity')}; flagged: {flags}",
    )


@_during_run
def show_metrics(store: ArtifactStore, evaluation: ArtifactRef) -> None:
    """Show the scores as tables: with the difference from the previous run on the same dataset, and text to image."""
    now = Evaluated.read(evaluation.folder)
    previous = previous_evaluation(store, evaluation)
    before = None if previous is None else Evaluated.read(previous)
    _table("metrics", metrics_rows(now, before), metrics_note(now, before))
    found = text_scores(now.metrics, evaluation.folder)
    if found is not None:
        _table("text-to-image", text_rows(found), text_note(found))


@_during_run
def show_training(model: ArtifactRef) -> None:
    """Show the loss curve as a picture."""
    from flows.report.curves import training_charts
    from flows.report.gather import read_log

    for chart in training_charts(read_log(model.folder / "metrics.jsonl"))[:1]:
        _picture("loss", chart.as_file(), chart.title)


@_during_run
def show_cmc(evaluation: ArtifactRef, *, ranks: int = 20) -> None:
    """Show the CMC curves as a picture."""
    from flows.report.curves import cmc_chart

    chart = cmc_chart(read_json(evaluation.folder / "metrics.json")["results"], ranks)
    if chart is not None:
        _picture("cmc", chart.as_file(), chart.title)


@_during_run
def show_rankings(evaluation: ArtifactRef, *, images_root: Path, queries: int = 6, top_k: int = 8) -> None:
    """Show the nearest gallery images of a few queries as one picture, with green frames if right, red if wrong."""
    from flows.execution.ui_pictures import ranking_picture

    picture = ranking_picture(evaluation.folder / "rankings.parquet", images_root, queries=queries, top_k=top_k)
    if picture is not None:
        _show_image("rankings", picture, "query, then its nearest gallery images (green: same person)")


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)


def _table(name: str, rows: list[Cells], description: str) -> None:
    _try(lambda: create_table_artifact(rows, key=_key(name), description=description))


def _picture(name: str, svg: str, description: str) -> None:
    code = base64.b64encode(svg.encode()).decode("ascii")
    _show_image(name, f"data:image/svg+xml;base64,{code}", description)


def _show_image(name: str, source: str, description: str) -> None:
    _try(lambda: create_image_artifact(source, key=_key(name), description=description))


def _key(name: str) -> str:
    """Return `name` as the key of a Prefect artifact: lower case letters, digits and dashes."""
    return _NOT_KEY.sub("-", name.lower()).strip("-")


def _try(send: Callable[[], object]) -> None:
    """Call `send`, and log instead of raising if the server cannot be reached."""
    try:
        send()
    except _UNREACHABLE as error:
        _LOG.warning("not shown in Prefect's UI: %s", error)
