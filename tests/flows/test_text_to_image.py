"""Text to image where people see it: tables, comparisons, the plan of a run and the reason of an evaluation."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from data.artifacts.store import ArtifactStore
from data.files import read_json, write_json, write_table
from data.schemas import TEXT_RANKINGS
from flows.cli.scoring.sentences import text_to_image
from flows.comparison.compare import compare
from flows.comparison.runs import find_run
from flows.comparison.text import to_json
from flows.preflight.check import planned
from flows.reasons.reason import changed
from flows.recipes import build_recipe
from flows.report.sentences import CAPTION_REMEDY, not_measured, text_scores
from reid.evaluation.bootstrap import mean_intervals
from reid.evaluation.sentences.source import NoSentences
from tests.helpers.evaluations import image_rows, rank, write_evaluation

PEOPLE = 8
ABOUT = {
    "source": "captions",
    "n_sentences": 17,
    "n_images": 17,
    "n_distinct": 12,
    "n_identities": PEOPLE,
    "n_sharing": 5,
    "ceiling_rank1": 0.75,
    "n_truncated": 0,
    "n_gallery": 32,
    "n_skipped": 1,
    "description": "The caption of every query is ranked.",
}


def first_hits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 14, size=2 * PEOPLE)


def write_sentences(folder: Path, hits: Mapping[str, np.ndarray], *, words: str = "red", source: str = "captions"):
    """Add text to image to the evaluation in `folder`: two sentences per person, with one match each at `hits`."""
    rows = [
        {"model": model, "sentence": f"{words} {at % 12}", "number": 0, "image_path": f"query/{at}.jpg"}
        | {"pid": 1 + at // 2, "ap": 1 / int(hit), "first_hit": int(hit), "n_relevant": 1}
        | {"top_paths": ["g"], "top_pids": [1], "top_scores": [0.5]}
        for model, ranks in hits.items()
        for at, hit in enumerate(ranks)
    ]
    write_table(folder / "text_rankings.parquet", pa.Table.from_pylist(rows, TEXT_RANKINGS), TEXT_RANKINGS)
    results = [
        {"model": model, "mAP": float((1 / ranks).mean())}
        | {f"rank{k}": float((ranks <= k).mean()) for k in (1, 5, 10)}
        for model, ranks in hits.items()
    ]
    metrics = read_json(folder / "metrics.json")
    write_json(folder / "metrics.json", metrics | {"text_to_image": ABOUT | {"source": source, "results": results}})


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home")


def evaluation(store: ArtifactStore, seed: int, **options) -> Path:
    """Write an evaluation and copy it without artifact.json, so that its files can be changed."""
    images = image_rows(PEOPLE)
    ref = write_evaluation(store, images, rank(images, noise=1, seed=seed))
    folder = store.root.parent / f"run{seed}"
    folder.mkdir()
    for name in ("metrics.json", "rankings.parquet"):
        (folder / name).write_bytes((ref.folder / name).read_bytes())
    if options.pop("measured", True):
        write_sentences(folder, {"untrained": first_hits(0), "trained": first_hits(seed)}, **options)
    return folder


def test_the_table_has_points_and_intervals_over_people(store):
    folder = evaluation(store, 1)
    found = text_scores(read_json(folder / "metrics.json"), folder)
    untrained, trained = found.rows
    before, after = 1 / first_hits(0), 1 / first_hits(1)
    assert trained.percent["mAP"] == pytest.approx(100 * after.mean())
    assert trained.points["mAP"] == pytest.approx(100 * (after - before).mean())
    people = np.repeat(np.arange(PEOPLE), 2)
    ((low, high),) = mean_intervals((after - before)[:, None], people)
    assert trained.intervals["mAP"] == pytest.approx((100 * low, 100 * high))
    assert untrained.points is None
    assert untrained.own["mAP"][0] < untrained.percent["mAP"] < untrained.own["mAP"][1]
    assert found.sizes == "17 sentences about 17 images (12 distinct, 1 without a match), 32 gallery images"
    whole_test = text_scores({"text_to_image": {**found.about, "source": "dataset"}})
    assert whole_test.sizes.endswith(", 32 test images")
    assert found.ceiling == (
        "5 of 8 identities have a sentence that another one has too, so no model can reach an R1 above 75.0 %"
    )


def test_the_terminal_shows_the_table_or_the_reason(store):
    folder = evaluation(store, 1)
    metrics = read_json(folder / "metrics.json")
    console = Console(file=io.StringIO(), width=80)
    for part in text_to_image(metrics, folder, ""):
        console.print(part)
    printed = console.file.getvalue()
    assert max(map(len, printed.splitlines())) <= 80
    assert f"{100 * metrics['text_to_image']['results'][1]['mAP']:.1f}" in printed
    words = " ".join(printed.split())
    assert words.startswith("text to image, captions of the queries: 17 sentences about 17 images")
    assert "no model can reach an R1 above 75.0 %. The caption of every query is ranked." in words
    del metrics["text_to_image"]
    reason = not_measured(NoSentences(reason="nothing is said", lacks_captions=True), CAPTION_REMEDY)
    (text,) = text_to_image(metrics, folder, reason)
    assert str(text) == (
        "text to image was not measured: nothing is said; set evaluate.text_to_image=captions to caption them"
    )
    assert list(text_to_image(metrics, folder, "")) == []


def test_runs_are_compared_by_sentence(store):
    (difference,) = compared(store, evaluation(store, 1), evaluation(store, 2)).differences
    before, after = 1 / first_hits(1), 1 / first_hits(2)
    text = difference.text
    assert (text.source, text.n_sentences, text.n_identities) == ("captions of the queries", 16, PEOPLE)
    first = text.metrics[0]
    assert [metric.label for metric in text.metrics] == ["mAP", "R1", "R5", "R10"]
    assert first.points == pytest.approx(100 * (after - before).mean())
    assert first.tally == ((after > before).sum(), (after < before).sum(), (after == before).sum())
    ((low, high),) = mean_intervals((after - before)[:, None], np.repeat(np.arange(PEOPLE), 2))
    assert first.interval == pytest.approx((100 * low, 100 * high))


def compared(store: ArtifactStore, *folders: Path):
    return compare([find_run(folder, store) for folder in folders], store, different_galleries=True)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"words": "blue"}, "text to image is not compared: the sentences of the two runs differ"),
        ({"source": "dataset"}, "text to image is not compared: the sentences of the two runs differ"),
        ({"measured": False}, "text to image is not compared: only the baseline measured it"),
    ],
)
def test_other_sentences_are_not_compared(store, options, problem):
    found = compared(store, evaluation(store, 1), evaluation(store, 2, **options))
    assert found.differences[0].text.problem == problem
    assert to_json(found)["runs"][0]["text_to_image"] == {"problem": problem}


def test_a_method_without_captions_is_captioned_only_if_asked():
    def stages(name: str, *overrides: str, until: str = "report") -> tuple[str, ...]:
        return planned(build_recipe(name, list(overrides)), until)

    asked = "evaluate.text_to_image=captions"
    assert stages("demo_baseline") == ("train", "evaluate", "report")
    assert stages("demo_baseline", asked) == ("caption", "audit", "train", "evaluate", "report")
    assert stages("demo_baseline", asked, until="train") == ("train",)
    assert stages("demo", "evaluate.text_to_image=off") == stages("demo")


def test_the_reason_names_the_sentences(store):
    plain, spoken = {"model": "m"}, {"source": "captions", "content": "a" * 32, "version": 1}
    with_sentences = plain | {"sentences": spoken}
    assert changed(store, plain, with_sentences) == ["text to image is measured"]
    assert changed(store, with_sentences, plain) == ["text to image is no longer measured"]
    other = plain | {"sentences": spoken | {"content": "b" * 32}}
    assert changed(store, with_sentences, other) == ["sentences of text to image changed"]
    of_dataset = plain | {"sentences": spoken | {"source": "dataset"}}
    assert changed(store, with_sentences, of_dataset) == ["sentences of text to image changed: captions -> dataset"]
