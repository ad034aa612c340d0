"""The ``text`` stage: CLIP's text feature of every distinct caption, computed once while the text tower is frozen.

Writes ``features.npy``, float32 [distinct captions, D], rows in the order of the sorted captions, and ``text.json``.
Keyed by the captions and the digests of the weights, so method, seed and schedule may change without a new run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from data.artifacts.fingerprint import digest
from data.artifacts.store import ArtifactStore
from data.errors import DataError
from data.files import write_json
from data.process.environment import exact_float32
from data.progress import ProgressFn, silent
from reid.config.backbone import RANDOM, BackboneConfig
from reid.models.pretrained import weights_files
from reid.models.weights_source import source_identity

STAGE: Final = "text"
STAGE_VERSION: Final = 1
_BATCH: Final = 256


@dataclass(frozen=True, kw_only=True)
class CaptionFeatures:
    """Text features of captions: row `rows_N[i]` of `features_MD` belongs to caption i."""

    features_MD: NDArray[np.float32]
    rows_N: NDArray[np.int64]


def weights_identity(store: ArtifactStore, config: BackboneConfig, seed: int) -> dict[str, Any]:
    """Return what identifies a backbone's weights: digests of its files, how they are read, the seed if it is random.

    Raises:
        WeightsError: a file is unavailable, or does not say how to read it.
    """
    digests: dict[str, Any] = {}
    for number, path in enumerate(weights_files(config)):
        # A file of the user's goes by what it is: renaming it changes nothing.
        name = "weights" if config.is_file and number == 0 else path.name
        digests[name] = store.memo.digest_folder(path.parent, [path.name])[path.name]
    return {"files": digests, "seed": seed if config.weights == RANDOM else None, **source_identity(config)}


def caption_features(
    store: ArtifactStore,
    captions: Sequence[str],
    *,
    config: BackboneConfig,
    seed: int,
    device: str = "cpu",
    progress: ProgressFn = silent,
) -> CaptionFeatures:
    """Return the text feature of every caption, encoding only texts whose set has not been seen with these weights.

    Args:
        store: where the features are kept.
        captions: any texts, repeats allowed, [N].
        config: the backbone; its text tower reads the captions.
        seed: of random weights.
        device: where to encode, "cpu" or "cuda".
        progress: called once a batch.
    """
    distinct = sorted(set(captions))
    weights = weights_identity(store, config, seed)
    ingredients = {
        "captions": digest(distinct),
        "backbone": config.name,
        "weights": weights,
        "version": STAGE_VERSION,
    }

    def produce(folder: Any) -> None:
        features = encode_texts(distinct, config=config, seed=seed, device=device, progress=progress)
        np.save(folder / "features.npy", features, allow_pickle=False)
        write_json(folder / "text.json", {"captions": len(distinct), "width": features.shape[1]})

    made = store.make(STAGE, ingredients, produce)
    features: NDArray[np.float32] = np.load(made.ref.folder / "features.npy", allow_pickle=False)
    if len(features) != len(distinct):
        raise DataError(f"{made.ref.folder} holds {len(features)} features for {len(distinct)} captions; delete it")
    row = {caption: index for index, caption in enumerate(distinct)}
    return CaptionFeatures(features_MD=features, rows_N=np.array([row[text] for text in captions], dtype=np.int64))


def encode_texts(
    texts: Sequence[str], *, config: BackboneConfig, seed: int, device: str, progress: ProgressFn = silent
) -> NDArray[np.float32]:
    """Return CLIP's text features [N, D] (end token, projected, not normalised), float32."""
    import torch

    from reid.models.backbone import build_backbone

    backbone = build_backbone(config, seed=seed).to(device).eval()
    # Texts of like length together: each batch runs at the length of its longest.
    order = sorted(range(len(texts)), key=lambda index: (len(texts[index]), index))
    features = np.empty((len(texts), backbone.joint_width), dtype=np.float32)
    with torch.inference_mode(), exact_float32(torch):
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            features[rows] = backbone.text([texts[row] for row in rows]).float().cpu().numpy()
            progress(start + len(rows), len(order), "encoding captions")
    return features
