"""The loop of a study: every variant of every seed trained and judged, each run an artefact, no failure the last.

A run that has been done is found by its fingerprint and costs nothing; one that was killed goes on from its last
checkpoint. Seeds come in the outer loop, so that a study that is stopped has as much of every variant.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from data.artifacts.inventory import try_lock
from data.artifacts.store import ArtifactRef, ArtifactStore, fingerprint_of
from data.errors import ClipScgiError
from data.files import read_json, write_json
from data.progress import ProgressFn
from flows.recipes import Recipe
from flows.study.inputs import SeedInputs, open_inputs
from flows.study.plan import StudyConfig, Variant, variants_of
from flows.study.training import recipe_of, training_of
from reid.config.evaluate import EvaluateConfig
from reid.config.train import TrainConfig
from reid.evaluation.stage import STAGE_VERSION as EVALUATE_VERSION
from reid.evaluation.stage import evaluate, tested_images
from reid.training.stage import STAGE as TRAIN
from reid.training.stage import train, train_ingredients

log = logging.getLogger(__name__)

STAGE: Final = "study_run"
STAGE_VERSION: Final = 1
TURN: Final = "study_turn"
_FILE: Final = "run.json"
_METRICS: Final = ("mAP", "mINP", "rank1", "rank5", "rank10")

Row = dict[str, Any]
"""One line of runs.parquet (`flows.study.table.RUNS`)."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of a study, ready to be done or found."""

    variant: Variant
    seed: int
    inputs: SeedInputs
    train: TrainConfig
    evaluate: EvaluateConfig

    @property
    def label(self) -> str:
        """What people see this run called."""
        return f"{self.variant.name}, seed {self.seed}"

    def ingredients(self, captions: ArtifactRef | None) -> dict[str, Any]:
        """Return what the results depend on."""
        store = self.inputs.store
        return {
            "train": train_ingredients(store, images=self.inputs.images, captions=captions, config=self.train),
            "evaluate": {
                **tested_images(self.inputs.images),
                "config": self.evaluate.identity(),
                "version": EVALUATE_VERSION,
            },
            "version": STAGE_VERSION,
        }

    def fingerprint(self) -> str | None:
        """Return the fingerprint of the run's artefact, None while the captions that it wants are not there."""
        kind = self.variant.captions
        captions = self.inputs.find(kind)
        if captions is None and kind != "none":
            return None
        return fingerprint_of(STAGE, self.ingredients(captions))

    def find(self) -> ArtifactRef | None:
        """Return the finished run if it is there; loads nothing and makes nothing."""
        fingerprint = self.fingerprint()
        return self.inputs.store.find(STAGE, fingerprint) if fingerprint else None

    @property
    def turn(self) -> str:
        """What one process at a time may do: this training on these images, whether its captions are there or not."""
        config = {"train": self.train.identity(), "evaluate": self.evaluate.identity()}
        what = {"images": self.inputs.images.fingerprint, "captions": self.variant.captions, "seed": self.seed}
        return fingerprint_of(TURN, what | config)

    @property
    def obstacle(self) -> str:
        """Why this run means nothing on this data set; empty when it does."""
        if self.variant.captions == "true" and not self.inputs.has_truth:
            return "the true attributes are known of synthetic images only"
        return ""


@dataclass(frozen=True, kw_only=True)
class Done:
    """How one run ended. rows: of runs.parquet, one an inference mode, or one that says why there is no result."""

    run: Run
    rows: Sequence[Row]
    cached: bool
    seconds: float


def plan(store: ArtifactStore, recipe: Recipe, config: StudyConfig, progress: ProgressFn) -> Iterator[Run]:
    """Yield every run of the study, the seeds one after the other; draws and indexes each seed's images."""
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
    """Do one run after the other; each is done when it is yielded.

    A run that another process is doing is left for the end, so that several processes share a study. progress: called
    with runs done, runs in all, and what the one in progress is at. An exception makes the run a row with status
    ``failed``; only an interruption from the keyboard ends the study.
    """
    later: list[Run] = []
    for number, run in enumerate(runs):
        # Held until it is done, captions included: two processes that only looked would walk in step.
        with try_lock(run.inputs.store, TURN, run.turn) as is_mine:
            if is_mine:
                yield _attempt(run, _telling(run, number - len(later), len(runs), progress))
            else:
                later.append(run)
    for number, run in enumerate(later, start=len(runs) - len(later)):
        yield _attempt(run, _telling(run, number, len(runs), progress))


def _telling(run: Run, number: int, runs: int, progress: ProgressFn) -> ProgressFn:
    """Return a progress function that says what `run` is at, of `runs` of which `number` are done."""

    def show(done: int, total: int, note: str) -> None:
        progress(number, runs, f"{run.label}: {done}/{total} {note}")

    return show


def _attempt(run: Run, progress: ProgressFn) -> Done:
    started = time.perf_counter()
    if run.obstacle:
        return Done(run=run, rows=[_row(run, status="skipped", error=run.obstacle)], cached=False, seconds=0.0)
    try:
        found = run.find()
        result = read_json((found or _make(run, progress)).folder / _FILE)
    except Exception as error:
        # What a person can mend explains itself; anything else needs its traceback.
        log.error("study: %s failed: %s", run.label, error, exc_info=not isinstance(error, ClipScgiError))
        rows = [_row(run, status="failed", error=f"{type(error).__name__}: {error}")]
        return Done(run=run, rows=rows, cached=False, seconds=time.perf_counter() - started)
    return Done(run=run, rows=_rows(run, result), cached=found is not None, seconds=time.perf_counter() - started)


def _make(run: Run, progress: ProgressFn) -> ArtifactRef:
    """Caption, train and evaluate, each found if it has been done, and write the results as one artefact."""
    inputs = run.inputs
    captions = inputs.make(run.variant.captions, progress)

    def produce(folder: Path) -> None:
        place: dict[str, Any] = {"images": inputs.images, "images_root": inputs.images_root, "progress": progress}
        whole = not inputs.store.scratch(TRAIN, _train_fingerprint(run, captions)).exists()
        started = time.perf_counter()
        model = train(inputs.store, captions=captions, config=run.train, **place)
        seconds = time.perf_counter() - started
        judged = evaluate(inputs.store, model=model.ref, config=run.evaluate, **place)
        metrics = read_json(judged.ref.folder / "metrics.json")
        write_json(
            folder / _FILE,
            {
                # Of a training that was found, or went on from a checkpoint, it is not known.
                "seconds": round(seconds, 1) if whole and not model.cached else None,
                "steps": read_json(model.ref.folder / "config.json")["training"]["steps"],
                "train": model.ref.fingerprint,
                "evaluation": judged.ref.fingerprint,
                "captions": captions.fingerprint if captions else None,
                "protocol": metrics["protocol"],
                "results": [{name: row[name] for name in ("model", "mode", *_METRICS)} for row in metrics["results"]],
            },
        )

    return inputs.store.make(STAGE, run.ingredients(captions), produce).ref


def _train_fingerprint(run: Run, captions: ArtifactRef | None) -> str:
    return fingerprint_of(TRAIN, run.ingredients(captions)["train"])


def _rows(run: Run, result: Mapping[str, Any]) -> list[Row]:
    """Return a row an inference mode of the trained model and, once a seed, one of the untrained model."""
    protocol = result["protocol"]
    common = {name: result[name] for name in ("steps", "train", "evaluation")} | {
        "caption_artifact": result["captions"],
        "dataset": protocol["dataset"],
        "dataset_hash": read_json(run.inputs.images.folder / "dataset.json")["dataset_hash"],
        "n_query": protocol["n_query"],
        "n_gallery": protocol["n_gallery"],
    }
    rows = []
    for judged in result["results"]:
        scores = {name: judged[name] for name in ("mode", *_METRICS)}
        if judged["model"] == "trained":
            rows.append(_row(run, status="ok") | common | scores | {"seconds": result["seconds"]})
        elif run.variant.method == "clip_baseline" and run.variant.group == "main":
            rows.append(_untrained(run) | common | scores | {"steps": 0, "train": None})
    return rows


def _row(run: Run, *, status: str, error: str | None = None) -> Row:
    variant, train_config = run.variant, run.train
    is_scgi = train_config.method == "clip_scgi"
    scgi = train_config.scgi
    return {
        "variant": variant.name,
        "title": variant.title,
        "group": variant.group,
        "method": train_config.method,
        "captions": variant.captions,
        "seed": run.seed,
        "cgi": scgi.cgi if is_scgi else None,
        "cff": scgi.cff if is_scgi else None,
        "queries": scgi.inversion_tokens if is_scgi and scgi.cgi else None,
        "depth": scgi.depth if is_scgi and scgi.cgi else None,
        "epochs": train_config.schedule.epochs,
        "status": status,
        "error": error,
    }


def _untrained(run: Run) -> Row:
    unset = dict.fromkeys(("cgi", "cff", "queries", "depth"))
    row = _row(run, status="ok") | unset
    return row | {"variant": "untrained", "title": "CLIP, not trained", "method": "none", "epochs": 0}
