"""The loop of a study: one run after another, shared with other processes.

Failures do not stop it. A finished run is found by its fingerprint; a killed one resumes from its last checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from data.artifacts.inventory import try_lock
from data.errors import ClipScgiError
from data.files import read_json
from data.progress import ProgressFn
from flows.study.inputs import SeedInputs
from flows.study.outcome import rows_of_result, rows_without_result
from flows.study.rows import RunRow
from flows.study.run import TURN, Run
from flows.study.stage import RUN_FILE

log = logging.getLogger(__name__)

_PAUSE: Final = 1.0  # seconds between two looks at runs that are all being done elsewhere


@dataclass(frozen=True, kw_only=True)
class Done:
    """Outcome of one run. rows: one per inference mode, or one with the reason why it failed or was skipped."""

    run: Run
    rows: Sequence[RunRow]
    cached: bool
    seconds: float


def do(runs: Sequence[Run], progress: ProgressFn) -> Iterator[Done]:
    """Execute the runs and yield each when it is done.

    Several processes can share a study: a process passes over the runs that another one executes, and comes back to
    them, so that none waits while a run is left. progress: receives the number of finished runs, the number of all runs
    and the state of the current one. An exception becomes a row with status ``failed``; only an interrupt from the
    keyboard stops the study.
    """
    _caption(runs, progress)
    left, finished, is_first = list(runs), 0, True
    while left:
        waiting: list[Run] = []
        for run in left:
            # Held until the run is done, including its captions, so that two processes never execute the same run.
            with try_lock(run.inputs.run.store, TURN, run.turn) as is_mine:
                if not (is_mine and not _is_captioned_elsewhere(run)) and (is_first or run.find() is None):
                    waiting.append(run)
                    continue
                yield _attempt(run, _reporting(run.label, finished, len(runs), progress))
                finished += 1
        if len(waiting) == len(left):
            progress(finished, len(runs), "waiting for other processes")
            time.sleep(_PAUSE)
        left, is_first = waiting, False


def _caption(runs: Sequence[Run], progress: ProgressFn) -> None:
    """Make the captions of the captioner for all worlds and seeds, except for those that another process makes.

    Every run needs them, so processes that started together would otherwise wait for the first ones.
    """
    distinct = {run.inputs.turn: run.inputs for run in runs}
    for number, (turn, inputs) in enumerate(distinct.items()):
        if inputs.find("captioner") is not None:
            continue
        with try_lock(inputs.run.store, TURN, turn) as is_mine:
            if is_mine:
                _try_to_caption(inputs, _reporting("captions", number, len(distinct), progress))


def _try_to_caption(inputs: SeedInputs, progress: ProgressFn) -> None:
    try:
        inputs.make("captioner", progress)
    except Exception as error:  # each run that needs these captions reports it again as its own failure
        log.warning("study: the captions of seed %d cannot be made: %s", inputs.seed, error)


def _is_captioned_elsewhere(run: Run) -> bool:
    """Return True if another process makes the captions of the run's images now."""
    if run.inputs.find("captioner") is not None:
        return False
    with try_lock(run.inputs.run.store, TURN, run.inputs.turn) as is_free:
        return not is_free


def _reporting(label: str, number: int, total: int, progress: ProgressFn) -> ProgressFn:
    """Return a progress callback that reports the state of `label` after `number` of `total`."""

    def show(done: int, steps: int, note: str) -> None:
        progress(number, total, f"{label}: {done}/{steps} {note}")

    return show


def _attempt(run: Run, progress: ProgressFn) -> Done:
    started = time.perf_counter()
    if run.obstacle:
        return Done(run=run, rows=rows_without_result(run, "skipped", run.obstacle), cached=False, seconds=0.0)
    try:
        found = run.find()
        if found is not None:
            run.inputs.run.store.touch(found)
        rows = rows_of_result(run, read_json((found or run.make(progress)).folder / RUN_FILE))
    except Exception as error:
        # Errors of this project explain themselves; others need a traceback.
        log.error("study: %s failed: %s", run.label, error, exc_info=not isinstance(error, ClipScgiError))
        rows = rows_without_result(run, "failed", f"{type(error).__name__}: {error}")
        return Done(run=run, rows=rows, cached=False, seconds=time.perf_counter() - started)
    return Done(run=run, rows=rows, cached=found is not None, seconds=time.perf_counter() - started)
