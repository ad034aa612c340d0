"""The rows of runs.parquet that one run gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from flows.study.plan.main import ORACLES, UNTRAINED
from flows.study.rows import SCORES, RunRow
from flows.study.run import Run
from flows.study.stage import OracleResult, RunResult


def rows_of_result(run: Run, result: RunResult) -> list[RunRow]:
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
        if row.mode == "image":
            row = _with_text_scores(row, result.get("text_to_image"), scored["model"])
        if scored["model"] == "trained":
            rows.append(row)
        elif run.variant.name == "baseline":
            rows.append(_untrained(row))
    if run.variant.name in ORACLES and "oracle" in result:
        rows.append(_oracle(common, result["oracle"]))
    return rows


def rows_without_result(run: Run, status: Literal["failed", "skipped"], error: str) -> list[RunRow]:
    """Return the row of a run without a result."""
    return [_row(run, status, error=error)]


def _row(run: Run, status: Literal["ok", "failed", "skipped"], *, error: str | None = None) -> RunRow:
    variant, config = run.variant, run.train
    scgi = config.scgi if config.method == "clip_scgi" else None
    return RunRow(
        world=run.world,
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


def _with_text_scores(row: RunRow, measured: Mapping[str, Any] | None, model: str) -> RunRow:
    """Return the row with the scores of search by sentence of a model, if they were measured."""
    found = next((each for each in (measured or {}).get("results", ()) if each["model"] == model), None)
    if measured is None or found is None:
        return row
    return replace(
        row,
        scores={**row.scores, **{f"t2i_{name}": found[name] for name in ("mAP", "rank1", "rank5", "rank10")}},
        t2i_source=measured["source"],
        t2i_sentences=measured["n_sentences"],
        t2i_gallery=measured["n_gallery"],
    )


def _untrained(row: RunRow) -> RunRow:
    """Return the row of the untrained model, from which the baseline was trained."""
    named = replace(row, variant=UNTRAINED, title="CLIP, not trained", method="none")
    return replace(named, epochs=0, steps=0, seconds=None, train=None)


def _oracle(row: RunRow, found: OracleResult) -> RunRow:
    """Return the row of the ranking with the true attributes, which is not that of any evaluation."""
    text = {"t2i_mAP": found["text"]["mAP"], "t2i_rank1": found["text"]["rank1"]}
    named = replace(row, variant=ORACLES[row.variant], title=f"{row.title}, oracle", mode="image")
    return replace(named, scores={**found["scores"], **text}, seconds=None, train=None, evaluation=None)
