"""Fixtures of the tests of CLIP files."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from reid.config.backbone import BackboneConfig
from reid.models.backbone import build_backbone
from reid.models.pretrained import TINY_FOLDER
from tests.helpers.clip_files import features_of


@pytest.fixture(scope="module")
def state():
    """Return the tensors of the embedded tiny CLIP."""
    return load_file(TINY_FOLDER / "model.safetensors")


@pytest.fixture(scope="module")
def shipped():
    """Return the features of the embedded tiny CLIP."""
    return features_of(build_backbone(BackboneConfig()))


@pytest.fixture(scope="module")
def clip():
    """Return a tiny CLIP with random weights."""
    return build_backbone(BackboneConfig(weights="random")).clip
