"""The flow on a small synthetic dataset: what runs, what is found, and what reruns when something changes."""

from __future__ import annotations

import os
import re
import shutil
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import torch
from PIL import Image

from data.artifacts.store import SIDECAR, ArtifactRef, ArtifactStore, Produced
from data.errors import ClipScgiError, ConfigError
from data.files import read_json
from data.stages.stage import RunContext, Stage
from flows.cli.app import main
from flows.execution.launch import launch_training
from flows.recipes import ScaleConfig, build_recipe
from flows.summary import RunSummary
from reid.training.stage import TrainStage
from tests.helpers.data_trees import settle
from tests.helpers.places import REPO
from tests.helpers.small_runs import FINISHED_RUN
from tests.helpers.stages import run_on

STAGES = ["index", "caption", "audit", "train", "evaluate", "report"]
pytestmark = pytest.mark.xdist_group("flow")


@pytest.fixture
def home(finished, tmp_path) -> Path:
    """A private copy of the finished run, free to be damaged."""
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    settle()
    return copy


def _run(home: Path, *overrides: str, **options) -> RunSummary:
    from flows.pipeline import caption_and_train

    recipe = build_recipe("demo", overrides, size=FINISHED_RUN)
    return RunSummary.model_validate(caption_and_train(recipe, home=str(home), **options))


def _reran(summary: RunSummary) -> list[str]:
    return [stage.stage for stage in summary.stages if stage.status == "ran"]


def _images(home: Path) -> Path:
    return next((home / "datasets").iterdir())


def test_a_first_run_makes_every_artifact(finished):
    home, summary = finished
    assert [stage.stage for stage in summary.stages] == STAGES
    assert _reran(summary) == STAGES
    store = ArtifactStore(home)
    assert _reasons(summary) == dict.fromkeys(STAGES, "first run")
    for stage in summary.stages:
        assert store.problems(stage.stage, stage.artifact.fingerprint) == []
    captions = pd.read_parquet(summary["caption"].artifact.folder / "captions.parquet")
    images = pd.read_parquet(summary["index"].artifact.folder / "images.parquet")
    assert captions["image_path"].tolist() == images["path"].tolist()
    assert (captions["status"] == "ok").mean() > 0.9
    metrics = read_json(summary["evaluate"].artifact.folder / "metrics.json")
    assert {(row["model"], row["mode"]) for row in metrics["results"]} == {
        ("untrained", "image"),
        ("trained", "image"),
        ("trained", "fused"),
    }
    page = (summary["report"].artifact.folder / "report.html").read_text()
    assert "<html" in page


def first_run(client, dataset_hash):
    """The run that `finished` made; later tests run on copies of its artifacts."""
    runs = [run for run in client.read_flow_runs() if run.name.endswith(dataset_hash[:8]) and run.state.is_completed()]
    return min(runs, key=lambda run: run.start_time)


def test_prefects_ui_shows_progress_tables_and_pictures_of_the_run(finished):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    _, summary = finished
    found = read_json(summary["index"].artifact.folder / "dataset.json")["dataset_hash"]
    with get_client(sync_client=True) as client:
        run = first_run(client, found)
        assert run.name.startswith("demo-")
        only = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        shown = {artifact.key: artifact for artifact in client.read_artifacts(flow_run_filter=only)}
    assert {"captions", "audit", "metrics", "loss", "cmc", "rankings"} <= set(shown)
    assert {"caption-progress", "train-progress"} <= set(shown)
    assert shown["train-progress"].data == 100.0
    assert "image_path" in shown["captions"].data


def test_the_runs_log_says_what_the_terminal_says(finished):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
    from prefect.logging.handlers import APILogWorker

    _, summary = finished
    APILogWorker.instance().drain()
    found = read_json(summary["index"].artifact.folder / "dataset.json")["dataset_hash"]
    with get_client(sync_client=True) as client:
        run = first_run(client, found)
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
        lines = [entry.message for entry in client.read_logs(wanted)]
    for stage in summary.stages:
        assert any(line.startswith(f"✓ {stage.stage:<9} ran") and stage.note in line for line in lines)
    metrics = read_json(summary["evaluate"].artifact.folder / "metrics.json")
    for row in metrics["results"]:
        assert any(f"{row['model']}, {row['mode']}: mAP {100 * row['mAP']:.1f}" in line for line in lines)
    assert f"report: {summary['report'].artifact.folder / 'report.html'}" in lines


@pytest.mark.parametrize(
    ("recipe", "dataset", "wanted"),
    [
        ("demo", "demo", "demo-"),
        ("demo", "lobby", "demo-lobby-"),
        ("market1501_rn50", "market1501", "market1501_rn50-"),
        ("baseline", "base", "baseline-base-"),
    ],
)
def test_a_run_is_named_after_its_recipe_and_its_dataset(recipe, dataset, wanted):
    from flows.pipeline import run_name

    assert re.fullmatch(rf"{wanted}\d{{8}}-\d{{6}}", run_name(recipe, dataset))


def test_commands_draw_the_captions_and_search_the_gallery(home, tmp_path, capsys):
    settings = [part for text in FINISHED_RUN for part in ("--set", text)]
    assert main(["sheet", "demo", "--home", str(home), *settings, "--out", str(tmp_path / "sheet.jpg")]) == 0
    assert Image.open(tmp_path / "sheet.jpg").size[0] > 1000
    capsys.readouterr()
    image = next((_images(home) / "bounding_box_test").glob("0*.jpg"))
    for query in ("a man in a red shirt", str(image)):
        assert main(["search", "demo", query, "--home", str(home), *settings, "--top", "3"]) == 0
        hits = re.findall(r"^│ +(\d) │ +(-?\d\.\d+) │", capsys.readouterr().out, re.MULTILINE)
        assert [rank for rank, _ in hits] == ["1", "2", "3"]
        scores = [float(score) for _, score in hits]
        assert scores == sorted(scores, reverse=True)
    assert scores[0] == 1.0, "the image itself"
    assert main(["sheet", "demo", "--each", "0"]) == 2
    assert "--each" in capsys.readouterr().err


def test_a_method_without_captions_makes_none(home):
    summary = _run(home, "train.method=clip_baseline")
    assert [stage.stage for stage in summary.stages] == ["index", "train", "evaluate", "report"]
    page = (summary["report"].artifact.folder / "report.html").read_text()
    assert "clip_baseline" in page
    assert "Captions parsed" not in page
    assert [stage.stage for stage in _run(home, "train.method=clip_baseline", until="caption").stages][-1] == "caption"


def test_seven_frames_lie_between_the_flow_and_the_optimizer(home, monkeypatch):
    """With the two of the command line that makes nine, which a reader can follow."""
    stacks = []
    step = torch.optim.Adam.step

    def recording(self, *arguments, **options):
        files = [Path(frame.filename) for frame in traceback.extract_stack()]
        stacks.append([file.relative_to(REPO) for file in files if file.is_relative_to(REPO)])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", recording)
    _run(home, "train.method=clip_baseline", "train.seed=5", until="train")
    own = [file for file in stacks[0] if file.parts[0] != "tests" and "site-packages" not in file.parts]
    assert len(own) == 7, own


@dataclass(frozen=True, kw_only=True)
class _Copy(Stage):
    """A stage whose ingredient is a file, which it copies."""

    name: ClassVar[str] = "train"
    source: Path

    def ingredients(self, run):
        return {"text": self.source.read_text()}

    def produce(self, run, folder, scratch):
        shutil.copyfile(self.source, folder / "copy.txt")
        return Produced()


def test_an_input_that_changes_while_a_step_waits_names_its_artifact(prefect_server, tmp_path):
    from flows.stage_tasks import Step, stage_task

    source, run = tmp_path / "weights", RunContext(store=ArtifactStore(tmp_path / "home"))
    source.write_text("old")
    step = Step(stage=_Copy(source=source))
    before = step.stage.plan(run)
    source.write_text("new")
    made = ArtifactRef(**stage_task.fn(step=step, plan=before, run=run)["ref"])
    assert (made.folder / "copy.txt").read_text() == "new"
    assert made == step.stage.find(run)
    assert before.find(run.store) is None


def test_two_processes_train_for_one_task_and_share_its_fingerprint(home):
    longer = ("train.schedule.epochs=2", "train.batch.identities=4")
    assert _reran(_run(home, *longer, "scale.train_processes=2", until="train")) == ["train"]
    assert _reran(_run(home, *longer, until="train")) == []
    three = ("train.schedule.epochs=3", "train.method=clip_baseline")
    with pytest.raises(
        ConfigError, match=r"scale.train_processes=2 does not divide train.batch.identities=3: set train"
    ):
        _run(home, *three, "scale.train_processes=2")
    # Three identities a batch cannot be divided by two: so these really are two, and not each alone.
    summary = _run(home, until="index")["index"]
    run = run_on(ArtifactStore(home), summary.artifact, summary.images_root)
    stage = TrainStage(captions=None, config=build_recipe("demo", three, size=FINISHED_RUN).train)
    with pytest.raises(ClipScgiError, match="must divide the 3 identities"):
        launch_training(stage, run, ScaleConfig(train_processes=2))


@pytest.mark.parametrize("runner", ["threads", pytest.param("processes", marks=pytest.mark.soak), "ray"])
def test_two_workers_caption_one_dataset(home, runner):
    if runner == "ray":
        pytest.importorskip("ray", reason="the extra [ray] is not installed")
    (file,) = (home / "stages" / "caption").glob("*/captions.parquet")
    alone = pd.read_parquet(file)
    shutil.rmtree(home / "captions")
    shutil.rmtree(home / "stages" / "caption")
    summary = _run(home, "scale.caption_workers=2", f"scale.runner={runner}", until="caption")
    rows = pd.read_parquet(summary["caption"].artifact.folder / "captions.parquet")
    assert summary["caption"].note == f"{rows['image_sha256'].nunique()} captions generated by 2 workers ({runner})"
    (begun,) = (home / "captions").glob("*/meta.json")
    took = (summary["caption"].artifact.folder / "captions.parquet").stat().st_mtime - begun.stat().st_mtime
    assert summary["caption"].seconds > took, "the time of the stage includes that of its workers"
    shards = pd.concat(pd.read_parquet(path) for path in (home / "captions").glob("*/part-*.parquet"))
    assert sorted(shards["image_sha256"]) == sorted(rows["image_sha256"].unique()), "nothing is captioned twice"
    how = ["batch_size"]  # how many images went through the model at once, the one column that may differ
    pd.testing.assert_frame_equal(rows.drop(columns=how), alone.drop(columns=how))
    assert "caption" not in _reran(_run(home))


def test_processes_that_fail_say_why(capfd):
    from flows.execution.child import stream

    status, last = stream([sys.executable, "-c", "print('no such weights'); raise SystemExit(3)"], os.environ)
    assert (status, last) == (3, "no such weights\n")
    assert "no such weights" in capfd.readouterr().err


def test_a_second_run_finds_everything_and_loads_no_model(home, monkeypatch):
    import captioning.engines.llava
    import reid.models.backbone

    def refuse(*_, **__):
        raise AssertionError("a cached run loaded a model")

    monkeypatch.setattr(captioning.engines.llava.Engine, "load", refuse)
    monkeypatch.setattr(reid.models.backbone, "build_backbone", refuse)
    assert _reran(_run(home)) == []  # digests are remembered by path: the copied images are read once more
    summary = _run(home)
    assert _reran(summary) == []
    assert summary["index"].note.endswith(", 0 read")


def test_losing_prefects_database_costs_nothing(home):
    # The copy lies elsewhere, so Prefect does not know it: the disk alone decides.
    assert _reran(_run(home)) == []


def test_one_image_more_costs_one_caption(home):
    source = next((_images(home) / "bounding_box_train").glob("*.jpg"))
    with Image.open(source) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
            source.with_name(source.name.replace("_01.jpg", "_77.jpg")), quality=90
        )
    summary = _run(home)
    assert _reran(summary) == STAGES
    assert summary["caption"].note.startswith("1 caption generated")
    found = _reasons(summary)
    assert found["index"] == found["caption"] == found["train"].split(";")[0] == "images changed: 1 image added"
    assert found["train"].endswith("captions changed: 1 added")


def _rename(folder: Path) -> None:
    """Rename the first image of `folder`, labels kept, so that it comes last of its identity and camera."""
    first = min(folder.glob("0*.jpg"))
    first.rename(first.with_name(re.sub(r"_(\d{6})_", "_999999_", first.name)))


def _reasons(summary: RunSummary) -> dict[str, str]:
    return {stage.stage: stage.reason for stage in summary.stages if stage.reason}


def test_a_renamed_training_image_retrains_nothing(home):
    _rename(_images(home) / "bounding_box_train")
    summary = _run(home)
    assert _reran(summary) == ["index", "caption", "audit", "report"]
    assert summary["caption"].note.startswith("0 captions generated")
    found = _reasons(summary)
    assert found["index"] == found["caption"] == "images changed: 1 path renamed"
    assert found["audit"].startswith("captions changed")
    assert set(found) == set(_reran(summary)), "a cached stage does not give a reason"


def test_a_renamed_gallery_image_is_ranked_anew_and_trains_nothing(home):
    _rename(_images(home) / "bounding_box_test")
    summary = _run(home)
    assert _reran(summary) == ["index", "caption", "audit", "evaluate", "report"]
    assert summary["evaluate"].reason == "images changed: 1 path renamed"


def test_training_does_not_depend_on_the_names_of_files(home):
    before = _run(home)["train"].artifact
    shutil.rmtree(before.folder)
    _rename(_images(home) / "bounding_box_train")
    after = _run(home, until="train")
    assert "train" in _reran(after)
    assert after["train"].reason == "its artifact was deleted, or the run that made it was interrupted"
    file = "model.safetensors"
    assert after["train"].artifact.fingerprint == before.fingerprint
    assert after["train"].artifact.digests_of(file) == before.digests_of(file), "the weights are the same"
    assert "evaluate" not in _reran(_run(home))


def test_a_changed_gallery_image_trains_nothing(home):
    image = min((_images(home) / "bounding_box_test").glob("0*.jpg"))
    Image.open(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(image)
    summary = _run(home)
    assert _reran(summary) == ["index", "caption", "audit", "evaluate", "report"]
    assert summary["evaluate"].reason == "images changed: 1 image replaced"


def test_captions_of_equal_text_train_nothing(home):
    before = _run(home)
    assert _reran(_run(home, "caption.batch_size=5")) == []
    summary = _run(home, "caption.max_new_tokens=300")
    assert summary["caption"].note.endswith("captions generated, 0 reused")
    assert summary["caption"].reason.startswith("captioner changed: max_new_tokens ")
    assert _reran(summary) == ["caption", "report"]
    assert summary["train"].artifact == before["train"].artifact


def test_captions_of_another_batch_size_train_nothing(home):
    shutil.rmtree(home / "captions")
    shutil.rmtree(home / "stages" / "caption")
    again = _run(home, "caption.batch_size=5")
    assert _reran(again) == ["caption", "report"], "the page shows the size of the batches, and nothing else reads it"


def test_one_changed_byte_in_the_captions_reruns_only_the_view(home):
    caption = _run(home)["caption"].artifact
    path = caption.folder / "captions.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    again = _run(home)
    assert _reran(again) == ["caption"]
    assert again["caption"].note.startswith("0 captions generated")
    assert again["caption"].artifact.content == caption.content


@pytest.mark.parametrize("stage", ["audit", "train", "evaluate", "report"])
def test_a_deleted_artifact_reruns_exactly_its_stage(home, stage):
    before = _run(home)
    shutil.rmtree(before[stage].artifact.folder)
    after = _run(home)
    # Training is deterministic: the same weights come back, so evaluation stays. Its log holds new times, which the
    # report shows.
    assert _reran(after) == ([stage, "report"] if stage == "train" else [stage])
    assert ArtifactStore(home).problems(stage, after[stage].artifact.fingerprint) == []


def test_a_truncated_artifact_is_made_again(home):
    evaluation = _run(home)["evaluate"].artifact
    (evaluation.folder / "rankings.parquet").write_bytes(b"PAR1")
    assert _reran(_run(home)) == ["evaluate"]


def test_a_lost_sidecar_means_not_finished(home):
    audit = _run(home)["audit"].artifact
    (audit.folder / SIDECAR).unlink()
    assert _reran(_run(home)) == ["audit"]


def test_a_changed_setting_reruns_what_depends_on_it(home):
    assert _reran(_run(home, "report.captions=3")) == ["report"]
    longer = _run(home, "train.schedule.epochs=2")
    assert _reran(longer) == ["train", "evaluate", "report"]
    assert _reasons(longer)["train"] == "config.schedule.epochs 1 -> 2"
    assert _reasons(longer)["evaluate"] == "model changed"
    assert "recipe.train.schedule.epochs 1 -> 2" in _reasons(longer)["report"]


def test_until_stops_after_that_stage(home):
    assert [stage.stage for stage in _run(home, until="audit").stages] == STAGES[:3]


def test_bad_images_are_rejected_and_the_run_goes_on(home):
    folder = _images(home) / "bounding_box_train"
    (folder / "0001_c1s1_000001_99.jpg").write_bytes(b"")
    (folder / "holiday.jpg").write_bytes(b"not a name of this dataset")
    summary = _run(home, until="caption")
    index = summary["index"]
    assert "2 rejected" in index.note
    rejected = pd.read_parquet(index.artifact.folder / "rejected.parquet")
    assert set(rejected["reason"]) == {"empty_file", "bad_name"}
    assert _reran(summary) == ["index"], "what is not used changes nothing downstream"


def test_what_is_known_to_fail_later_fails_before_captioning(home):
    before = sorted((home / "captions").glob("*/*"))
    with pytest.raises(ConfigError) as caught:
        _run(home, "caption.decoding=slots", "train.batch.identities=16", "train.device=cuda:99", "train.sie=1")
    assert str(caught.value).startswith("recipe demo: 2 problems")
    assert (
        "train.batch.identities=16 but the dataset has 6 training identities: set train.batch.identities=6 or"
        in str(caught.value)
    )
    assert "train.device=cuda:99" in str(caught.value)
    assert sorted((home / "captions").glob("*/*")) == before


def test_what_is_there_needs_no_gpu(home, monkeypatch):
    """Only stages that will run are checked: of a finished run none."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    settings = ["caption.device=cuda", "train.device=cuda:1", "evaluate.device=cuda"]
    assert _reran(_run(home, *settings)) == []
    with pytest.raises(
        ConfigError, match=r"^recipe demo: evaluate.device=cuda: this machine has no usable CUDA device"
    ):
        _run(home, *settings, "evaluate.flip=true")
