"""Action of ``clip-scgi evaluate --model`` and ``--zero-shot``: evaluate without captioning or training anything."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from data.artifacts.contents import IMAGES_FILE
from data.artifacts.store import ArtifactRef, ArtifactStore, Made, read_uses
from data.columns.digests import digests_of
from data.errors import ConfigError, raise_problems
from data.files import read_json
from data.index.stage import IndexStage
from data.stages.images import IndexedImages
from data.stages.stage import RunContext
from flows.cli.inputs import artifact_store, recipe_of
from flows.cli.results import print_protocol, results_table
from flows.cli.scoring.details import check_folder, known_captions, show_details
from flows.cli.scoring.indexing import indexed_run
from flows.cli.scoring.sentences import text_to_image
from flows.execution.gpu import uses_gpu
from flows.preflight.check import EARLY, plan_of, problems_of
from flows.preflight.finding import texts_of
from flows.recipes import Recipe
from flows.report.sentences import not_measured
from flows.summary import RunSummary
from flows.terminal import notice_line, plain_console, progress_bar, stage_line
from flows.workers.together import encode_together
from reid.config.trained import read_trained
from reid.embedding.find import find_model
from reid.evaluation.features import FeatureStage
from reid.evaluation.inputs import (
    EvaluatedModel,
    config_of,
    named_apart,
    other_dataset,
    trained_hash,
    trained_on,
    untrained_problem,
)
from reid.evaluation.sentences.source import NoSentences
from reid.evaluation.stage import EvaluateStage
from reid.inputs.evaluation_rows import check_test_split, evaluation_rows


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command. model: None with `zero_shot`. out: folder for the files of the evaluation."""

    model: str | None
    zero_shot: bool
    breakdown: bool
    out: Path | None
    reread: bool


def evaluate_anywhere(name: str, overrides: Sequence[str], options: Options, home: Path | None) -> None:
    """Index the images of a recipe, evaluate a model on them, and print the scores.

    Raises:
        ConfigError: both or none of the models is named, the settings do not work, or the images do not have
            labels.
        DataError: the dataset cannot be evaluated.
        WeightsError: the model or its weights are unavailable.
    """
    if options.zero_shot and options.model is not None:
        raise ConfigError("evaluate: --zero-shot is the untrained CLIP of the recipe; leave out --model")
    recipe, store = recipe_of(name, overrides), artifact_store(home)
    check_folder(options.out)
    _check_settings(recipe, store, overrides, trained=options.model is not None)
    model = recipe.train if options.model is None else find_model(options.model, store)
    run = indexed_run(recipe, store, reread=options.reread)
    stage = EvaluateStage(
        model=model,
        config=recipe.evaluate,
        untrained=_evaluates_untrained(model, store),
        captions=known_captions(run, recipe),
    )
    for notice in _notices(run, stage, recipe):
        plain_console(stderr=True).print(notice_line(notice), soft_wrap=True)
    if options.breakdown or options.out is not None:
        _make(run, stage.features, recipe)
    made = _make(run, stage, recipe)
    for ref in (run.images.ref, made.ref):
        store.record_use(ref, dataset=recipe.data.label, recipe=_label(model, run.images, recipe))
    _show(run, stage, made.ref, recipe)
    if options.breakdown or options.out is not None:
        show_details(run, stage, recipe, out=options.out, breakdown=options.breakdown)


def show_details_of_run(
    name: str,
    overrides: Sequence[str],
    summary: Mapping[str, Any],
    *,
    out: Path | None,
    breakdown: bool,
    home: Path | None,
) -> None:
    """Print or write the details of an evaluation by the pipeline. summary: the flow's result."""
    recipe, done = recipe_of(name, overrides), RunSummary.model_validate(summary)
    indexed = done["index"]
    images = IndexedImages(ref=indexed.artifact, root=Path(indexed.images_root or ""))
    run = RunContext(store=artifact_store(home), indexed=images)
    captions = done.captions.artifact if done.find("caption") else None
    stage = EvaluateStage(model=done["train"].artifact, config=recipe.evaluate, captions=captions)
    _make(run, stage.features, recipe)
    show_details(run, stage, recipe, out=out, breakdown=breakdown)


def _check_settings(recipe: Recipe, store: ArtifactStore, overrides: Sequence[str], *, trained: bool) -> None:
    """Raise ConfigError for settings that cannot work or would have no effect."""
    idle = [text for text in overrides if text.startswith(("train.", "train="))] if trained else []
    if idle:
        raise ConfigError(
            f"evaluate: --set {idle[0]} has no effect on a trained model; leave it out, or leave out --model"
        )
    plan = plan_of(RunContext(store=store), recipe, ["evaluate"])
    raise_problems(f"recipe {recipe.name}", texts_of(problems_of(plan, EARLY)), ConfigError)
    uses_gpu(recipe.evaluate.device, "evaluate.device")


def _evaluates_untrained(model: EvaluatedModel, store: ArtifactStore) -> bool:
    """Return True if the model before training can be evaluated; print a notice if it cannot."""
    problem = untrained_problem(model, store) if isinstance(model, ArtifactRef) else ""
    if problem:
        notice = f"the untrained model is not evaluated beside the trained one: {problem}"
        plain_console(stderr=True).print(notice_line(notice), soft_wrap=True)
    return not problem


def _notices(run: RunContext, stage: EvaluateStage, recipe: Recipe) -> Iterator[str]:
    yield from run.images.description.notices
    yield from _left_for_training(run.images, stage.model, recipe)
    yield from check_test_split(run.images, stage.config)
    seen = _seen_in_training(run, stage) if isinstance(stage.model, ArtifactRef) else 0
    if seen:
        yield (
            f"{seen:,} of the queries and gallery images were training images of this model, so its scores are too "
            "high; test on other people"
        )


def _left_for_training(images: IndexedImages, model: EvaluatedModel, recipe: Recipe) -> Iterator[str]:
    """Yield a notice if the rule of the splits leaves people for a training that does not take place."""
    people = {split: counts.get("identities", 0) for split, counts in images.description.counts.items()}
    left, tested = people.get("train", 0), people.get("query", 0)
    trained_here = isinstance(model, ArtifactRef) and other_dataset(model, images) is None
    if recipe.data.splits_by_rule and left and not trained_here:
        yield (
            f"{left:,} people are left for training, and only {tested:,} are tested; to test on all of them, add "
            "--set data.train_fraction=0"
        )


def _seen_in_training(run: RunContext, stage: EvaluateStage) -> int:
    """Return the number of test images that the model was trained on, 0 if its training images are not known here."""
    import pyarrow.parquet as pq

    assert isinstance(stage.model, ArtifactRef)
    provenance: Mapping[str, Any] = read_trained(stage.model.folder).get("provenance", {})
    file = run.store.folder(IndexStage.name, provenance.get("images", "unknown")) / IMAGES_FILE
    if not file.is_file():
        return 0
    rows = pq.read_table(file, columns=["sha256"], filters=[("split", "=", "train")])
    trained = digests_of(rows["sha256"])
    return int(np.isin(evaluation_rows(run.images, stage.config).images.sha256, trained).sum())


def _make(run: RunContext, stage: EvaluateStage | FeatureStage, recipe: Recipe) -> Made:
    """Return the artifact of a stage, and print a line about it."""
    started = time.perf_counter()
    if recipe.scale.shares(recipe.scale.embed_workers) and stage.find(run) is None:
        encode_together(stage, recipe.scale, run)
    with progress_bar(stage.name) as progress:
        made = stage.make(run.with_progress(progress))
    line = stage_line(stage.name, "cached" if made.cached else "ran", time.perf_counter() - started, "")
    plain_console(stderr=True).print(line, soft_wrap=True)
    return made


def _label(model: EvaluatedModel, images: IndexedImages, recipe: Recipe) -> str:
    """Return the recipe to record for an evaluation, such as "demo" or "demo -> folders".

    It is the recipe that trained the model only if the model was trained on this dataset.
    """
    if not isinstance(model, ArtifactRef):
        return f"zero-shot -> {recipe.name}"
    source = trained_on(model)
    last = next(reversed(read_uses(model.folder)), None)
    trainer = last["recipe"] if last else source or "unknown"
    if source == recipe.data.label and other_dataset(model, images) is None:
        return trainer
    return f"{named_apart(trainer, recipe.name, trained_hash(model))} -> {recipe.name}"


def _show(run: RunContext, stage: EvaluateStage, evaluation: ArtifactRef, recipe: Recipe) -> None:
    console = plain_console()
    metrics = read_json(evaluation.folder / "metrics.json")
    console.print(results_table(metrics, evaluation.folder / "rankings.parquet"))
    print_protocol(console, metrics["protocol"])
    for part in text_to_image(metrics, evaluation.folder, _no_text_to_image(run, stage, recipe)):
        console.print(part)
    modes = [row["mode"] for row in metrics["results"]]
    for name, text in _lines(evaluation, stage.model, run.images, recipe, modes):
        console.print(Text(f"{name:<9} {text}"), soft_wrap=True)


def _no_text_to_image(run: RunContext, stage: EvaluateStage, recipe: Recipe) -> str:
    """Return why the evaluation did not measure text to image, "" if it did."""
    found = stage.sentences(run)
    remedy = f"run `clip-scgi caption {recipe.name}` with the same --set first"
    return not_measured(found, remedy) if isinstance(found, NoSentences) else ""


def _lines(
    evaluation: ArtifactRef, model: EvaluatedModel, images: IndexedImages, recipe: Recipe, modes: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Yield the model, what it was trained and tested on, and a mode that it does not have."""
    config, tested = config_of(model), recipe.data.label
    if isinstance(model, ArtifactRef):
        elsewhere = other_dataset(model, images)
        source = elsewhere or trained_on(model) or "an unknown dataset"
        if elsewhere:
            tested = named_apart(tested, trained_on(model) or "", images.description.dataset_hash[:8])
        yield "model", f"train/{model.fingerprint} ({config.method}), trained on {source}, tested on {tested}"
    else:
        backbone = f"{config.backbone.name}, weights {config.backbone.weights}"
        yield "model", f"CLIP without training ({backbone}), tested on {tested}"
    if "fused" not in modes:
        why = "the model is untrained" if not isinstance(model, ArtifactRef) else "the model was trained without CFF"
        yield "fused", f"this mode is not available: {why}"
    yield "result", f"{evaluation.folder}"
