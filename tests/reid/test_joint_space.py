"""Keeping the joint space of images and sentences: distillation, the separate retrieval head, interpolated weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from data.config import build_config
from data.errors import ConfigError
from reid.config.backbone import BackboneConfig
from reid.config.scgi import ScgiConfig
from reid.config.train import LossConfig, TrainConfig, ValidationConfig
from reid.embedding.embedder import EmbedConfig, Embedder
from reid.tasks.base import Batch
from reid.tasks.build import build_task
from reid.tasks.losses import distillation_loss
from reid.training.blend import StartWeights
from reid.training.checkpoint import load_task, load_untrained, save_model
from reid.training.trainer import fit
from tests.helpers.reid_worlds import KilledError, same_weights, small_config, training_set, weights_of

METHODS = ["clip_scgi", "clip_reid", "clip_baseline"]
DISTILLED = LossConfig(distill_weight=2.0, distill_temperature=0.05)


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def task_of(method="clip_scgi", **changes):
    config = TrainConfig(**{"method": method, **changes})
    return build_task(config, identities=4, cameras=[1, 2], texts_CD=randn(9, 4, 128) if "reid" in method else None)


def batch_of(size=8) -> Batch:
    return Batch(
        images_BCHW=randn(0, size, 3, 128, 64),
        labels_B=torch.arange(size) // 2,
        items_B=torch.arange(size),
        cameras_B=torch.arange(size) % 2,
        captions_BD=randn(1, size, 128),
    )


@pytest.fixture(scope="module")
def data():
    return training_set()


# Distillation -----------------------------------------------------------------------------------------


def test_distillation_by_hand():
    # Two images and two texts at right angles, temperature 1. The frozen tower saw each image at its own text: cosines
    # 1 and 0. The trained one sees both images at the first text. Rows: p = (e, 1) / (e + 1); the first image has not
    # moved; for the second, q = (e, 1) / (e + 1) where p = (1, e) / (e + 1), so KL = (e - 1) / (e + 1). Columns: for
    # both texts q = (1/2, 1/2), so KL = ln 2 - H(p) each.
    own, both, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2)
    p = np.e / (np.e + 1)
    rows = (np.e - 1) / (np.e + 1) / 2
    columns = np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p)
    assert distillation_loss(both, own, texts, 1.0).item() == pytest.approx(rows + columns, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_distillation_equals_the_loop(temperature):
    image, frozen, text = randn(1, 6, 32), randn(1, 6, 32) + 0.3 * randn(2, 6, 32), randn(3, 6, 32)
    text[4] = text[2]  # two images with the same caption

    def shares(features):
        a, b = (
            x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True) for x in (features, text)
        )
        logits = a @ b.T / temperature
        return [x - x.max(1, keepdims=True) - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))
                for x in (logits, logits.T)]  # fmt: skip

    expected = sum(
        np.mean([sum(np.exp(p[i, j]) * (p[i, j] - q[i, j]) for j in range(6)) for i in range(6)])
        for p, q in zip(shares(frozen), shares(image), strict=True)
    )
    assert distillation_loss(image, frozen, text, temperature).item() == pytest.approx(expected, rel=1e-4)


def distilled(**changes):
    task = task_of(loss=DISTILLED, **changes)
    task.start_training()
    return task


def test_an_untrained_tower_has_neither_loss_nor_gradient():
    task = distilled().eval()
    loss = task(batch_of())["distill"]
    loss.backward()
    assert abs(loss.item()) < 1e-6
    own = next(p for name, p in task.named_parameters() if name.endswith("visual.proj"))
    contrast = task_of().eval()
    contrast(batch_of())["con"].backward()
    other = next(p for name, p in contrast.named_parameters() if name.endswith("visual.proj"))
    assert own.grad.norm() < 1e-4 * other.grad.norm()
    assert all(p.grad is None for name, p in task.named_parameters() if name.startswith(("cgi", "cff", "heads")))


def test_a_tower_that_moved_is_pulled_back():
    task = distilled().eval()
    with torch.no_grad():
        task.backbone.clip.visual.proj += 0.05 * randn(4, *task.backbone.clip.visual.proj.shape)
    before = task(batch_of())["distill"]
    before.backward()
    with torch.no_grad():
        task.backbone.clip.visual.proj -= 1e-3 * task.backbone.clip.visual.proj.grad
    assert task(batch_of())["distill"] < before
    assert task.weights["distill"] == 2.0


def test_the_frozen_copy_is_no_part_of_the_model_and_does_not_move(data, tmp_path):
    plain, config = task_of(), small_config(loss=DISTILLED)
    task = build_task(config, identities=8)
    before = task.backbone.image(batch_of().images_BCHW).joint_BD.detach()
    seen = []

    def watch(done, total, note):
        seen.append(task.frozen(batch_of().images_BCHW).joint_BD)

    fit(task, data, config, folder=tmp_path, progress=watch)
    assert len(seen) == 4
    for features in seen:
        torch.testing.assert_close(features, before, rtol=1e-4, atol=1e-5)
        assert torch.equal(features, seen[0])
        assert not features.requires_grad
    assert not torch.allclose(task.backbone.image(batch_of().images_BCHW).joint_BD, before, rtol=1e-3, atol=1e-3)
    assert task.frozen is None, "dropped at the end"
    assert task.state_dict().keys() == plain.state_dict().keys()
    assert {name for name, _ in task.named_parameters()} == {name for name, _ in plain.named_parameters()}


def test_without_a_weight_and_at_inference_there_is_no_copy(tmp_path):
    plain = task_of()
    plain.start_training()
    assert plain.frozen is None
    assert "distill" not in plain(batch_of())
    task = distilled()
    save_model(tmp_path / "model.safetensors", task)
    config = TrainConfig(loss=DISTILLED).model_dump(mode="json")
    (tmp_path / "config.json").write_text(json.dumps({"config": config, "identities": [1, 2, 3, 4]}))
    assert load_task(tmp_path).frozen is None
    with pytest.raises(ValueError, match="call start_training first"):
        task_of(loss=DISTILLED)(batch_of())


# The separate retrieval head --------------------------------------------------------------------------


def grads(task, term):
    term.backward()
    found = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
    task.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_identity_and_triplet_losses_do_not_reach_the_joint_projection(method):
    projection = "backbone.clip.visual.proj"
    joint, separate = (task_of(method, retrieval_head=head).train() for head in ("joint", "separate"))
    for term in ("id", "tri"):
        assert projection in grads(joint, joint(batch_of())[term])
        found = grads(separate, separate(batch_of())[term])
        assert projection not in found
        assert "retrieval.weight_DV" in found
    if method == "clip_baseline":
        assert not separate.backbone.clip.visual.proj.requires_grad, "no loss reaches it"
        return
    term = {"clip_scgi": "con", "clip_reid": "i2t"}[method]
    found = grads(separate, separate(batch_of())[term])
    assert projection in found
    assert "retrieval.weight_DV" not in found


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_of_a_separate_head_is_trained(method):
    task = task_of(method, retrieval_head="separate").train()
    terms = task(batch_of())
    task.total(terms).backward()
    assert [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("method", METHODS)
def test_the_losses_and_the_embedding_use_the_head_and_the_joint_mode_does_not(method, tmp_path):
    task = task_of(method, retrieval_head="separate").eval()
    with torch.no_grad():
        task.retrieval.weight_DV += 0.1 * randn(5, *task.retrieval.weight_DV.shape)
        features = task.backbone.image(batch_of().images_BCHW)
        own = (features.last_BV.double() @ task.retrieval.weight_DV.double().T).float()
        expected = torch.cat([features.last_BV, own], dim=1)
        embedder = Embedder(task, None, EmbedConfig(device="cpu"), "cpu")
        torch.testing.assert_close(task.encoders()["image"](batch_of().images_BCHW), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(task.encode_joint(batch_of().images_BCHW), features.joint_BD)
        scores = task.heads.joint(own), task.heads.last(features.last_BV)
        logs = [x.double().log_softmax(1) for x in scores]
        target = 0.9 * torch.eye(4, dtype=torch.float64)[batch_of().labels_B] + 0.1 / 4
        identity = -sum((target * log).sum(1).mean() for log in logs)
        assert task(batch_of())["id"].item() == pytest.approx(identity.item(), rel=1e-4)
    assert embedder.width("image") == 128 + features.last_BV.shape[1]
    assert embedder.width("joint") == 128
    save_model(tmp_path / "model.safetensors", task)
    config = TrainConfig(method=method, retrieval_head="separate").model_dump(mode="json")
    (tmp_path / "config.json").write_text(json.dumps({"config": config, "identities": [1, 2, 3, 4]}))
    with torch.no_grad():
        again = load_task(tmp_path).encoders()["image"](batch_of().images_BCHW)
        assert torch.equal(again, task.encoders()["image"](batch_of().images_BCHW))


def test_before_training_the_head_is_clips_projection_and_the_other_modules_are_the_same():
    joint, separate = (task_of(retrieval_head=head).eval() for head in ("joint", "separate"))
    with torch.no_grad():
        first, second = (task.encoders()["image"](batch_of().images_BCHW) for task in (joint, separate))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    own = weights_of(separate)
    assert torch.equal(own.pop("retrieval.weight_DV"), joint.backbone.clip.visual.proj.T)
    assert same_weights(own, weights_of(joint))


def test_the_untrained_model_has_no_head():
    settings = TrainConfig(retrieval_head="separate", blend=0.5, loss=DISTILLED)
    untrained = load_untrained(settings)
    assert untrained.retrieval is None
    assert same_weights(weights_of(untrained), weights_of(load_untrained(TrainConfig())))


@pytest.mark.parametrize("method", METHODS)
def test_a_resnet_has_a_head_of_random_weights(method):
    backbone = BackboneConfig(name="rn50", weights="random", height=64, width=32)
    task = build_task(TrainConfig(method=method, backbone=backbone, retrieval_head="separate"), identities=2).train()
    batch = Batch(
        images_BCHW=randn(6, 4, 3, 64, 32),
        labels_B=torch.tensor([0, 0, 1, 1]),
        items_B=torch.arange(4),
        captions_BD=randn(7, 4, 1024),
    )
    assert task.retrieval.weight_DV.std().item() == pytest.approx(2048**-0.5, rel=0.05)
    task.total(task(batch)).backward()
    assert [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None] == []


# Interpolated weights ---------------------------------------------------------------------------------


def _tower(state):
    return {name: value for name, value in state.items() if name.startswith("backbone.clip.visual.")}


def test_the_image_tower_is_interpolated_once_at_the_end_and_nothing_else_is(data, tmp_path):
    plain, half = small_config(), small_config(blend=0.25)
    start = weights_of(build_task(plain, identities=8))
    ends = {}
    for name, config in (("plain", plain), ("half", half)):
        task = build_task(config, identities=8)
        fit(task, data, config, folder=tmp_path / name)
        ends[name] = weights_of(task)
    tower = _tower(start)
    assert any(not torch.equal(ends["plain"][name], start[name]) for name in tower)
    for name, value in ends["half"].items():
        trained = ends["plain"][name]
        expected = 0.25 * trained.double() + 0.75 * start[name].double() if name in tower else trained
        torch.testing.assert_close(value.double(), expected.double(), rtol=1e-5, atol=1e-7)
        assert name in tower or torch.equal(value, trained), name


def test_statistics_of_a_resnet_are_interpolated_too():
    backbone = BackboneConfig(name="rn50", weights="random", height=64, width=32)
    task = build_task(TrainConfig(method="clip_baseline", backbone=backbone), identities=2)
    start, name = StartWeights(task, 0.5), "backbone.clip.visual.bn1.running_mean"
    with torch.no_grad():
        task.get_buffer(name).add_(1.0)
        task.get_buffer(name.replace("running_mean", "num_batches_tracked")).add_(3)
    trained = weights_of(task)
    with start.blended(task):
        torch.testing.assert_close(task.get_buffer(name), trained[name] - 0.5)
        assert task.get_buffer(name.replace("running_mean", "num_batches_tracked")) == 3
    assert same_weights(weights_of(task), trained)


def test_each_evaluation_sees_the_interpolated_tower_and_the_best_epoch_is_what_it_saw(data, tmp_path):
    config = small_config(blend=0.5, validation=ValidationConfig(every=1, keep="best"))
    task, seen, scores = build_task(config, identities=8), [], iter([0.9, 0.1])

    def validate(model):
        seen.append(weights_of(model))
        return {"mAP": next(scores)}

    fit(task, data, config, folder=tmp_path, validate=validate)
    assert same_weights(weights_of(task), seen[0])
    assert not same_weights(seen[0], seen[1])
    other = build_task(small_config(), identities=8)
    fit(other, data, small_config(), folder=tmp_path / "plain")
    after = small_config(blend=0.5)
    again = build_task(after, identities=8)
    fit(again, data, after, folder=tmp_path / "again")
    assert same_weights(weights_of(again), seen[1]), "the evaluations have not changed the training"


# Together ---------------------------------------------------------------------------------------------

ALL = {
    "loss": DISTILLED,
    "retrieval_head": "separate",
    "blend": 0.5,
    "scgi": ScgiConfig(contrast_text="both", contrast_image="refined", inversion_inputs="normalized"),
}


@pytest.mark.parametrize("stop", [1, 3])
def test_a_killed_run_goes_on_bit_for_bit(data, tmp_path, stop):
    config = small_config(**ALL)

    def kill(done, total, note):
        if done == stop:
            raise KilledError

    whole = build_task(config, identities=8)
    fit(whole, data, config, folder=tmp_path / "whole")
    with pytest.raises(KilledError):
        fit(build_task(config, identities=8), data, config, folder=tmp_path / "killed", progress=kill)
    task = build_task(config, identities=8)
    fit(task, data, config, folder=tmp_path / "killed")
    assert same_weights(weights_of(task), weights_of(whole))


def test_bf16_trains_with_losses_near_those_of_float32(data, tmp_path):
    losses = []
    for precision in ("no", "bf16"):
        config = small_config(**ALL, precision=precision, checkpoint_every=0)
        fit(build_task(config, identities=8), data, config, folder=tmp_path / precision)
        line = (tmp_path / precision / "metrics.jsonl").read_text().splitlines()[0]
        losses.append(json.loads(line)["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


# Settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_settings_at_their_defaults_are_no_part_of_a_fingerprint(method):
    plain = TrainConfig(method=method).identity()
    assert not {"retrieval_head", "blend"} & plain.keys()
    assert not {"distill_weight", "distill_temperature"} & plain["loss"].keys()
    assert TrainConfig(method=method, loss=LossConfig(distill_temperature=0.1)).identity() == plain
    for changes in ({"retrieval_head": "separate"}, {"blend": 0.5}):
        assert TrainConfig(method=method, **changes).identity() == {**plain, **changes}


def test_a_distillation_is_part_of_the_fingerprint():
    loss = TrainConfig(loss=DISTILLED).identity()["loss"]
    assert (loss["distill_weight"], loss["distill_temperature"]) == (2.0, 0.05)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            {"method": "clip_reid", "loss": {"distill_weight": 1}},
            r"loss\.distill_weight: compares images with captions, which clip_reid does not read; set "
            r"loss\.distill_weight=0 or method=clip_scgi",
        ),
        ({"method": "clip_baseline", "loss": {"distill_weight": 1}}, r"which clip_baseline does not read"),
        ({"blend": 0.5, "backbone": {"weights": "random"}}, r"blend: the weights before training are random .*blend=1"),
        ({"blend": 0}, r"blend: .*greater than 0"),
        ({"blend": 1.5}, r"blend: .*less than or equal to 1"),
        (
            {"retrieval_head": "separate", "scgi": {"supervised": "fused"}},
            r"retrieval_head: .*; set retrieval_head=joint or scgi\.supervised=both",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_does(values, problem):
    with pytest.raises(ConfigError, match=problem):
        build_config(TrainConfig, values, "training")


def test_a_distillation_alone_is_a_loss():
    loss = LossConfig(id_weight=0, triplet_weight=0, contrast_weight=0, distill_weight=1)
    assert TrainConfig(loss=loss).loss.distill_weight == 1
