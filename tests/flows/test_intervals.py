"""Intervals of scores and differences: an independent bootstrap, their pairs, and the colors that follow from them."""

from __future__ import annotations

import io
import random
import statistics
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scipy import stats

from data.columns.texts import Texts
from flows.cli.results import results_table
from flows.report.scores import interval_text, percent_interval_text, scores
from reid.evaluation.intervals import (
    MIN_QUERIES,
    RESAMPLES,
    QueryScores,
    each_interval,
    intervals,
    query_scores_of,
    read_query_scores,
    score_intervals,
    verdict,
)

KEYS = ("mAP", "mINP", "rank1", "rank5", "rank10")


def scored(values, paths=None) -> QueryScores:
    values = np.asarray(values, float)
    return QueryScores(paths=Texts(paths or map(str, range(len(values)))), values={"mAP": values})


def plain_bootstrap(differences: list[float], draws: int) -> tuple[float, float]:
    """The percentile bootstrap of textbooks, with another generator than the code under test."""
    generator = random.Random(99)
    n = len(differences)
    means = sorted(statistics.fmean(generator.choices(differences, k=n)) for _ in range(draws))
    return 100 * means[int(0.025 * draws)], 100 * means[int(0.975 * draws) - 1]


@pytest.mark.parametrize(("n", "shift"), [(8, 0.2), (40, 0.05), (160, -0.1), (400, 0.0)])
def test_an_interval_is_that_of_an_independent_bootstrap(n, shift):
    rng = np.random.default_rng(n)
    base, ours = rng.uniform(0, 0.7, n), rng.uniform(0, 0.7, n) + shift
    low, high = intervals(scored(ours), scored(base))["mAP"]
    expected = plain_bootstrap((ours - base).tolist(), 4000)
    tolerance = 0.06 * (expected[1] - expected[0])
    assert (low, high) == pytest.approx(expected, abs=tolerance)
    assert low < 100 * (ours - base).mean() < high


def test_the_interval_of_a_score_is_that_of_an_independent_bootstrap():
    values = np.random.default_rng(5).uniform(0.1, 0.9, 80)
    low, high = score_intervals(scored(values))["mAP"]
    assert (low, high) == pytest.approx(plain_bootstrap(values.tolist(), 4000), abs=0.6)
    assert low < 100 * values.mean() < high
    assert score_intervals(scored(values[: MIN_QUERIES - 1])) is None
    assert score_intervals(None) is None


def test_of_many_queries_it_is_the_interval_of_the_normal_distribution():
    difference = np.random.default_rng(1).normal(0.03, 0.2, 2000)
    low, high = intervals(scored(difference), scored(np.zeros(2000)))["mAP"]
    reach = 196 * difference.std(ddof=1) / np.sqrt(2000)
    assert (low, high) == pytest.approx((100 * difference.mean() - reach, 100 * difference.mean() + reach), abs=0.06)


def test_the_same_queries_are_drawn_for_both_sides():
    base = np.random.default_rng(2).uniform(0, 1, 50)  # queries differ widely, the gain does not
    low, high = intervals(scored(base + 0.01), scored(base))["mAP"]
    assert (low, high) == pytest.approx((1.0, 1.0))
    assert intervals(scored(base), scored(base))["mAP"] == (0.0, 0.0)
    assert intervals(scored(base * 0.9), scored(base)) == intervals(scored(base * 0.9), scored(base))


def test_without_pairs_there_is_no_interval():
    values = np.linspace(0, 1, 20)
    assert intervals(None, scored(values)) is None
    assert intervals(scored(values), None) is None
    assert intervals(scored(values), scored(values, [f"other{at}" for at in range(20)])) is None
    few = np.ones(MIN_QUERIES - 1)
    assert intervals(scored(few), scored(0 * few)) is None, "all of so few can improve by chance"
    enough = np.ones(MIN_QUERIES)
    assert intervals(scored(enough), scored(0 * enough))["mAP"] == (100.0, 100.0)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.1, 4), "up"),
        ((-4, -0.1), "down"),
        ((-1, 3), "even"),
        ((0.0, 3), "even"),
        ((-3, 0.0), "even"),
        (None, "even"),
    ],
)
def test_only_an_interval_on_one_side_of_zero_is_a_verdict(interval, expected):
    assert verdict(interval) == expected


def ranking(model: str, mode: str, number: int, ap: float, first_hit: int) -> dict:
    return {
        "model": model,
        "mode": mode,
        "query_path": f"{number:03}.jpg",
        "ap": ap,
        "inp": ap / 2,
        "first_hit": first_hit,
    }


def write(path, gains: dict[str, float], n: int = 60):
    """rankings.parquet of an untrained model and of one trained row per mode, `gains` above it; every row shuffled."""
    rng = np.random.default_rng(3)
    base = rng.uniform(0.2, 0.5, n)
    rows = [ranking("untrained", "image", at, base[at], 7) for at in range(n)]
    for mode, gain in gains.items():
        trained = base + gain + rng.normal(0, 0.1, n)
        rows += [ranking("trained", mode, at, trained[at], 1 if gain > 0 else 8) for at in range(n)]
    random.Random(0).shuffle(rows)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return rows


def metrics_of(rows: list[dict]) -> dict:
    results = []
    for model, mode in dict.fromkeys((row["model"], row["mode"]) for row in rows):
        own = [row for row in rows if (row["model"], row["mode"]) == (model, mode)]
        ranks = {f"rank{k}": statistics.fmean(row["first_hit"] <= k for row in own) for k in (1, 5, 10)}
        means = {name: statistics.fmean(row[key] for row in own) for name, key in (("mAP", "ap"), ("mINP", "inp"))}
        results.append({"model": model, "mode": mode, **means, **ranks})
    return {
        "protocol": {"dataset": "d", "version": "", "n_query": 60, "n_gallery": 9},
        "results": sorted(results, key=lambda row: row["model"] != "untrained"),
    }


def test_scores_carry_the_interval_of_each_metric(tmp_path):
    rows = write(tmp_path / "r.parquet", {"image": 0.2})
    metrics = metrics_of(rows)
    untrained, trained = scores(metrics, tmp_path / "r.parquet")
    assert untrained.intervals is None
    assert list(trained.intervals) == list(KEYS)
    pairs = {row["query_path"]: row["ap"] for row in rows if row["model"] == "untrained"}
    differences = [row["ap"] - pairs[row["query_path"]] for row in rows if row["model"] == "trained"]
    assert trained.intervals["mAP"] == pytest.approx(plain_bootstrap(differences, 4000), abs=0.5)
    for key in KEYS:
        low, high = trained.intervals[key]
        assert low <= trained.points[key] + 1e-9
        assert high >= trained.points[key] - 1e-9
    assert trained.intervals["rank1"] == (100.0, 100.0)
    assert trained.intervals["rank10"] == (0.0, 0.0)
    assert [trained.verdict(key) for key in KEYS] == ["up", "up", "up", "up", "even"]
    assert scores(metrics)[1].intervals is None


def test_fractions_at_a_rank_are_those_of_first_hits(tmp_path):
    write(tmp_path / "r.parquet", {"image": 0.2})
    found = read_query_scores(tmp_path / "r.parquet")["untrained", "image"]
    assert found.paths.tolist() == sorted(found.paths)
    assert [found.values[key].mean() for key in ("rank1", "rank5", "rank10")] == [0.0, 0.0, 1.0]


def test_drawn_galleries_have_none_as_the_rankings_are_of_one_gallery_only(tmp_path):
    rows = write(tmp_path / "r.parquet", {"image": 0.2})
    metrics = metrics_of(rows)
    assert len(query_scores_of(metrics, tmp_path / "r.parquet")) == 2
    metrics["protocol"]["gallery_draws"] = 10
    assert query_scores_of(metrics, tmp_path / "r.parquet") == {}
    assert query_scores_of(metrics_of(rows), tmp_path / "absent.parquet") == {}


@pytest.mark.parametrize(("gain", "style"), [(0.2, "green"), (-0.2, "red"), (0.002, "dim")])
def test_the_terminal_colors_what_the_interval_allows(tmp_path, gain, style):
    metrics = metrics_of(write(tmp_path / "r.parquet", {"image": gain}))
    table = results_table(metrics, tmp_path / "r.parquet")
    cell = list(table.columns[2].cells)[1]
    trained = scores(metrics, tmp_path / "r.parquet")[1]
    low, high = score_intervals(read_query_scores(tmp_path / "r.parquet")["trained", "image"])["mAP"]
    assert cell.plain.splitlines()[1] == f"{low:.1f}–{high:.1f}"
    assert cell.plain.splitlines()[3] == interval_text(trained.intervals["mAP"])
    assert [span.style for span in cell.spans] == ["dim not bold", style, style]


@pytest.mark.parametrize("width", [64, 80, 200])
def test_intervals_fit_a_terminal(tmp_path, width):
    metrics = metrics_of(write(tmp_path / "r.parquet", {"image": 0.3, "fused": -0.3}))
    console = Console(file=io.StringIO(), width=width)
    console.print(results_table(metrics, tmp_path / "r.parquet"))
    text = console.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    assert "95 % interval (paired percentile bootstrap" in words
    assert "colored only where it excludes zero" in words
    trained = scores(metrics, tmp_path / "r.parquet")[1]
    for end in interval_text(trained.intervals["mAP"]).split():
        assert end in words


def test_a_score_of_a_hundred_percent_fits_its_column_at_80_columns(tmp_path, monkeypatch):
    assert percent_interval_text((97.94, 100.0)) == "97.9–100"
    full = dict.fromkeys(KEYS, (100.0, 100.0))
    monkeypatch.setattr("flows.cli.results.scores", lambda *given: [replace(row, own=full) for row in scores(*given)])
    metrics = metrics_of(write(tmp_path / "r.parquet", {"image": 0.3, "fused": -0.3}))
    console = Console(file=io.StringIO(), width=80)
    console.print(results_table(metrics, tmp_path / "r.parquet"))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["100–100"] * 5 in lines
    assert [line for line in lines if line and set(line) == {"0"}] == []


def test_a_loss_is_below_the_untrained_model(tmp_path):
    metrics = metrics_of(write(tmp_path / "r.parquet", {"image": -0.3}))
    before, after = scores(metrics, tmp_path / "r.parquet")[:2]
    assert [before.side("mAP"), after.side("mAP")] == ["over", "below" if after.points["mAP"] < 0 else "over"]
    assert replace(after, points={"mAP": -8.2}).side("mAP") == "below"
    assert replace(after, points={"mAP": 0.0}).side("mAP") == "over"


def test_it_is_the_interval_of_scipy():
    """To the rounding of sums: figures that were published with the former code stay."""
    values = np.random.default_rng(7).uniform(0, 1, 300)
    options = {"n_resamples": RESAMPLES, "confidence_level": 0.95, "method": "percentile"}
    expected = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(0), **options).confidence_interval
    assert score_intervals(scored(values))["mAP"] == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)


def test_sets_that_are_resampled_together_have_the_intervals_of_each_alone():
    sets = [scored(np.random.default_rng(seed).uniform(0, 1, n)).values for seed, n in enumerate((40, 30, 40, 5))]
    together = each_interval([*sets, None])
    for values, found in zip(sets, together, strict=False):
        (alone,) = each_interval([values])
        assert (found is None) == (alone is None)
        assert found is None or found["mAP"] == pytest.approx(alone["mAP"], abs=1e-9)
    assert [found is None for found in together] == [False, False, False, True, True]
