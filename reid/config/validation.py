"""Config of the evaluation during training. Kept apart from the code, which needs torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data.config import Config
from data.errors import raise_settings


class ValidationConfig(Config):
    """Evaluating while training: to watch a run and, if wanted, to keep its best epoch.

    An epoch chosen on the test set is dishonest: its score is the best of many tries on the very images that it is
    then reported on. So the default ranks identities of the training set that are held out and not trained on.
    ``images="test"`` is there to look at the curve as published logs show it; where it also chooses the model, the
    evaluation says so beside its figures.
    """

    every: Annotated[int, Field(ge=0)] = 0
    """Epochs between evaluations; the last epoch is always evaluated. 0 never evaluates, and holds nothing out."""
    images: Literal["held_out", "test"] = "held_out"
    """What is ranked: images of held-out training identities, each against all others, or the test set."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training identities that is held out (at least two)."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the draw of held-out identities; apart from the run's, so that runs of several seeds share them."""
    mode: Literal["image", "fused"] = "image"
    """Inference mode that is evaluated."""
    keep: Literal["last", "best"] = "last"
    """Epoch that becomes the model: the last, as published, or the one with the highest mAP (the first of equals)."""

    def due(self, done: int, epochs: int) -> bool:
        """Say whether to evaluate after `done` of `epochs` epochs."""
        return bool(self.every) and (done % self.every == 0 or done == epochs)

    @property
    def holds_out(self) -> bool:
        """Whether part of the training identities is kept for the evaluation."""
        return bool(self.every) and self.images == "held_out"

    @model_validator(mode="after")
    def _check(self) -> ValidationConfig:
        if self.keep == "best" and not self.every:
            raise_settings([("keep", '"best" needs evaluations to choose by; set {at}every=5 or {at}keep=last')])
        return self
