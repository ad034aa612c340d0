"""The study: its trainings, its statistics, and its loop, which repeats no run and survives failures."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from captioning.stage.stage import CaptionStage
from data.artifacts.inventory import try_lock
from data.artifacts.store import ArtifactStore, Made
from data.columns.texts import Texts
from data.errors import ConfigError, DataError
from data.progress import silent
from data.schemas import WORDLESS
from data.stages.stage import RunContext
from flows.cli.app import main
from flows.cli.study import preset_recipe, worlds_of
from flows.costs.steps import full_steps
from flows.recipes import build_recipe, tiny_clip_reid
from flows.study.controls import CONSTANT, TRUTH
from flows.study.inputs import open_inputs
from flows.study.loop import do
from flows.study.plan import COMPARISONS, GROUPS, PRESETS, VARIANTS, Comparison, StudyConfig, variants_of
from flows.study.plan.main import ORACLES, UNTRAINED
from flows.study.results.page import ResultWriter
from flows.study.results.plots import accuracy_chart, sweep_chart
from flows.study.results.text import difference_text, mean_text
from flows.study.rows import RUNS, SCORES, RunRow, unfinished
from flows.study.run import TURN, World, plan
from flows.study.statistics.bootstrap import SeedGains, nested_intervals
from flows.study.statistics.means import seed_mean
from flows.study.statistics.power import holm, p_value, smallest_visible
from flows.study.statistics.queries import QueryReader
from flows.study.statistics.scores import differences, variant_scores
from flows.study.training import recipe_of, training_of
from reid.evaluation.stage import EvaluateStage
from reid.inputs.captions import caption_features, encode_texts
from reid.training.stage import TrainStage
from tests.helpers.data_trees import put

SMALL = [
    "synthetic.train_identities=6",
    "synthetic.test_identities=4",
    "synthetic.images_per_camera=2",
    "synthetic.cameras=2",
    "train.schedule.epochs=1",
    "train.schedule.warmup_epochs=0",
    "train.schedule.milestones=[]",
    "train.batch.identities=3",
    "train.prompts.epochs=1",
    "train.device=cpu",
    "evaluate.device=cpu",
]


# What is trained --------------------------------------------------------------------------------------


def test_names_are_unique_and_every_comparison_can_be_made():
    by_name = {variant.name: variant for variant in VARIANTS}
    assert len(by_name) == len(VARIANTS)
    base = build_recipe("benchmark").train
    for comparison in COMPARISONS:
        for name, mode in (comparison.left, comparison.right):
            if name in (UNTRAINED, *ORACLES.values()):
                assert mode == "image"
                continue
            training = training_of(by_name[name], base, 0)
            assert mode == "image" or (training.method == "clip_scgi" and training.scgi.cff)


def test_the_main_group_and_the_sweeps_are_complete():
    names = [variant.name for variant in variants_of(StudyConfig(groups=("main",)))]
    assert names == [
        *("baseline", "clip_reid", "cgi", "cff", "scgi"),
        *("shuffled", "scattered", "constant", "empty", "true"),
    ]
    base = build_recipe("benchmark").train
    sweeps = [training_of(variant, base, 0).scgi for variant in variants_of(StudyConfig(groups=("queries", "depth")))]
    assert [scgi.inversion_tokens for scgi in sweeps[:4]] == [1, 2, 4, 8]
    assert [scgi.depth for scgi in sweeps[4:]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_variants_share_everything_but_what_they_say(variant):
    base = build_recipe("benchmark").train
    training = training_of(variant, base, 3)
    assert training.seed == base.seed + 3
    assert training.batch == base.batch
    assert training.augment == base.augment
    assert training.schedule.lr_clip == base.schedule.lr_clip
    assert training.schedule.epochs == variant.stretch * base.schedule.epochs
    assert training.method == variant.method
    assert (variant.captions == "none") == (variant.method != "clip_scgi")


def test_clip_reid_has_its_own_weights_and_first_stage_unless_they_are_set():
    variant = next(variant for variant in VARIANTS if variant.name == "clip_reid")
    tiny = training_of(variant, build_recipe("benchmark").train, 0)
    assert (tiny.loss, tiny.prompts) == (tiny_clip_reid().loss, tiny_clip_reid().prompts)
    published = training_of(variant, build_recipe("market1501").train, 0)
    assert (published.loss.id_weight, published.prompts.epochs, published.prompts.lr) == (0.25, 120, 3.5e-4)
    chosen = training_of(variant, build_recipe("benchmark", ["train.prompts.epochs=7"]).train, 0)
    assert (chosen.prompts.epochs, chosen.prompts.lr) == (7, tiny_clip_reid().prompts.lr)


def test_a_distillation_of_the_recipe_is_that_of_the_methods_that_read_captions():
    base = build_recipe("benchmark", ["train.loss.distill_weight=2"]).train
    weights = {variant.name: training_of(variant, base, 0).loss.distill_weight for variant in VARIANTS}
    assert (weights["scgi"], weights["baseline"], weights["clip_reid"], weights["baseline_blend"]) == (2, 0, 0, 0)
    assert (weights["distill_high"], weights["distill_low"]) == (5, 1), "the change of a variant wins"


def test_a_setting_that_a_variant_cannot_have_names_the_variant():
    port = next(variant for variant in VARIANTS if variant.name == "port")
    with pytest.raises(ConfigError, match=r"study, variant port: retrieval_head"):
        training_of(port, build_recipe("benchmark", ["train.retrieval_head=separate"]).train, 0)


def test_k_of_the_recipe_is_the_same_training_as_the_main_variant():
    base = build_recipe("benchmark").train
    by_name = {variant.name: training_of(variant, base, 0).identity() for variant in VARIANTS}
    assert by_name["queries_2"] == by_name["depth_1"] == by_name["scgi"]
    assert by_name["queries_4"] != by_name["scgi"]


def test_seeds_change_the_people_where_the_dataset_can():
    benchmark, real = build_recipe("benchmark"), build_recipe("pku_reid", ["data.root=/images"])
    fixed = build_recipe("benchmark", ["data.root=/images"])
    config = StudyConfig()
    assert recipe_of(benchmark, config, 2).synthetic.seed == benchmark.synthetic.seed + 2
    assert recipe_of(real, config, 2).data.split_seed == real.data.split_seed + 2
    assert recipe_of(fixed, config, 2) == fixed
    assert recipe_of(benchmark, StudyConfig(resample=False), 2) == benchmark


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_build_and_what_the_user_sets_wins(preset):
    recipe = preset_recipe("benchmark", preset, ["train.schedule.epochs=9", "synthetic.test_identities=7"])
    assert recipe.train.schedule.epochs == 9
    assert recipe.synthetic.test_identities == 7
    assert preset_recipe("pku_reid", preset, ["data.root=/images"]).synthetic is None


# Statistics -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freedom", "quantile"),  # Abramowitz and Stegun, 26.7.3 and 26.7.4: finite sums, at a probability of 0.975
    [
        (1, 12.706204736174678),
        (2, 4.30265272974946),
        (3, 3.1824463052837064),
        (4, 2.7764451051977934),
        (7, 2.3646242515927836),
        (30, 2.0422724563012418),
        (120, 1.979930405082446),
    ],
)
def test_intervals_are_those_of_student(freedom, quantile):
    found = seed_mean([float(number) for number in range(freedom + 1)])
    reach = quantile * found.deviation / math.sqrt(freedom + 1)
    assert found.interval == pytest.approx((found.mean - reach, found.mean + reach), rel=1e-9)


def test_equal_numbers_have_an_interval_without_width():
    found = seed_mean([7.0, 7.0, 7.0])
    assert found.deviation == 0
    assert found.interval == (found.mean, found.mean)


def test_a_mean_over_seeds_worked_by_hand():
    found = seed_mean([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5
    assert found.deviation == pytest.approx(math.sqrt(5 / 3))
    reach = 3.18245 * math.sqrt(5 / 3) / 2
    assert found.interval == pytest.approx((2.5 - reach, 2.5 + reach), abs=1e-4)
    alone = seed_mean([7.0])
    assert (alone.mean, alone.deviation, alone.interval) == (7.0, None, None)


def row(variant, seed, score, *, mode="image", status="ok", **changes):
    """One row of runs.parquet with `score` percent in every metric."""
    values = {
        "world": "toy",
        "title": variant.upper(),
        "group": "main",
        "method": "clip_scgi",
        "captions": "captioner",
        "scores": dict.fromkeys(SCORES, score / 100) if status == "ok" else {},
        "epochs": 1,
        "seconds": 60.0 + seed,
        "dataset": "toy",
        "dataset_hash": "abc",
        "n_query": 8,
        "n_gallery": 9,
        "train": f"{variant}{seed}",
    }
    return RunRow(variant=variant, seed=seed, mode=mode, status=status, **values | changes)


ROWS = [
    row("a", 0, 60), row("b", 0, 58), row("a", 1, 64), row("b", 1, 60),
    row("a", 2, 62), row("b", 2, None, status="failed", error="DivergedError: <b>nan</b>", mode=None, train=None),
]  # fmt: skip
QUESTION = Comparison(question="a | b?", left=("a", "image"), right=("b", "image"))


def test_scores_leave_failed_runs_out():
    first, second = variant_scores(ROWS)
    assert (first.variant, first.seeds, second.seeds) == ("a", 3, 2)
    assert first.metrics["mAP"].mean == pytest.approx(62.0)
    assert first.metrics["mAP"].deviation == pytest.approx(2.0)
    assert first.seconds.mean == pytest.approx(61.0)
    assert [item.seed for item in unfinished(ROWS)] == [2]


def test_differences_are_paired_by_seed():
    (answer,) = differences(ROWS, [QUESTION, Comparison(question="?", left=("a", "image"), right=("c", "image"))])
    assert answer.seeds == 2
    assert answer.better == 2
    found = answer.metrics["mAP"].seeds
    assert found.values == pytest.approx((2.0, 4.0))
    # Mean 3, deviation sqrt(2), reach 12.7062 * sqrt(2) / sqrt(2).
    assert (found.mean, *found.interval) == pytest.approx((3.0, 3 - 12.7062, 3 + 12.7062), abs=1e-3)
    assert difference_text(found) == "+3.0 (−9.7 to +15.7)"
    assert mean_text(seed_mean([1.0])) == "1.0"


def test_the_smallest_visible_difference_is_that_of_tables_and_of_a_simulation():
    """A paired t-test at 5 % needs 34 pairs to see half a deviation with a chance of 80 % (Cohen, 1988)."""

    def visible(n):
        part = seed_mean([float(value) for value in range(n)])
        return smallest_visible(part) / part.deviation

    assert visible(34) < 0.5 < visible(33)
    assert visible(5) == pytest.approx(1.682, abs=1e-3)
    rng = np.random.default_rng(5)
    drawn = rng.normal(visible(3), 1, (200_000, 3))
    t = drawn.mean(axis=1) / drawn.std(axis=1, ddof=1) * math.sqrt(3)
    assert (t > 4.30265).mean() == pytest.approx(0.8, abs=0.005)
    assert smallest_visible(seed_mean([1.0])) is None
    assert smallest_visible(seed_mean([2.0, 2.0])) is None, "equal numbers do not show their spread"


def test_p_values_and_holm_worked_by_hand():
    assert p_value(seed_mean([1.0, 2.0, 3.0])) == pytest.approx(0.0742, abs=1e-4)  # t = 2 * sqrt(3), 2 degrees
    assert p_value(seed_mean([2.0, 2.0])) == 0
    assert p_value(seed_mean([1.0])) is None
    # Sorted 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.9]) == [1.0, 1.0]


def test_the_bootstrap_draws_seeds_and_identities():
    def seed(*gains, pids=None):
        return SeedGains(np.array(gains, float)[:, None], np.array(pids or range(len(gains))))

    (apart,) = nested_intervals([seed(0, 0, 0), seed(1, 1, 1)], same_people=False)
    assert apart == (0, 100), "a quarter of the resamples has one seed twice"
    (fixed,) = nested_intervals([seed(0.5, 0.5)] * 3, same_people=False)
    assert fixed == (50, 50)
    rng = np.random.default_rng(1)
    many = [SeedGains(rng.normal(0, 1, (400, 1)), np.arange(400)) for _ in range(2)]
    (low, high) = nested_intervals([many[0]] * 2, same_people=True)[0]
    assert high - low == pytest.approx(2 * 196 * many[0].gains.std() / 20, rel=0.1), "the same identities in both"
    (low, high) = nested_intervals([many[0]] * 2, same_people=False)[0]
    assert high - low == pytest.approx(2 * 196 * many[0].gains.std() / 20 / math.sqrt(2), rel=0.1)
    # Two queries of one identity are drawn together: its mean has their sum.
    (clustered,) = nested_intervals([seed(1, 1, 0, pids=[7, 7, 8])] * 2, same_people=True)
    assert clustered == (0, 100)


# What is left -----------------------------------------------------------------------------------------


def test_results_can_be_read_by_people_and_programs(tmp_path):
    sweep = [
        row(f"queries_{k}", seed, 50 + k + seed, mode=mode, group="queries", inversion_tokens=k)
        for k in (1, 2, 4, 8)
        for seed in (0, 1)
        for mode in ("image", "fused")
    ]
    comparable = [row(variant, seed, 50 + seed) for variant in ("scgi", "baseline") for seed in (0, 1)]
    ResultWriter(tmp_path, {"recipe": {"data": {"root": "/secret/place"}}}).write([*ROWS, *sweep, *comparable])
    assert pq.read_schema(tmp_path / "runs.parquet").equals(RUNS)
    assert len(pd.read_parquet(tmp_path / "runs.parquet")) == len(ROWS) + len(sweep) + len(comparable)
    means = pd.read_csv(tmp_path / "table.csv").set_index(["variant", "mode"])
    assert means.loc[("a", "image"), "mAP_mean"] == pytest.approx(62.0)
    found = pd.read_csv(tmp_path / "differences.csv")
    assert found["left"].tolist() == ["scgi:image", "queries_1:image", "queries_4:image", "queries_8:image"]
    assert found["mAP_mean"].tolist() == pytest.approx([0.0, -1.0, 2.0, 6.0])
    text = (tmp_path / "study.md").read_text()
    assert "| A | image | 62.0 ± 2.0 |" in text
    assert "B, seed 2: failed, DivergedError" in text
    page = (tmp_path / "study.html").read_text()
    assert "&lt;b&gt;nan&lt;/b&gt;" in page
    assert "<b>nan</b>" not in page
    assert "/secret/place" not in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    drawings = sorted(path.name for path in (tmp_path / "plots" / "toy").iterdir())
    assert drawings == ["main-accuracy.svg", "main-differences.svg", "queries-sweep.svg"]
    for name in drawings:
        assert ElementTree.parse(tmp_path / "plots" / "toy" / name).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def styled(element) -> dict[str, str]:
    """Return the style of an SVG element as property -> value."""
    parts = (part.split(": ") for part in element.get("style", "").split("; ") if part)
    return dict(parts)


@pytest.mark.parametrize("drawn", ["wide", "narrow"])
def test_dots_are_seen_on_their_bars(drawn):
    lines = variant_scores([row(variant, seed, 60) for variant in ("a", "b") for seed in (0, 1, 2)])
    elements = [*ElementTree.fromstring(str(getattr(accuracy_chart(lines), drawn))).iter()]
    bars = [path for path in elements if path.tag == "path" and "fill-opacity" in styled(path)]
    dots = [use for use in elements if use.tag == "use" and "#ffffff" in styled(use).values()]
    assert (len(bars), len(dots)) == (2, 6)
    for at, bar in enumerate(bars):
        own = dots[3 * at : 3 * at + 3]
        corners = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", bar.get("d"))]
        heights = [float(dot.get("y")) for dot in own]
        assert len(set(heights)) == 3, "equal scores do not hide each other"
        assert all(min(corners) < height < max(corners) for height in heights)
        assert all(styled(dot)["stroke"] == "#ffffff" and "fill-opacity" not in styled(dot) for dot in own)
        assert float(styled(bar)["fill-opacity"]) < 0.3
        assert all(elements.index(dot) > elements.index(bar) for dot in own), "dots are drawn after bars"


def test_the_narrow_drawing_is_as_wide_as_a_phone():
    chart = accuracy_chart(variant_scores([row("a", seed, 60 + seed) for seed in (0, 1)]))
    narrow, wide = (ElementTree.fromstring(str(svg)).get("viewBox").split() for svg in (chart.narrow, chart.wide))
    assert (narrow[2], wide[2]) == ("330", "760")


@pytest.mark.parametrize(("points", "color"), [((3, 3.1, 3.2), "up"), ((-3, -3.1, -3.2), "down"), ((-3, 3, 1), "even")])
def test_a_verdict_is_colored_only_where_its_interval_excludes_zero(tmp_path, points, color):
    rows = [row("baseline", seed, 50) for seed in (0, 1, 2)]
    rows += [row("scgi", seed, 50 + gain) for seed, gain in enumerate(points)]
    ResultWriter(tmp_path, {}).write(rows)
    cells = re.findall(r'<td class="nowrap (up|down|even)">', (tmp_path / "study.html").read_text())
    assert cells == [color]


def test_unknown_cameras_are_told_in_every_table(tmp_path):
    scored = [row(name, seed, 50 + seed) for name in ("clip_scgi", "clip_baseline") for seed in (1, 2)]
    for folder, rows in (("known", scored), ("unknown", [replace(one, cameras="unknown") for one in scored])):
        ResultWriter(tmp_path / folder, {}).write(rows)
        for file in ("study.md", "study.html"):
            told = "valuated without the camera rule" in (tmp_path / folder / file).read_text()
            assert told == (folder == "unknown")
        assert ("unknown" in (tmp_path / folder / "table.csv").read_text()) == (folder == "unknown")


def test_nothing_finished_is_still_a_page(tmp_path):
    ResultWriter(tmp_path, {}).write([ROWS[-1]])
    assert "no run has finished" in (tmp_path / "study.html").read_text()
    assert accuracy_chart([]) is None
    assert sweep_chart([], "depth") is None


# The loop ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(module_folder):
    return module_folder("home")


def some_runs(home, *names, seeds=1, groups=("main",)):
    recipe, config = build_recipe("benchmark", SMALL), StudyConfig(seeds=seeds, groups=groups)
    found = plan(ArtifactStore(home), [World(recipe, config)], silent)
    return [run for run in found if run.variant.name in names]


def test_runs_become_rows_and_are_found_again(home, tmp_path, monkeypatch):
    runs = some_runs(home, "baseline", "true", seeds=2)
    assert [run.find() for run in runs] == [None] * 4
    finished = list(do(runs, silent))
    rows = [item for done in finished for item in done.rows]
    assert {item.status for item in rows} == {"ok"}, rows
    assert [(item.variant, item.mode) for item in rows if item.seed == 0] == [
        ("untrained", "image"),
        ("baseline", "image"),
        ("oracle_baseline", "image"),
        ("true", "image"),
        ("true", "fused"),
    ]
    assert all(0 <= item.scores["mAP"] <= 1 for item in rows)
    assert all(item.seconds > 0 for item in rows if item.variant in ("baseline", "true"))
    oracle, alone = (next(item for item in rows if item.variant == name) for name in ("oracle_baseline", "baseline"))
    assert oracle.scores["mAP"] >= alone.scores["mAP"]
    assert len({item.dataset_hash for item in rows}) == 2, "each seed has people of its own"
    ResultWriter(tmp_path, {}, ArtifactStore(home)).write(rows)
    bound, answer = differences(rows, queries=QueryReader(ArtifactStore(home)))
    assert (bound.comparison.left[0], bound.metrics["mAP"].bootstrap) == ("oracle_baseline", None)
    assert f"add {bound.metrics['mAP'].seeds.mean:.1f} mAP to CLIP baseline" in (tmp_path / "study.md").read_text()
    assert (answer.comparison.left[0], answer.comparison.right[0]) == ("baseline", "untrained")
    assert {"mAP", "rank1", "mINP", "t2i_mAP", "t2i_rank1"} == answer.metrics.keys()
    assert all(effect.bootstrap for effect in answer.metrics.values()), "queries and sentences are paired"
    searched = {(item.variant, item.mode): item for item in rows if item.seed == 0}
    assert all(0 <= searched[name, "image"].scores["t2i_mAP"] <= 1 for name in ("untrained", "baseline", "true"))
    assert searched["true", "image"].t2i_source == "captions"
    assert "t2i_mAP" not in searched["true", "fused"].scores, "search by sentence has no mode"

    monkeypatch.setattr(TrainStage, "produce", refuse)
    monkeypatch.setattr(EvaluateStage, "produce", refuse)
    again = list(do(some_runs(home, "baseline", "true", seeds=2), silent))
    assert all(done.cached for done in again)
    assert [item for done in again for item in done.rows] == rows


def refuse(*_, **__):
    raise AssertionError("a finished run is repeated")


def test_a_failed_run_is_a_row_and_the_others_go_on(home, monkeypatch, caplog):
    real = TrainStage.produce

    def produce(stage, *place):
        if stage.config.method == "clip_baseline":
            raise DataError("too dark to see")
        return real(stage, *place)

    monkeypatch.setattr(TrainStage, "produce", produce)
    runs = some_runs(home, "long_baseline", "true", groups=("main", "why"))
    first, second = do(sorted(runs, key=lambda run: run.variant.name), silent)
    assert first.rows[0].status == "failed"
    assert first.rows[0].error == "DataError: too dark to see"
    assert second.rows[0].status == "ok"
    assert "long_baseline, seed 0, benchmark failed" in caplog.text


def test_an_interrupted_study_goes_on(tmp_path, monkeypatch):
    names, calls = ("baseline", "true"), []
    real = TrainStage.produce

    def produce(stage, *place):
        calls.append(stage.config.method)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(stage, *place)

    monkeypatch.setattr(TrainStage, "produce", produce)
    with pytest.raises(KeyboardInterrupt):
        list(do(some_runs(tmp_path, *names), silent))
    first, second = do(some_runs(tmp_path, *names), silent)
    assert first.cached
    assert not second.cached
    assert calls == ["clip_baseline", "clip_scgi", "clip_scgi"]


def test_a_run_that_another_process_does_is_left_for_the_end(home):
    runs = some_runs(home, "baseline", "true")
    found = list(do(runs, silent))
    assert [done.run.variant.name for done in found] == ["baseline", "true"]
    with try_lock(ArtifactStore(home), TURN, runs[0].turn) as is_free:
        assert is_free
        assert [done.run.variant.name for done in do(runs, silent)] == ["true", "baseline"]


def test_while_a_run_is_done_no_other_process_begins_it(home):
    runs = some_runs(home, "baseline", "true")
    for done in do(runs, silent):
        with try_lock(ArtifactStore(home), TURN, done.run.turn) as is_free:
            assert not is_free
    assert len({run.turn for run in runs}) == 2


def test_without_truth_the_ceiling_is_skipped(home):
    runs = some_runs(home, "true")
    hidden = {path: path.with_suffix(".hidden") for path in home.glob(f"datasets/*/{TRUTH}")}
    assert hidden
    try:
        for path, other in hidden.items():
            path.rename(other)
        (done,) = do(runs, silent)
    finally:
        for path, other in hidden.items():
            other.rename(path)
    assert done.rows[0].status == "skipped"
    assert "synthetic" in done.rows[0].error


def test_captions_of_every_kind(home, monkeypatch):
    """The truth replaces the captioner here: each control is made from the captions."""
    inputs = open_inputs(ArtifactStore(home), build_recipe("benchmark", SMALL), 1, silent)
    true = inputs.make("true", silent)
    assert inputs.find("true") == true
    assert inputs.make("none", silent) is None
    assert inputs.find("shuffled") is None, "no captions yet"
    monkeypatch.setattr(CaptionStage, "make", lambda self, run: Made(ref=true, cached=True))
    shuffled, scattered = inputs.make("shuffled", silent), inputs.make("scattered", silent)
    constant, empty = inputs.make("constant", silent), inputs.make("empty", silent)
    assert len({each.content for each in (true, shuffled, scattered, constant, empty)}) == 5
    for ref, text in ((constant, CONSTANT), (empty, WORDLESS)):
        table = pq.read_table(ref.folder / "captions.parquet")
        assert set(table["caption"].to_pylist()) == {text}
        assert set(table["status"].to_pylist()) == {"ok"}


def test_a_caption_without_words_is_encoded_as_an_empty_text(home):
    run, backbone = RunContext(store=ArtifactStore(home)), build_recipe("benchmark").train.backbone
    found = caption_features(run, Texts([WORDLESS]), config=backbone, seed=0)
    assert (found.features_MD == encode_texts([""], config=backbone, seed=0, device="cpu")).all()


def test_a_study_of_two_worlds_goes_on_if_one_fails(home, tmp_path, monkeypatch):
    config = StudyConfig(seeds=1)
    recipes = [build_recipe("benchmark", SMALL), build_recipe("benchmark_language", SMALL)]
    worlds = [World(recipe, config) for recipe in recipes]
    runs = [run for run in plan(ArtifactStore(home), worlds, silent) if run.variant.name in ("baseline", "empty")]
    assert [run.world for run in runs] == ["benchmark"] * 2 + ["benchmark_language"] * 2
    captions = CaptionStage.make

    def make(stage, run):
        if run.images.description.name == "benchmark_language":
            raise DataError("nothing to read")
        return captions(stage, run)

    monkeypatch.setattr(CaptionStage, "make", make)
    rows = [item for done in do(runs, silent) for item in done.rows]
    assert {(item.world, item.status) for item in rows} == {("benchmark", "ok"), ("benchmark_language", "failed")}
    ResultWriter(tmp_path, {}).write(rows)
    page = (tmp_path / "study.html").read_text()
    assert 'href="#benchmark_language"' in page
    assert page.count("nothing to read") == 2
    means = pd.read_csv(tmp_path / "table.csv")
    assert set(means["world"]) == {"benchmark"}
    assert "empty" in set(means["variant"])


def test_captions_that_another_process_makes_are_waited_for_last(home, monkeypatch):
    runs = some_runs(home, "baseline", "true")
    monkeypatch.setattr(type(runs[0].inputs), "find", lambda *_: None)
    with try_lock(ArtifactStore(home), TURN, runs[0].inputs.turn):
        monkeypatch.setattr("flows.study.loop.time.sleep", stop)
        with pytest.raises(InterruptedError):
            list(do(runs, silent))


def stop(_):
    raise InterruptedError


# The command ------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_cost_and_trains_nothing(tmp_path, capsys):
    settings = [part for text in SMALL for part in ("--set", text)]
    arguments = ["study", "--home", str(tmp_path), "--seeds", "1", "--out", str(tmp_path / "out"), "--dry-run"]
    assert main([*arguments, *settings]) == 0
    shown = capsys.readouterr().out
    assert "10 runs, 10 of them pending" in shown
    assert "steps in 10 trainings" in shown
    assert "not included: captioning of 1 dataset and evaluation; their time is unknown before the" in shown
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "stages" / "train").exists()


def test_the_cost_of_a_distillation_is_measured():
    base = build_recipe("benchmark", ["train.device=cpu", "train.batch.identities=2", "train.batch.images=1"]).train
    for variant in VARIANTS:
        if variant.name in ("distill_low", "separate_distill"):
            assert full_steps(training_of(variant, base, 0), 2).step > 0


def test_settings_that_fail_every_run_are_refused_before_the_first(tmp_path, capsys):
    settings = [part for text in SMALL if text != "train.batch.identities=3" for part in ("--set", text)]
    assert main(["study", "--home", str(tmp_path), "--seeds", "1", "--out", str(tmp_path / "out"), *settings]) == 1
    told = "study: train.batch.identities=16 but the dataset has 6 training identities: set train.batch.identities=6"
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "captions").exists()


def test_the_checks_of_a_study_know_its_dataset(tmp_path, capsys):
    put(tmp_path / "people", "anna/1.jpg", "anna/2.jpg")
    out = ["--out", str(tmp_path / "out"), "--home", str(tmp_path / "home")]
    settings = ["--set", f"data.root={tmp_path / 'people'}", "--set", "data.train_fraction=1"]
    assert main(["study", "folders", "--seeds", "1", *out, *settings]) == 1
    assert "set data.train_fraction=0.5 (it is 1)" in capsys.readouterr().err


def test_without_a_recipe_the_full_study_has_four_worlds():
    def groups_of(recipe, *groups, preset="full", seeds=None):
        found = worlds_of(recipe, preset, [], seeds=seeds, groups=groups, resample=True)
        return {world.recipe.name: world.config.groups for world in found}

    elsewhere = dict.fromkeys(("benchmark_language", "benchmark_domain"), ("main", "joint"))
    assert groups_of(None) == {"benchmark": GROUPS, **elsewhere, "benchmark_clothes": ("main",)}
    assert groups_of(None, "depth") == {"benchmark": ("depth",)}
    assert groups_of(None, preset="quick") == {"benchmark": ("main",)}
    assert groups_of("benchmark_domain", "depth") == {"benchmark_domain": ("depth",)}
    assert groups_of("pku_reid") == {"pku_reid": ("main", "joint")}
    (world, *others) = worlds_of(None, "full", [], seeds=None, groups=[], resample=True)
    assert [world.config.seeds_of(group) for group in GROUPS] == [5, 3, 3, 3, 3, 3]
    assert [(each.recipe.name, each.config.seeds_of("main")) for each in others] == [
        ("benchmark_language", 5),
        ("benchmark_domain", 3),
        ("benchmark_clothes", 3),
    ]
    assert world.recipe.train.precision == "bf16"
    (world, *_) = worlds_of(None, "full", ["train.precision=no"], seeds=2, groups=[], resample=True)
    assert world.recipe.train.precision == "no"
    assert {world.config.seeds_of(group) for group in GROUPS} == {2}


def test_bad_settings_of_the_study_are_named(tmp_path, capsys):
    assert main(["study", "--home", str(tmp_path), "--seeds", "0"]) == 2
    assert "--seeds" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="recipe 'nothing' does not exist"):
        preset_recipe("nothing", "quick", [])
    assert set(PRESETS["full"].config.groups) == set(GROUPS)


def test_a_bar_of_percentages_stays_between_0_and_100():
    two_seeds = variant_scores([row("a", seed, score) for seed, score in enumerate((54.2, 65.1))])
    low, high = two_seeds[0].metrics["mAP"].interval
    assert low < 0
    assert high > 100
    elements = ElementTree.fromstring(str(accuracy_chart(two_seeds).wide)).iter("path")
    (bar,) = [path for path in elements if "fill-opacity" in styled(path)]
    ends = {float(x) for x in re.findall(r"[ML] (\S+) ", bar.get("d"))}
    assert ends == {300.0, 746.0}, "the ends of the axes, which are 0 and 100"
