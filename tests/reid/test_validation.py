"""Evaluation during training: holdout, measures and the epoch that is kept; nothing else changes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from data.artifacts.store import ArtifactStore
from data.datasets import DatasetConfig
from data.errors import ConfigError, DataError
from data.index.stage import index
from data.stages.images import IndexedImages
from data.synthetic.world import WorldConfig, write_market1501
from reid.config.evaluate import EvaluateConfig
from reid.config.train import BatchConfig, ScgiConfig, ScheduleConfig, TrainConfig, ValidationConfig
from reid.inputs.image_rows import read_rows
from reid.inputs.pixel_cache import load_pixels
from reid.inputs.training_rows import training_rows
from reid.tasks.base import preprocess_of
from reid.tasks.build import build_task
from reid.training.checkpoint import load_task
from reid.training.metrics_log import METRICS_FILE
from reid.training.trainer import fit
from reid.training.validation import Validator, ranked_held_out, ranked_test
from tests.helpers.image_rows import image_rows
from tests.helpers.reid_worlds import KilledError, same_weights, small_config, training_set, weights_of
from tests.helpers.stages import evaluate, pixels, train

EVERY_EPOCH = ValidationConfig(every=1)
BEST = ValidationConfig(every=1, keep="best")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data():
    return training_set()


@pytest.fixture(scope="module")
def world(module_folder):
    """Twelve training identities from two cameras, two images per camera."""
    root = module_folder("world") / "market"
    write_market1501(root, WorldConfig(seed=5, train_identities=12, test_identities=3, images_per_camera=2, cameras=2))
    store = ArtifactStore(module_folder("home"))
    images = index(store, config=DatasetConfig(name="toy", reader="market1501", root=str(root))).made.ref
    return store, images, root


# Settings ---------------------------------------------------------------------------------------------


def test_it_is_off_and_then_no_part_of_a_fingerprint():
    assert TrainConfig().validation.every == 0
    assert "validation" not in TrainConfig(validation=ValidationConfig(held_out=0.3)).identity()
    assert TrainConfig(validation=EVERY_EPOCH).identity() != TrainConfig(validation=BEST).identity()


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValidationError, match="needs evaluations during training"):
        ValidationConfig(keep="best")
    fused = ValidationConfig(every=1, mode="fused")
    TrainConfig(validation=fused)
    for changes in ({"method": "clip_reid"}, {"scgi": ScgiConfig(cff=False)}):
        with pytest.raises(ValidationError, match='"fused" needs method=clip_scgi'):
            TrainConfig(validation=fused, **changes)


def test_every_so_many_epochs_and_the_last():
    due = ValidationConfig(every=2).due
    assert [done for done in range(1, 6) if due(done, 5)] == [2, 4, 5]
    assert not any(ValidationConfig().due(done, 5) for done in range(1, 6))


# What is held out -------------------------------------------------------------------------------------


def _rows(images, **changes):
    settings = {"method": "clip_baseline", "batch": BatchConfig(identities=4), "validation": EVERY_EPOCH}
    return training_rows(IndexedImages(ref=images, root=Path()), None, TrainConfig(**{**settings, **changes}))


def test_held_out_identities_are_drawn_by_their_seed_and_never_trained_on(world):
    _, images, _ = world
    quarter = ValidationConfig(every=1, held_out=0.25)
    rows = _rows(images, validation=quarter)
    trained, held_out = set(rows.trained.pid.tolist()), set(rows.held_out.pid.tolist())
    assert (len(trained), len(held_out)) == (9, 3)
    assert not trained & held_out
    assert len(rows.trained) + len(rows.held_out) == 48
    assert set(rows.held_out.split) == {"train"}
    other = _rows(images, validation=quarter, seed=7)
    assert other.held_out.path.tolist() == rows.held_out.path.tolist(), "runs with other seeds hold out the same people"
    draws = {
        tuple(sorted(set(_rows(images, validation=quarter.model_copy(update={"split_seed": s})).held_out.pid.tolist())))
        for s in range(6)
    }
    assert len(draws) > 3
    few = _rows(images, validation=ValidationConfig(every=1, held_out=0.01))
    assert len(set(few.held_out.pid.tolist())) == 2, "one identity is not enough to rank"
    for settings in (ValidationConfig(), ValidationConfig(every=1, images="test")):
        assert _rows(images, validation=settings).held_out.path.tolist() == []


def test_too_few_identities_for_a_batch_beside_those_held_out(world):
    _, images, _ = world
    with pytest.raises(ConfigError, match=r"identities=8 but .* leaves 6 of 12 training identities: set train"):
        _rows(images, validation=ValidationConfig(every=1, held_out=0.5), batch=BatchConfig(identities=8))


# What is measured -------------------------------------------------------------------------------------


class _Means(nn.Module):
    """A fake task whose features are the mean colors of an image."""

    def __init__(self):
        super().__init__()
        self.preprocess = preprocess_of(TrainConfig().backbone)
        self.modes = []

    def encoders(self):
        def encode(images):
            self.modes.append(self.training)
            return images.mean((2, 3)) - 0.1

        return {"image": encode, "fused": encode}

    def camera_numbers(self, camids):
        return None


def _average_precision(similarity, relevant, counts):
    """AP of one query by the definition: precision at each relevant place, averaged."""
    order = sorted(np.flatnonzero(counts), key=lambda place: -similarity[place])
    hits = [bool(relevant[place]) for place in order]
    ranks = [rank for rank, hit in enumerate(hits, start=1) if hit]
    return np.mean([number / rank for number, rank in enumerate(ranks, start=1)]) if ranks else None


def rows_of(pids, camids):
    """Training images without paths, with these labels."""
    return image_rows(["train"] * len(pids), pids, camids)


def _brute_force(pixels, pids, excluded):
    features = (pixels.astype(np.float64) / 127.5 - 1).mean((1, 2)) - 0.1
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    found = []
    for query in range(len(pids)):
        counts = ~((pids == pids[query]) & (excluded == excluded[query]))
        found.append(_average_precision(features @ features[query], counts & (pids == pids[query]), counts))
    return np.mean([ap for ap in found if ap is not None])


@pytest.mark.parametrize("cameras", [3, 1])
def test_held_out_images_are_ranked_each_against_the_others(data, cameras):
    """With cameras, images of the query's camera are excluded; without cameras, only the query itself is."""
    pids, camids = data.labels_N, np.arange(len(data.labels_N)) % cameras
    rows = rows_of(pids, camids)
    task = _Means().train()
    got = Validator(ranked_held_out(rows), data.pixels, TrainConfig(validation=EVERY_EPOCH), "cpu")(task)
    assert got["mAP"] == pytest.approx(_brute_force(data.pixels, pids, camids if cameras > 1 else np.arange(len(pids))))
    assert 0 < got["mINP"] < 1
    assert task.training, "the training mode is restored"
    assert task.modes == [False], "measured in evaluation mode"


def test_the_test_set_is_ranked_as_the_evaluation_does_it(world):
    store, images, root = world
    config = small_config(
        method="clip_baseline",
        validation=ValidationConfig(every=1, images="test", keep="best"),
        schedule=ScheduleConfig(epochs=1, lr_clip=1e-4, lr_new=1e-4, milestones=()),
    )
    made = train(store, images=images, captions=None, images_root=root, config=config)
    kept = json.loads((made.ref.folder / "config.json").read_text())["training"]["kept"]
    evaluated = evaluate(
        store, images=images, model=made.ref, images_root=root, config=EvaluateConfig(device="cpu", batch_size=64)
    )
    metrics = json.loads((evaluated.ref.folder / "metrics.json").read_text())
    for name, value in kept["measures"].items():
        assert metrics["results"][1][name] == pytest.approx(value, abs=1e-6)
    assert kept["chosen_on"] == "test"
    assert "chosen" not in metrics["protocol"]["description"]
    assert "was selected on these same images" in metrics["protocol"]["description"], (
        "the choice on the test set is reported"
    )
    rows = read_rows(IndexedImages(ref=images, root=root))
    with pytest.raises(DataError, match="needs queries and a gallery"):
        ranked_test(replace(rows, split=np.array(["train"] * len(rows), dtype=object)))


def test_a_test_set_without_cameras_is_ranked_without_their_rule():
    split = ["query", "query", "gallery", "gallery", "gallery"]
    rows = image_rows(split, [5, -1, 5, 0, -1], [3] * 5)
    ranked = ranked_test(rows)
    assert (ranked.positions_N.tolist(), ranked.pids_N.tolist()) == ([0, 3, 2], [5, 0, 5])
    assert (ranked.excluded_by_N.tolist(), ranked.query_Q.tolist()) == ([0, 1, 2], [0])
    assert ranked_test(replace(rows, camid=np.array([3, 3, 4, 3, 3]))).excluded_by_N.tolist() == [3, 3, 4]


# Which epoch is kept ----------------------------------------------------------------------------------


def _script(*scores):
    """A validation that returns `scores` one after the other."""
    remaining = iter(scores)
    return lambda task: {"mAP": next(remaining), "rank1": 0.5}


def _config(epochs=4, **changes):
    schedule = ScheduleConfig(epochs=epochs, lr_clip=1e-4, lr_new=3e-4, warmup_epochs=2, milestones=())
    return small_config(**{"method": "clip_baseline", "schedule": schedule, **changes})


def _fit(data, folder, config, **more):
    task = build_task(config, identities=8)
    return task, fit(task, data, config, folder=folder, **more)


def _lines(folder, kind):
    return [line for line in map(json.loads, (folder / METRICS_FILE).read_text().splitlines()) if line["kind"] == kind]


@pytest.fixture(scope="module")
def unwatched(data, module_folder):
    """Weights after two and after four epochs of a run that is not evaluated."""
    made = {}
    for epochs in (2, 4):
        task, _ = _fit(data, module_folder("unwatched"), _config(epochs))
        made[epochs] = weights_of(task)
    return made


def test_the_first_of_the_best_epochs_is_kept(data, unwatched, tmp_path):
    task, state = _fit(data, tmp_path, _config(validation=BEST), validate=_script(0.2, 0.5, 0.1, 0.5))
    assert state.best == {"epoch": 1, "step": 4, "mAP": 0.5, "rank1": 0.5}
    assert same_weights(weights_of(task), unwatched[2])
    lines = _lines(tmp_path, "eval")
    assert [(line["epoch"], line["step"], line["mAP"]) for line in lines] == [
        (0, 2, 0.2),
        (1, 4, 0.5),
        (2, 6, 0.1),
        (3, 8, 0.5),
    ]
    assert len(list(tmp_path.glob("best-*"))) == 1


@pytest.mark.parametrize("checkpoint_every", [0, 1])
def test_the_last_epoch_is_kept_by_default_and_evaluation_changes_nothing(data, unwatched, tmp_path, checkpoint_every):
    positions = ranked_held_out(rows_of(data.labels_N[:8], data.cameras_N[:8]))
    config = _config(validation=ValidationConfig(every=3), checkpoint_every=checkpoint_every)
    task, state = _fit(data, tmp_path, config, validate=Validator(positions, data.pixels, config, "cpu"))
    assert [line["epoch"] for line in _lines(tmp_path, "eval")] == [2, 3]
    assert state.measured["epoch"] == 3
    assert same_weights(weights_of(task), unwatched[4])
    assert not list(tmp_path.glob("best-*"))


CLASS_EMBEDDING = "backbone.clip.visual.class_embedding"


@pytest.mark.parametrize(("stop", "every"), [(3, 1), (5, 3), (5, 4), (7, 0)])
def test_a_killed_run_keeps_the_same_epoch(data, unwatched, tmp_path, stop, every):
    """The scores are a function of the weights, so the second run must arrive at the same ones."""

    def by_weights(task):
        same = torch.equal(task.backbone.clip.visual.class_embedding, unwatched[2][CLASS_EMBEDDING])
        return {"mAP": 0.9 if same else 0.1}

    config = _config(validation=BEST, checkpoint_every=every)

    def kill(done, total, note):
        if done == stop:
            raise KilledError

    with pytest.raises(KilledError):
        _fit(data, tmp_path, config, validate=by_weights, progress=kill)
    task, state = _fit(data, tmp_path, config, validate=by_weights)
    assert state.best["epoch"] == 1
    assert same_weights(weights_of(task), unwatched[2])
    assert [line["epoch"] for line in _lines(tmp_path, "eval")] == [0, 1, 2, 3]


def test_the_stage_holds_out_keeps_the_best_and_says_so(world):
    store, images, root = world
    config = _config(2, validation=ValidationConfig(every=1, held_out=0.25, keep="best"), sie=1.0)
    made = train(store, images=images, captions=None, images_root=root, config=config)
    described = json.loads((made.ref.folder / "config.json").read_text())
    training, kept = described["training"], described["training"]["kept"]
    assert (training["identities"], training["identities_held_out"]) == (9, 3)
    assert (training["images"], training["images_held_out"]) == (36, 12)
    assert described["provenance"]["version"] == "without junk"
    lines = _lines(made.ref.folder, "eval")
    best = max(lines, key=lambda line: line["mAP"])
    assert kept["epoch"] == best["epoch"]
    assert (kept["rule"], kept["chosen_on"], kept["measured_on"]) == ("best", "held_out", "held_out")
    assert kept["measures"]["mAP"] == best["mAP"]
    assert sorted(path.name for path in made.ref.folder.iterdir()) == [
        "artifact.json", "config.json", "metrics.jsonl", "model.safetensors"]  # fmt: skip
    # The kept model has the measures for which it was kept.
    rows = training_rows(IndexedImages(ref=images, root=root), None, config)
    cache = load_pixels(pixels(store, images=images, images_root=root, height=128, width=64).ref)
    again = Validator(ranked_held_out(rows.held_out), cache, config, "cpu")(load_task(made.ref.folder))
    assert again["mAP"] == pytest.approx(best["mAP"], abs=1e-6)


# The record -------------------------------------------------------------------------------------------


def test_tensorboard_gets_losses_terms_rates_and_evaluations(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = _config(2, validation=EVERY_EPOCH, tensorboard=str(tmp_path / "board"))
    _fit(data, tmp_path / "run", config, validate=_script(0.25, 0.75))
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert {"step/loss", "step/terms/id", "step/lr/clip", "epoch/loss", "eval/mAP", "eval/rank1"} <= set(
        board.Tags()["scalars"]
    )
    assert [(event.step, event.value) for event in board.Scalars("eval/mAP")] == [(2, 0.25), (4, 0.75)]
    steps = _lines(tmp_path / "run", "step")
    assert [event.value for event in board.Scalars("step/loss")] == pytest.approx([line["loss"] for line in steps])
    assert steps[0]["lr"]["clip"] == pytest.approx(board.Scalars("step/lr/clip")[0].value)
