"""Measure a tiny CLIP on synthetic people it has never seen, and write its model card."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from data.files import write_json, write_text
from data.slots import COLORS, LOWER_TYPES, NONE, SLOTS, UPPER_TYPES, VOCABULARY
from data.synthetic.world import WorldConfig, training_sample, write_market1501
from reid.models.backbone import Backbone
from reid.precision import unit_rows
from tools.tiny_clip.text import template_sentences
from tools.tiny_clip.train import normalize

# Not the seed of the training stream, so that the identities differ.
UNSEEN_SEED: Final = 77_000_001
_BATCH: Final = 256


@torch.no_grad()
def image_features(model: Backbone, images: np.ndarray) -> Tensor:
    """Return normalized image features [N, D] of uint8 images [N, H, W, 3]."""
    parts = [model.image(normalize(images[start : start + _BATCH])).joint_BD for start in range(0, len(images), _BATCH)]
    return unit_rows(torch.cat(parts))


@torch.no_grad()
def text_features(model: Backbone, texts: Sequence[str]) -> Tensor:
    """Return normalized text features [N, D]."""
    parts = [model.text(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
    return unit_rows(torch.cat(parts))


def _prompts(slot: str, value: str) -> list[str]:
    """Return sentences that say `slot` = `value` and as little else as possible."""
    if slot == "upper_color":
        return [template_sentences({slot: value, "upper_type": kind}) for kind in UPPER_TYPES]
    if slot == "upper_type":
        return [template_sentences({slot: value, "upper_color": color}) for color in COLORS]
    if slot == "lower_color":
        return [template_sentences({slot: value, "lower_type": kind}) for kind in LOWER_TYPES]
    if slot == "lower_type":
        return [template_sentences({slot: value, "lower_color": color}) for color in COLORS]
    return [template_sentences({slot: value})]


def attribute_accuracy(model: Backbone, features_ND: Tensor, facts: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Return zero-shot accuracy per slot over the images where it is visible (and not "none")."""
    scores = {}
    for slot in SLOTS:
        values = [value for value in VOCABULARY[slot] if value != NONE]
        classes = torch.stack([text_features(model, _prompts(slot, value)).mean(0) for value in values])
        rows = [row for row, known in enumerate(facts) if known.get(slot, NONE) != NONE]
        guess = (features_ND[rows] @ unit_rows(classes).T).argmax(1).tolist()
        truth = [values.index(facts[row][slot]) for row in rows]
        scores[slot] = sum(a == b for a, b in zip(guess, truth, strict=True)) / len(rows)
    return scores


def retrieval(model: Backbone, features_ND: Tensor, facts: Sequence[Mapping[str, str]], pool: int) -> float:
    """Return text-to-image R@1 over the first `pool` images whose template captions all differ."""
    first: dict[str, int] = {}
    for row, known in enumerate(facts):
        first.setdefault(template_sentences(known), row)
    chosen = list(first.items())[:pool]
    texts_ND = text_features(model, [text for text, _ in chosen])
    nearest = (texts_ND @ features_ND[[row for _, row in chosen]].T).argmax(1)
    return (nearest == torch.arange(len(chosen))).float().mean().item()


def unseen(count: int) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Return images [N, H, W, 3] and visible facts of people outside the training stream, one image per person."""
    samples = [training_sample(UNSEEN_SEED, 4 * number + number % 4) for number in range(count)]
    facts = [{slot: s.attributes[slot] for slot in SLOTS if s.visible[slot]} for s in samples]
    return np.stack([s.image for s in samples]), facts


def reid_scores(model: Backbone, world: WorldConfig) -> dict[str, float]:
    """Return mAP and rank-1 of CLIP's image feature on the test part of a synthetic world."""
    from data.datasets import load_dataset
    from data.images.decode import open_rgb
    from reid.ranking.metrics import evaluate_ranking

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "world"
        write_market1501(root, world)
        parts: dict[str, Any] = {}
        for split in ("query", "gallery"):
            records = [r for r in load_dataset("market1501", root) if r.split == split]
            images = np.stack([np.asarray(open_rgb(root / r.path)) for r in records])
            parts[split] = (
                image_features(model, images).numpy(),
                np.array([r.pid for r in records]),
                np.array([r.camid for r in records]),
            )
    (query, query_pids, query_cams), (gallery, gallery_pids, gallery_cams) = parts["query"], parts["gallery"]
    ranking = evaluate_ranking(query, gallery, query_pids, gallery_pids, query_cams, gallery_cams)
    return {"mAP": float(ranking.mAP), "rank1": float(ranking.cmc[0])}


def measure(model: Backbone, count: int = 2000) -> dict[str, Any]:
    """Return all measurements of the model card."""
    model.eval()
    images, facts = unseen(count)
    features = image_features(model, images)
    shuffled = random.Random(0).sample(range(len(facts)), len(facts))
    return {
        "images": count,
        "attributes": attribute_accuracy(model, features, facts),
        "retrieval_pool": 200,
        "text_to_image_r1": retrieval(model, features[shuffled], [facts[row] for row in shuffled], 200),
    }


def write_card(folder: Path, figures: Mapping[str, Any], history: Mapping[str, Any]) -> None:
    """Write measurements.json and README.md, the model card, beside the weights."""
    write_json(folder / "measurements.json", {"training": dict(history), "measured": dict(figures)})
    rows = "\n".join(f"| {slot} | {100 * score:.1f} |" for slot, score in figures["attributes"].items())
    write_text(folder / "README.md", _CARD.format(rows=rows, figures=figures, history=history))


_CARD: Final = """# Tiny CLIP

open_clip's `CLIP` in a small shape (128 x 64 pixels, 16 x 16 patches; config.json), for demonstrations and tests.
It was trained on procedural pedestrians only; it does not work on photographs.

## How it was made
```
{history[command]}
```
{history[steps]} steps of {history[batch]} images, seed {history[seed]}, {history[seconds]:.0f} s on one core; final
loss {history[loss]:.3f}. Data: the stream of `training_sample` (seed {history[stream_seed]}), whose
identities no world of `write_market1501` contains. Sentences: tools/tiny_clip/text.py. The
weights are float16 on disk and float32 in use.

## What it can do
Measured by `python -m tools.tiny_clip measure` on {figures[images]} images of people from no training stream. Zero-shot
accuracy per slot, over the images in which it can be seen and is not "none":

| slot | % right |
|---|---|
{rows}

Text to image, R@1 among {figures[retrieval_pool]} people with different captions:
{figures[text_to_image_r1]:.3f}.

Re-identification with the plain image feature on an unseen world (30 test identities, 3 lookalikes each, 4 cameras):
mAP {figures[reid][mAP]:.3f}, rank-1 {figures[reid][rank1]:.3f}.

## On photographs
The model was trained on drawings only, and its accuracy on photographs has not been measured. For photographs use
OpenAI's weights (`train.backbone.name=vit_b16`, `train.backbone.weights=openai`).
"""
