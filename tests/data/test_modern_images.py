"""HEIC, AVIF and JPEG 2000: decoded like any other format, or refused by name."""

from __future__ import annotations

import io
import struct
import sys

import numpy as np
import pandas as pd
import pillow_heif
import pyarrow.parquet as pq
import pytest
from PIL import Image, features

from data.artifacts.store import ArtifactStore
from data.datasets import DatasetConfig
from data.errors import RejectedRow
from data.images import formats
from data.images.decode import REASONS, open_rgb
from data.images.formats import can_decode, modern_format
from data.index.stage import index
from tests.helpers.data_trees import TURNED, put

KINDS = {"AVIF": ".avif", "HEIF": ".heic", "JPEG2000": ".jp2"}
pillow_heif.register_heif_opener()


def scene(mode="RGB"):
    """A picture without symmetry: 48 x 96, dark on the left, red at the top."""
    pixels = np.zeros((96, 48, 3), np.uint8)
    pixels[:, 24:] = 200
    pixels[:24, :, 0] = 255
    return Image.fromarray(pixels).convert(mode)


def written(kind, image=None, **options):
    stream = io.BytesIO()
    quality = {} if kind == "JPEG2000" else {"quality": 95}
    (image or scene()).save(stream, kind, **quality, **options)
    return stream.getvalue()


def distance(one, other):
    return np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).mean()


def exif_of(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    exif[0x010F] = "MARK"
    return exif.tobytes()


def rotated(kind, exif):
    """Return a file of that kind with an EXIF block."""
    if kind != "JPEG2000":
        return written(kind, exif=exif)
    plain, body = written(kind), b"JpgTiffExif->JP2" + exif.removeprefix(b"Exif\0\0")
    at = plain.index(b"jp2c") - 4
    return plain[:at] + struct.pack(">I4s", 8 + len(body), b"uuid") + body + plain[at:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_pixels(kind, mode):
    content = written(kind, scene(mode))
    assert modern_format(content) == kind
    image = open_rgb(content)
    assert (image.mode, image.size) == ("RGB", (48, 96))
    assert distance(image, scene(mode).convert("RGB")) < 6


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_orientation_as_in_a_jpeg(kind, turn):
    image, jpeg = open_rgb(rotated(kind, exif_of(turn))), open_rgb(written("JPEG", exif=exif_of(turn)))
    assert image.size == jpeg.size
    assert distance(image, jpeg) < 8


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_cannot_make_an_image_unusable(kind):
    image = open_rgb(rotated(kind, exif_of(6)).replace(b"MARK", b"\xff\xff\xff\xff"))
    assert image.size == (96, 48)
    content = (
        rotated("JPEG2000", TURNED) if kind == "JPEG2000" else rotated(kind, exif_of(6)).replace(b"MM\0*", b"MM\0\0")
    )
    assert open_rgb(content).size == (96, 48)


@pytest.mark.parametrize("kind", KINDS)
def test_limits_are_checked_before_decoding(kind, monkeypatch):
    content = written(kind)
    opened = Image.open(io.BytesIO(content))
    monkeypatch.setattr(type(opened), "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(RejectedRow, match="too_large"):
        open_rgb(content, max_pixels=48 * 96 - 1)


def test_a_jpeg_2000_header_cannot_hide_the_size_of_its_codestream():
    content = written("JPEG2000")
    at = content.index(b"ihdr") + 4
    with pytest.raises(RejectedRow, match="too_large"):
        open_rgb(content[:at] + struct.pack(">II", 8, 8) + content[at + 8 :], max_pixels=48 * 96 - 1)
    at = content.index(b"\xff\x4f\xff\x51") + 40
    with pytest.raises(RejectedRow, match=r"too_large|truncated"):
        open_rgb(content[:at] + struct.pack(">H", 4000) + content[at + 2 :])


@pytest.mark.parametrize("kind", KINDS)
def test_any_damage_has_a_reason(kind):
    content = written(kind)
    rng = np.random.default_rng(0)
    cut = [content[:end] for end in rng.integers(16, len(content), 40)]
    changed = [_with_byte(content, rng.integers(0, min(len(content), 400)), rng.integers(0, 256)) for _ in range(100)]
    for damaged in [*cut, *changed]:
        outcome = fate(damaged)
        assert outcome == "RGB" or outcome in REASONS
    with pytest.raises(RejectedRow, match="truncated"):
        open_rgb(content[:60])


def fate(content):
    try:
        return open_rgb(content).mode
    except RejectedRow as error:
        return error.reason


def _with_byte(content, at, value):
    return content[:at] + bytes([value]) + content[at + 1 :]


@pytest.fixture
def forget_decoders():
    formats.can_decode.cache_clear()
    yield
    formats.can_decode.cache_clear()


@pytest.mark.usefixtures("forget_decoders")
@pytest.mark.parametrize(
    ("kind", "told"), [("HEIF", r"HEIC.*clip-scgi\[heif\]"), ("AVIF", "AVIF"), ("JPEG2000", "2000")]
)
def test_a_kind_that_cannot_be_decoded_is_a_row_that_names_it_and_the_remedy(kind, told, tmp_path, monkeypatch):
    root, store = tmp_path / "set", ArtifactStore(tmp_path / "home")
    put(root, "Alice/1.jpg", "Bob/2.jpg")
    for number in range(3):
        (root / "Alice" / f"{number}{KINDS[kind]}").write_bytes(written(kind) + bytes(number))
    config = DatasetConfig(reader="folders", root=str(root))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        patch.setattr(features, "check", lambda name: False)
        assert not can_decode(kind)
        made = index(store, config=config)
    rejected = pd.read_parquet(made.made.ref.folder / "rejected.parquet")
    assert rejected["detail"].str.contains(f"{told}.*convert .*JPEG").tolist() == [True] * 3
    assert any(notice.startswith("3 file(s) or row(s) rejected: 3 ") for notice in made.found.notices)
    formats.can_decode.cache_clear()
    again = index(store, config=config)  # a result without a decoder is not remembered
    rows = pq.read_table(again.made.ref.folder / "images.parquet").to_pylist()
    found = [(row["width"], row["height"]) for row in rows if row["path"].endswith(KINDS[kind])]
    assert found == [(48, 96)] * 3


def test_other_files_are_not_taken_for_these():
    assert modern_format(b"") is None
    assert modern_format(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom") is None
    with pytest.raises(RejectedRow, match="not_an_image"):
        open_rgb(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(99))
