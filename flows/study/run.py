"""The loop of a study: train and evaluate every variant with every seed, one artifact per run.

Failures do not stop it. A finished run is found by its fingerprint; a killed one resumes from its last checkpoint. The
outer loop is over seeds, so a stopped study has the same number of seeds for all variants, except for the last one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypedDict

from data.artifacts.inventory import try_lock
from data.artifacts.store import ArtifactRef, ArtifactStore, Produced, fingerprint_of
from data.errors import ClipScgiError
from data.files import read_json, write_json
from data.progress import ProgressFn
from data.stages.stage import Ingredients, RunContext, Stage
from flows.recipes import Recipe
from flows.study.inputs import SeedInputs, open_inputs
from flows.study.plan import StudyConfig, Variant, variants_of
from flows.study.rows import SCORES, RunRow
from flows.study.training import recipe_of, training_of
from reid.config.evaluate import EvaluateConfig
from reid.config.train import TrainConfig
from reid.config.trained import read_trained
from reid.evaluation.inputs import tested_images
from reid.evaluation.protocol import Protocol
from reid.evaluation.stage import STAGE_VERSION as EVALUATE_VERSION
from reid.evaluation.stage import EvaluateStage
from reid.training.stage import TrainStage

log = logging.getLogger(__name__)

STAGE_VERSION: Final = 1
TURN: Final = "study_turn"
_FILE: Final = "run.json"


class RunResult(TypedDict):
    """Contents of run.json. results: the scores of each model and mode. captions, train, evaluation: fingerprints."""

    seconds: float | None
    steps: int
    train: str
    evaluation: str
    captions: str | None
    protocol: Protocol
    results: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of a study with its evaluation, done or not."""

    variant: Variant
    seed: int
    inputs: SeedInputs
    train: TrainConfig
    evaluate: EvaluateConfig

    @property
    def label(self) -> str:
        """Name of the run in the terminal and in messages."""
        return f"{self.variant.name}, seed {self.seed}"

    def find(self) -> ArtifactRef | None:
        """Return the artifact of the finished run, or None; never start the run."""
        kind = self.variant.captions
        captions = self.inputs.find(kind)
        if captions is None and kind != "none":
            return None
        return RunStage(planned=self, captions=captions).find(self.inputs.run)

    @property
    def turn(self) -> str:
        """Name of the lock that a process holds for this run, which does not require that its captions exist."""
        config = {"train": self.train.identity(), "evaluate": self.evaluate.identity()}
        what = {"images": self.inputs.run.images.ref.fingerprint, "captions": self.variant.captions, "seed": self.seed}
        return fingerprint_of(TURN, what | config)

    @property
    def obstacle(self) -> str:
        """Reason why the dataset does not support the run, or an empty text."""
        if self.variant.captions == "true" and not self.inputs.has_truth:
            return "true attributes exist for synthetic images only"
        return ""


@dataclass(frozen=True, kw_only=True)
class Done:
    """Outcome of one run. rows: one per inference mode, or one with the reason why it failed or was skipped."""

    run: Run
    rows: Sequence[RunRow]
    cached: bool
    seconds: float


def plan(store: ArtifactStore, recipe: Recipe, config: StudyConfig, progress: ProgressFn) -> Iterator[Run]:
    """Yield every run of the study, seed by seed; draw and index the images of each seed."""
    for seed in range(config.seeds):
        own = recipe_of(recipe, config, seed)
        inputs = open_inputs(store, own, seed, progress)
        for variant in variants_of(config):
            yield Run(
                variant=variant,
                seed=seed,
                inputs=inputs,
                train=training_of(variant, own.train, seed),
                evaluate=own.evaluate,
            )


def do(runs: Sequence[Run], progress: ProgressFn) -> Iterator[Done]:
    """Execute the runs and yield each when it is done.

    Runs that another process is executing come last, so that several processes can share a study. progress: receives
    the number of finished runs, the number of all runs and the state of the current one. An exception becomes a row
    with status ``failed``; only an interrupt from the keyboard stops the study.
    """
    later: list[Run] = []
    for number, run in enumerate(runs):
        # Held until the run is done, including its captions, so that two processes never execute the same run.
        with try_lock(run.inputs.run.store, TURN, run.turn) as is_mine:
            if is_mine:
                yield _attempt(run, _reporting(run, number - len(later), len(runs), progress))
            else:
                later.append(run)
    for number, run in enumerate(later, start=len(runs) - len(later)):
        yield _attempt(run, _reporting(run, number, len(runs), progress))


def _reporting(run: Run, number: int, runs: int, progress: ProgressFn) -> ProgressFn:
    """Return a progress callback that reports the state of `run` after `number` of `runs` runs."""

    def show(done: int, total: int, note: str) -> None:
        progress(number, runs, f"{run.label}: {done}/{total} {note}")

    return show


def _attempt(run: Run, progress: ProgressFn) -> Done:
    started = time.perf_counter()
    if run.obstacle:
        return Done(run=run, rows=[_row(run, "skipped", error=run.obstacle)], cached=False, seconds=0.0)
    try:
        found = run.find()
        if found is not None:
            run.inputs.run.store.touch(found)
        result = read_json((found or _make(run, progress)).folder / _FILE)
    except Exception as error:
        # Errors of this project explain themselves; others need a traceback.
        log.error("study: %s failed: %s", run.label, error, exc_info=not isinstance(error, ClipScgiError))
        rows = [_row(run, "failed", error=f"{type(error).__name__}: {error}")]
        return Done(run=run, rows=rows, cached=False, seconds=time.perf_counter() - started)
    return Done(run=run, rows=_rows(run, result), cached=found is not None, seconds=time.perf_counter() - started)


def _make(run: Run, progress: ProgressFn) -> ArtifactRef:
    captions = run.inputs.make(run.variant.captions, progress)
    return RunStage(planned=run, captions=captions).make(run.inputs.run.with_progress(progress)).ref


@dataclass(frozen=True, kw_only=True)
class RunStage(Stage):
    """Train and evaluate one run of a study, reusing finished stages, and write the results as one artifact."""

    name: ClassVar[str] = "study_run"
    planned: Run
    captions: ArtifactRef | None

    @property
    def _training(self) -> TrainStage:
        return TrainStage(captions=self.captions, config=self.planned.train)

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return what the training and the evaluation depend on."""
        return {
            "train": self._training.ingredients(run),
            "evaluate": {
                **tested_images(run.images),
                "config": self.planned.evaluate.identity(),
                "version": EVALUATE_VERSION,
            },
            "version": STAGE_VERSION,
        }

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write run.json."""
        training = self._training.plan(run)
        whole = not run.store.scratch(training.stage.name, training.fingerprint).exists()
        started = time.perf_counter()
        model = training.make(run)
        seconds = time.perf_counter() - started
        evaluation = EvaluateStage(model=model.ref, config=self.planned.evaluate).make(run)
        metrics = read_json(evaluation.ref.folder / "metrics.json")
        result = RunResult(
            seconds=round(seconds, 1) if whole and not model.cached else None,  # unknown for a resumed training
            steps=read_trained(model.ref.folder)["training"]["steps"],
            train=model.ref.fingerprint,
            evaluation=evaluation.ref.fingerprint,
            captions=self.captions.fingerprint if self.captions else None,
            protocol=metrics["protocol"],
            results=[{name: row[name] for name in ("model", "mode", *SCORES)} for row in metrics["results"]],
        )
        write_json(folder / _FILE, result)
        return Produced()


def _rows(run: Run, result: RunResult) -> list[RunRow]:
    """Return one row per inference mode of the trained model and, once per seed, one of the untrained model."""
    protocol = result["protocol"]
    common = replace(
        _row(run, "ok"),
        steps=result["steps"],
        seconds=result["seconds"],
        train=result["train"],
        evaluation=result["evaluation"],
        caption_artifact=result["captions"],
        dataset=protocol["dataset"],
        dataset_hash=run.inputs.run.images.description.dataset_hash,
        n_query=protocol["n_query"],
        n_gallery=protocol["n_gallery"],
        cameras=protocol.get("cameras"),
    )
    rows = []
    for scored in result["results"]:
        row = replace(common, mode=scored["mode"], scores={name: scored[name] for name in SCORES})
        if scored["model"] == "trained":
            rows.append(row)
        elif run.variant.method == "clip_baseline" and run.variant.group == "main":
            rows.append(_untrained(row))
    return rows


def _row(run: Run, status: Literal["ok", "failed", "skipped"], *, error: str | None = None) -> RunRow:
    variant, config = run.variant, run.train
    scgi = config.scgi if config.method == "clip_scgi" else None
    return RunRow(
        variant=variant.name,
        title=variant.title,
        group=variant.group,
        method=config.method,
        captions=variant.captions,
        seed=run.seed,
        cgi=scgi.cgi if scgi else None,
        cff=scgi.cff if scgi else None,
        inversion_tokens=scgi.inversion_tokens if scgi and scgi.cgi else None,
        depth=scgi.depth if scgi and scgi.cgi else None,
        epochs=config.schedule.epochs,
        status=status,
        error=error,
    )


def _untrained(row: RunRow) -> RunRow:
    """Return the row of the untrained model, from which the baseline was trained."""
    named = replace(row, variant="untrained", title="CLIP, not trained", method="none")
    return replace(named, epochs=0, steps=0, seconds=None, train=None)
