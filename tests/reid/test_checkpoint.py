"""Checkpoints are complete or absent, contain no pickle, and reject another model."""

import json

import pytest
import torch
from safetensors.torch import load_file

from data.errors import DataError, WeightsError
from data.files import write_json
from reid.config.backbone import BackboneConfig
from reid.config.train import ScgiConfig, TrainConfig
from reid.tasks.base import Batch
from reid.tasks.build import build_task
from reid.training.checkpoint import (
    CheckpointState,
    load_task,
    load_untrained,
    restore_checkpoint,
    save_checkpoint,
    save_model,
)
from reid.training.optim import build_optimizer
from reid.training.trainer import TrainState

CONFIG = TrainConfig(backbone=BackboneConfig(weights="random"))


def _stepped(seed=0):
    """A task and optimizer after one step, so that Adam has a state."""
    task = build_task(CONFIG.model_copy(update={"seed": seed}), identities=2)
    optimizer = build_optimizer(task, CONFIG.schedule)
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        images_BCHW=torch.randn(4, 3, 128, 64, generator=generator),
        labels_B=torch.tensor([0, 0, 1, 1]),
        items_B=torch.arange(4),
        captions_BD=torch.randn(4, 128, generator=generator),
    )
    task.total(task.train()(batch)).backward()
    optimizer.step()
    return task, optimizer


@pytest.fixture(scope="module")
def stepped():
    return _stepped()


def test_model_optimizer_and_state_come_back_exactly(stepped, tmp_path):
    task, optimizer = stepped
    state = TrainState(step=7, epoch=1, sums={"loss": 0.1 + 0.2}, best={"epoch": 0, "mAP": 0.5})
    save_checkpoint(tmp_path, task, optimizer, state)
    other = build_task(CONFIG.model_copy(update={"seed": 0}), identities=2)
    fresh = build_optimizer(other, CONFIG.schedule)
    assert restore_checkpoint(tmp_path, other, fresh, TrainState) == state
    for (name, a), b in zip(task.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for group, restored in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        for p, q in zip(group["params"], restored["params"], strict=True):
            assert optimizer.state[p].keys() == fresh.state[q].keys()
            assert all(torch.equal(optimizer.state[p][key], fresh.state[q][key]) for key in optimizer.state[p])


def test_only_the_newest_is_kept_and_an_unfinished_one_is_ignored(stepped, tmp_path):
    task, optimizer = stepped
    for step in (3, 12):
        save_checkpoint(tmp_path, task, optimizer, CheckpointState(step=step))
    (tmp_path / ".step-000000013").mkdir()  # a process died while writing
    (tmp_path / ".step-000000013" / "model.safetensors").write_bytes(b"half")
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-000000012"]
    assert restore_checkpoint(tmp_path, task, optimizer, CheckpointState) == CheckpointState(step=12)


def test_without_a_checkpoint_nothing_happens(stepped, tmp_path):
    assert restore_checkpoint(tmp_path / "nowhere", *stepped, TrainState) == TrainState()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_with_its_remedy(stepped, tmp_path, name):
    save_checkpoint(tmp_path, *stepped, CheckpointState(step=1))
    file = tmp_path / "step-000000001" / name
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"step-000000001 cannot be used .*delete that folder"):
        restore_checkpoint(tmp_path, *stepped, CheckpointState)


def test_the_state_of_another_loop_is_refused(stepped, tmp_path):
    save_checkpoint(tmp_path, *stepped, TrainState(step=1))
    with pytest.raises(DataError, match=r"cannot be used .*unexpected keyword argument.*delete that folder"):
        restore_checkpoint(tmp_path, *stepped, CheckpointState)


def test_a_checkpoint_of_another_model_is_refused(stepped, tmp_path):
    save_checkpoint(tmp_path, *stepped, CheckpointState(step=1))
    other = build_task(CONFIG.model_copy(update={"scgi": ScgiConfig(cff=False)}), identities=2)
    with pytest.raises(DataError, match="cannot be used"):
        restore_checkpoint(tmp_path, other, build_optimizer(other, CONFIG.schedule), CheckpointState)


def test_the_checkpoint_omits_frozen_weights_and_the_model_contains_them(stepped, tmp_path):
    save_checkpoint(tmp_path, *stepped, CheckpointState(step=1))
    save_model(tmp_path / "model.safetensors", stepped[0])
    frozen = "backbone.clip.token_embedding.weight"
    assert frozen not in load_file(tmp_path / "step-000000001" / "model.safetensors")
    assert frozen in load_file(tmp_path / "model.safetensors")


def test_a_saved_model_gives_the_same_embeddings_without_the_original_weights(stepped, tmp_path):
    task = stepped[0]
    save_model(tmp_path / "model.safetensors", task)
    config = CONFIG.model_copy(update={"backbone": BackboneConfig()})  # says "shipped", and they are not asked for
    write_json(tmp_path / "config.json", {"config": config.model_dump(mode="json"), "identities": [4, 9]})
    loaded = load_task(tmp_path)
    images = torch.randn(2, 3, 128, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for mode, encode in task.eval().encoders().items():
            assert torch.equal(encode(images), loaded.encoders()[mode](images))


def test_a_model_that_does_not_match_its_config_is_refused(stepped, tmp_path):
    save_model(tmp_path / "model.safetensors", stepped[0])
    write_json(tmp_path / "config.json", {"config": CONFIG.model_dump(mode="json"), "identities": [1, 2, 3]})
    with pytest.raises(WeightsError, match=r"not the model that config\.json"):
        load_task(tmp_path)


def test_the_untrained_model_is_the_backbone_before_training():
    first, second = (load_untrained(TrainConfig(seed=seed)) for seed in (0, 1))
    images = torch.randn(2, 3, 128, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(first.encoders()["image"](images), second.encoders()["image"](images))


def test_files_are_json_and_safetensors_only(stepped, tmp_path):
    save_checkpoint(tmp_path, *stepped, CheckpointState(step=1))
    folder = tmp_path / "step-000000001"
    assert sorted(p.suffix for p in folder.iterdir()) == [".json", ".safetensors", ".safetensors"]
    json.loads((folder / "state.json").read_text())
