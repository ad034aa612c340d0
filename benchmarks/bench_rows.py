"""Time and peak memory of what reads the rows of a dataset besides captioning, as the dataset grows: training, sampler,
evaluation, pixel cache, preflight, report, comparison, reason for a rerun, corrections and their import, search, a page
of the UI, and what a run does after its index if nothing has changed.

    python benchmarks/bench_rows.py [--rows 100000 400000] [--million] [--steps training report]

The worlds, the options and the columns are those of `bench_scale.py`. A tenth of the images are queries, each ranked by
two models with 50 gallery images. Nothing is decoded, and no model is loaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from bench_scale import CONFIG, RANKED, Step, captions_of, main, run_of
from numpy.lib.format import open_memmap

from captioning.audit.stage import AuditConfig, AuditStage
from captioning.corrections import Corrections
from captioning.corrections.exchange import export_rows, plan_import, save_import
from captioning.corrections.images import DatasetImages, ModelCaptions
from captioning.corrections.stage import CorrectStage
from captioning.corrections.table import FileRow, write_rows
from captioning.stage.stage import CaptionStage
from data.artifacts.inventory import take_inventory
from data.artifacts.stages import StageName
from data.artifacts.store import SIDECAR, ArtifactRef, Produced
from data.columns.lists import lists_of
from data.columns.source import ParquetRows
from data.files import read_json, write_json, write_tables
from data.images.thumbnails import Thumbnails
from data.schemas import RANKINGS
from flows.cli.results import results_table
from flows.comparison.images import find_test_images, relabeled
from flows.comparison.queries import pair_queries, read_scores
from flows.comparison.runs import RankedRow, RowName, Run
from flows.preflight.check import NOTICES, RULES, check_run, plan_of, planned
from flows.reasons.tables import CAPTIONS, IMAGES, between
from flows.recipes import build_recipe
from flows.report.language import audit_section, caption_section
from flows.report.retrieval import query_section
from flows.stage_tasks import STEPS as STAGES
from flows.ui.content.items import ImageFilter
from flows.ui.content.searching import searchable
from flows.ui.content.tables import Tables
from reid.config.evaluate import EvaluateConfig
from reid.config.train import TrainConfig, ValidationConfig
from reid.evaluation.intervals import read_query_scores
from reid.evaluation.sentences.source import find_sentences
from reid.evaluation.stage import EvaluateStage
from reid.inputs.evaluation_rows import evaluation_rows
from reid.inputs.image_rows import ImageRows, Ints, read_rows
from reid.inputs.pixel_cache import PixelStage
from reid.inputs.sampler import IdentitySampler
from reid.inputs.training_rows import training_rows
from reid.training.validation import ranked_test

RECIPE: Final = build_recipe("demo", ["caption.device=cpu"])
"""Its captioner is that of `CONFIG`."""
_RANKED: Final = 50
_AT_ONCE: Final = 2000  # queries
_RANKINGS: Final = "rankings.parquet"
_RANKING: Final = EvaluateStage(
    model=RECIPE.train, config=EvaluateConfig(exclude="none", device="cpu", text_to_image="off")
)
_WIDTH: Final = 64


def captions(home: str, index: dict[str, str]) -> None:
    """Write captions.parquet, which later steps read."""
    CaptionStage(config=CONFIG).make(run_of(home, index))


def audit(home: str, index: dict[str, str]) -> None:
    """Audit the captions."""
    run = run_of(home, index)
    AuditStage(captions=captions_of(run), config=AuditConfig()).make(run)


def rankings(home: str, index: dict[str, str]) -> None:
    """Write rankings.parquet of two models in the folder of the index, which later steps read."""
    rows = evaluation_rows(run_of(home, index).images, EvaluateConfig(exclude="none")).images
    queries = int((rows.split == "query").sum())
    rng = np.random.default_rng(0)
    parts = (
        _ranked(rows, np.arange(start, min(start + _AT_ONCE, queries)), model, rng)
        for model in ("untrained", "trained")
        for start in range(0, queries, _AT_ONCE)
    )
    write_tables(Path(home) / _RANKINGS, parts, RANKINGS)


def _ranked(rows: ImageRows, queries: Ints, model: str, rng: np.random.Generator) -> pa.Table:
    count = len(queries)
    nearest = rng.integers(count, len(rows), size=count * _RANKED)
    found, filled = rows.take(nearest), np.ones((count, _RANKED), dtype=np.bool_)
    columns = {
        "model": [model] * count,
        "mode": ["image"] * count,
        "query_path": rows.take(queries).path,
        "query_pid": rows.pid[queries],
        "query_camid": rows.camid[queries],
        "ap": rng.random(count),
        "inp": rng.random(count),
        "first_hit": rng.integers(1, 60, size=count),
        "n_relevant": rng.integers(1, 10, size=count),
        "top_paths": lists_of(found.path, filled),
        "top_pids": lists_of(found.pid, filled),
        "top_camids": lists_of(found.camid, filled),
        "top_scores": lists_of(rng.random(count * _RANKED).astype(np.float32), filled),
    }
    return pa.table(columns).cast(RANKINGS)


def finished(home: str, index: dict[str, str]) -> None:
    """Write the artifacts that "cached run" finds: the audit, whose pictures do not exist, as a complete one, and
    made-up ones of the stages after it.
    """
    run, made = run_of(home, index), dict[StageName, ArtifactRef]()
    about = {"dataset": "made up", "dataset_hash": "0" * 32, "weights": {}}
    model = {"config": RECIPE.train.model_dump(mode="json"), "identities": [], "provenance": about}
    scores = {"model": "trained", "mode": "image", "mAP": 0.5, "mINP": 0.5, "rank1": 0.5, "rank5": 0.5, "rank10": 0.5}
    results = [{**scores, "model": name} for name in ("untrained", "trained")]
    protocol = {"dataset": "made up", "version": "", "n_query": 1, "n_gallery": 1, "description": ""}
    for name in planned(RECIPE, "report"):
        plan = STAGES[name](RECIPE, made).stage.plan(run)
        found = plan.find(run.store)
        if found is None:
            incomplete = run.store.folder(name, plan.fingerprint)
            with run.store.draft(name, plan.fingerprint) as folder:
                for file in incomplete.glob("*"):
                    if file.name != SIDECAR:
                        os.link(file, folder / file.name)
                write_json(folder / "config.json", model)
                (folder / "model.safetensors").touch()
                write_json(folder / "metrics.json", {"protocol": protocol, "results": results})
                if name == "evaluate":
                    os.link(Path(home) / _RANKINGS, folder / _RANKINGS)
                found = run.store.publish(folder, name, plan.ingredients, Produced())
        made[name] = found


def cached_run(home: str, index: dict[str, str]) -> None:
    """Do what a run does after its index if every artifact exists: checks, five stages, and the table of results."""
    run, made = run_of(home, index), dict[StageName, ArtifactRef]()
    assert check_run(run, RECIPE, "report") is not None
    for name in planned(RECIPE, "report"):
        found = STAGES[name](RECIPE, made).stage.find(run)
        assert found is not None
        made[name] = found
    assert find_sentences(run.images, made["caption"], RECIPE.evaluate)
    folder = made["evaluate"].folder
    results_table(read_json(folder / "metrics.json"), folder / _RANKINGS)


def training(home: str, index: dict[str, str]) -> None:
    """Select the training images with their captions."""
    run = run_of(home, index)
    config = TrainConfig(validation=ValidationConfig(every=1))
    rows = training_rows(run.images, captions_of(run), config)
    assert len(rows.captions) == len(rows.trained)


def texts(home: str, index: dict[str, str]) -> None:
    """Number the distinct captions of the training images."""
    run = run_of(home, index)
    rows = training_rows(run.images, captions_of(run), TrainConfig())
    rows.captions.places_in(rows.captions.sorted_distinct())


def sampler(home: str, index: dict[str, str]) -> None:
    """Draw the batches of one epoch."""
    pids = run_of(home, index).images.rows("pid")["pid"].to_numpy()
    IdentitySampler(pids, identities=16, images=4, seed=0).epoch(0)


def evaluation(home: str, index: dict[str, str]) -> None:
    """Select queries and gallery, and the captions of the queries."""
    run = run_of(home, index)
    evaluation_rows(run.images, EvaluateConfig(exclude="none"))
    assert find_sentences(run.images, captions_of(run), EvaluateConfig())


def features(home: str, index: dict[str, str]) -> None:
    """Write made-up features of the test images, which the step "ranking" reads as memory maps."""
    run = run_of(home, index)
    plan = _RANKING.features.plan(run)
    count, rng = len(evaluation_rows(run.images, _RANKING.config).images), np.random.default_rng(0)
    with run.store.draft("features", plan.fingerprint) as folder:
        out = open_memmap(folder / "untrained-image.npy", "w+", np.float32, (count, _WIDTH))
        for start in range(0, count, _AT_ONCE):
            rows = out[start : start + _AT_ONCE]
            rows[:] = rng.standard_normal(rows.shape)
        write_json(folder / "features.json", [["untrained", "image"]])
        run.store.publish(folder, "features", plan.ingredients, Produced())


def ranking(home: str, index: dict[str, str]) -> None:
    """Evaluate these features: queries x gallery, so the time grows with the square of the images."""
    assert not _RANKING.make(run_of(home, index)).cached


def validation(home: str, index: dict[str, str]) -> None:
    """Select the images of an evaluation during training."""
    ranked_test(read_rows(run_of(home, index).images))


def pixels(home: str, index: dict[str, str]) -> None:
    """Name the pixel cache by the digests of the images."""
    PixelStage(height=256, width=128).ingredients(run_of(home, index))


def preflight(home: str, index: dict[str, str]) -> None:
    """Check a run before its captions exist."""
    run, recipe = run_of(home, index), build_recipe("market1501", ["data.root=/x", "caption.corrections=use"])
    plan = plan_of(run, recipe, ("caption", "train", "evaluate"))
    for rule in (*RULES, *NOTICES):
        if rule.area in ("data", "sampler"):
            list(rule.findings(plan))


def report(home: str, index: dict[str, str]) -> None:
    """Choose the queries, captions and identities of a report."""
    run = run_of(home, index)
    captions_file = captions_of(run).folder / "captions.parquet"
    audited = AuditStage(captions=captions_of(run), config=AuditConfig()).plan(run)
    folder, names = run.store.folder("audit", audited.fingerprint), run.images.names()
    thumbnail = Thumbnails(run.images.root, run.images.digests(), 144)
    path = Path(home) / _RANKINGS
    query_section(path, thumbnail, model="trained", mode="image", each=4, top_k=10, seed=0, names=names)
    flags = folder / "flags.parquet"
    caption_section(captions_file, flags, thumbnail, shown=24, failed=6, seed=0, names=names)
    audit_section(folder, captions_file, thumbnail, identities=6, identity_images=8, names=names)


def intervals(home: str, index: dict[str, str]) -> None:
    """Read the scores of the queries, as the table of the report does."""
    read_query_scores(Path(home) / _RANKINGS)


def comparison(home: str, index: dict[str, str]) -> None:
    """Pair the queries of two models by content, and compare their galleries."""
    rows = (RowName("untrained", "image"), RowName("trained", "image"))
    run = Run(
        name="made up",
        folder=Path(home),
        fingerprint="",
        recipe="",
        created=None,
        test_images=RANKED,
        model="",
        settings={},
        rows=rows,
        sentences=None,
        protocol={},
    )
    first, second = (find_test_images(run, run_of(home, index).store) for _ in rows)
    assert first is not None
    assert second is not None
    assert relabeled(first, second) == 0
    untrained, trained = (read_scores(RankedRow(run, row)) for row in rows)
    pair_queries(untrained, trained, (first, second))


def reasons(home: str, index: dict[str, str]) -> None:
    """Compare two indexes and two sets of captions, as a run does that makes a stage again."""
    run = run_of(home, index)
    assert between(IMAGES, run.images.ref.folder, run.images.ref.folder) == []
    captioned = captions_of(run).folder
    assert between(CAPTIONS, captioned, captioned) == []


def corrections(home: str, index: dict[str, str]) -> None:
    """Open the images and captions that an import of corrections may name."""
    run = run_of(home, index)
    columns = ("image_sha256", "caption", "captioner_fingerprint")
    found = ModelCaptions.read(ParquetRows(captions_of(run).folder / "captions.parquet").batches(*columns))
    images = DatasetImages(paths=run.images.digests(), root="", captions=found)
    path, sha256 = images.paths.image(0)
    assert (images.path_of(sha256), bool(found[sha256].text)) == (path, True)


def import_captions(home: str, index: dict[str, str]) -> None:
    """Import a caption for every image."""
    run = run_of(home, index)
    images, kept = DatasetImages(paths=run.images.digests(), root=""), Corrections.open(run.store.root)
    rows = (
        FileRow(number, {"image_path": path, "caption": f"A man in red stands near sign {number}."})
        for number, path in enumerate(images.paths, start=1)
    )
    assert save_import(plan_import("made up", rows, kept, images, author="bench"), kept) == len(images)


def corrected(home: str, index: dict[str, str]) -> None:
    """Write captions.parquet with the imported captions."""
    run = run_of(home, index)
    CorrectStage(captions=captions_of(run), config=CONFIG).make(run)


def export(home: str, index: dict[str, str]) -> None:
    """Write the imported captions to a table."""
    run = run_of(home, index)
    images, kept = DatasetImages(paths=run.images.digests(), root=""), Corrections.open(run.store.root)
    assert write_rows(Path(home) / "exported.csv", export_rows(kept.current(), images)) == len(images)


def search(home: str, index: dict[str, str]) -> None:
    """Select the gallery of a search."""
    rows = read_rows(run_of(home, index).images)
    rows.take(rows.of_split("gallery"))


def page(home: str, index: dict[str, str]) -> None:
    """List a page of the UI, and one with a filter."""
    store = run_of(home, index).store
    entries = {entry.stage: entry for entry in take_inventory(store).entries}
    table = Tables(store, []).get(entries["index"], entries["caption"], entries["audit"])
    for wanted in (ImageFilter(), ImageFilter(text="red", split="train")):
        table.items(table.select(wanted)[:50])
    searchable(table)


STEPS: Final[dict[str, Step]] = {
    "captions": captions,
    "audit": audit,
    "rankings": rankings,
    "finished": finished,
    "cached run": cached_run,
    "training": training,
    "texts": texts,
    "sampler": sampler,
    "evaluation": evaluation,
    "features": features,
    "ranking": ranking,
    "validation": validation,
    "pixels": pixels,
    "preflight": preflight,
    "report": report,
    "intervals": intervals,
    "comparison": comparison,
    "reasons": reasons,
    "corrections": corrections,
    "search": search,
    "page": page,
    "import": import_captions,
    "corrected": corrected,
    "export": export,
}

if __name__ == "__main__":
    main(STEPS, __doc__, needed=("captions", "audit", "rankings", "finished"))
