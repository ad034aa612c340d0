"""`clip-scgi check`: every problem of a broken set-up in one answer, notices of the machine, and what a run costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flows.cli.app import main
from reid.models.pretrained import TINY_FOLDER, TINY_WEIGHTS
from tests.helpers.data_trees import market, put

ALL = ("caption", "train", "evaluate")
GB = 1 << 30


class SetUp(NamedTuple):
    """A broken set-up. settings: of the command, given its folder. wanted: area -> parts of its problems."""

    recipe: str
    settings: Callable[[Path], list[str]]
    wanted: dict[str, list[str]]


def identical(folder: Path) -> Path:
    """Write a dataset in which two people share a file."""
    root = market(folder / "identical")
    (root / "bounding_box_train/0002_c1s1_000451_03.jpg").write_bytes(
        (root / "bounding_box_train/0007_c6s4_002202_05.jpg").read_bytes()
    )
    return root


def shared(folder: Path) -> Path:
    """Write a dataset with an identity in training and in the gallery, and without queries."""
    root = market(folder / "shared")
    put(root, "bounding_box_test/0002_c4s1_000451_03.jpg", first_seed=90)
    for query in (root / "query").glob("0*"):
        query.unlink()
    return root


def nan_weights(folder: Path) -> Path:
    """Write the weights of the tiny CLIP with a NaN."""
    tensors = load_file(TINY_FOLDER / TINY_WEIGHTS)
    file = folder / "nan.safetensors"
    save_file(tensors | {"visual.ln_post.bias": np.full_like(tensors["visual.ln_post.bias"], np.nan)}, file)
    return file


def pointer(folder: Path) -> Path:
    file = folder / "pointer.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    return file


def pickled_llava(folder: Path) -> Path:
    llava = folder / "llava"
    llava.mkdir()
    (llava / "config.json").write_text(json.dumps({"model_type": "llava"}))
    (llava / "pytorch_model.bin").write_bytes(b"\x80\2")
    return llava


def manifest_without_columns(folder: Path) -> Path:
    root = folder / "listed"
    root.mkdir()
    (root / "manifest.csv").write_text("file,person\na.jpg,1\n")
    return root


BATCH = "train.batch.identities=16 but the dataset has 2 training identities"
NO_CUDA = "this machine has no usable CUDA device"
SET_UPS = {
    "everything": SetUp(
        "pku_reid",
        lambda folder: [
            "data.root=/nowhere",
            "train.sedule.epochs=3",
            "train.device=cuda",
            f"train.backbone.weights={folder}/absent.safetensors",
            "caption.model=/nowhere/llava",
        ],
        {
            "settings": ["train.sedule.epochs"],
            "data": ["/nowhere"],
            "weights": ["folder /nowhere/llava does not exist", "absent.safetensors does not exist"],
            "device": [f"train.device=cuda: {NO_CUDA}"],
            "disk": ["free"],
        },
    ),
    "no root": SetUp(
        "pku_reid",
        lambda _: ["train.schedule.epochs=0", "train.sie=-1", "caption.device=cuda:7"],
        {
            "settings": ["train.schedule.epochs", "train.sie"],
            "data": ["data.root is empty"],
            "device": [f"caption.device=cuda:7: {NO_CUDA}"],
            "disk": ["free"],
        },
    ),
    "labels that contradict each other": SetUp(
        "demo",
        lambda folder: [f"data.root={identical(folder)}", "train.precision=fp16"],
        {"data": ["identical to an image of another identity"], "sampler": [BATCH], "device": ["fp16 needs a GPU"]},
    ),
    "an identity on both sides": SetUp(
        "demo",
        lambda folder: [f"data.root={shared(folder)}", "train.sie=1"],
        {
            "data": ["no usable image in query", "both in training and in query or gallery"],
            "sampler": [BATCH, "train.sie=1 learns one embedding per camera"],
        },
    ),
    "a manifest of other columns": SetUp(
        "demo",
        lambda folder: [
            f"data.root={manifest_without_columns(folder)}",
            "data.reader=manifest",
            f"train.tensorboard={folder}/listed/manifest.csv/logs",
            "evaluate.device=cuda:1",
        ],
        {"data": ["manifest.csv"], "settings": ["train.tensorboard"], "device": [f"evaluate.device=cuda:1: {NO_CUDA}"]},
    ),
    "the wrong reader and a pointer": SetUp(
        "demo_clip_reid",
        lambda folder: [
            f"data.root={market(folder / 'market')}",
            "data.reader=pku_reid",
            f"train.backbone.weights={pointer(folder)}",
            "train.prompts.words=100",
        ],
        {
            "data": ["_<camera>_<orientation>.png"],
            "weights": ["git lfs pull"],
            "settings": ["train.prompts.words=100 do not fit"],
        },
    ),
    "a silent server": SetUp(
        "demo",
        lambda folder: [
            f"data.root={market(folder / 'market')}",
            "caption.engine=openai",
            "caption.model=llava",
            "caption.server.url=http://127.0.0.1:9/v1",
            "train.device=cuda",
        ],
        {
            "server": ["caption.server.url=http://127.0.0.1:9/v1: no usable answer from the server"],
            "sampler": [BATCH],
            "device": [f"train.device=cuda: {NO_CUDA}"],
        },
    ),
    "a key that is not set": SetUp(
        "demo",
        lambda folder: [
            f"data.root={market(folder / 'market')}",
            "caption.engine=openai",
            "caption.model=llava",
            "caption.decoding=slots",
            "caption.server.key_variable=NO_SUCH_KEY",
        ],
        {"settings": ["caption.decoding", "key_variable=NO_SUCH_KEY"], "sampler": [BATCH]},
    ),
    "pickles and not a number": SetUp(
        "demo",
        lambda folder: [
            f"data.root={market(folder / 'market')}",
            f"caption.model={pickled_llava(folder)}",
            f"train.backbone.weights={nan_weights(folder)}",
            "caption.temperature=1",
        ],
        {
            "settings": ["caption.temperature"],
            "sampler": [BATCH],
            "weights": ["pytorch_model.bin is pickle", "visual.ln_post.bias"],
        },
    ),
    "processes and a runner": SetUp(
        "demo",
        lambda folder: [
            f"data.root={market(folder / 'market')}",
            "train.batch.identities=2",
            "scale.train_processes=3",
            "scale.caption_workers=2",
            "scale.runner=ray",
            "train.validation.every=1",
        ],
        {"settings": ["scale.runner=ray is not installed"], "sampler": ["train.validation.held_out=0.1 leaves 0"]},
    ),
    "an artifact root that is closed": SetUp(
        "demo",
        lambda folder: [
            f"data.root={market(folder / 'market')}",
            "caption.model=nobody/no-such-llava",
            "train.device=cuda",
        ],
        {
            "sampler": [BATCH],
            "weights": ["the weights of nobody/no-such-llava"],
            "device": [f"train.device=cuda: {NO_CUDA}"],
            "disk": ["the artifact root cannot be written"],
        },
    ),
    "nothing to train on": SetUp(
        "demo",
        lambda folder: [f"data.root={folder}/empty", "data.reader=nosuch", "train.batch.identities=1"],
        {"settings": ["data.reader", "train.batch.identities"], "data": ["empty"]},
    ),
}


@pytest.fixture
def broken(tmp_path, monkeypatch, capsys) -> Callable[[str], dict[str, Any]]:
    """Return a function: name of a set-up -> the answer of `check` about it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("flows.preflight.settings.find_spec", lambda name: None if name == "prefect_ray" else name)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)

    def answer(name: str) -> dict[str, Any]:
        set_up = SET_UPS[name]
        if "disk" in set_up.wanted:
            monkeypatch.setattr("flows.preflight.disk.free_bytes", lambda _: 100)
        (tmp_path / "file").write_text("")
        home = tmp_path / ("file/home" if "closed" in name else "home")
        settings = [part for text in set_up.settings(tmp_path) for part in ("--set", text)]
        status = main(["check", set_up.recipe, "--home", str(home), "--no-probe", "--json", *settings])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert status == 1
        assert not found["ready"]
        return found

    return answer


@pytest.mark.parametrize("name", SET_UPS)
def test_all_problems_of_a_broken_set_up_are_printed_at_once(broken, name):
    found: dict[str, list[str]] = {}
    for problem in broken(name)["problems"]:
        found.setdefault(problem["area"], []).append(problem["text"])
    wanted = SET_UPS[name].wanted
    assert found.keys() == wanted.keys(), found
    for area, parts in wanted.items():
        assert len(found[area]) == len(parts), found[area]
        for part in parts:
            assert sum(part in text for text in found[area]) == 1, (part, found[area])
    assert sum(map(len, wanted.values())) >= 2


def test_there_are_ten_broken_set_ups():
    assert len(SET_UPS) >= 10
