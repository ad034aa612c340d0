"""The ``text`` stage: CLIP's text features of all distinct captions, computed once because the text tower is frozen.

Writes ``features.npy``, float32 [distinct captions, D], with one row per sorted caption, and ``text.json``. The key is
the captions and the digests of the weights, so changes of method, seed or schedule do not require a new run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.artifacts.store import ArtifactStore, Produced
from data.columns.json_rows import list_digest
from data.columns.texts import Texts
from data.errors import DataError, counted
from data.files import write_json
from data.process.environment import exact_float32
from data.process.fixed_order import fixed_order
from data.progress import ProgressFn, silent
from data.schemas import WORDLESS
from data.stages.stage import Ingredients, RunContext, Stage
from reid.config.backbone import RANDOM, BackboneConfig
from reid.models.pretrained import weights_files
from reid.models.weights_source import source_identity

if TYPE_CHECKING:
    from reid.models.backbone import Backbone

STAGE_VERSION: Final = 1
_BATCH: Final = 256


@dataclass(frozen=True, kw_only=True)
class CaptionFeatures:
    """Text features of captions: row `rows_N[i]` of `features_MD` belongs to caption i."""

    features_MD: NDArray[np.float32]
    rows_N: NDArray[np.int64]


def weights_identity(store: ArtifactStore, config: BackboneConfig, seed: int) -> dict[str, Any]:
    """Return the identity of a backbone's weights: digests of its files, how they are read, the seed of random ones.

    Raises:
        WeightsError: a file is unavailable, or does not specify how to read it.
    """
    digests: dict[str, Any] = {}
    for number, path in enumerate(weights_files(config)):
        # A user's file is identified by its content: renaming it changes nothing.
        name = "weights" if config.is_file and number == 0 else path.name
        digests[name] = store.memo.digest_folder(path.parent, [path.name])[path.name]
    return {"files": digests, "seed": seed if config.weights == RANDOM else None, **source_identity(config)}


@dataclass(frozen=True, kw_only=True)
class TextStage(Stage):
    """Encode distinct captions with the text tower of a backbone.

    captions: sorted and distinct. seed: of random weights. device: "cpu" or "cuda".
    """

    name: ClassVar[str] = "text"
    captions: Texts
    config: BackboneConfig
    seed: int
    device: str

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return the captions and the weights."""
        return {
            "captions": list_digest([self.captions.array]),
            "backbone": self.config.name,
            "weights": weights_identity(run.store, self.config, self.seed),
            "version": STAGE_VERSION,
        }

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write features.npy and text.json."""
        wordless = pc.equal(self.captions.array, WORDLESS)
        texts = Texts(pc.if_else(wordless, "", self.captions.array))
        features = encode_texts(texts, config=self.config, seed=self.seed, device=self.device, progress=run.progress)
        np.save(folder / "features.npy", features, allow_pickle=False)
        write_json(folder / "text.json", {"captions": len(self.captions), "width": features.shape[1]})
        return Produced()


def caption_features(
    run: RunContext, captions: Texts, *, config: BackboneConfig, seed: int, device: str = "cpu"
) -> CaptionFeatures:
    """Return the text feature of every caption; encode the captions unless the store holds the features of this set.

    Args:
        run: its store keeps the features.
        captions: any texts, [N]; repeats are allowed.
        config: the backbone; its text tower reads the captions.
        seed: of random weights.
        device: where to encode, "cpu" or "cuda".
    """
    distinct = captions.sorted_distinct()
    made = TextStage(captions=distinct, config=config, seed=seed, device=device).make(run)
    features: NDArray[np.float32] = np.load(made.ref.folder / "features.npy", mmap_mode="r", allow_pickle=False)
    if len(features) != len(distinct):
        raise DataError(
            f"{made.ref.folder} has {counted(len(features), 'feature')} for {counted(len(distinct), 'caption')}; "
            "delete that folder and run again"
        )
    return CaptionFeatures(features_MD=features, rows_N=captions.places_in(distinct))


def encode_texts(
    texts: Sequence[str], *, config: BackboneConfig, seed: int, device: str, progress: ProgressFn = silent
) -> NDArray[np.float32]:
    """Return CLIP's text features [N, D] (end token, projected, not normalized), float32."""
    from reid.models.backbone import build_backbone

    return text_features(build_backbone(config, seed=seed).to(device).eval(), texts, progress)


def text_features(backbone: Backbone, texts: Sequence[str], progress: ProgressFn = silent) -> NDArray[np.float32]:
    """Return the text features [N, D] of a backbone in evaluation mode (end token, projected, not normalized)."""
    import torch

    # Sorted by length, because a batch is padded to its longest text.
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    order = np.argsort(lengths, kind="stable")
    features = np.empty((len(texts), backbone.joint_width), dtype=np.float32)
    with torch.inference_mode(), exact_float32(torch), fixed_order(torch):
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            features[rows] = backbone.text([texts[row] for row in rows]).float().cpu().numpy()
            progress(start + len(rows), len(order), "encoding captions")
    return features
