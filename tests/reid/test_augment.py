"""Batch augmentation against a slow reference that works per image, and the distributions of the plan."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from reid.config.train import AugmentConfig
from reid.inputs.augment import augment, draw_plan, normalize
from reid.inputs.loading import load_batches

sizes = st.tuples(st.integers(4, 40), st.integers(4, 24))
MEAN, STD = (0.5, 0.45, 0.4), (0.5, 0.25, 0.3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count, height, width, seed=0):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator(seed))


def one_by_one(pixels, plan, pad):
    """Apply the plan with Pillow and NumPy, image by image."""
    _, _, height, width = pixels.shape
    out = []
    for index, image in enumerate(pixels.numpy()):
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        # The crop comes before the mirroring, so its left edge refers to the unmirrored image.
        padded = ImageOps.expand(picture, border=pad, fill=0)
        top, left = plan.shift_B2[index].tolist()
        crop = padded.crop((left, top, left + width, top + height))
        if plan.flip_B[index]:
            crop = ImageOps.mirror(crop)
        values = (np.asarray(crop, np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
        values = values.transpose(2, 0, 1).copy()
        top, left, h, w = plan.erase_B4[index].tolist()
        if h:
            noise = torch.randn(3 * h * w, generator=generator(int(plan.noise_seed_B[index])))
            values[:, top : top + h, left : left + w] = noise.view(3, h, w).numpy()
        out.append(values)
    return np.stack(out)


@settings(max_examples=40)
@given(st.integers(1, 9), sizes, st.integers(0, 12), st.booleans(), st.integers(0, 99))
def test_the_batch_equals_one_image_at_a_time(count, size, pad, channels_last, seed):
    height, width = size
    pixels = images(count, height, width, seed)
    if channels_last:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    before = pixels.clone()
    config = AugmentConfig(pad=pad)
    plan = draw_plan(count, height, width, config, generator(seed))
    got = augment(pixels, plan, config, mean=MEAN, std=STD)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert torch.equal(pixels, before)
    np.testing.assert_allclose(got.numpy(), one_by_one(pixels, plan, pad), atol=2e-6)


def test_an_image_is_augmented_the_same_in_any_batch():
    config = AugmentConfig()
    pixels = images(16, 32, 16)
    plan = draw_plan(16, 32, 16, config, generator())
    whole = augment(pixels, plan, config, mean=MEAN, std=STD)
    halves = [augment(pixels[s : s + 4], plan.slice(s, s + 4), config, mean=MEAN, std=STD) for s in range(0, 16, 4)]
    assert torch.equal(whole, torch.cat(halves))
    assert len(plan.slice(3, 7)) == 4


def test_only_the_generator_given_is_used():
    config = AugmentConfig()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augment(images(8, 32, 16), draw_plan(8, 32, 16, config, generator(5)), config, mean=MEAN, std=STD)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = augment(images(8, 32, 16), draw_plan(8, 32, 16, config, generator(5)), config, mean=MEAN, std=STD)
    assert torch.equal(first, second)


def test_without_augmentation_only_the_normalization_of_evaluation_is_left():
    config = AugmentConfig(flip_probability=0, pad=0, erase_probability=0)
    pixels = images(4, 20, 10)
    got = augment(pixels, draw_plan(4, 20, 10, config, generator()), config, mean=MEAN, std=STD)
    assert torch.equal(got, normalize(pixels, MEAN, STD))
    expected = (pixels.numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-6)


def test_padding_is_black_before_normalization():
    config = AugmentConfig(flip_probability=0, pad=3, erase_probability=0)
    pixels = torch.full((64, 3, 8, 8), 255, dtype=torch.uint8)
    plan = draw_plan(64, 8, 8, config, generator())
    got = augment(pixels, plan, config, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert set(got.unique().tolist()) == {-1.0, 1.0}


def test_plans_follow_the_published_rules():
    count, height, width = 20_000, 256, 128
    plan = draw_plan(count, height, width, AugmentConfig(), generator(1))
    assert abs(plan.flip_B.float().mean() - 0.5) < 0.02
    for axis in range(2):
        uses = torch.bincount(plan.shift_B2[:, axis], minlength=21)
        assert len(uses) == 21
        assert uses.min() > 0.8 * count / 21
    top, left, h, w = plan.erase_B4.T
    erased = h > 0
    assert abs(erased.float().mean() - 0.5) < 0.02
    assert ((top >= 0) & (top + h <= height) & (left >= 0) & (left + w <= width)).all()
    area = (h * w)[erased] / (height * width)
    assert 0.018 < area.min() < 0.025
    assert 0.31 < area.max() < 0.345
    # Wide rectangles of large area exceed a tall image and are drawn again, as in timm.
    assert area.mean() < (0.02 + 1 / 3) / 2
    aspect = (h / w.clamp(min=1))[erased]
    assert 0.28 < aspect.min() < 0.33
    assert 3.1 < aspect.max() < 3.5
    small = area < 0.1
    assert abs(aspect[small].log().mean()) < 0.05
    assert abs(aspect[small].log().std() - 2 * math.log(1 / 0.3) / math.sqrt(12)) < 0.03


def test_erased_pixels_are_standard_normal_and_each_its_own():
    config = AugmentConfig(flip_probability=0, pad=0, erase_probability=1)
    pixels = torch.zeros(200, 3, 64, 32, dtype=torch.uint8)
    plan = draw_plan(200, 64, 32, config, generator(3))
    got = augment(pixels, plan, config, mean=(0.5,) * 3, std=(0.5,) * 3)
    noise = got[got != -1]
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert len(noise.unique()) > 0.9 * len(noise)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3)])
def test_tiny_images_work(size):
    config = AugmentConfig(pad=1)
    plan = draw_plan(5, *size, config, generator())
    assert augment(images(5, *size), plan, config, mean=MEAN, std=STD).shape == (5, 3, *size)


def test_batches_come_in_order_from_the_map(tmp_path):
    cache = np.random.default_rng(0).integers(0, 256, (11, 6, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "p.npy", cache)
    pixels = np.load(tmp_path / "p.npy", mmap_mode="r")
    batches = [np.array(b) for b in ([3, 1], [10], [0, 0, 5], [7, 2])]
    loaded = list(load_batches(pixels, batches, "cpu"))
    assert [len(batch) for batch in loaded] == [2, 1, 3, 2]
    for batch, indices in zip(loaded, batches, strict=True):
        np.testing.assert_array_equal(batch.numpy(), cache[indices].transpose(0, 3, 1, 2))
    assert list(load_batches(pixels, [], "cpu")) == []
    with pytest.raises(IndexError):
        list(load_batches(pixels, [np.array([11])], "cpu"))
