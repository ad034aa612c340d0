"""Config of the evaluate stage."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from data.config import RUNTIME, Config
from data.device import Device

Exclude = Literal["same_camera", "none"]
TextToImage = Literal["auto", "captions", "off"]

JOINT: Final = "joint"
"""The mode of CLIP's joint space, the only one whose image features are comparable with sentences."""


class RerankConfig(Config):
    """k-reciprocal re-ranking (Zhong et al., CVPR 2017): 20 / 6 / 0.3. CLIP-ReID and TransReID use 50 / 15 / 0.3."""

    k1: Annotated[int, Field(ge=1)] = 20
    """Nearest neighbors among which reciprocal neighbors are searched."""
    k2: Annotated[int, Field(ge=1)] = 6
    """Neighbors whose neighbor sets are averaged (local query expansion); 1 turns it off."""
    weight: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of the original distance in the result (lambda); the rest is the Jaccard distance of neighbor sets."""


class EvaluateConfig(Config):
    """How a trained model is evaluated."""

    flip: bool = False
    """Average each image's features with those of its mirror image. Published results do not."""
    exclude: Exclude = "same_camera"
    """Gallery images left out of a query's ranking: those of its identity seen by its camera, or none. If the cameras
    of the dataset are unknown, none is left out."""
    rerank: RerankConfig | None = None
    """Re-ranking of the results; off by default, as in published tables."""
    gallery_draws: Annotated[int, Field(ge=0)] | None = None
    """Random galleries of one image per identity, drawn from all test images; the other images are queries, and results
    are means with their deviation. Unset: ten for VehicleID, as its protocol says; 0: the dataset's own gallery."""
    top_k: Annotated[int, Field(ge=1, le=50)] = 50
    """Nearest gallery images kept for every query in rankings.parquet, and for every sentence in
    text_rankings.parquet."""
    text_to_image: TextToImage = "auto"
    """Sentences to search the gallery with, in the joint space. auto: those of the dataset, or else the captions of the
    queries if the method of the run reads captions. captions: the captions of the queries, which the run makes for
    every method. off: none."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of the encoders; "no" is float32. Rankings are always computed in float32."""
    device: Device = "auto"
    """auto (the first CUDA device if there is one, else the CPU), cpu, cuda or cuda:N."""
    batch_size: Annotated[int, Field(ge=1), RUNTIME] = 64
    """Images per batch of the encoder."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that can change a result; `text_to_image` only if it differs from its default."""
        found = super().identity()
        if self.text_to_image == "auto":
            del found["text_to_image"]
        return found

    def ranking_identity(self) -> dict[str, Any]:
        """Return the fields on which an evaluation depends beside its sentences, which are an ingredient themselves."""
        return {name: value for name, value in self.identity().items() if name != "text_to_image"}
