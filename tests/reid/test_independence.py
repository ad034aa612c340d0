"""The check of independence: it passes for every method and mode, and finds models that mix the images of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.artifacts.store import ArtifactStore
from data.errors import ConfigError, DataError
from reid.config.scgi import ScgiConfig
from reid.config.train import TrainConfig
from reid.embedding.embedder import EmbedConfig, Embedder
from reid.evaluation.independence import TOLERANCE, Sample, check_independence, drawn_sample, indexed_sample
from reid.tasks.build import build_task
from tests.helpers.small_models import write_model, write_world
from tests.helpers.stages import run_on

WIDTH = 320
ARRANGEMENTS = ["alone, again", "in one batch", "shuffled", "sorted by path", "with other company"]


def embedder_of(method: str = "clip_scgi", sie: float = 0.0, **changes: Any) -> Embedder:
    config = TrainConfig(method=method, device="cpu", seed=3, sie=sie, **changes)
    task = build_task(config, identities=5, cameras=[1, 2, 3, 4]).eval()
    return Embedder(task, None, EmbedConfig(device="cpu"), "cpu")


def spoiled(change) -> Embedder:
    """Return a model whose embedding is some pixels of the image, followed by `change`, a function of a batch."""
    embedder = embedder_of("clip_baseline")
    embedder.task.encoders = lambda: {"image": lambda images: change(images.flatten(1)[:, : 64 * WIDTH : 64])}
    return Embedder(embedder.task, None, embedder.config, "cpu")


@pytest.fixture(scope="module")
def sample():
    return drawn_sample(embedder_of("clip_baseline"), 10)


@pytest.mark.parametrize(("method", "sie"), [("clip_scgi", 0.0), ("clip_reid", 0.0), ("clip_baseline", 1.0)])
def test_every_method_passes_in_every_mode(method, sie, sample):
    passes_in_every_mode(embedder_of(method, sie), sample, [1 + at % 4 for at in range(10)] if sie else None)


@pytest.mark.parametrize(
    "changes",
    [
        {"retrieval_head": "separate", "scgi": ScgiConfig(inversion_inputs="normalized", prompt_end="person.")},
        {"scgi": ScgiConfig(supervised="fused", contrast_text="both", contrast_image="refined")},
    ],
)
def test_every_setting_passes_in_every_mode(changes, sample):
    passes_in_every_mode(embedder_of(**changes), sample)


def passes_in_every_mode(embedder: Embedder, sample: Sample, cameras: list[int] | None = None) -> None:
    own = sample._replace(cameras=cameras)
    for mode in embedder.modes:
        found = check_independence(embedder, own, mode=mode)
        assert [one.arrangement for one in found] == ARRANGEMENTS
        assert all(one.passes() for one in found), found


class Attention(nn.Module):
    """A plausible fault: attention over the batch instead of over the tokens of one image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(width, 4).eval()

    def forward(self, features: Tensor) -> Tensor:
        return features + self.mix(features[:, None], features[:, None], features[:, None])[0][:, 0]


def batch_norm_in_training(features: Tensor) -> Tensor:
    """Normalize each channel by the batch; a batch of one, whose variance is zero, is left as it is."""
    return F.batch_norm(features, None, None, training=True) if len(features) > 1 else features


@pytest.mark.parametrize(
    "change",
    [
        batch_norm_in_training,
        Attention(WIDTH),
        lambda features: features + 0.01 * features.mean(0),
        lambda features: features - features.min(),
    ],
    ids=["batch norm", "attention", "mean", "minimum"],
)
def test_a_model_that_mixes_the_batch_fails_in_every_batch(change, sample):
    torch.manual_seed(0)
    again, *batches = check_independence(spoiled(change), sample)
    assert again.passes(), "alone, it repeats itself"
    assert not any(one.passes() for one in batches)
    assert all(one.path in sample.paths for one in batches)


def test_a_batch_norm_that_refuses_a_batch_of_one_is_one_failure(sample):
    norm = nn.BatchNorm1d(WIDTH).train()
    (found,) = check_independence(spoiled(norm), sample)
    assert not found.passes()
    assert (found.arrangement, found.largest) == ("alone", np.inf)
    assert "Expected more than 1 value per channel" in found.problem


def test_company_of_the_same_person_is_enough_to_fail(sample):
    """A model that looks at its neighbor only if they look alike: noise does not show it."""

    def borrow(features: Tensor) -> Tensor:
        unit = F.normalize(features)
        likeness = (unit @ unit.T).fill_diagonal_(0)
        return features + 0.1 * (likeness > 0.8).float() @ features

    found = {one.arrangement: one.passes() for one in check_independence(spoiled(borrow), sample)}
    assert not found["sorted by path"]


def test_a_random_model_does_not_even_repeat_itself(sample):
    again, *_ = check_independence(spoiled(lambda features: F.dropout(features, 0.1)), sample)
    assert not again.passes()


def test_what_shows_nothing_is_refused(sample):
    with pytest.raises(DataError, match="all images have the same embedding"):
        check_independence(spoiled(torch.ones_like), sample)
    with pytest.raises(ConfigError, match="at least two images"):
        check_independence(embedder_of(), sample._replace(paths=sample.paths[:1], pixels=sample.pixels[:1]))
    with pytest.raises(ConfigError, match="no mode 'both'"):
        check_independence(embedder_of(), sample, mode="both")


def test_progress_and_tolerance(sample):
    calls: list[tuple[int, int, str]] = []
    found = check_independence(
        spoiled(lambda features: features + 1e-6 * features.mean(0)),
        sample,
        progress=lambda *call: calls.append(call),
    )
    assert [call[:2] for call in calls] == [(step, 6) for step in range(7)]
    assert all(one.passes(TOLERANCE) for one in found)
    assert not all(one.passes(1e-9) for one in found)


def test_images_of_a_dataset_are_a_sample_of_its_gallery(tmp_path):
    store = ArtifactStore(tmp_path / "home")
    images = run_on(store, write_world(store, tmp_path / "images"), tmp_path / "images").images
    embedder = Embedder.load(write_model(store), device="cpu")
    sample = indexed_sample(embedder, images, 6)
    gallery = sorted(path for path in images.digests() if path.startswith("gallery/"))
    assert sorted(sample.paths) == gallery[:6]
    assert sample.paths != sorted(sample.paths)
    expected = embedder.embed_images([images.root / path for path in sample.paths])
    np.testing.assert_allclose(embedder.embed_pixels(sample.pixels, np.arange(6)), expected, atol=1e-5)
    assert sample.cameras is None
    (images.root / sample.paths[0]).write_bytes(b"")
    with pytest.raises(DataError, match=f"{sample.paths[0]} cannot be used"):
        indexed_sample(embedder, images, 6)
    sie = Embedder.load(write_model(store, TrainConfig(method="clip_baseline", device="cpu", sie=1.0)), device="cpu")
    assert set(drawn_sample(sie, 6).cameras) == {1, 2, 3, 4}
