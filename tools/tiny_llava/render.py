"""Rendered people and their labels. Rendering processes import this, so neither torch nor transformers."""

from __future__ import annotations

from typing import Final

import numpy as np

from captioning.prompts.templates import compose
from data.slots import NONE, SLOTS, VOCABULARY
from data.synthetic.world import training_samples

HEIGHT: Final = 128
WIDTH: Final = 64

CLASSES: Final[dict[str, tuple[str | None, ...]]] = {
    slot: values if NONE in values else (*values, None) for slot, values in VOCABULARY.items()
}
"""The classes of each slot: its values and "none", or None (not visible) for a slot without "none"."""


def labels_of(attributes: dict[str, str], visible: dict[str, bool]) -> list[int]:
    """Return the class index of each slot in a caption of the visible attributes."""
    labels = []
    for slot in SLOTS:
        classes = CLASSES[slot]
        hidden = classes.index(NONE) if NONE in classes else classes.index(None)
        labels.append(classes.index(attributes[slot]) if visible.get(slot) else hidden)
    return labels


def caption_of(labels: np.ndarray) -> str:
    """Return the caption of the class indices `labels` [S]."""
    return compose({slot: CLASSES[slot][int(index)] for slot, index in zip(SLOTS, labels, strict=True)})


Rendered = tuple[np.ndarray, np.ndarray, np.ndarray]


def render(seed: int, count: int) -> Rendered:
    """Return the first `count` people of the stream `seed`: images, labels and parts, as `Pool` holds them."""
    images = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    labels = np.empty((count, len(SLOTS)), np.int8)
    parts = np.empty((count, HEIGHT // 2, WIDTH // 2), np.uint8)
    for i, sample in enumerate(training_samples(seed, count)):
        images[i] = sample.image
        labels[i] = labels_of(dict(sample.attributes), dict(sample.visible))
        parts[i] = sample.parts[::2, ::2]
    return images, labels, parts
