"""``clip-scgi paper ablation`` and ``sweep``: tables and charts. tests/project/test_docs_commands.py executes them."""

from __future__ import annotations

import io
from xml.etree import ElementTree

import pandas as pd
import pytest
from PIL import Image

from flows.cli.app import main
from flows.paper.ablation import VARIANTS as ABLATED
from flows.paper.ablation import ablation, markdown, write_ablation
from flows.paper.published import PUBLISHED
from flows.paper.sweep import SWEEPS, sweep_chart, sweep_points, write_sweep
from flows.recipes import build_recipe
from flows.study.plan import VARIANTS
from flows.study.rows import SCORES, RunRow
from tests.helpers.page_text import HOSTILE

SMALL = [
    "synthetic.train_identities=6",
    "synthetic.test_identities=4",
    "synthetic.images_per_camera=2",
    "synthetic.cameras=2",
    "train.schedule.epochs=1",
    "train.schedule.warmup_epochs=0",
    "train.schedule.milestones=[]",
    "train.batch.identities=3",
    "train.device=cpu",
    "evaluate.device=cpu",
    "caption.device=cpu",
]


def row(variant, seed, score, *, mode="image", **changes):
    """One row of a study with `score` percent in every metric."""
    values = {
        "title": variant,
        "group": "main",
        "method": "clip_scgi",
        "captions": "captioner",
        "status": "ok",
        "scores": dict.fromkeys(SCORES, score / 100),
        "epochs": 1,
        "world": "toy",
        "dataset": "toy",
        "evaluation": f"{variant}{seed}",
    }
    return RunRow(variant=variant, seed=seed, mode=mode, **values | changes)


ROWS = [
    *(row("baseline", seed, score) for seed, score in enumerate((50, 54))),
    *(row("cff", seed, score, mode=mode) for mode in ("image", "fused") for seed, score in enumerate((51, 57))),
    row("scgi", 0, 0, mode=None, status="failed", error=f"DivergedError: {HOSTILE}", scores={}),
    row("shuffled", 0, 99),
]


# The ablation -----------------------------------------------------------------------------------------


def test_the_rows_are_variants_of_the_study_and_have_published_figures():
    assert list(ABLATED) == ["baseline", "cgi", "cff", "scgi"]
    assert ABLATED.keys() <= {variant.name for variant in VARIANTS if variant.group == "main"}
    assert PUBLISHED.keys() == ABLATED.keys()


def test_means_spreads_and_gains_are_those_worked_by_hand():
    table = ablation(ROWS, build_recipe("benchmark"))
    assert [(one.variant, one.mode, one.is_first) for one in table.rows] == [
        ("baseline", "image", True),
        ("cff", "image", True),
        ("cff", "fused", False),
    ]
    baseline, image, _ = table.rows
    assert baseline.gain is None
    assert (image.metrics["mAP"].mean, image.gain.mean) == pytest.approx((54.0, 2.0))
    assert image.metrics["rank1"].deviation == pytest.approx(18**0.5)
    assert image.gain.values == pytest.approx((1.0, 3.0)), "paired by seed"
    assert table.missing == [f"+ CGI + CFF (CLIP-SCGI), seed 0: failed, DivergedError: {HOSTILE}"]


def test_published_figures_are_marked_as_those_of_another_model():
    text = markdown(ablation(ROWS, build_recipe("benchmark")))
    assert "| + CFF | image | 54.0 ± 4.2 | 54.0 ± 4.2 | +2.0 (−10.7 to +14.7) | 2 | 93.6 / 95.6 | 85.2 / 90.9 |" in text
    assert "|  | fused | 54.0 ± 4.2 |" in text
    assert "Published: vit_b16 on Market-1501 and MSMT17" in text
    assert "another model or dataset than in these runs (tiny on toy)" in text
    own = markdown(ablation([row("cgi", 0, 90, dataset="msmt17")], build_recipe("msmt17", ["data.root=/x"])))
    assert "These runs: vit_b16 on msmt17." in own
    assert "another model" not in own


def test_the_table_is_written_for_people_and_programs(tmp_path):
    write_ablation(tmp_path, ablation(ROWS, build_recipe("benchmark")))
    found = pd.read_csv(tmp_path / "ablation.csv").set_index(["variant", "mode"])
    assert found.loc[("cff", "fused"), "gain_mean"] == pytest.approx(2.0)
    assert found.loc[("cff", "fused"), "published_msmt17_mAP"] == 85.2
    assert found.loc[("baseline", "image"), "evaluations"] == "baseline0 baseline1"
    page = (tmp_path / "ablation.html").read_text(encoding="utf-8")
    assert HOSTILE not in page
    assert "default-src 'none'" in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    write_ablation(tmp_path, ablation([], build_recipe("benchmark")))
    assert "no run has finished" in (tmp_path / "ablation.html").read_text(encoding="utf-8")


def test_unknown_cameras_are_told(tmp_path):
    rows = [row("baseline", 0, 50, cameras="unknown")]
    assert "Cameras unknown: evaluated without the camera rule." in ablation(rows, build_recipe("benchmark")).notes


# The sweeps -------------------------------------------------------------------------------------------


def sweep_rows(seeds):
    return [
        row(f"queries_{k}", seed, 40 + k + 10 * seed, mode=mode, group="queries", inversion_tokens=k, depth=1)
        for k in (8, 1, 4, 2)
        for seed in range(seeds)
        for mode in ("fused", "image")
    ]


def test_a_sweep_has_a_point_per_value_and_mode():
    points = sweep_points([*ROWS, *sweep_rows(2), row("depth_3", 0, 60, group="depth", inversion_tokens=2, depth=3)])
    assert [(point.sweep, point.mode, point.value) for point in points] == [
        *(("queries", mode, k) for mode in ("image", "fused") for k in (1, 2, 4, 8)),
        ("depth", "image", 3),
    ]
    assert points[0].metrics["mAP"].mean == pytest.approx(46.0)
    assert points[0].metrics["rank1"].deviation == pytest.approx(50**0.5)


def test_error_bars_reach_one_deviation_each_way():
    chart = sweep_chart("queries", sweep_points(sweep_rows(2)))
    assert [key.text for key in chart.legend] == ["mAP, image", "R1, image", "mAP, fused", "R1, fused"]
    for at, curve in enumerate(chart.legend):
        assert curve.bars[0] == pytest.approx((46 - 50**0.5, 46 + 50**0.5))
        assert [round(x - curve.points[0][0]) for x, _ in curve.points] == [0, 1, 3, 7]
        assert curve.points[0][0] - 1 == pytest.approx(0.06 * (at - 1.5)), "the bars lie beside each other"
    assert "mean ± standard deviation of 2 seeds" in chart.title


def test_bars_of_percentages_stay_between_0_and_100():
    rows = [row("depth_1", seed, score, group="depth", depth=1) for seed, score in enumerate((2, 98))]
    (curve, _) = sweep_chart("depth", sweep_points(rows)).legend
    assert curve.bars == [(0.0, 100.0)]


def test_one_seed_has_no_bars():
    chart = sweep_chart("queries", sweep_points(sweep_rows(1)))
    assert {curve.bars for curve in chart.legend} == {()}
    assert chart.title == "CLIP-SCGI over K, 1 seed"


def test_a_sweep_is_a_table_and_two_drawings(tmp_path):
    written = write_sweep(tmp_path, sweep_rows(2))
    assert [path.name for path in written] == ["sweep.csv", "queries.svg", "queries.png"]
    assert pd.read_csv(written[0])["mAP_mean"].tolist() == pytest.approx([46, 47, 49, 53] * 2)
    svg = ElementTree.parse(written[1]).getroot()
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    png = Image.open(io.BytesIO(written[2].read_bytes()))
    _, _, width, height = map(float, svg.get("viewBox").split())
    assert png.size == pytest.approx((2.5 * width, 2.5 * height), abs=1)
    colors = {color for _, color in png.convert("RGB").getcolors(1 << 24)}
    assert {(0x25, 0x63, 0xEB), (0xD9, 0x77, 0x06)} <= colors, "both modes are drawn"
    before = written[2].read_bytes()
    assert write_sweep(tmp_path, sweep_rows(2))[2].read_bytes() == before, "the same data give the same bytes"
    assert write_sweep(tmp_path, []) == [tmp_path / "sweep.csv"]


# The commands -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(module_folder):
    return module_folder("home")


def run(home, out, *words):
    small = [part for text in SMALL for part in ("--set", text)]
    return main(["paper", *words, "--home", str(home), "--out", str(out), *small])


def test_a_dry_run_trains_nothing(home, tmp_path, capsys):
    assert run(home, tmp_path / "out", "ablation", "--seeds", "1", "--dry-run") == 0
    assert "4 runs, 4 of them pending" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert not (home / "stages/train").exists()


def test_an_output_that_cannot_be_written_is_refused_first(home, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(home, tmp_path / "file/out", "ablation") == 1
    assert "cannot be written" in capsys.readouterr().err


def test_sweeps_are_groups_of_the_study():
    from flows.cli.paper.commands import Sweep
    from flows.study.plan import GROUPS

    assert [sweep.value for sweep in Sweep] == list(SWEEPS)
    assert SWEEPS.keys() <= set(GROUPS)
