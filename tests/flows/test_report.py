"""The report page: its contents, its safety as a single file, and its reproducible bytes."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from captioning.audit.agreement import IDENTITIES
from captioning.audit.stage import AuditConfig
from data.artifacts.fingerprint import digest_file
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.config import build_config
from data.errors import ConfigError, DataError
from data.files import write_json, write_table, write_text
from data.images.thumbnails import Thumbnails
from data.people import IdentityName
from data.schemas import CAPTIONS, IMAGES, LABEL, LABELED_IMAGES, RANKINGS, REJECTED
from data.slots import NONE, SLOTS, VOCABULARY
from data.stages.images import IndexedImages
from data.stages.stage import RunContext
from data.synthetic.world import WorldConfig, write_market1501
from flows.report.charts import Curve, line_chart, round_ticks, thin
from flows.report.curves import cmc_chart, training_charts
from flows.report.gather import draw_evenly, read_log, thirds
from flows.report.page import method_name
from flows.report.retrieval import query_section
from flows.report.scores import scores, signed
from flows.report.stage import ReportConfig, ReportInputs, ReportStage
from flows.terminal import duration
from reid.relevance.faithfulness import Estimate, Faithfulness
from reid.relevance.grid import PatchGrid
from reid.relevance.stage import PairRelevance, Relevance, RelevanceStage
from tests.helpers.page_text import HOSTILE, Page
from tests.helpers.stages import audit, describe_by_hand, make_artifact

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}


@dataclass
class World:
    """A finished run on a small synthetic dataset, with made-up stage outputs of the right form."""

    store: ArtifactStore
    root: Path
    index: ArtifactRef
    inputs: ReportInputs
    images: list[dict]
    captions: list[dict]
    rankings: list[dict]
    metrics: dict
    config: ReportConfig = field(default_factory=lambda: ReportConfig(relevance=False))  # there is no model

    @property
    def run(self) -> RunContext:
        return RunContext(store=self.store, indexed=IndexedImages(ref=self.index, root=self.root))

    def make(self, **changes):
        return self.stage(**changes).make(self.run)

    def stage(self, config=None, **changes):
        return ReportStage(inputs=replace(self.inputs, **changes), config=config or self.config)

    def page(self) -> str:
        return (self.make().ref.folder / "report.html").read_text(encoding="utf-8")


def build_world(folder: Path, images_root: Path, *, hostile: bool = False, epochs: int = 12) -> World:
    store = ArtifactStore(folder / "home")
    images = list_images(images_root)
    captions = make_captions(images, images_root, hostile=hostile)
    rankings, metrics = make_rankings(images)
    rejected = [
        {"path": "query/notes.txt", "reason": "bad_name", "detail": "no <pid>_c<cam> in the name"},
        {"path": f"query/{HOSTILE}.jpg" if hostile else "query/0003_c1.jpg", "reason": "truncated", "detail": None},
        {"path": "bounding_box_test/0009_c1s1.jpg", "reason": "truncated", "detail": "ends early"},
    ]
    captioned = artifact(
        store,
        "caption",
        lambda at: write_table(at / "captions.parquet", pa.Table.from_pylist(captions, CAPTIONS), CAPTIONS),
    )
    index = artifact(store, "index", lambda at: write_index(at, images, rejected))
    inputs = ReportInputs(
        captions=captioned,
        audit=audit(store, captions=captioned, images=index, images_root=images_root, config=AuditConfig()).ref,
        model=artifact(store, "train", lambda at: write_training(at, epochs)),
        evaluation=artifact(store, "evaluate", lambda at: write_evaluation(at, rankings, metrics)),
        recipe={
            "name": HOSTILE if hostile else "demo",
            "home": "/home/someone/artifacts",
            "data": {"name": "market1501", "root": "/home/someone/images"},
            "train": {"method": "clip_scgi", "epochs": epochs, "seed": 0},
        },
    )
    return World(store, images_root, index, inputs, images, captions, rankings, metrics)


def artifact(store: ArtifactStore, stage: str, produce) -> ArtifactRef:
    return make_artifact(store, stage, {"test": stage}, produce).ref


def list_images(root: Path) -> list[dict]:
    rows = []
    for path in sorted(root.glob("*/*.jpg")):
        pid, camid = re.match(r"(-?\d+)_c(\d)", path.name).groups()
        rows.append(
            {
                "path": path.relative_to(root).as_posix(),
                "split": FOLDERS[path.parent.name],
                "pid": int(pid),
                "camid": int(camid),
                "sha256": digest_file(path),
                "size": path.stat().st_size,
                "width": 64,
                "height": 128,
            }
        )
    return sorted(rows, key=lambda row: (row["split"], row["path"]))


def write_index(folder: Path, images: list[dict], rejected: list[dict]) -> None:
    write_table(folder / "images.parquet", pa.Table.from_pylist(images, IMAGES), IMAGES)
    write_table(folder / "rejected.parquet", pa.Table.from_pylist(rejected, REJECTED), REJECTED)
    splits = {split: [row for row in images if row["split"] == split] for split in ("train", "query", "gallery")}
    described = {
        split: {
            "images": len(rows),
            "identities": len({row["pid"] for row in rows}),
            "cameras": len({row["camid"] for row in rows}),
        }
        for split, rows in splits.items()
    }
    notices = ["3 files were rejected; rejected.parquet names them"]
    about = {"name": "synthetic", "version": "1", "dataset_hash": "5f" * 32, "counts": described}
    describe_by_hand(folder, **about, rejected=len(rejected), notices=notices)


def make_captions(images: list[dict], root: Path, *, hostile: bool) -> list[dict]:
    truth = {row["path"]: row for row in pq.read_table(root / "attributes.parquet").to_pylist()}
    generator = np.random.default_rng(0)
    rows = []
    for number, image in enumerate(images):
        slots = {slot: guess(truth[image["path"]][slot], slot, generator) for slot in SLOTS}
        caption = sentence(slots)
        row = {
            "image_path": image["path"],
            "image_sha256": image["sha256"],
            **{key: image[key] for key in ("split", "pid", "camid")},
            "caption": caption,
            "raw_text": f" {caption}" if number % 3 else caption.replace(". The", ".  the"),
            "status": "ok",
            "template_id": "scgi",
            "model_id": "tiny_llava",
            "model_revision": "a1b2c3",
            "captioner_fingerprint": "0123abcd" * 4,
            "n_tokens": 31,
            "truncated": False,
            "dtype": "float32",
            "quantization": "none",
            "batch_size": 32,
            **{f"attr_{slot}": value for slot, value in slots.items()},
        }
        if number % 4 == 0:
            row.update({f"conf_{slot}": float(-generator.exponential(0.1)) for slot in SLOTS})
        rows.append(row | broken(number, hostile))
    return rows


def broken(number: int, hostile: bool) -> dict:
    nothing = {f"attr_{slot}": None for slot in SLOTS}
    if number % 41 == 7:
        text = HOSTILE if hostile else "the the the the the the the the"
        return {"status": "unparsed", "caption": text, "raw_text": f"{text} again", **nothing}
    if number % 97 == 20:
        return {"status": "truncated", "truncated": True}
    if number % 131 == 33:
        error = HOSTILE if hostile else "file ends early"
        return {"status": "image_error", "caption": "", "raw_text": "", "error": error, **nothing}
    if hostile:
        return {"caption": HOSTILE, "raw_text": f"{HOSTILE} raw", "attr_carrying": HOSTILE}
    return {}


def guess(value: str | None, slot: str, generator: np.random.Generator) -> str | None:
    chance = generator.random()
    if chance < 0.08:
        return None
    return generator.choice(VOCABULARY[slot]).item() if chance < 0.2 or value is None else value


def sentence(slots: dict) -> str:
    noun = {"male": "man", "female": "woman", None: "person"}[slots["gender"]]
    age = f"{slots['age']} " if slots["age"] else ""
    worn = f"{slots['upper_color'] or ''} {slots['upper_type'] or 'shirt'} and {slots['lower_color'] or ''} pants"
    carried = "" if slots["carrying"] in (None, NONE) else f" The {noun} is carrying a {slots['carrying']}."
    hair = f" The {noun} has {slots['hair']} hair." if slots["hair"] else ""
    return f"A {age}{noun} is wearing a {worn}.{carried}{hair}".replace("  ", " ")


def write_training(folder: Path, epochs: int) -> None:
    generator = np.random.default_rng(1)
    lines, per_epoch = [], 20
    for epoch in range(1, epochs + 1):
        for step in range((epoch - 1) * per_epoch + 1, epoch * per_epoch + 1):
            terms = loss_terms(step + generator.normal(0, 4))
            rate = 3.5e-4 * min(1.0, step / 40) * (0.1 if step > 0.7 * epochs * per_epoch else 1.0)
            lines.append(
                {
                    "kind": "step",
                    "step": step,
                    "epoch": epoch,
                    "loss": sum(terms.values()),
                    "terms": terms,
                    "lr": {"backbone": rate / 10, "new": rate},
                }
            )
        terms = loss_terms((epoch - 0.5) * per_epoch)
        lines.append(
            {
                "kind": "epoch",
                "epoch": epoch,
                "step": epoch * per_epoch,
                "loss": sum(terms.values()),
                "terms": terms,
                "seconds": 8.4,
                "images_per_second": 310.0,
            }
        )
    write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    provenance = {"dataset": "synthetic", "python": "3.11.7", "libraries": {"torch": "2.15.0", "numpy": "2.3.1"}}
    config = {"config": {"method": "clip_scgi"}, "identities": list(range(8)), "provenance": provenance}
    write_json(folder / "config.json", config)


def loss_terms(step: float) -> dict[str, float]:
    return {
        "id": 3.4 * math.exp(-step / 90),
        "tri": 0.8 * math.exp(-step / 60),
        "con": 0.5 + 1.9 * math.exp(-step / 120),
    }


def make_rankings(images: list[dict]) -> tuple[list[dict], dict]:
    generator = np.random.default_rng(2)
    query = [row for row in images if row["split"] == "query"]
    gallery = [row for row in images if row["split"] == "gallery"]
    centers = {pid: generator.normal(size=16) for pid in sorted({row["pid"] for row in images})}
    rankings, results = [], []
    for model, mode, noise in (
        ("untrained", "image", 2.6),
        ("trained", "image", 0.85),
        ("trained", "fused", 0.7),
    ):
        both = query + gallery
        features = np.stack([centers[row["pid"]] + noise * generator.normal(size=16) for row in both])
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        similarity = features[: len(query)] @ features[len(query) :].T
        rows = [rank_one(query[at], gallery, similarity[at], model, mode) for at in range(len(query))]
        rankings += rows
        results.append(summarise(rows, model, mode))
    protocol = {
        "dataset": "synthetic",
        "dataset_hash": "5f" * 32,
        "n_query": len(query),
        "n_gallery": len(gallery),
        "n_junk": 3,
        "n_skipped_queries": 0,
        "description": "Single query, cosine similarity; images of the query's person from its own camera are junk.",
    }
    return rankings, {"protocol": protocol, "results": results}


def rank_one(query: dict, gallery: list[dict], similarity: np.ndarray, model: str, mode: str) -> dict:
    order = [
        at
        for at in np.argsort(-similarity, kind="stable")
        if gallery[at]["pid"] != -1 and (gallery[at]["pid"], gallery[at]["camid"]) != (query["pid"], query["camid"])
    ]
    hits = [rank for rank, at in enumerate(order, start=1) if gallery[at]["pid"] == query["pid"]]
    top = order[:50]
    return {
        "model": model,
        "mode": mode,
        "query_path": query["path"],
        "query_pid": query["pid"],
        "query_camid": query["camid"],
        "ap": sum(count / rank for count, rank in enumerate(hits, start=1)) / len(hits),
        "inp": len(hits) / hits[-1],
        "first_hit": hits[0],
        "n_relevant": len(hits),
        "top_paths": [gallery[at]["path"] for at in top],
        "top_pids": [gallery[at]["pid"] for at in top],
        "top_camids": [gallery[at]["camid"] for at in top],
        "top_scores": [float(similarity[at]) for at in top],
    }


def summarise(rows: list[dict], model: str, mode: str) -> dict:
    first = [row["first_hit"] for row in rows]
    cmc = [sum(rank <= k for rank in first) / len(first) for k in range(1, 51)]
    return {
        "model": model,
        "mode": mode,
        "mAP": sum(row["ap"] for row in rows) / len(rows),
        "mINP": sum(row["inp"] for row in rows) / len(rows),
        "rank1": cmc[0],
        "rank5": cmc[4],
        "rank10": cmc[9],
        "cmc": cmc,
        "n_valid_queries": len(rows),
        "n_skipped_queries": 0,
    }


def write_evaluation(folder: Path, rankings: list[dict], metrics: dict) -> None:
    write_json(folder / "metrics.json", metrics)
    write_table(folder / "rankings.parquet", pa.Table.from_pylist(rankings, RANKINGS), RANKINGS)


# The page ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images_root(module_folder) -> Path:
    root = module_folder("people")
    config = WorldConfig(
        seed=7,
        train_identities=8,
        test_identities=15,
        images_per_camera=2,
        cameras=3,
        distractors=6,
        junk=3,
    )
    write_market1501(root, config, workers=1)
    return root


@pytest.fixture(scope="module")
def world(images_root, module_folder) -> World:
    return build_world(module_folder("plain"), images_root)


@pytest.fixture(scope="module")
def hostile(images_root, module_folder) -> World:
    return build_world(module_folder("hostile"), images_root, hostile=True)


def test_the_page_is_one_file_that_loads_and_runs_nothing(world):
    html = world.page()
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert page.open == []
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    sources = [attrs["src"] for _, attrs in page.elements if "src" in attrs]
    assert len(sources) > 150
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert {attrs["href"] for _, attrs in page.elements if "href" in attrs} == {f"#{name}" for name in ids}
    assert not re.search(r"url\(|@import|https?://", html)


def test_a_page_of_the_demo_stays_under_three_megabytes(world):
    assert len(world.page()) < 3_000_000


def test_figures_are_those_of_the_metrics(world):
    words = Page(world.page()).words
    for row in world.metrics["results"]:
        for key in ("mAP", "mINP", "rank1", "rank5", "rank10"):
            assert f"{100 * row[key]:.1f}" in words
    before, after, _ = world.metrics["results"]
    assert re.search(rf"\+{100 * (after['mAP'] - before['mAP']):.1f} \[[^]]+\] points over untrained", words)
    assert "where fused is compared with image mode" in words


def test_query_rows_are_the_worst_the_median_and_the_best(world):
    page = Page(world.page())
    rows = [row for row in world.rankings if (row["model"], row["mode"]) == ("trained", "image")]
    shown = [float(text) for text in re.findall(r"AP (\d+\.\d) % untrained", page.words)][:12]
    aps = sorted(round(100 * row["ap"], 1) for row in rows)
    assert shown[0] == aps[0]
    assert shown[-1] == aps[-1]
    assert shown == sorted(shown)
    assert abs(sum(shown[4:8]) / 4 - aps[len(aps) // 2]) < 10


def evaluated(world: World, folder: Path, rankings: list[dict]) -> str:
    """The page of the same run with other rankings."""
    results = [
        summarise([row for row in rankings if (row["model"], row["mode"]) == which], *which)
        for which in dict.fromkeys((row["model"], row["mode"]) for row in rankings)
    ]
    metrics = {**world.metrics, "results": results}
    ref = artifact(ArtifactStore(folder), "evaluate", lambda at: write_evaluation(at, rankings, metrics))
    run = replace(world.run, store=ArtifactStore(folder))
    made = world.stage(evaluation=ref).make(run)
    return (made.ref.folder / "report.html").read_text()


def with_gain(rankings: list[dict], gains: list[float]) -> list[dict]:
    """Untrained rows, and trained rows whose AP is higher by each of `gains` in turn."""
    before = [row for row in rankings if row["model"] == "untrained"]
    after = [
        {**row, "model": "trained", "ap": row["ap"] + gains[at % len(gains)], "inp": row["inp"]}
        for at, row in enumerate(before)
    ]
    return before + after


@pytest.mark.parametrize(
    ("gains", "color"), [([0.1, 0.2], "up"), ([-0.1, -0.2], "down"), ([-0.2, 0.21], "even"), ([0.0], "even")]
)
def test_a_gain_is_colored_only_where_its_interval_excludes_zero(world, tmp_path, gains, color):
    rows = with_gain(world.rankings, gains)
    html = evaluated(world, tmp_path, rows)
    page = Page(html)
    # mAP in the table and its tile; the four other metrics did not change.
    assert len(page.classed(color)) == {"up": 2, "down": 2, "even": 8}[color]
    assert len(page.classed("even")) == (8 if color == "even" else 6)
    assert "A gain is colored only where its interval excludes zero" in page.words
    assert "paired percentile bootstrap over queries, 2,000 resamples" in page.words
    mean = 100 * sum(gains[at % len(gains)] for at in range(len(rows) // 2)) / (len(rows) // 2)
    assert f"{signed(mean)}</span>" in html.replace(' <span class="interval">', "</span>")


def test_with_few_queries_no_difference_is_colored(world, tmp_path):
    few = {row["query_path"] for row in world.rankings if row["model"] == "untrained"}
    few = set(sorted(few)[:5])
    rows = [row for row in with_gain(world.rankings, [0.3]) if row["query_path"] in few]
    page = Page(evaluated(world, tmp_path, rows))
    assert page.classed("up") == []
    assert "Differences are not colored, because intervals need at least 6 queries" in page.words


def test_failures_are_counted_and_those_that_training_made_worse_are_shown(world, tmp_path):
    before = [row for row in world.rankings if row["model"] == "untrained"]
    worse = {row["query_path"]: at for at, row in enumerate(before[5:12])}
    after = [
        {**row, "model": "trained", "ap": 0.9 - 0.01 * worse[row["query_path"]], "first_hit": 1}
        if row["query_path"] in worse
        else {**row, "model": "trained"}
        for row in before
    ]
    before = [{**row, "ap": 1.0} if row["query_path"] in worse else row for row in before]
    page = Page(evaluated(world, tmp_path, before + after))
    missed = sum(row["first_hit"] > 1 for row in after)
    assert f"{missed} of {len(after)} queries have a wrong first image ; 7 have a lower AP" in page.words
    at = page.words.index("Lost most against the untrained model")
    shown = re.findall(r"AP (\d+\.\d) % untrained (\d+\.\d) %", page.words[at:])
    assert shown == sorted(shown)
    assert all(before == "100.0" for _, before in shown)


def test_each_group_counts_its_failures(world):
    rows = [row for row in world.rankings if (row["model"], row["mode"]) == ("trained", "image")]
    page = Page(world.page())
    found = re.findall(r"(\d) quer(?:y|ies), AP (\d+\.\d) to (\d+\.\d) %, (\d) with a wrong first image", page.words)
    assert len(found) in (3, 4)
    lowest = sorted(rows, key=lambda row: row["ap"])[0]
    assert found[0][1] == f"{100 * lowest['ap']:.1f}"
    assert int(found[0][3]) >= (lowest["first_hit"] > 1)
    assert all(float(low) <= float(high) for _, low, high, _ in found)


def test_a_match_beyond_the_row_stands_in_its_last_place(world, tmp_path):
    rows = [dict(row) for row in world.rankings if (row["model"], row["mode"]) == ("trained", "image")]
    moved = rows[0]
    others = [at for at, pid in enumerate(moved["top_pids"]) if pid != moved["query_pid"]]
    match = moved["top_pids"].index(moved["query_pid"])
    order = [*others[:22], match, *others[22:]]
    for name in ("paths", "pids", "camids", "scores"):
        moved[f"top_{name}"] = [moved[f"top_{name}"][at] for at in order]
    moved |= {"ap": 0.001, "inp": 0.001, "first_hit": 23, "n_relevant": 1}
    page = Page(evaluated(world, tmp_path, rows))
    (far,) = page.classed("far")
    assert far["class"] == "right far"
    images = [attrs for tag, attrs in page.elements if tag == "img" and attrs["alt"].startswith("rank 23,")]
    assert [attrs["title"] for attrs in images] == [moved["top_paths"][22]]
    assert "first match at rank 23" in page.words


def test_right_and_wrong_are_marked_by_color_and_symbol(world):
    page = Page(world.page())
    titles = [attrs["title"] for tag, attrs in page.elements if tag == "img" and attrs["alt"].startswith("query, ")]
    chosen = [
        row
        for row in world.rankings
        if (row["model"], row["mode"]) == ("trained", "image") and row["query_path"] in titles
    ]
    right = sum(max(1, sum(pid == row["query_pid"] for pid in row["top_pids"][:10])) for row in chosen)
    cells = 10 * len(chosen)
    assert 12 <= len(chosen) <= 16
    # The legend above the rows shows one of each.
    assert len(page.classed("right")) == right + 1
    assert len(page.classed("wrong")) == cells - right + 1
    assert page.words.count("✓") == right + 1
    assert page.words.count("✗") == cells - right + 1


def test_captions_are_shown_bad_ones_first_with_counts(world):
    page = Page(world.page())
    statuses = Counter(row["status"] for row in world.captions)
    assert len(page.classed("card")) == 24 + min(6, len(world.captions) - statuses["ok"])
    for status, count in statuses.items():
        assert f"{count} {status.replace('_', ' ')}:" in page.words
    assert page.words.index("Failed ") < page.words.index("Parsed")
    shown = [row for row in world.captions if row["status"] == "ok" and row["caption"] in page.words]
    assert len({row["pid"] for row in shown}) >= len({row["pid"] for row in world.captions} - {-1, 0}) - 2


def test_the_audit_is_shown_without_distractors(world):
    page = Page(world.page())
    figures_of = json.loads((world.inputs.audit.folder / "audit.json").read_text())["slots"]
    for figures in figures_of.values():
        assert f"{100 * figures['agreement']:.1f} %" in page.words
    assert len(page.classed("person")) == 6
    people = [int(pid) for pid in re.findall(r"Identity (-?\d+)", page.words)]
    assert min(people) > 0  # neither junk (-1) nor the distractors that share identity 0


def test_skipped_files_are_listed(world):
    words = Page(world.page()).words
    assert "truncated 2 bad name 1" in words
    assert "no <pid>_c<cam> in the name" in words
    assert "3 files were rejected; rejected.parquet names them" in words


def test_provenance_names_every_artifact_and_no_place_on_this_machine(world):
    html = world.page()
    for ref in world.inputs.artifacts(world.run.images).values():
        assert ref.fingerprint in html
        assert ref.content in html
    assert "/home/someone" not in html
    assert str(world.store.root) not in html
    assert str(world.root) not in html
    assert "2.15.0" in html


def test_hostile_text_stays_text(hostile, world):
    page = Page(hostile.page())
    assert page.open == []
    tags = {tag for tag, _ in page.elements}
    assert tags == {tag for tag, _ in Page(world.page()).elements}
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert HOSTILE in page.words  # shown as it is
    assert "49" not in re.findall(r"</svg>(\d+)", page.words)  # no template inside a template
    assert HOSTILE in " ".join(value or "" for _, attrs in page.elements for value in attrs.values())


def hostile_chart():
    return line_chart(
        [Curve(label=HOSTILE, points=[(0, 1), (1, 2)], color="#000", value="$x$")],
        title=HOSTILE,
        x_label=HOSTILE,
        y_format=lambda value: f"<b>{value} $x$",
    )


def test_chart_text_is_escaped_and_never_a_formula():
    chart = hostile_chart()
    for svg in (str(chart.wide), str(chart.narrow), chart.as_file()):
        page = Page(svg)
        assert {tag for tag, _ in page.elements} <= {"svg", "g", "defs", "path", "rect", "use", "text"}
        assert "<b>1.0 $x$" in page.words
        assert HOSTILE in page.text
        assert page.elements[0][1]["aria-label"] == f"{HOSTILE}, {HOSTILE} $x$"
        assert page.elements[0][1]["role"] == "img"
    ElementTree.fromstring(chart.as_file())


LABELS = (HOSTILE, "👩‍👧 אנה", "anna\nlee", "ü" * 200)


def label_of(pid: int) -> str:
    return "" if pid < 1 else f"{LABELS[pid % 4]}"


def test_text_labels_are_shown_escaped_and_cut(world, tmp_path):
    def produce(folder: Path) -> None:
        write_index(folder, world.images, [])
        table = pa.Table.from_pylist(world.images, IMAGES)
        labels = pa.array([label_of(row["pid"]) for row in world.images])
        write_table(folder / "images.parquet", table.append_column(LABEL, labels), LABELED_IMAGES)

    store = ArtifactStore(tmp_path)
    labeled = replace(world, store=store, index=artifact(store, "index", produce))
    html, plain = labeled.page(), Page(world.page())
    page = Page(html)
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in plain.elements} | {"bdi"}
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    shown = {int(pid) for pid in re.findall(r"\(pid\s(\d+)\)", page.words)}
    assert {pid % 4 for pid in shown} == {0, 1, 2, 3}
    names = {pid: IdentityName(pid, label_of(pid)) for pid in shown}
    for pid, name in names.items():
        assert f"identity {name.__html__()} · c" in html or f"<div>{name.__html__()} · c" in html, pid
    alts = " ".join(attrs.get("alt") or "" for _, attrs in page.elements)
    assert "anna lee (pid " in alts
    assert "<bdi" not in alts
    assert {attrs["title"] for tag, attrs in page.elements if tag == "bdi" and "title" in attrs} == {
        " ".join(HOSTILE.split()),
        "ü" * 200,
    }


# Bytes, caching, places -------------------------------------------------------------------------------


def test_the_same_inputs_give_the_same_bytes(world, images_root, tmp_path):
    first = world.make()
    assert world.make().cached
    again = build_world(tmp_path, images_root).make()
    assert not again.cached
    assert again.ref.content == first.ref.content


def test_the_fingerprint_follows_what_is_shown_and_not_where_it_lies(world):
    def key(**changes):
        return world.stage(**changes).ingredients(world.run)

    recipe = dict(world.inputs.recipe)
    assert key() == key(recipe={**recipe, "home": "/elsewhere", "data": {"name": "market1501", "root": "/b"}})
    assert key() != key(recipe={**recipe, "train": {"method": "clip_scgi", "epochs": 13, "seed": 0}})
    assert key() != key(model=replace(world.inputs.model, content="0" * 32))
    changed = world.stage(config=ReportConfig(seed=1, relevance=False)).ingredients(world.run)
    assert changed != key()


def test_a_picture_that_is_gone_or_changed_leaves_a_placeholder(images_root, tmp_path):
    root = tmp_path / "people"
    shutil.copytree(images_root, root)
    world = build_world(tmp_path, root)
    gallery = sorted((root / "bounding_box_test").glob("*.jpg"))
    for path in gallery[: len(gallery) // 2]:
        path.unlink()
    for path in sorted((root / "query").glob("*.jpg")):
        path.write_bytes(b"something else")
    made = world.make()
    page = Page((made.ref.folder / "report.html").read_text())
    missing = page.classed("missing")
    assert {attrs["aria-label"].split(": ")[1] for attrs in missing} == {"missing", "changed"}
    assert sum(attrs["aria-label"].startswith("query, ") for attrs in missing) == len(page.classed("query"))
    assert re.search(r"images that this page could not show [1-9]", page.words)
    assert not world.make().cached  # the pictures may be back next time


def test_relevance_that_needs_a_lost_image_is_left_out_with_the_reason(world, tmp_path, monkeypatch):
    def lost(*_):
        raise DataError("1 of 9 indexed images have changed: <a.jpg>")

    monkeypatch.setattr(RelevanceStage, "make", lost)
    world = replace(world, store=ArtifactStore(tmp_path), config=ReportConfig())
    made = world.make()
    page = Page((made.ref.folder / "report.html").read_text())
    assert "Relevance is not shown : 1 of 9 indexed images have changed: <a.jpg>" in page.words
    assert page.classed("query")
    assert not world.make().cached  # the image may be back next time


def test_a_path_that_leaves_the_root_is_not_read(world, tmp_path):
    (tmp_path / "root").mkdir()
    secret = tmp_path / "secret.jpg"
    shutil.copy(next((world.root / "query").glob("*.jpg")), secret)
    from data.images.thumbnails import Thumbnails

    thumbnail = Thumbnails(tmp_path / "root", {"../secret.jpg": digest_file(secret)}, 64)
    assert thumbnail("../secret.jpg").source is None
    assert thumbnail.problems == {"../secret.jpg": "outside_root"}


def test_the_cached_stage_imports_nothing_heavy():
    heavy = ("torch", "transformers", "open_clip", "prefect", "pandas", "matplotlib", "jinja2")
    code = f"import sys, flows.report.stage; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Sparse runs ------------------------------------------------------------------------------------------


def test_a_run_with_nothing_in_it_still_gives_a_page(world, tmp_path):
    store = ArtifactStore(tmp_path)
    row = {**world.metrics["results"][1], "mAP": 0.5}
    bare = {
        "caption": lambda at: write_table(at / "captions.parquet", CAPTIONS.empty_table(), CAPTIONS),
        "train": lambda at: write_json(at / "config.json", {}),
        "evaluate": lambda at: write_evaluation(at, [], {**world.metrics, "results": [row]}),
        "audit": write_audit_of_nothing,
    }
    refs = {stage: artifact(store, stage, produce) for stage, produce in bare.items()}
    inputs = replace(
        world.inputs,
        captions=refs["caption"],
        model=refs["train"],
        evaluation=refs["evaluate"],
        audit=refs["audit"],
        recipe={},
    )
    made = ReportStage(inputs=inputs, config=ReportConfig(relevance=False)).make(replace(world.run, store=store))
    words = Page((made.ref.folder / "report.html").read_text()).words
    assert "No training step was logged." in words
    assert "No query has a match in the gallery." in words
    assert "method not recorded" in words
    assert "over untrained" not in words


def write_audit_of_nothing(folder: Path) -> None:
    slots = {slot: {"coverage": 0.0, "agreement": None, "entropy": None, "values": {}} for slot in SLOTS}
    write_json(folder / "audit.json", {"images": 0, "by_status": {}, "slots": slots, "identities": 0, "flags": {}})
    pq.write_table(IDENTITIES.empty_table(), folder / "identities.parquet")
    flags = {"image_path": pa.array([], pa.string()), "flags": pa.array([], pa.list_(pa.string()))}
    pq.write_table(pa.table(flags), folder / "flags.parquet")


def test_the_other_mode_leads_where_the_wanted_one_is_missing(world, tmp_path):
    results = [row for row in world.metrics["results"] if row["mode"] == "image"]
    ref = artifact(
        ArtifactStore(tmp_path),
        "evaluate",
        lambda at: write_evaluation(at, world.rankings, {**world.metrics, "results": results}),
    )
    inputs = replace(world.inputs, evaluation=ref)
    made = ReportStage(inputs=inputs, config=ReportConfig(mode="fused", relevance=False)).make(world.run)
    words = Page((made.ref.folder / "report.html").read_text()).words
    assert "trained model, image mode" in words


def test_a_damaged_training_log_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "step", "step": 1}\n{"kind": "st')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2"):
        read_log(path)


def test_all_problems_of_the_config_come_at_once():
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*mode.*top_k"):
        build_config(ReportConfig, {"mode": "both", "top_k": 0}, "report")


# Parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.5, 1, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        (0, 6.3, [0, 2, 4, 6, 8]),
        (0, 3.5e-4, [0, 1e-4, 2e-4, 3e-4, 4e-4]),
    ],
)
def test_ticks_are_round_and_enclose_the_data(low, high, expected):
    assert round_ticks(low, high, most=5) == pytest.approx(expected)


def test_a_curve_without_extent_has_ticks():
    chart = line_chart([Curve(label="a", points=[(1, 0.0)], color="#000")], title="t", x_label="x", y_format=str)
    assert x_labels(str(chart.wide)) == ["1"]
    assert len(Page(str(chart.wide)).text) > 2


def x_labels(svg: str) -> list[str]:
    """Return the labels of the ticks below the x axis."""
    texts = [
        (text.get("y"), text.text) for text in ElementTree.fromstring(svg).iter("text") if "middle" in text.get("style")
    ]
    *labels, _ = texts  # the name of the axis comes last
    assert len({y for y, _ in labels}) == 1
    return [label for _, label in labels]


@pytest.mark.parametrize(
    ("low", "high", "wide", "narrow"),
    [
        (1, 3, "1 2 3", "1 2 3"),
        (1, 20, "5 10 15 20", "5 10 15 20"),
        (10, 576, "100 200 300 400 500", "200 400"),
        (10.5, 10.5, "10 11", "10 11"),
        (0.5, 2.5, "1 2", "1 2"),
        (5, 60_000, "10,000 20,000 30,000 40,000 50,000 60,000", "20,000 40,000 60,000"),
    ],
)
def test_what_is_counted_has_whole_ticks_within_the_data(low, high, wide, narrow):
    curve = Curve(label="a", points=[(low, 1), (high, 2)], color="#000")
    chart = line_chart([curve], title="t", x_label="x", y_format=str)
    assert (" ".join(x_labels(str(chart.wide))), " ".join(x_labels(str(chart.narrow)))) == (wide, narrow)


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 60])
def test_epochs_and_ranks_have_no_halves(epochs):
    evals = [{"epoch": epoch, "mAP": 0.5, "rank1": 0.6} for epoch in range(1, epochs + 1)]
    charts = [*training_charts({"step": [], "epoch": [], "eval": evals})]
    row = {"model": "trained", "mode": "image", "rank1": 0.5, "cmc": [0.5 + 0.01 * rank for rank in range(epochs)]}
    charts.append(cmc_chart([row], 20))
    assert len(charts) == 2
    for chart in charts:
        for svg in (str(chart.wide), str(chart.narrow)):
            labels = x_labels(svg)
            assert labels
            assert all(label.isdigit() and 1 <= int(label) <= epochs for label in labels)
            assert len(set(labels)) == len(labels)


def test_a_phone_gets_a_drawing_whose_text_can_be_read(world):
    html = world.page()
    # 390 px less the margins of page and section (2 x 12 + 2 x 14 + 2) leave 336 for a view box of 330 units.
    drawings = re.findall(r'<div class="narrow">(<svg .*?</svg>)', html)
    narrow = [ElementTree.fromstring(svg).get("viewBox").split()[2:] for svg in drawings]
    assert len(narrow) == len(re.findall(r'<div class="wide"><svg', html)) >= 4
    assert {int(width) for width, _ in narrow} == {330}
    sizes = {float(size) for svg in drawings for size in re.findall(r"font-size: ([\d.]+)px", svg)}
    assert sizes
    assert min(sizes) * 336 / 330 >= 11


def test_everything_is_open_in_print_and_wide_tables_scroll_by_keyboard(world):
    page = Page(world.page())
    assert "details" not in {tag for tag, _ in page.elements}, "what is closed is missing on paper"
    regions = [attrs for _, attrs in page.elements if attrs.get("role") == "region"]
    assert len(regions) >= 5
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in regions)
    assert '"epochs": 12' in page.words


def test_the_title_names_dataset_and_recipe(hostile, world):
    assert Page(world.page()).words.startswith("synthetic, recipe demo (clip_scgi): mAP ")
    assert f"synthetic, recipe {' '.join(HOSTILE.split())} (clip_scgi)" in Page(hostile.page()).words


def test_long_curves_are_averaged_and_non_finite_points_dropped():
    points = [(float(step), float(step % 2)) for step in range(1000)]
    assert thin(points, 500) == [(2 * at + 0.5, 0.5) for at in range(500)]
    assert thin([(0.0, math.nan), (1.0, 2.0), (2.0, math.inf)]) == [(1.0, 2.0)]


def test_a_chart_without_points_is_none():
    assert line_chart([Curve(label="a", points=[], color="#000")], title="t", x_label="x", y_format=str) is None


def test_a_chart_has_the_same_bytes_whatever_was_set_or_drawn_before(monkeypatch):
    import matplotlib as mpl

    before = hostile_chart()
    expected = (before.wide, before.narrow, before.as_file())
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "lines.linewidth": 9}):
        again = hostile_chart()
        assert (again.wide, again.narrow, again.as_file()) == expected
        assert mpl.rcParams["font.size"] == 30, "the settings of others stay"


def test_threads_draw_the_same_bytes():
    chart = hostile_chart()
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: chart.as_file(), range(16)))) == 1


def test_another_process_draws_the_same_bytes(tmp_path):
    code = (
        "import sys; from flows.report.charts import Curve, line_chart; "
        "chart = line_chart([Curve(label='a', points=[(0, 1), (1, 2)], color='#000')], title='t', x_label='x', "
        "y_format=str); assert 'matplotlib' not in sys.modules; print(chart.wide, chart.as_file()); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    outputs = set()
    for seed, home in (("1", "a"), ("2", "b")):
        (tmp_path / home).mkdir()
        places = {"HOME": str(tmp_path / home), "MPLCONFIGDIR": "", "PYTHONHASHSEED": seed, "MPLBACKEND": "agg"}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **places}
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert "http://www.w3.org/2000/svg" in outputs.pop()


def test_draw_evenly_takes_every_group_once_before_any_twice():
    keys = [index % 7 for index in range(70)]
    chosen = draw_evenly(keys, 10, seed=0, name="x")
    assert sorted(keys[at] for at in chosen[:7]) == list(range(7))
    assert len(set(chosen)) == 10
    assert chosen == draw_evenly(keys, 10, seed=0, name="x")
    assert chosen != draw_evenly(keys, 10, seed=1, name="x")
    assert draw_evenly([], 10, seed=0, name="x") == []


def test_thirds_prefers_new_people_and_never_repeats_a_row():
    aps, pids = np.arange(20) / 20, np.arange(20) // 2
    low, middle, high = thirds(aps, pids, 3, seed=0)
    assert low == [0, 2, 4]
    assert high == [15, 17, 19]
    assert pids[middle].tolist() == [4, 5, 6]
    few = thirds(aps[:4], pids[:4], 2, seed=0)
    assert sorted(at for part in few for at in part) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("n", "sizes"), [(0, (0, 0, 0)), (1, (0, 1, 0)), (3, (1, 1, 1)), (5, (1, 3, 1)), (12, (4, 4, 4))]
)
def test_with_few_queries_a_high_one_is_not_among_the_lowest(n, sizes):
    parts = thirds(np.arange(n) / 20, np.arange(n), 4, seed=0)
    assert tuple(map(len, parts)) == sizes
    assert [at for part in parts for at in part] == list(range(n))


def test_scores_are_compared_with_the_untrained_model_by_hand():
    def row(model, mode, figure):
        keys = ("mAP", "mINP", "rank1", "rank5", "rank10")
        return {"model": model, "mode": mode} | dict.fromkeys(keys, figure)

    first, second, third = scores(
        {"results": [row("untrained", "image", 0.25), row("trained", "image", 0.5), row("trained", "fused", 0.125)]}
    )
    assert (first.percent["mAP"], first.points) == (25.0, None)
    assert second.points["rank1"] == 25.0
    assert (third.points["mAP"], third.against) == (-12.5, "image")
    assert [signed(value) for value in (25.0, -12.5, 0.04, -0.04)] == ["+25.0", "−12.5", "±0.0", "±0.0"]


def test_spans_of_time():
    assert [duration(span) for span in (0.26, 59.94, 59.96, 245, 7980)] == [
        "0.3 s",
        "59.9 s",
        "1 min 00 s",
        "4 min 05 s",
        "2 h 13 min",
    ]


def explained(pairs, sample, calls):
    """Return made-up relevance: all of it in the top left patch of the query and the bottom right one of the image."""
    calls.append((pairs, sample))
    top, bottom = np.zeros((8, 4)), np.zeros((8, 4))
    top[0, 0] = bottom[7, 3] = 1.0
    grid = PatchGrid(rows=8, columns=4, patch=16, stride=16, height=128, width=64)
    estimate = Estimate(0.5, 0.25, 0.75)
    found = Faithfulness(0.25, len(sample), 5, *9 * [estimate])
    return Relevance(grid, {pair: PairRelevance(0.9, top, bottom) for pair in pairs}, found)


def test_each_shown_query_and_its_first_image_have_a_map(world):
    thumbnail = Thumbnails(world.root, IndexedImages(ref=world.index, root=world.root).digests(), 128)
    calls = []
    section_of = partial(
        query_section,
        world.inputs.evaluation.folder / "rankings.parquet",
        thumbnail,
        model="trained",
        mode="image",
        each=2,
        top_k=3,
        seed=0,
    )
    section = section_of(explain=lambda pairs, sample: explained(pairs, sample, calls))
    rows = [row for group in section["groups"] for row in group.queries]
    ((pairs, sample),) = calls
    assert pairs == [(row.path, row.hits[0].path) for row in rows]
    own = [row for row in world.rankings if (row["model"], row["mode"]) == ("trained", "image")]
    assert len(set(sample)) == len(sample) == min(len(own), 64)
    assert set(sample) <= {(row["query_path"], row["top_paths"][0]) for row in own}
    assert section["faithfulness"].queries == len(sample)
    for row in rows:
        for drawn, (y, x) in ((row.maps.query, (4, 4)), (row.maps.first, (123, 59))):
            pixels = np.asarray(Image.open(BytesIO(b64decode(drawn.source.partition(",")[2])))).astype(int)
            assert pixels.shape == (128, 64, 3)
            assert np.ptp(pixels[y, x]) > 80, "in color where the relevance is"
            assert np.ptp(pixels[64, 32]) < 12, "gray elsewhere"
    assert section_of()["groups"][0].queries[0].maps is None


def test_the_method_is_found_where_it_is_stated():
    assert method_name({"train": {"method": "clip_reid"}}, {}) == "clip_reid"
    assert method_name({}, {"config": {"method": "clip_scgi"}}) == "clip_scgi"
    assert method_name({"method": 3}, {}) == "method not recorded"
