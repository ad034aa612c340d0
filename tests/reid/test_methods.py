"""The baseline and CLIP-ReID: loss terms as formulas, the first stage, camera embeddings, batch independence."""

import json
import math

import numpy as np
import pytest
import torch

from data.artifacts.store import ArtifactStore
from data.datasets import DatasetConfig
from data.errors import DataError
from data.index.stage import index
from data.synthetic.world import WorldConfig, write_market1501
from reid.config.backbone import BackboneConfig
from reid.config.train import LossConfig, PromptConfig, ScheduleConfig, TrainConfig
from reid.models.backbone import build_backbone
from reid.tasks.base import Batch
from reid.tasks.build import build_task
from reid.tasks.losses import DivergedError, identity_loss, triplet_loss
from reid.training.checkpoint import load_task, load_untrained, save_model
from reid.training.prompt_learning import PromptData, PromptLearner, all_texts, learn_prompts, prompt_rate, prompt_terms
from tests.helpers.reid_worlds import small_config
from tests.helpers.stages import train

RANDOM = BackboneConfig(weights="random")
METHODS = ["clip_scgi", "clip_reid", "clip_baseline"]


def _randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _task(method, **changes):
    config = TrainConfig(**{"method": method, "backbone": RANDOM, **changes})
    texts = _randn(9, 4, 128) if method == "clip_reid" else None
    return build_task(config, identities=4, cameras=[1, 3, 6], texts_CD=texts)


def _batch(size=8):
    return Batch(
        images_BCHW=_randn(0, size, 3, 128, 64),
        labels_B=torch.arange(size) // 2,
        items_B=torch.arange(size),
        cameras_B=torch.arange(size) % 3,
        captions_BD=_randn(1, size, 128),
    )


# Losses -----------------------------------------------------------------------------------------------


def test_clip_reid_terms_are_those_of_its_second_stage():
    task = _task("clip_reid", loss=LossConfig(id_weight=0.25)).train()
    batch = _batch()
    terms = task(batch)
    features = task.backbone.image(batch.images_BCHW)
    parts = [features.penultimate_BV, features.last_BV, features.joint_BD]

    def scores(x, head):
        normed = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
        return normed @ head.classifier.weight.T

    heads = [scores(parts[1], task.heads.last), scores(parts[2], task.heads.joint)]
    expected = {
        "id": sum(identity_loss(x, batch.labels_B, 0.1) for x in heads),
        "tri": sum(triplet_loss(x, batch.labels_B, 0.3) for x in parts),
        "i2t": identity_loss(parts[2] @ _randn(9, 4, 128).T, batch.labels_B, 0.1),
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-4)
    total = 0.25 * expected["id"] + expected["tri"] + expected["i2t"]
    torch.testing.assert_close(task.total(terms), total, rtol=1e-4, atol=1e-4)


def test_the_baseline_is_clip_reid_without_the_prompts():
    reid, baseline = (_task(method).train()(_batch()) for method in ("clip_reid", "clip_baseline"))
    assert set(baseline) == {"id", "tri"}
    for name, value in baseline.items():
        assert torch.equal(value, reid[name])


def test_the_neck_has_no_trained_bias_and_the_classifier_none():
    task = _task("clip_baseline")
    names = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert {name for name in names if name.startswith("heads")} == {
        f"heads.{head}.{part}.weight" for head in ("last", "joint") for part in ("neck", "classifier")
    }
    assert task.heads.last.classifier.weight.std().item() == pytest.approx(0.001, rel=0.1)


# Batch independence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sie", [0.0, 1.0])
def test_an_embedding_does_not_depend_on_its_batch(method, sie):
    task = _task(method, sie=sie).eval()
    images, cameras = _randn(3, 7, 3, 128, 64), torch.tensor([0, 1, 2, 2, 1, 0, 0])
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    for encode in task.encoders().values():
        with torch.no_grad():
            alone = torch.cat([encode(images[i : i + 1], cameras[i : i + 1]) for i in range(7)])
            together = encode(images, cameras)
            shuffled = encode(images[order], cameras[order])[order.argsort()]
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(shuffled, alone, rtol=1e-4, atol=1e-5)


def test_the_test_feature_is_last_and_joint_side_by_side_before_the_norm():
    task = _task("clip_reid").eval()
    images = _randn(4, 2, 3, 128, 64)
    with torch.no_grad():
        features = task.backbone.image(images)
        got = task.encoders()["image"](images)
    assert torch.equal(got, torch.cat([features.last_BV, features.joint_BD], 1))


# Options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_camera_embeddings_shift_the_features_are_trained_and_saved(method, tmp_path):
    task = _task(method, sie=2.0).train()
    task.total(task(_batch())).backward()
    assert task.camera_shift_KV.grad.abs().sum() > 0
    task.eval()
    images = _randn(5, 1, 3, 128, 64)
    with torch.no_grad():
        first, second = (task.encoders()["image"](images, torch.tensor([k])) for k in (0, 1))
        shift = task.backbone.image(images, 2.0 * task.camera_shift_KV[:1])
    assert not torch.allclose(first, second)
    torch.testing.assert_close(first[:, -128:], shift.joint_BD)
    assert task.camera_numbers([6, 1, 3, 3]).tolist() == [2, 0, 1, 1]
    with pytest.raises(DataError, match=r"for \[1, 3, 6\] only, and the images include cameras \[4\]"):
        task.camera_numbers([1, 4])
    save_model(tmp_path / "model.safetensors", task)
    config = TrainConfig(method=method, backbone=RANDOM, sie=2.0).model_dump(mode="json")
    (tmp_path / "config.json").write_text(json.dumps({"config": config, "identities": [1, 2, 3, 4]}))
    loaded = load_task(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded.encoders()["image"](images, torch.tensor([1])), second)


def test_without_camera_embedding_cameras_are_not_asked_for():
    task = _task("clip_baseline")
    assert task.camera_numbers([1, 99]) is None


@pytest.mark.parametrize("method", METHODS)
def test_overlapping_patches_train(method):
    task = _task(method, backbone=BackboneConfig(weights="random", stride=12)).train()
    assert task.backbone.image(_batch().images_BCHW).tokens_BLD.shape[1] == 1 + 10 * 5
    task.total(task(_batch())).backward()


def test_the_resnet_trains_and_embeds_without_company():
    backbone = BackboneConfig(name="rn50", weights="random", height=64, width=32)
    config = TrainConfig(method="clip_scgi", backbone=backbone)
    task = build_task(config, identities=2).train()
    images = _randn(6, 4, 3, 64, 32)
    batch = Batch(
        images_BCHW=images,
        labels_B=torch.tensor([0, 0, 1, 1]),
        items_B=torch.arange(4),
        captions_BD=_randn(7, 4, 1024),
    )
    terms = task(batch)
    assert all(torch.isfinite(term) for term in terms.values())
    task.eval()
    with torch.no_grad():
        for encode in task.encoders().values():
            torch.testing.assert_close(encode(images)[:1], encode(images[:1]), rtol=1e-3, atol=1e-4)


def test_settings_of_other_methods_are_no_part_of_a_fingerprint():
    plain = TrainConfig(method="clip_baseline")
    assert plain.identity() == TrainConfig(method="clip_baseline", prompts=PromptConfig(words=2)).identity()
    assert (
        TrainConfig(method="clip_reid").identity()
        != TrainConfig(method="clip_reid", prompts=PromptConfig(words=2)).identity()
    )


# The first stage of CLIP-ReID -------------------------------------------------------------------------


def test_prompt_schedule_equals_the_published_one():
    # timm's CosineLRScheduler as CLIP-ReID calls it: step(epoch) with epochs from 1, 120 in all, warm-up 5 from 1e-5.
    config = PromptConfig()
    for number in (1, 2, 4, 5, 6, 60, 119, 120):
        warm = 1e-5 + number * (3.5e-4 - 1e-5) / 5
        cosine = 1e-6 + 0.5 * (3.5e-4 - 1e-6) * (1 + math.cos(math.pi * number / 120))
        assert prompt_rate(number - 1, config) == pytest.approx(warm if number < 5 else cosine)


@pytest.fixture(scope="module")
def prompt_data():
    backbone = build_backbone(RANDOM, seed=2).eval()
    backbone.freeze_text()
    labels = torch.arange(12) // 3
    return backbone, PromptData(features_MD=_randn(8, 4, 128)[labels] + 0.1 * _randn(9, 12, 128), labels_M=labels)


def test_prompt_loss_equals_the_loop(prompt_data):
    backbone, data = prompt_data
    learner = PromptLearner(backbone, 4, 4)
    terms = prompt_terms(data.features_MD, data.labels_M, backbone, learner, 1.0)
    got = (terms["i2t"] + terms["t2i"]).item()
    image = data.features_MD.double().numpy()
    text = all_texts(backbone, learner).double().numpy()[data.labels_M.numpy()]
    expected = 0.0
    for a, b in ((image, text), (text, image)):
        logits = a @ b.T
        logits -= logits.max(1, keepdims=True)
        share = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        same = data.labels_M.numpy()[:, None] == data.labels_M.numpy()[None]
        expected -= np.mean([share[i][same[i]].mean() for i in range(12)])
    assert got == pytest.approx(expected, rel=1e-4)


def test_a_prompt_loss_that_is_not_finite_stops_before_the_optimizer_moves(prompt_data, tmp_path):
    backbone, data = prompt_data
    broken = PromptData(features_MD=torch.full_like(data.features_MD, torch.inf), labels_M=data.labels_M)
    with pytest.raises(DivergedError, match=r"before the end of epoch 1 of the prompts: loss = nan, i2t = nan"):
        learn_prompts(backbone, broken, PromptConfig(epochs=2), seed=1, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_prompts_name_the_kind_of_identity(prompt_data):
    backbone, _ = prompt_data
    ends = [PromptLearner(backbone, 4, 4, noun).prompt.suffix_1TW for noun in ("person", "vehicle")]
    words = [backbone.tokenizer.words(f"{noun}.") for noun in ("person", "vehicle")]
    assert [end.shape[1] - 1 for end in ends] == [len(ids) for ids in words]
    assert PromptConfig(noun="vehicle").identity() != PromptConfig().identity()


def test_prompts_learn_their_identities_and_a_killed_stage_goes_on(prompt_data, tmp_path):
    backbone, data = prompt_data
    config = PromptConfig(epochs=30, batch=6, lr=3e-3, warmup_epochs=2)
    losses = []
    learner = learn_prompts(
        backbone, data, config, seed=1, folder=tmp_path / "a", progress=lambda _d, _t, note: losses.append(note)
    )
    assert float(losses[-1].split()[-1]) < 0.8 * float(losses[0].split()[-1])

    class KilledError(Exception):
        pass

    def kill(done, total, note):
        if done == 17:
            raise KilledError

    with pytest.raises(KilledError):
        learn_prompts(backbone, data, config, seed=1, folder=tmp_path / "b", progress=kill)
    again = learn_prompts(backbone, data, config, seed=1, folder=tmp_path / "b")
    assert torch.equal(learner.words_CNW, again.words_CNW)


@pytest.fixture(scope="module")
def world(module_folder):
    root = module_folder("world") / "market"
    write_market1501(root, WorldConfig(seed=4, train_identities=4, test_identities=2, images_per_camera=2, cameras=2))
    store = ArtifactStore(module_folder("home"))
    return store, index(store, config=DatasetConfig(name="toy", reader="market1501", root=str(root))).made.ref, root


def test_clip_reid_and_the_baseline_train_without_captions(world):
    store, images, root = world
    schedule = ScheduleConfig(epochs=1, milestones=())
    prompts = PromptConfig(epochs=2, batch=8)
    for method in ("clip_reid", "clip_baseline"):
        config = small_config(method=method, schedule=schedule, prompts=prompts, sie=1.0)
        made = train(store, images=images, captions=None, images_root=root, config=config)
        described = json.loads((made.ref.folder / "config.json").read_text())
        assert described["modes"] == ["image"]
        assert described["provenance"]["captions"] is None
        task = load_task(made.ref.folder)
        assert task.camera_numbers([1, 2]).tolist() == [0, 1]
    assert len(list((store.root / "stages" / "prompts").iterdir())) == 1
    changed = small_config(method="clip_reid", schedule=schedule, prompts=prompts, sie=0.0)
    train(store, images=images, captions=None, images_root=root, config=changed)
    assert len(list((store.root / "stages" / "prompts").iterdir())) == 1, "the first stage is the same, so it is reused"


@pytest.mark.parametrize("method", METHODS)
def test_the_untrained_model_is_the_same_for_every_method(method):
    images = _randn(10, 1, 3, 128, 64)
    with torch.no_grad():
        got = load_untrained(TrainConfig(method=method, sie=1.0)).encoders()["image"](images)
        expected = load_untrained(TrainConfig()).encoders()["image"](images)
    assert torch.equal(got, expected)
