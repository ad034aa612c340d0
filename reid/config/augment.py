"""How training images are varied. Kept apart from the code that does it, which needs torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from data.config import Config
from data.errors import raise_settings

Probability = Annotated[float, Field(ge=0, le=1)]


class AugmentConfig(Config):
    """Variation of training images; the defaults are CLIP-ReID's (flip, pad and crop, random erasing)."""

    flip_probability: Probability = 0.5
    """Chance that an image is mirrored left to right."""
    pad: Annotated[int, Field(ge=0)] = 10
    """Black pixels added on every side before a crop of the original size is taken at a random place."""
    erase_probability: Probability = 0.5
    """Chance that one rectangle of an image is replaced by normal noise, drawn pixel by pixel."""
    erase_min_area: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Smallest erased share of the image."""
    erase_max_area: Annotated[float, Field(gt=0, lt=1)] = 1 / 3
    """Largest erased share of the image."""
    erase_min_aspect: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Height over width of the rectangle lies between this and its inverse, evenly in the logarithm."""

    @model_validator(mode="after")
    def _check(self) -> AugmentConfig:
        if self.erase_min_area > self.erase_max_area:
            most = self.erase_max_area
            told = f"is above {{at}}erase_max_area={most:g}; set {{at}}erase_min_area={most!r}"
            raise_settings([("erase_min_area", told)])
        return self
