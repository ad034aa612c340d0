"""Weights files of other kinds: train artifacts, files that are something else, pickles to convert, the hub."""

import json
import shlex
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from pydantic import ValidationError
from safetensors.torch import load_file

from data.artifacts.store import ArtifactStore
from data.errors import WeightsError
from reid.config.backbone import BackboneConfig
from reid.config.train import PromptConfig, TrainConfig
from reid.convert import convert
from reid.inputs.captions import weights_identity
from reid.models.backbone import build_backbone
from reid.models.pretrained import HUB_REPOSITORIES, TINY_FOLDER, weights_file
from reid.models.weights_source import described, read_source, resolved
from reid.tasks.build import build_task
from reid.training.checkpoint import load_task, load_untrained, save_model
from tests.helpers.clip_files import SCALARS, assert_features, features_of, own_file, random_images, with_prefix

# --- our own train artifacts


def _artifact(folder, config, backbone=None):
    """Write what the train stage writes: the model of `config`, its CLIP replaced by that of `backbone`."""
    texts = torch.zeros(3, 128) if config.method == "clip_reid" else None
    task = build_task(config, identities=3, cameras=[1, 2], texts_CD=texts)
    with torch.no_grad():
        for _, parameter in task.backbone.image_parameters():
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))
    folder.mkdir()
    save_model(folder / "model.safetensors", task)
    written = {**config.model_dump(mode="json"), "backbone": resolved(config.backbone).model_dump(mode="json")}
    (folder / "config.json").write_text(json.dumps({"config": written, "identities": [4, 5, 6]}))
    return task.eval()


METHODS = {
    "clip_scgi": TrainConfig(),
    "clip_scgi with cameras": TrainConfig(sie=1.0),
    "clip_reid": TrainConfig(method="clip_reid", prompts=PromptConfig(epochs=1)),
    "clip_baseline": TrainConfig(method="clip_baseline"),
}


@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
def test_training_can_start_from_a_train_artifact(config, tmp_path):
    trained = _artifact(tmp_path / "a", config)
    for weights in (tmp_path / "a", tmp_path / "a" / "model.safetensors"):
        start = BackboneConfig(weights=str(weights))
        built = build_backbone(start)
        assert_features(built, features_of(trained.backbone), rtol=1e-4, atol=1e-5)
        expected = trained.backbone.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in built.state_dict().items())
        found = described(start)
        assert found["names"] == "train artifact"
        assert found["activation"] == "gelu"
        assert "heads" in found["left_out"]
        assert ("camera_shift_KV" in found["left_out"]) == bool(config.sie)
        assert sum(found["left_out"].values()) == sum(
            not name.startswith("backbone.clip.") for name in trained.state_dict()
        )


def test_an_artifact_defines_its_grid_and_activation(state, tmp_path):
    own = own_file(tmp_path, state, activation="quick_gelu", height=256, width=128, stride=12)
    trained = _artifact(tmp_path / "a", TrainConfig(method="clip_baseline", backbone=own))
    again = load_task(tmp_path / "a")
    (tmp_path / "mine.safetensors").unlink()
    assert type(again.backbone.clip.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    images = random_images(256, 128)
    with torch.no_grad():
        torch.testing.assert_close(again.backbone.image(images).joint_BD, trained.backbone.image(images).joint_BD)
    start = BackboneConfig(weights=str(tmp_path / "a"), height=256, width=128)
    assert described(start)["grid"] == [21, 10]
    assert described(start)["activation"] == "quick_gelu"
    same = start.model_copy(update={"stride": 12})
    with torch.no_grad():
        torch.testing.assert_close(build_backbone(same).eval().image(images), trained.backbone.image(images))
    assert load_untrained(TrainConfig(backbone=start)).backbone.clip.visual.positional_embedding.shape[0] == 129


def test_a_checkpoint_without_the_frozen_tower_is_refused(tmp_path):
    task = _artifact(tmp_path / "a", TrainConfig())
    half = {name: value for name, value in task.state_dict().items() if "visual" in name or "heads" in name}
    with pytest.raises(WeightsError, match=r"missing 30 tensors: backbone\.clip\."):
        build_backbone(own_file(tmp_path, half))


def test_a_trained_model_with_a_nan_is_named_too(tmp_path):
    task = _artifact(tmp_path / "a", TrainConfig())
    task.heads.joint.classifier.weight.data[0, 0] = float("nan")
    save_model(tmp_path / "a" / "model.safetensors", task)
    with pytest.raises(WeightsError, match=r"NaN or infinity in 1 tensor: heads\.joint\.classifier\.weight"):
        load_task(tmp_path / "a")


# --- files that are something else


def _cut(content):
    return content[: len(content) // 2]


DISGUISES = {
    "pointer": (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
    "page": (lambda _: b"<!DOCTYPE html><html>Sign in</html>", "HTML page"),
    "cut off": (_cut, "is cut off"),
    "header cut off": (lambda content: content[:1000], "is cut off"),
    "empty": (lambda _: b"", "is empty"),
    "zip": (lambda _: b"PK\3\4 ...", "python -m reid.convert"),
    "pickle": (lambda _: b"\x80\x02}q\x00.", "python -m reid.convert"),
    "text": (lambda _: b"hello, this is not a model", "not a safetensors file"),
}


@pytest.mark.parametrize(("change", "named"), DISGUISES.values(), ids=DISGUISES)
def test_files_of_another_kind_are_named_by_their_kind(change, named, tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(change((TINY_FOLDER / "model.safetensors").read_bytes()))
    config = BackboneConfig(weights=str(path))
    for use in (read_source, build_backbone, lambda c: weights_identity(ArtifactStore(tmp_path), c, 0)):
        with pytest.raises(WeightsError) as caught:
            use(config)
        assert named in str(caught.value)
        assert str(path) in str(caught.value)
        assert "delete" not in str(caught.value)


def test_folders_without_exactly_one_file_list_their_files(state, tmp_path):
    config = BackboneConfig(weights=str(tmp_path))
    with pytest.raises(WeightsError, match=r"contains no \.safetensors file"):
        read_source(config)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(
        WeightsError, match=r"python -m reid\.convert \S+pytorch_model\.bin \S+pytorch_model\.safetensors"
    ):
        read_source(config)
    for name in ("one", "two"):
        own_file(tmp_path, state, name=f"{name}.safetensors")
    with pytest.raises(WeightsError, match=r"one\.safetensors, two\.safetensors"):
        read_source(config)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"contains a CLIP in shards .* max_shard_size='100GB'"):
        read_source(config)
    with pytest.raises(WeightsError, match="does not exist"):
        read_source(BackboneConfig(weights=str(tmp_path / "none.safetensors")))


def test_the_embedded_file_given_by_path_is_the_embedded_model(shipped):
    assert_features(build_backbone(BackboneConfig(weights=str(TINY_FOLDER))), shipped, rtol=0, atol=0)


# --- conversion of pickles


def _command(config_or_path):
    """The command in the message about a pickle, as words."""
    with pytest.raises((ValidationError, WeightsError)) as caught:
        BackboneConfig(weights=str(config_or_path))
    return shlex.split(str(caught.value).split("`")[1])


def _saved(folder, name, content, **how):
    path = folder / name
    torch.save(content, path, **how)
    return path


FORMATS = {
    "plain.pt": lambda s: s,
    "pytorch_model.bin": with_prefix("module."),
    "epoch_3.pt": lambda s: {"epoch": 3, "state_dict": with_prefix("module.")(s), "optimizer": {"lr": 1.0}},
    "tied.pt": lambda s: {**s, "logit_bias": s["logit_scale"]},
}


@pytest.mark.parametrize("name", FORMATS)
def test_pickles_are_converted(name, state, shipped, tmp_path):
    convert(_saved(tmp_path, name, FORMATS[name](state)), tmp_path / "out.safetensors")
    assert_features(build_backbone(BackboneConfig(weights=str(tmp_path / "out.safetensors"))), shipped, rtol=0, atol=0)


def test_the_command_of_the_message_converts(state, shipped, tmp_path):
    words = _command(_saved(tmp_path, "old format.pth", state, _use_new_zipfile_serialization=False))
    assert words[:3] == ["python", "-m", "reid.convert"]
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().endswith(f"set train.backbone.weights={shlex.quote(words[-1])}")
    assert_features(build_backbone(BackboneConfig(weights=words[-1])), shipped, rtol=0, atol=0)


class _Archive(torch.nn.Module):
    """Like OpenAI's: the parameters of CLIP, three numbers beside them."""

    def __init__(self, clip):
        super().__init__()
        self.visual = torch.nn.Module()
        self.visual.conv1 = torch.nn.Conv2d(3, 192, 16, 16, bias=False)
        self.visual.conv1.load_state_dict(clip.visual.conv1.state_dict())
        for name, value in SCALARS.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x):
        return self.visual.conv1(x)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_archive_is_converted(clip, tmp_path):
    torch.jit.script(_Archive(clip)).save(str(tmp_path / "ViT.pt"))
    assert convert(tmp_path / "ViT.pt", tmp_path / "out.safetensors") == 4
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == {"visual.conv1.weight", *SCALARS}
    assert torch.equal(found["visual.conv1.weight"], clip.visual.conv1.weight)


class _Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, state):
    for content in ({"state_dict": state, "extra": _Harm(tmp_path / "harm")}, _Harm(tmp_path / "harm")):
        source = _saved(tmp_path, "evil.pt", content)
        with pytest.raises(WeightsError, match="contains more than tensors"):
            convert(source, tmp_path / "out.safetensors")
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_a_file_that_cannot_be_converted_is_named(tmp_path, state):
    target = tmp_path / "out.safetensors"
    mixed = _saved(tmp_path, "mixed.pt", {**state, "epoch": 3})
    with pytest.raises(WeightsError, match="but has epoch"):
        convert(mixed, target)
    with pytest.raises(WeightsError, match="contains a list"):
        convert(_saved(tmp_path, "list.pt", [1, 2]), target)
    whole = _saved(tmp_path, "whole.pt", state)
    (tmp_path / "cut.pt").write_bytes(_cut(whole.read_bytes()))
    with pytest.raises(WeightsError, match=r"cut\.pt cannot be read"):
        convert(tmp_path / "cut.pt", target)
    with pytest.raises(WeightsError, match="does not exist"):
        convert(tmp_path / "none.pt", target)
    target.write_bytes(b"mine")
    with pytest.raises(WeightsError, match="already exists"):
        convert(whole, target)
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["vit_b16", "rn50"])
def test_a_hub_that_cannot_be_reached_is_asked_once_and_nothing_is_downloaded(monkeypatch, name):
    asked = []

    def no_hub(_, repository, **options):
        asked.append((repository, options["timeout"]))
        raise ConnectionError("name not known\nRetrying")

    def local(*_, local_files_only=False):
        if not local_files_only:
            pytest.fail("a download tries again for half a minute, and says so each time")
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_hub)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", local)
    repository = HUB_REPOSITORIES[name]
    with pytest.raises(WeightsError) as raised:
        weights_file(BackboneConfig(name=name, weights="openai"))
    assert asked == [(repository, 5.0)]
    message = str(raised.value)
    assert message.startswith(f"train.backbone.weights=openai needs open_clip_model.safetensors of {repository}: ")
    assert "(ConnectionError: name not known)" in message
    assert f"run `hf download {repository} open_clip_model.safetensors`" in message
    assert "set train.backbone.weights to that folder" in message
