"""Whole-body framing: the model sees the whole person, unlike with LLaVA's stock processor."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessor

from captioning.framing import frame, pad_color
from tools.tiny_llava.model import IMAGE_SIZE

SIDES = (336, IMAGE_SIZE)  # of llava-1.5-7b and of the embedded model


def processor(side: int) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def pixels(image: Image.Image, side: int, framing: str) -> np.ndarray:
    stock = processor(side)
    framed = frame(image, framing, (side, side), stock.image_mean)
    assert framed.size == (side, side)
    return stock(framed, return_tensors="np")["pixel_values"][0]


def person(marked_rows: slice | None = None) -> Image.Image:
    rng = np.random.default_rng(0)
    crop = rng.integers(60, 190, (128, 64, 3)).astype(np.uint8)
    if marked_rows is not None:
        crop[marked_rows] = (255, 0, 0)
    return Image.fromarray(crop)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("framing", ["pad", "stretch"])
@pytest.mark.parametrize("rows", [slice(0, 8), slice(120, 128)], ids=["head", "shoes"])
def test_top_and_bottom_rows_reach_the_model(side, framing, rows):
    change = np.abs(pixels(person(rows), side, framing) - pixels(person(), side, framing)).max(axis=0)
    eighth = side // 16
    at_edge = change[:eighth] if rows.start == 0 else change[-eighth:]
    assert at_edge[:, side // 2].min() > 0.1


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("rows", [slice(0, 8), slice(120, 128)], ids=["head", "shoes"])
def test_stock_processing_loses_top_and_bottom_rows(side, rows):
    stock = processor(side)
    same = [stock(image, return_tensors="np")["pixel_values"] for image in (person(), person(rows))]
    assert np.array_equal(*same)
    assert np.array_equal(pixels(person(), side, "center_crop"), pixels(person(rows), side, "center_crop"))


def test_center_crop_equals_the_stock_processor():
    smooth = person().resize((16, 32)).resize((64, 128), Image.Resampling.BICUBIC)
    stock = processor(336)(smooth, return_tensors="np")["pixel_values"][0]
    difference = np.abs(pixels(smooth, 336, "center_crop") - stock)
    assert difference.mean() < 0.02  # resampling at the border, in units of normalized color


def test_a_crop_of_the_models_height_keeps_every_pixel():
    framed = np.asarray(frame(person(), "pad", (128, 128), (0.5, 0.5, 0.5)))
    assert np.array_equal(framed[:, 32:96], np.asarray(person()))
    assert (framed[:, :32] == 128).all()
    assert (framed[:, 96:] == 128).all()


@pytest.mark.parametrize("side", SIDES)
def test_normalized_padding_is_zero(side):
    padded = pixels(person(), side, "pad")
    assert np.abs(padded[:, :, : side // 8]).max() < 0.01


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (200, 100), (63, 127)])
@pytest.mark.parametrize("framing", ["pad", "stretch", "center_crop"])
def test_any_shape_is_framed_to_the_square(size, framing):
    assert frame(Image.new("RGB", size, (9, 9, 9)), framing, (128, 128), (0.5, 0.4, 0.3)).size == (128, 128)


def test_wide_images_are_padded_above_and_below():
    framed = np.asarray(frame(Image.new("RGB", (200, 100), (0, 0, 0)), "pad", (64, 64), (1.0, 1.0, 1.0)))
    assert (framed[:16] == 255).all()
    assert (framed[16:48] == 0).all()
    assert (framed[48:] == 255).all()


def test_pad_color_of_clip():
    assert pad_color(processor(336).image_mean) == (123, 117, 104)
