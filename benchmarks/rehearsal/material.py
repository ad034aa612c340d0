"""What the rehearsal reads: a generated tree for each dataset, and weights of true shape in a hub cache of its own.

The recipes find the weights under the names that they have on the hub, so no setting of a recipe changes for them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Final

import open_clip
import torch
from bench_captioning_shapes import random_llava
from safetensors.torch import save_file

from captioning.engines.llava_load import Llava
from data.synthetic.world import WorldConfig, write_market1501
from reid.models.pretrained import HUB_FILE, HUB_REPOSITORIES

LLAVA: Final = "llava-hf/llava-1.5-7b-hf"
CLIP: Final = HUB_REPOSITORIES["vit_b16"]
LAYERS: Final = 2
"""Layers of the language model, of 32; width, vocabulary and vision tower are those of LLaVA-1.5-7B."""
IDENTITIES: Final = 16
"""Training identities: one batch of 16 x 4."""
COMMIT: Final = "0" * 40
_WORLD: Final = WorldConfig(seed=5, train_identities=IDENTITIES, test_identities=2, cameras=2, images_per_camera=2)


def snapshot(work: Path, repository: str) -> Path:
    """Return the folder of a model in the hub cache."""
    return work / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT


def weight_bytes(work: Path, repository: str) -> int:
    """Return the size of a model's weights files."""
    return sum(path.stat().st_size for path in snapshot(work, repository).glob("*.safetensors"))


def write_llava(work: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a LLaVA-1.5-7B of reduced depth with random weights, as transformers saves it."""
    folder = _new_snapshot(work, LLAVA)
    llava = random_llava("llava-1.5-7b", dtype, layers=LAYERS)
    _speak(llava)
    llava.model.save_pretrained(folder)
    llava.processor.save_pretrained(folder)


def _speak(llava: Llava) -> None:
    """Let the model write words up to its limit: the small tokenizer reads only the first tokens of the vocabulary."""
    tokenizer, weight = llava.processor.tokenizer, llava.model.lm_head.weight
    with torch.no_grad():
        weight[len(tokenizer) :] = 0
        weight[tokenizer.all_special_ids] = 0


def write_clip(work: Path) -> None:
    """Write a ViT-B/16 with random weights, named as in open_clip's file of OpenAI's weights."""
    torch.manual_seed(0)
    state = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, _new_snapshot(work, CLIP) / HUB_FILE)


def _new_snapshot(work: Path, repository: str) -> Path:
    folder = snapshot(work, repository)
    folder.mkdir(parents=True)
    refs = folder.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT, encoding="ascii")
    return folder


def write_trees(work: Path) -> int:
    """Write a small Market-1501 and an MSMT17 of the same images; return the number of images."""
    market = write_market1501(work / "market1501", _WORLD)
    train = market / "bounding_box_train"
    for path in {*train.glob("*.jpg")} - {*train.glob("*_c1s1_*_01.jpg")}:
        path.unlink()  # one image per identity is enough for a batch, and every image costs a caption
    _write_msmt17(market, work / "msmt17")
    return len(list(market.rglob("*.jpg")))


_LISTS: Final[Mapping[str, tuple[str, str]]] = {
    "list_train.txt": ("train", "bounding_box_train"),
    "list_query.txt": ("test", "query"),
    "list_gallery.txt": ("test", "bounding_box_test"),
}


def _write_msmt17(market: Path, root: Path) -> None:
    """Write the images of `market` under MSMT17's names, and its lists."""
    numbers = count()
    for name, (folder, source) in _LISTS.items():
        lines = []
        for path, number in zip(sorted((market / source).glob("*.jpg")), numbers, strict=False):
            # Other cameras than in Market-1501: the same images with the same labels would not be trained on again.
            person, camera = int(path.name[:4]), int(path.name[6]) + 6
            pid = person - 1 if folder == "train" else person - IDENTITIES - 1
            relative = f"{pid:04d}/{pid:04d}_{number:03d}_{camera:02d}_0303morning_{number:04d}_0.jpg"
            (root / folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, root / folder / relative)
            lines.append(f"{relative} {pid}\n")
        (root / name).write_text("".join(lines), encoding="ascii")
    (root / "list_val.txt").write_text("", encoding="ascii")
