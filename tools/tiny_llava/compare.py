"""Accuracy of the tiny LLaVA by decoding, framing and image tokens, and calibration of its confidences.

All settings caption the same images, of the world in `measure`, through the caption stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Final

import numpy as np
import pandas as pd

from captioning.config import CaptionConfig
from data.slots import NONE, SLOTS
from tools.tiny_llava.measure import Score, measure

_BINS: Final = (0.0, 0.5, 0.7, 0.9, 0.97, 0.99, 1.0)
_SETTINGS: Final[Mapping[str, dict[str, str]]] = {
    "free, pad": {"decoding": "free", "framing": "pad"},
    "slots, pad": {"decoding": "slots", "framing": "pad"},
    "slots, pad, body": {"decoding": "slots", "framing": "pad", "image_tokens": "body"},
    "slots, pad, body_only": {"decoding": "slots", "framing": "pad", "image_tokens": "body_only"},
    "free, stretch": {"decoding": "free", "framing": "stretch"},
    "free, center_crop": {"decoding": "free", "framing": "center_crop"},
}


def compare(images: int, model: str) -> Iterator[str]:
    """Yield Markdown tables: accuracy per slot by setting, then the calibration of slot filling."""
    scores: dict[str, list[Score]] = {}
    calibrated = pd.DataFrame()
    for name, settings in _SETTINGS.items():
        config = CaptionConfig(model=model, dtype="float32", **settings)  # type: ignore[arg-type]
        scores[name], frame = measure(config, images)
        if config.decoding == "slots" and config.image_tokens == "all":
            calibrated = frame
    yield accuracy_table(scores)
    yield calibration_table(calibrated)
    yield reliability_table(calibrated)


def accuracy_table(scores: Mapping[str, list[Score]]) -> str:
    """Return a table of accuracy where the slot is visible, with one row per slot and one column per setting."""
    lines = [f"| slot | images | {' | '.join(scores)} |", "|---|---|" + "---|" * len(scores)]
    for row in zip(*scores.values(), strict=True):
        cells = " | ".join(f"{score.accuracy:.1%}" for score in row)
        lines.append(f"| {row[0].slot} | {row[0].images} | {cells} |")
    return "\n".join(lines)


def calibration_table(frame: pd.DataFrame) -> str:
    """Return one row per slot: mean confidence, accuracy, expected calibration error, and accuracy after filtering.

    The error is the mean of |confidence - accuracy| over ten equal parts of the images, ordered by confidence.
    Filtering keeps the more confident half of the images.
    """
    lines = [
        "| slot | mean confidence | right | calibration error | right in the surer half |",
        "|---|---|---|---|---|",
    ]
    for slot in SLOTS:
        probability, right = answers_of(frame, slot)
        order = np.argsort(probability, kind="stable")
        parts = [part for part in np.array_split(order, 10) if len(part)]
        error = sum(len(part) * abs(probability[part].mean() - right[part].mean()) for part in parts) / len(order)
        surer = right[order[len(order) // 2 :]].mean()
        lines.append(f"| {slot} | {probability.mean():.1%} | {right.mean():.1%} | {error:.1%} | {surer:.1%} |")
    return "\n".join(lines)


def reliability_table(frame: pd.DataFrame) -> str:
    """Return one row per range of confidence, over all slots: the number of answers and their accuracy."""
    pairs = [answers_of(frame, slot) for slot in SLOTS]
    probability, right = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    lines = ["| confidence | answers | mean confidence | right |", "|---|---|---|---|"]
    for low, high in pairwise(_BINS):
        inside = (probability >= low) & ((probability < high) | (high == 1.0))
        if inside.any():
            cells = f"{inside.sum()} | {probability[inside].mean():.1%} | {right[inside].mean():.1%}"
            lines.append(f"| {low:.2f} to {high:.2f} | {cells} |")
    return "\n".join(lines)


def answers_of(frame: pd.DataFrame, slot: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability of each answer and whether it is right, over the images in which `slot` is visible."""
    seen = frame[frame[f"visible_{slot}"].astype(bool)]
    said = seen[f"attr_{slot}"]
    if slot in ("carrying", "glasses"):
        said = said.fillna(NONE)
    return np.exp(seen[f"conf_{slot}"].to_numpy(np.float64)), (said == seen[slot]).to_numpy(np.float64)
