"""Comparison of evaluations: paired differences against brute force, their intervals, and runs that do not fit."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from scipy import stats

from data.artifacts.store import ArtifactStore
from data.errors import ConfigError, DataError
from flows.comparison.compare import Comparison, compare
from flows.comparison.images import find_test_images
from flows.comparison.runs import RowName, find_run
from reid.evaluation.bootstrap import MIN_UNITS, mean_intervals
from tests.helpers.evaluations import image_rows, rank, write_evaluation

KEYS = ("mAP", "mINP", "rank1", "rank5", "rank10")


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home")


def compared(store, *refs, **options) -> Comparison:
    return compare([find_run(ref.folder, store) for ref in refs], store, **options)


def score(row: dict, key: str) -> float:
    if key.startswith("rank"):
        return float(row["first_hit"] <= int(key.removeprefix("rank")))
    return row[{"mAP": "ap", "mINP": "inp"}[key]]


# Differences ------------------------------------------------------------------------------------------


def test_differences_are_those_of_brute_force(store):
    images = image_rows()
    before, after = rank(images, noise=1.2, seed=1), rank(images, noise=0.9, seed=2)
    shuffled = [after[at] for at in np.random.default_rng(0).permutation(len(after))]
    found = compared(store, write_evaluation(store, images, before), write_evaluation(store, images, shuffled))
    (difference,) = found.differences
    theirs = {row["query_path"]: row for row in after}
    assert [metric.key for metric in difference.metrics] == list(KEYS)
    for metric in difference.metrics:
        gains = [score(theirs[row["query_path"]], metric.key) - score(row, metric.key) for row in before]
        assert metric.points == pytest.approx(100 * statistics.fmean(gains))
        assert metric.baseline == pytest.approx(100 * statistics.fmean(score(row, metric.key) for row in before))
        assert metric.run == pytest.approx(metric.baseline + metric.points)
        assert metric.tally == (sum(g > 0 for g in gains), sum(g < 0 for g in gains), sum(g == 0 for g in gains))
        low, high = metric.interval
        assert low - 1e-9 <= metric.points <= high + 1e-9
    assert difference.n_identities == 8
    assert difference.only_baseline == difference.only_run == difference.notices == ()
    assert difference.matched_by == "path"
    aps = {row["query_path"]: row["ap"] for row in before}
    gains = [pair.gain for pair in difference.queries]
    assert gains == sorted(gains, reverse=True)
    for pair in difference.queries:
        assert (pair.baseline_ap, pair.ap) == (aps[pair.path], theirs[pair.path]["ap"])
        assert pair.first_hit == theirs[pair.path]["first_hit"]
    assert list(difference.most_lost(3)) == [pair for pair in difference.queries[:-4:-1] if pair.gain < 0]
    assert all(pair.gain > 0 for pair in difference.most_won(100))


def test_the_same_run_twice_differs_in_nothing_and_says_so(store):
    images = image_rows()
    ref = write_evaluation(store, images, rank(images, noise=1, seed=1))
    (difference,) = compared(store, ref, ref).differences
    assert {metric.points for metric in difference.metrics} == {0.0}
    assert {metric.interval for metric in difference.metrics} == {(0.0, 0.0)}
    assert difference.metrics[0].tally == (0, 0, 16)
    assert difference.metrics[0].verdict == "even"
    assert difference.most_won(5) == difference.most_lost(5) == ()
    assert difference.notices == ("the run is the baseline itself",)


def test_each_of_three_runs_is_compared_with_the_first(store):
    images = image_rows()
    refs = [write_evaluation(store, images, rank(images, noise=noise, seed=3)) for noise in (1.5, 1.0, 0.5)]
    found = compared(store, *refs)
    assert [ranked.run.folder for ranked in found.rows] == [ref.folder for ref in refs]
    for difference, ref in zip(found.differences, refs[1:], strict=True):
        assert difference == compared(store, refs[0], ref).differences[0]


# Intervals --------------------------------------------------------------------------------------------


def grouped(units: int, seed: int = 0, correlation: float = 0.5, effect: float = 0.02):
    """Differences of queries whose units have one to six queries each, correlated within a unit."""
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(units), rng.integers(1, 7, units))
    shared, own = rng.normal(size=units)[unit], rng.normal(size=len(unit))
    values = effect + 0.2 * (np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own)
    return values[:, None], unit


def tail(units: int) -> float:
    return stats.norm.cdf(-np.sqrt(units / (units - 1)) * stats.t.ppf(0.975, units - 1))


@pytest.mark.parametrize("units", [7, 20, 150])
def test_an_interval_is_that_of_scipy(units):
    values, unit = grouped(units)
    sums, counts = np.bincount(unit, values[:, 0]), np.bincount(unit)
    expected = stats.bootstrap(
        (sums, counts),
        lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        n_resamples=20_000,
        confidence_level=1 - 2 * tail(units),
        method="percentile",
        rng=np.random.default_rng(7),
    ).confidence_interval
    ((low, high),) = mean_intervals(values, unit)
    assert (low, high) == pytest.approx(tuple(expected), abs=0.04 * (expected.high - expected.low))


def test_units_that_are_queries_give_the_bootstrap_over_queries():
    values = grouped(30)[0]
    expected = stats.bootstrap(
        (values[:, 0],), np.mean, n_resamples=20_000, confidence_level=1 - 2 * tail(len(values)), method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    found = mean_intervals(np.hstack([values, 2 * values]), np.arange(len(values)))
    assert found[0] == pytest.approx(tuple(expected), abs=0.04 * (expected.high - expected.low))
    assert found[1] == pytest.approx(tuple(2 * end for end in found[0]))
    assert mean_intervals(values, np.arange(len(values)) + 17) == found[:1], "names of units do not matter"


def test_only_units_keep_the_promised_coverage():
    """Of 95 % intervals about 95 % contain the truth if identities are drawn, and far fewer if queries are."""
    inside = {"identities": 0, "queries": 0}
    for seed in range(150):
        values, unit = grouped(15, seed=seed)
        for name, units in (("identities", unit), ("queries", np.arange(len(unit)))):
            ((low, high),) = mean_intervals(values, units)
            inside[name] += low <= 0.02 <= high
    assert inside["identities"] >= 0.89 * 150
    assert inside["queries"] <= 0.85 * 150


def test_few_identities_have_no_interval_and_many_queries_of_them_do(store):
    images = image_rows(people=MIN_UNITS - 1)
    refs = [write_evaluation(store, images, rank(images, noise=noise, seed=3)) for noise in (1.5, 1.0)]
    (difference,) = compared(store, *refs).differences
    assert {metric.interval for metric in difference.metrics} == {None}
    assert difference.notices == ("no intervals: they need queries of at least 6 identities",)
    (difference,) = compared(store, *refs, unit="queries").differences
    assert None not in {metric.interval for metric in difference.metrics}


def test_one_query(store):
    images = image_rows(people=1)
    images = [row for row in images if row["path"] != "query/001_c1_1.jpg"]
    before, after = rank(images, noise=0, seed=3), rank(images, noise=0, seed=3)
    after[0] |= {"ap": 0.5, "first_hit": 2}
    (difference,) = compared(
        store, write_evaluation(store, images, before), write_evaluation(store, images, after)
    ).differences
    assert difference.metrics[0].points == -50
    assert difference.metrics[2].tally == (0, 1, 0)
    assert difference.notices == ("no intervals: they need queries of at least 6 identities",)


# Queries and galleries --------------------------------------------------------------------------------


def test_queries_that_only_one_run_has_are_named_and_left_out(store):
    images = image_rows()
    fewer = [row for row in images if row["path"] not in ("query/003_c1_0.jpg", "query/008_c1_1.jpg")]
    other = [row for row in images if row["path"] != "query/001_c1_0.jpg"]
    before, after = rank(fewer, noise=1, seed=1), rank(other, noise=1, seed=2)
    (difference,) = compared(
        store, write_evaluation(store, fewer, before), write_evaluation(store, other, after)
    ).differences
    assert difference.matched_by == "content"
    assert difference.only_baseline == ("query/001_c1_0.jpg",)
    assert difference.only_run == ("query/003_c1_0.jpg", "query/008_c1_1.jpg")
    assert len(difference.queries) == 13
    shared = {row["query_path"]: row["ap"] for row in after}
    gains = [shared[row["query_path"]] - row["ap"] for row in before if row["query_path"] in shared]
    assert difference.metrics[0].points == pytest.approx(100 * statistics.fmean(gains))


def test_renamed_files_are_the_same_queries(store):
    images = image_rows()
    renamed = [row | {"path": f"new/{row['path']}"} for row in images]
    refs = [
        write_evaluation(store, images, rank(images, noise=1, seed=1)),
        write_evaluation(store, renamed, rank(renamed, noise=1, seed=1)),
    ]
    (difference,) = compared(store, *refs).differences
    assert difference.matched_by == "content"
    assert len(difference.queries) == 16
    for pair in difference.queries:
        assert pair.path == f"new/{pair.baseline_path}"
        assert pair.gain == 0


def test_copies_of_one_file_are_paired_once_each(store):
    images = image_rows()
    copy = next(row for row in images if row["split"] == "query")
    images = sorted([*images, copy | {"path": "query/copy.jpg"}], key=lambda row: (row["split"], row["path"]))
    longer = [row | {"path": f"x/{row['path']}"} for row in images]
    refs = [
        write_evaluation(store, images, rank(images, noise=1, seed=1)),
        write_evaluation(store, longer, rank(longer, noise=1, seed=1)),
    ]
    (difference,) = compared(store, *refs).differences
    assert len(difference.queries) == 17
    assert {pair.path for pair in difference.queries} == {f"x/{pair.baseline_path}" for pair in difference.queries}


def test_different_galleries_are_refused_unless_asked_for(store):
    images = image_rows()
    smaller = [row for row in images if row["path"] != "gallery/002_c2_0.jpg"]
    refs = [
        write_evaluation(store, images, rank(images, noise=1, seed=1)),
        write_evaluation(store, smaller, rank(smaller, noise=1, seed=1)),
    ]
    with pytest.raises(ConfigError, match=r"only in the first: 1, only in the second: 0; queries with .*: 2"):
        compared(store, *refs)
    (difference,) = compared(store, *refs, different_galleries=True).differences
    assert len(difference.queries) == 16
    assert [notice.split(":")[0] for notice in difference.notices] == 2 * ["not the same gallery"]


def test_other_identities_are_refused_and_other_numbers_of_them_are_not(store):
    images = image_rows()
    swapped = {"query/001_c1_0.jpg": 2, "query/002_c1_0.jpg": 1}
    mistaken = [row | {"pid": swapped.get(row["path"], row["pid"])} for row in images]
    renumbered = [row | {"pid": 100 - row["pid"]} for row in images]
    plain, wrong, other = (
        write_evaluation(store, rows, rank(rows, noise=1, seed=seed))
        for seed, rows in ((1, images), (2, mistaken), (3, renumbered))
    )
    with pytest.raises(ConfigError, match=r"be compared: images with another identity in the second: 2\. Scores"):
        compared(store, plain, wrong)
    (difference,) = compared(store, plain, other).differences
    assert len(difference.queries) == 16
    assert difference.notices == ()


def test_without_an_index_different_images_are_not_trusted(store, tmp_path):
    images = image_rows()
    renamed = [row | {"sha256": row["sha256"][::-1]} for row in images]
    refs = [
        write_evaluation(store, images, rank(images, noise=1, seed=1)),
        write_evaluation(ArtifactStore(tmp_path / "elsewhere"), renamed, rank(renamed, noise=1, seed=2)),
    ]
    with pytest.raises(ConfigError, match="the index artifact of at least one is not in this artifact root"):
        compared(store, *refs)
    (difference,) = compared(store, *refs, different_galleries=True).differences
    assert difference.matched_by == "path"


def test_runs_without_a_shared_query_are_refused(store):
    images = image_rows()
    others = [row | {"sha256": row["sha256"][::-1]} for row in images]
    refs = [
        write_evaluation(store, images, rank(images, noise=1, seed=1)),
        write_evaluation(store, others, rank(others, noise=1, seed=2), dataset="other"),
    ]
    with pytest.raises(ConfigError, match=r"no query in common \(matched by content; .* are drawn and other\)"):
        compared(store, *refs, different_galleries=True)


def test_other_rules_are_a_notice_and_other_matches_a_refusal(store):
    images = image_rows()
    rows = rank(images, noise=1, seed=1)
    plain = write_evaluation(store, images, rows)
    flipped = write_evaluation(store, images, rows, description="Single query. Features are averaged. No re-ranking.")
    (difference,) = compared(store, plain, flipped).differences
    assert difference.notices == ("the protocols differ; only for the run: Features are averaged.",)
    more = [row | {"n_relevant": row["n_relevant"] + 1} for row in rows]
    with pytest.raises(ConfigError, match="another number of matches in the second: 16"):
        compared(store, plain, write_evaluation(store, images, more, description="x"))
    drawn = write_evaluation(store, images, rows, gallery_draws=10)
    with pytest.raises(ConfigError, match="numbers of drawn galleries are 0 and 10"):
        compared(store, plain, drawn)
    again = write_evaluation(store, images, rank(images, noise=1, seed=2), gallery_draws=10)
    assert "on the first gallery" in compared(store, drawn, again).differences[0].notices[0]


# Rows of a run ----------------------------------------------------------------------------------------


def test_the_row_is_the_trained_image_mode_or_what_is_chosen(store):
    images = image_rows()
    rows = [
        *rank(images, noise=2, seed=1, model="untrained"),
        *rank(images, noise=1, seed=2),
        *rank(images, noise=0.8, seed=3, mode="fused"),
    ]
    full = write_evaluation(store, images, rows)
    zero_shot = write_evaluation(store, images, rows[:16])
    fused = write_evaluation(store, images, rows[32:])

    def chosen(*refs, **options) -> list[tuple]:
        return [tuple(ranked.row) for ranked in compared(store, *refs, **options).rows]

    assert chosen(full, full) == 2 * [("trained", "image")]
    assert chosen(zero_shot, full) == [("untrained", "image"), ("trained", "image")]
    assert chosen(full, fused) == 2 * [("trained", "fused")]
    assert chosen(full, full, modes=["image", "fused"]) == [("trained", "image"), ("trained", "fused")]
    assert chosen(full, full, models=["untrained", "trained"]) == [("untrained", "image"), ("trained", "image")]
    with pytest.raises(ConfigError, match=r"not have the row untrained, fused mode. It has: untrained, image mode;"):
        compared(store, full, full, models=["untrained"], modes=["fused"])
    with pytest.raises(ConfigError, match=r"give --mode once, or 3 times, once per run \(given: 2\)"):
        compared(store, full, full, full, modes=["image", "fused"])
    with pytest.raises(ConfigError, match="two or more"):
        compared(store, full)


# Finding runs -----------------------------------------------------------------------------------------


def test_a_run_is_named_by_fingerprint_folder_or_recipe(store, tmp_path, monkeypatch):
    images = image_rows()
    old, new, other = (
        write_evaluation(store, images, rank(images, noise=1, seed=seed), recipe=recipe)
        for seed, recipe in ((1, "demo"), (2, "demo"), (3, "benchmark"))
    )
    for name in (old.fingerprint, old.fingerprint[:9], f"evaluate/{old.fingerprint[:9]}", str(old.folder), old.folder):
        run = find_run(name, store)
        assert (run.folder, run.fingerprint, run.name) == (old.folder, old.fingerprint, str(name))
    newest = find_run("demo", store)
    assert newest.folder in (old.folder, new.folder)
    assert newest.recipe == "demo"
    assert find_run("benchmark", store).folder == other.folder
    assert newest.rows == (RowName("trained", "image"),)
    assert newest.key == f"evaluate/{newest.fingerprint[:8]}"
    monkeypatch.chdir(store.root)
    with pytest.raises(ConfigError, match=r"'nothing' does not name an evaluation: .* there: benchmark, demo"):
        find_run("nothing", store)
    for name in ("", "~nobody/x", "x" * 5000, "a\0b"):
        with pytest.raises(ConfigError, match="does not name an evaluation"):
            find_run(name, store)
    with pytest.raises(ConfigError, match=r"names 3 evaluations \(/"):
        find_run("evaluate/", store)
    with pytest.raises(ConfigError, match=r"does not contain an evaluation \(metrics.json missing\)"):
        find_run(tmp_path, store)


def test_the_newest_evaluation_of_a_recipe_is_taken(store):
    images = image_rows()
    made = []
    for seed, created in ((1, "2026-01-02"), (2, "2026-01-03"), (3, "2026-01-01")):
        ref = write_evaluation(store, images, rank(images, noise=1, seed=seed), recipe="demo")
        sidecar = ref.folder / "artifact.json"
        text = sidecar.read_text()
        at = text.index('"created": "') + len('"created": "')
        sidecar.write_text(text[:at] + created + text[at + 10 :])
        made.append(ref.folder)
    assert find_run("demo", store).folder == made[1]


def test_an_evaluation_without_rankings_or_with_changed_files_is_refused(store):
    images = image_rows()
    rows = rank(images, noise=1, seed=1)
    bare = write_evaluation(store, images, rows, rankings_file=False)
    with pytest.raises(DataError, match=r"does not contain rankings.parquet, which has the score of each query"):
        find_run(bare.folder, store)
    ref = write_evaluation(store, images, rows, description="x")
    metrics = ref.folder / "metrics.json"
    metrics.write_text(metrics.read_text() + " ")
    with pytest.raises(DataError, match=r"metrics.json differs from what artifact.json lists"):
        find_run(ref.folder, store)
    (ref.folder / "artifact.json").unlink()
    assert find_run(ref.folder, store).fingerprint == ""
    metrics.write_text("{}")
    with pytest.raises(DataError, match="is damaged; evaluate again"):
        find_run(ref.folder, store)


# Images -----------------------------------------------------------------------------------------------


def test_the_folder_of_the_images_comes_from_remembered_digests(store, tmp_path):
    images = image_rows()
    run = find_run(write_evaluation(store, images, rank(images, noise=1, seed=1)).folder, store)
    found = find_test_images(run, store)
    assert found.digests == {row["path"]: row["sha256"] for row in images}
    assert len(found.gallery) == sum(row["split"] == "gallery" for row in images)
    assert found.root(store) is None
    root = tmp_path / "people"
    first = root / images[0]["path"]
    first.parent.mkdir(parents=True)
    first.write_bytes(b"")
    from data.artifacts.digests import Stamp

    gone = tmp_path / "gone" / images[0]["path"]
    store.memo.remember({str(path): (Stamp(1, 1, 1), images[0]["sha256"]) for path in (first, gone)})
    assert found.root(store) == root
