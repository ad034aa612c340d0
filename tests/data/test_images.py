"""Decoding of image files of every kind, damaged ones included."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.artifacts.fingerprint import digest_bytes
from data.datasets import DatasetConfig
from data.errors import RejectedRow
from data.images import decode as images
from data.images.decode import open_indexed, open_rgb


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reason(source: bytes | Path, **options: int) -> str:
    with pytest.raises(RejectedRow) as caught:
        open_rgb(source, **options)
    return caught.value.reason


def gradient(width: int = 40, height: int = 80) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows * 3, columns * 6, rows + columns], axis=-1).astype(np.uint8))


def test_plain_png_is_returned_exactly(tmp_path):
    path = tmp_path / "a.png"
    gradient().save(path)
    assert np.array_equal(np.asarray(open_rgb(path)), np.asarray(gradient()))


def test_palette_with_transparency_lies_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putdata([0, 1])
    found = np.asarray(open_rgb(encoded(image, "PNG", transparency=1)))
    assert found.tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_alpha_is_blended_with_white():
    image = Image.fromarray(np.array([[[100, 0, 0, 255], [100, 0, 0, 0]]], np.uint8), "RGBA")
    assert np.asarray(open_rgb(encoded(image, "PNG"))).tolist() == [[[100, 0, 0], [255, 255, 255]]]


def test_cmyk_jpeg_keeps_its_colors():
    red = Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK")
    mean = np.asarray(open_rgb(encoded(red, "JPEG", quality=95))).mean(axis=(0, 1))
    assert np.abs(mean - [200, 30, 30]).max() < 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_not_clipped(kind):
    values = np.array([[0, 32768, 65535]], np.uint16)
    found = np.asarray(open_rgb(encoded(Image.fromarray(values), kind)))
    assert found[0, :, 0].tolist() == [0, 128, 255]
    assert found.shape == (1, 3, 3)


def test_the_transparent_gray_of_sixteen_bits_is_white():
    values = np.array([[0, 32768, 900]], np.uint16)
    found = np.asarray(open_rgb(encoded(Image.fromarray(values), "PNG", transparency=900)))
    assert found[0, :, 0].tolist() == [0, 128, 255]


def test_float_tiff_in_fractions_is_scaled():
    found = np.asarray(open_rgb(encoded(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)), "TIFF")))
    assert found[0, :, 0].tolist() == [0, 128, 255]


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was rotated by 90 degrees
    left_black = Image.fromarray(np.tile(np.repeat(np.array([0, 255], np.uint8), 32), (32, 1))).convert("RGB")
    upright = np.asarray(open_rgb(encoded(left_black, "JPEG", exif=exif, quality=95)))
    assert upright.shape == (64, 32, 3)
    assert upright[5, 16].max() < 30
    assert upright[60, 16].min() > 225


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_tiny_images_are_images(size):
    assert open_rgb(encoded(Image.new("RGB", size), "PNG")).size == size


def bomb(width: int, height: int) -> bytes:
    """Return a PNG whose header claims this size."""
    small = encoded(Image.new("1", (1, 1)), "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


def test_huge_image_is_rejected_before_it_is_decoded():
    assert reason(bomb(20_000, 20_000)) == "too_large"
    assert reason(bomb(9_000, 9_000)) == "too_large"
    assert reason(encoded(gradient(), "PNG"), max_pixels=3199) == "too_large"


def test_unusable_files_say_why(tmp_path):
    photo = encoded(gradient(300, 300), "JPEG")
    drawing = encoded(gradient(300, 300), "PNG")
    assert reason(b"") == "empty_file"
    assert reason(b"hello, I am a text") == "not_an_image"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "not_an_image"
    assert reason(photo[: len(photo) // 2]) == "truncated"
    assert reason(drawing[: len(drawing) // 2]) == "truncated"
    assert reason(tmp_path / "nowhere.png") == "missing"
    assert reason(tmp_path) == "unreadable"


@pytest.mark.parametrize(
    "blank",
    [
        encoded(Image.new("RGBA", (20, 40), (9, 9, 9, 0)), "PNG"),
        encoded(Image.new("LA", (20, 40), (9, 0)), "PNG"),
        encoded(Image.new("P", (20, 40), 0), "PNG", transparency=0),
        encoded(Image.new("P", (20, 40), 0), "GIF", transparency=0),
        encoded(Image.new("RGBA", (20, 40), (9, 9, 9, 0)), "WEBP", lossless=True, exact=True),
        encoded(Image.new("RGBA", (20, 40), (9, 9, 9, 0)), "TIFF"),
        encoded(Image.new("RGB", (20, 40), (9, 8, 7)), "PNG", transparency=(9, 8, 7)),
        encoded(Image.fromarray(np.full((40, 20), 900, np.uint16)), "PNG", transparency=900),
    ],
)
def test_a_fully_transparent_image_is_blank(blank):
    assert reason(blank) == "blank"


def test_one_visible_pixel_is_an_image():
    image = Image.new("RGBA", (20, 40), (9, 9, 9, 0))
    image.putpixel((3, 4), (50, 60, 70, 255))
    found = np.asarray(open_rgb(encoded(image, "PNG")))
    assert found[4, 3].tolist() == [50, 60, 70]
    assert (found == 255).all(axis=2).sum() == 20 * 40 - 1


def test_a_file_that_unpacks_to_far_more_than_its_pixels_is_too_large():
    photo = encoded(gradient(), "JPEG", progressive=True)
    start = photo.rindex(b"\xff\xda")
    scan = photo[start:-2]
    assert open_rgb(photo[:-2] + scan * 100 + photo[-2:]).size == (40, 80)
    assert reason(photo[:-2] + scan * 501 + photo[-2:]) == "too_large"
    drawing = encoded(gradient(), "TIFF", compression="tiff_adobe_deflate")
    place = drawing.index(struct.pack("<HH", 278, 3))  # the rows of a strip
    tile_width = struct.pack("<HHII", 322, 4, 1, 1 << 28)
    assert reason(drawing[:place] + tile_width + drawing[place + 12 :]) == "too_large"


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_not_a_regular_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "a.jpg")
    handles = len(list(Path("/proc/self/fd").iterdir()))
    assert reason(tmp_path / "a.jpg") == "unreadable"
    assert len(list(Path("/proc/self/fd").iterdir())) == handles
    assert reason(tmp_path / "a\0.jpg") == "unreadable"


def test_a_file_of_many_bytes_is_not_read(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as stream:
        stream.truncate(1 << 40)
    assert reason(tmp_path / "a.jpg") == "too_large"


def test_flipped_bytes_never_raise_anything_else():
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        content = encoded(gradient(), kind)
        for _ in range(40):
            broken = bytearray(content)
            for place in rng.integers(len(broken), size=4):
                broken[place] = int(rng.integers(256))
            try:
                open_rgb(bytes(broken), max_pixels=1_000_000)
            except RejectedRow as error:
                assert error.reason in {"truncated", "not_an_image", "too_large"}  # noqa: PT017


def test_later_stages_decode_any_number_of_pixels_that_the_index_accepted(tmp_path, monkeypatch):
    content = encoded(Image.new("1", (20, 10)), "PNG")
    (tmp_path / "a.png").write_bytes(content)
    limits = []
    monkeypatch.setattr(images, "open_rgb", lambda _, max_pixels=images.MAX_PIXELS: limits.append(max_pixels))
    open_indexed(tmp_path, "a.png", digest_bytes(content))
    assert limits == [DatasetConfig.model_fields["max_pixels"].metadata[1].le]


def test_an_indexed_image_is_read_only_while_it_is_the_one(tmp_path):
    content = encoded(gradient(), "PNG")
    root, sha256 = tmp_path / "root", digest_bytes(content)
    root.mkdir()
    for path in (root / "a.png", tmp_path / "beside.png"):
        path.write_bytes(content)
    assert np.array_equal(np.asarray(open_indexed(root, "a.png", sha256)), np.asarray(gradient()))
    (root / "b.png").write_bytes(encoded(gradient(39), "PNG"))
    for path, digest, expected in (
        ("b.png", sha256, "changed"),
        ("a.png", None, "changed"),
        ("c.png", sha256, "missing"),
        ("../beside.png", sha256, "outside_root"),
    ):
        with pytest.raises(RejectedRow) as caught:
            open_indexed(root, path, digest)
        assert caught.value.reason == expected
