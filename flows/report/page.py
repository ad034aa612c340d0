"""The report page: gather the contents of each section and render the template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data.errors import counted, plural_of
from data.files import read_json, write_text
from data.images.thumbnails import Thumbnails
from data.people import UNKNOWN_CAMERA, Names
from data.progress import silent
from data.stages.images import IndexedImages
from data.stages.stage import RunContext
from flows.report.curves import cmc_chart, training_charts
from flows.report.gather import Row, counts, distinct, read_log
from flows.report.language import audit_section, caption_section
from flows.report.retrieval import Explain, leading_row, query_section
from flows.report.scores import METRICS, scores, signed
from flows.report.sentences import CAPTION_REMEDY, TEXT_METRICS, UNKNOWN_REASON, not_measured, text_scores
from flows.report.stage import TEMPLATES, ReportConfig, ReportInputs, without_places
from flows.terminal import duration
from reid.config.evaluate import EvaluateConfig
from reid.evaluation.intervals import METHOD, MIN_QUERIES
from reid.evaluation.protocol import camera_note, mode_notes
from reid.evaluation.sentences.source import NoSentences, find_sentences
from reid.relevance.grid import Pair
from reid.relevance.stage import Relevance, RelevanceStage, read_relevance

_CAPTIONER_COLUMNS: Final = (
    "model_id",
    "model_revision",
    "template_id",
    "dtype",
    "quantization",
    "batch_size",
    "captioner_fingerprint",
)
_REJECTED_SHOWN: Final = 50
_SECTIONS: Final = 4


def write_page(
    path: Path, run: RunContext, *, inputs: ReportInputs, config: ReportConfig, device: str
) -> dict[str, str]:
    """Write the page to `path`; return what could not be shown (paths of images, "relevance"), each with the reason.

    device: where relevance is computed.
    """
    thumbnail = Thumbnails(run.images.root, run.images.digests(), config.thumbnail_height)
    page = _page(run, inputs, config, thumbnail, device)
    page["n_without_image"] = len(thumbnail.problems)
    write_text(path, page_environment().get_template("report.html.j2").render(page))
    run.progress(_SECTIONS, _SECTIONS, "report.html")
    problem = page["relevance_problem"]
    return {**thumbnail.problems, **({"relevance": problem} if problem else {})}


def page_environment() -> Environment:
    """Return the environment of the pages in `TEMPLATES`, which escapes all values and rejects missing ones."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        percent=lambda share, digits=1: f"{100 * share:.{digits}f}",
        signed=signed,
        camera=lambda camid: "unknown" if camid == UNKNOWN_CAMERA else str(camid),
        thousands=lambda number: f"{number:,}",
        counted=counted,
        plural=lambda noun, number: noun if number == 1 else plural_of(noun),
        plain_json=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    )
    return environment


def _page(
    run: RunContext, inputs: ReportInputs, config: ReportConfig, thumbnail: Thumbnails, device: str
) -> dict[str, Any]:
    metrics = read_json(inputs.evaluation.folder / "metrics.json")
    lead, names = leading_row(metrics["results"], config.mode), run.images.names()
    page = {"config": config, "artifacts": inputs.artifacts(run.images)}
    run.progress(0, _SECTIONS, "results")
    page |= _results(run.images, inputs, metrics, lead, config) | _text_part(run.images, inputs, metrics)
    run.progress(1, _SECTIONS, "training")
    page |= _training_part(inputs)
    run.progress(2, _SECTIONS, "queries")
    page |= query_section(
        inputs.evaluation.folder / "rankings.parquet",
        thumbnail,
        model=lead["model"],
        mode=lead["mode"],
        each=config.queries_each,
        top_k=config.top_k,
        seed=config.seed,
        explain=_explain(run, inputs, lead, device) if config.relevance else None,
        names=names,
    )
    run.progress(3, _SECTIONS, "captions")
    return page | _language_part(inputs, config, thumbnail, names)


def _explain(run: RunContext, inputs: ReportInputs, lead: Row, device: str) -> Explain | None:
    """Return the function that computes the relevance of pairs; None if an untrained model leads the page."""
    if lead["model"] != "trained":
        return None

    def explain(pairs: Sequence[Pair], sample: Sequence[Pair]) -> Relevance:
        stage = RelevanceStage(
            model=inputs.model, pairs=tuple(pairs), sample=tuple(sample), mode=lead["mode"], device=device
        )
        return read_relevance(stage.make(run.with_progress(silent)).ref)

    return explain


def _results(
    images: IndexedImages, inputs: ReportInputs, metrics: Row, lead: Row, config: ReportConfig
) -> dict[str, Any]:
    rows = scores(metrics, inputs.evaluation.folder / "rankings.parquet")
    return {
        "dataset": images.description.model_dump(),
        "rejected": _rejected(images.ref.folder / "rejected.parquet"),
        "protocol": metrics["protocol"],
        "camera_note": camera_note(metrics["protocol"]),
        "mode_notes": mode_notes(metrics["protocol"]),
        "metric_names": METRICS,
        "interval_method": METHOD,
        "min_queries": MIN_QUERIES,
        "scores": rows,
        "lead": lead,
        "lead_score": next(row for row in rows if (row.model, row.mode) == (lead["model"], lead["mode"])),
        "cmc": cmc_chart(metrics["results"], config.cmc_ranks),
    }


def _text_part(images: IndexedImages, inputs: ReportInputs, metrics: Row) -> dict[str, Any]:
    found, missing = text_scores(metrics, inputs.evaluation.folder), ""
    if found is None:
        settings = inputs.recipe.get("evaluate", {})
        wanted = {name: settings[name] for name in ("text_to_image", "gallery_draws") if name in settings}
        why = find_sentences(images, inputs.captions, EvaluateConfig(**wanted))
        missing = not_measured(why, CAPTION_REMEDY) if isinstance(why, NoSentences) else UNKNOWN_REASON
    return {"text": found, "text_metrics": TEXT_METRICS, "text_missing": missing}


def _training_part(inputs: ReportInputs) -> dict[str, Any]:
    log = read_log(inputs.model.folder / "metrics.jsonl")
    trained = read_json(inputs.model.folder / "config.json")
    return {
        "method": method_name(inputs.recipe, trained),
        "recipe": without_places(inputs.recipe),
        "recipe_name": inputs.recipe.get("name"),
        # The recipe shows the config, and the list of identities is as long as the dataset.
        "trained_from": {name: value for name, value in trained.items() if name not in ("config", "identities")},
        "versions": _versions(trained.get("provenance", {})),
        "training": _training(log),
        "charts": training_charts(log),
    }


def _language_part(inputs: ReportInputs, config: ReportConfig, thumbnail: Thumbnails, names: Names) -> dict[str, Any]:
    if inputs.captions is None or inputs.audit is None:
        return {"captioner": {}, "captions": None, "audit": None}
    path = inputs.captions.folder / "captions.parquet"
    return {
        "captioner": distinct(path, _CAPTIONER_COLUMNS),
        "captions": caption_section(
            path,
            inputs.audit.folder / "flags.parquet",
            thumbnail,
            shown=config.captions,
            failed=config.failed_captions,
            seed=config.seed,
            names=names,
        ),
        "audit": audit_section(
            inputs.audit.folder,
            path,
            thumbnail,
            identities=config.identities,
            identity_images=config.identity_images,
            names=names,
        ),
    }


def method_name(recipe: Mapping[str, Any], trained: Mapping[str, Any]) -> str:
    """Return the name of the method from the trained model's config or, failing that, from the recipe."""
    places: list[Any] = [trained.get("config"), recipe.get("train"), recipe]
    names = (place["method"] for place in places if isinstance(place, Mapping) and isinstance(place.get("method"), str))
    return next(names, "method not recorded")


def _versions(provenance: Mapping[str, Any]) -> dict[str, str]:
    python = {"python": provenance["python"]} if "python" in provenance else {}
    return python | provenance.get("libraries", {})


class LossChange(NamedTuple):
    """A loss in the first and in the last epoch."""

    name: str
    first: float
    last: float


@dataclass(frozen=True, kw_only=True)
class TrainingSummary:
    """Length and speed (images per second) of a training, and its losses in the first and the last epoch."""

    epochs: int
    steps: int
    duration: str
    speed: float
    losses: Sequence[LossChange]


def _training(log: Mapping[str, Sequence[Row]]) -> TrainingSummary:
    epochs = log["epoch"]
    seconds = sum(row["seconds"] for row in epochs)
    images = sum(row["images_per_second"] * row["seconds"] for row in epochs)
    return TrainingSummary(
        epochs=len(epochs),
        steps=max((row["step"] for kind in ("step", "epoch") for row in log[kind]), default=0),
        duration=duration(seconds),
        speed=images / seconds if seconds else 0.0,
        losses=_loss_changes(epochs[0], epochs[-1]) if epochs else [],
    )


def _loss_changes(first: Row, last: Row) -> list[LossChange]:
    terms = [name for name in first["terms"] if name in last["terms"]]
    return [
        LossChange("total", first["loss"], last["loss"]),
        *(LossChange(name, first["terms"][name], last["terms"][name]) for name in terms),
    ]


@dataclass(frozen=True, kw_only=True)
class RejectedFiles:
    """Files that the index rejected: how many, by reason, and the first rows of rejected.parquet."""

    total: int
    reasons: Sequence[tuple[str, int]]
    rows: Sequence[Row]


def _rejected(path: Path) -> RejectedFiles:
    table = pq.read_table(path)
    return RejectedFiles(
        total=table.num_rows,
        reasons=counts(table["reason"]),
        rows=table.slice(0, _REJECTED_SHOWN).to_pylist(),
    )
