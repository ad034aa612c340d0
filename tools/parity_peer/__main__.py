"""Run the public CLIP-ReID (github.com/Syliz517/CLIP-ReID) on world.py and write its numbers to a golden file.

    git clone https://github.com/Syliz517/CLIP-ReID FOLDER
    python -m tools.parity_peer --peer FOLDER --out tests/golden/clip_reid_parity.json

Its code runs unchanged, on the CPU in float32: models, losses, optimizers, schedulers and evaluator, with the published
configs/person/*.yml. Four parts are replaced: yacs' config tree by a namespace, ``cuda()`` by a function that does
nothing, the download of CLIP by the world's small weights (loaded with its build_model) and the heads, whose widths 768
and 512 are hard-coded, by heads of the same classes at the small widths.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from tools.parity_peer import world
from tools.parity_peer.settings import BASELINES, SETTINGS, published, second_stage_settings, settings
from tools.parity_peer.world import CASES, Case, describe, rounded

DATASETS = {"person": "market1501", "vehicle": "veri"}
"""Noun at the end of the prompts -> a dataset with it."""


@contextmanager
def peer_code(folder: Path, *, on_cpu: bool = True) -> Iterator[None]:
    """Make the public code importable. on_cpu: `Tensor.cuda` returns the tensor itself."""
    yacs = ModuleType("yacs.config")
    yacs.CfgNode = SimpleNamespace  # type: ignore[attr-defined]
    turtle = ModuleType("turtle")  # loss/triplet_loss.py imports it without need; the real one needs a display
    turtle.pd = None  # type: ignore[attr-defined]
    stand_ins = {"yacs": ModuleType("yacs"), "yacs.config": yacs, "turtle": turtle}
    with (
        patch.dict(sys.modules, stand_ins),
        patch.object(sys, "path", [str(folder), *sys.path]),
        patch.object(torch.Tensor, "cuda", (lambda self, *_: self) if on_cpu else torch.Tensor.cuda),
    ):
        yield


def build(config: Any, case: Case, module: str) -> nn.Module:
    """Return the public model of `module` with the world's weights."""
    make = import_module(module)
    build_model = import_module("model.clip.model").build_model

    def small_clip(_: str, height: int, width: int, stride: int) -> nn.Module:
        clip = build_model(world.clip_state(case), height, width, stride)
        clip.to = lambda _: clip
        return clip

    with patch.object(make, "load_clip_to_cpu", small_clip):
        model = make.make_model(config, num_class=world.IDENTITIES, camera_num=world.CAMERAS, view_num=1)
    for suffix, part in (("", "last"), ("_proj", "joint")):
        state = world.head_state(case, part)
        neck, classifier = _small_head(state)
        setattr(model, f"bottleneck{suffix}", neck)
        setattr(model, f"classifier{suffix}", classifier)
    if case.sie:
        model.cv_embed = nn.Parameter(world.camera_shift(case))
    return model


def _small_head(state: dict[str, Tensor]) -> tuple[nn.BatchNorm1d, nn.Linear]:
    identities, width = state["classifier.weight"].shape
    neck, classifier = nn.BatchNorm1d(width), nn.Linear(width, identities, bias=False)
    neck.bias.requires_grad_(False)
    neck.load_state_dict({n.removeprefix("neck."): v for n, v in state.items() if n.startswith("neck.")})
    classifier.weight.data = state["classifier.weight"]
    return neck, classifier


def first_stage(model: nn.Module) -> dict[str, Any]:
    """Return the prompts, their features and the two terms, as processor_clipreid_stage1.py computes them."""
    learner, labels = model.prompt_learner, torch.tensor(world.PROMPT_LABELS)
    learner.cls_ctx.data = world.words()
    with torch.no_grad():
        image = model(world.images(), get_image=True)
    text = model(label=labels, get_text=True)
    supcon = import_module("loss.supcontrast").SupConLoss("cpu")
    i2t, t2i = supcon(image, text, labels, labels), supcon(text, image, labels, labels)
    (i2t + t2i).backward()
    return {
        "text": describe(text),
        "image": describe(image),
        "i2t": rounded(i2t),
        "t2i": rounded(t2i),
        "words_gradient": describe(learner.cls_ctx.grad),
    }


def prompts(case: Case, dataset: str) -> dict[str, Any]:
    """Return the token ids and embeddings, up to the end token, of the prompts for a dataset."""
    embedding = nn.Embedding.from_pretrained(world.clip_state(case)["token_embedding.weight"])
    make = import_module("model.make_model_clipreid")
    learner = make.PromptLearner(world.IDENTITIES, dataset, torch.float32, embedding)
    learner.cls_ctx.data = world.words()
    ids = learner.tokenized_prompts[0]
    length = int(ids.argmax()) + 1
    with torch.no_grad():
        return {"token_ids": ids[:length].tolist(), "tokens": describe(learner(torch.arange(3))[:, :length])}


def retrieval_features(model: nn.Module, case: Case) -> dict[str, Any]:
    """Return the retrieval features before and after the necks, in evaluation mode."""
    model.eval()
    cameras = torch.tensor(world.CAMERA_NUMBERS) if case.sie else None
    found = {}
    for where in ("before", "after"):
        model.neck_feat = where
        with torch.no_grad():
            found[where] = describe(model(world.images(), cam_label=cameras))
    return found


def second_stage(model: nn.Module, config: Any, case: Case) -> dict[str, Any]:
    """Return features, scores, every loss term and the gradients, as processor_clipreid_stage2.py computes them."""
    with torch.no_grad():
        texts = model(label=torch.arange(world.IDENTITIES), get_text=True)
    loss_of, center = import_module("loss.make_loss").make_loss(config, num_classes=world.IDENTITIES)
    optimizer, _ = import_module("solver.make_optimizer_prompt").make_optimizer_2stage(config, model, center)
    model.train()
    model.zero_grad()
    labels = torch.tensor(world.LABELS)
    cameras = torch.tensor(world.CAMERA_NUMBERS) if case.sie else None
    scores, features, image = model(x=world.images(), label=labels, cam_label=cameras)
    logits = image @ texts.t()
    total = loss_of(scores, features, labels, cameras, logits)
    terms = _terms(config, scores, features, logits, labels)
    total.backward()
    return {
        "texts": describe(texts),
        "scores": [describe(x) for x in scores],
        "features": [describe(x) for x in features],
        "logits": describe(logits),
        **terms,
        "total": rounded(total),
        "weights": [config.MODEL.ID_LOSS_WEIGHT, config.MODEL.TRIPLET_LOSS_WEIGHT, config.MODEL.I2T_LOSS_WEIGHT],
        "gradients": {name: rounded(p.grad.norm()) for name, p in model.named_parameters() if p.requires_grad},
        "rates": _rates(model, optimizer),
    }


def _terms(config: Any, scores: list[Tensor], features: list[Tensor], logits: Tensor, labels: Tensor) -> dict[str, Any]:
    smooth = import_module("loss.softmax_loss").CrossEntropyLabelSmooth(num_classes=world.IDENTITIES)
    triplet = import_module("loss.triplet_loss").TripletLoss(config.SOLVER.MARGIN)
    soft = import_module("loss.triplet_loss").TripletLoss()
    return {
        "id": [rounded(smooth(x, labels)) for x in scores],
        "tri": [rounded(triplet(x, labels)[0]) for x in features],
        "tri_soft": [rounded(soft(x, labels)[0]) for x in features],
        "i2t": rounded(smooth(logits, labels)),
    }


def _rates(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[group["params"][0]]: rounded(group["lr"]) for group in optimizer.param_groups}


def baseline(folder: Path, case: Case) -> dict[str, Any]:
    """Return the loss of the fine-tuned baseline (model/make_model.py, processor.py) and its published settings."""
    config = settings(folder, case, BASELINES)
    model = build(config, case, "model.make_model").train()
    loss_of, _ = import_module("loss.make_loss").make_loss(config, num_classes=world.IDENTITIES)
    labels = torch.tensor(world.LABELS)
    scores, features = model(world.images(), labels)
    return {"total": rounded(loss_of(scores, features, labels, None)), **second_stage_settings(config.SOLVER)}


def evaluation() -> dict[str, Any]:
    """Return CMC and mAP, plain, re-ranked in half precision as published, and re-ranked in single precision."""
    reranking = import_module("utils.reranking")
    single = SimpleNamespace(**{**vars(np), "float16": np.float32})
    found = {"plain": _evaluate(False), "reranked_half": _evaluate(True)}
    with patch.object(reranking, "np", single):
        return {**found, "reranked": _evaluate(True)}


def _evaluate(rerank: bool) -> dict[str, Any]:
    rows = world.gallery()
    evaluator = import_module("utils.metrics").R1_mAP_eval(rows.queries, max_rank=50, feat_norm="yes", reranking=rerank)
    evaluator.reset()
    evaluator.update((rows.features, rows.pids, rows.camids))
    cmc, mean_ap, distances, *_ = evaluator.compute()
    return {
        "mAP": rounded(mean_ap),
        "cmc": [rounded(share) for share in cmc],
        "distances": describe(torch.from_numpy(distances)),
    }


def numbers(folder: Path) -> dict[str, Any]:
    """Return all numbers, by case."""
    cases: dict[str, Any] = {}
    for name, case in CASES.items():
        config = settings(folder, case)
        model = build(config, case, "model.make_model_clipreid")
        cases[name] = {"first": first_stage(model), "test": retrieval_features(model, case)}
        cases[name]["second"] = second_stage(model, config, case)
    return {
        "cases": cases,
        "prompts": {noun: prompts(CASES["vit"], name) for noun, name in DATASETS.items()},
        "baseline": {name: baseline(folder, CASES[name]) for name in ("vit", "rn50")},
        "published": {backbone: published(folder, backbone) for backbone in SETTINGS},
        "evaluation": evaluation(),
    }


def main() -> None:
    """Run the public code and write the golden file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peer", type=Path, required=True, help="a checkout of Syliz517/CLIP-ReID")
    parser.add_argument("--out", type=Path, required=True, help="the golden file to write")
    given = parser.parse_args()
    commit = subprocess.run(
        ["git", "-C", str(given.peer), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    )
    with peer_code(given.peer):
        found = numbers(given.peer)
    origin = {"peer": "Syliz517/CLIP-ReID", "commit": commit.stdout.strip(), "torch": torch.__version__}
    given.out.write_text(_one_list_per_line(json.dumps({"origin": origin, **found}, indent=1)) + "\n")


def _one_list_per_line(text: str) -> str:
    return re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text)


if __name__ == "__main__":
    main()
