"""Bad files, and files that change during the run: every image has a row with its caption or the reason."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from captioning.config import CaptionConfig
from captioning.stage import worker as stage_work
from data.artifacts.store import ArtifactStore
from data.datasets import DatasetConfig
from data.errors import ClipScgiError
from data.index.stage import index
from tests.helpers.caption_stub import StubEngine, fake_model
from tests.helpers.caption_worlds import captions_folder, captions_of, draw, worker_of, written
from tests.helpers.caption_worlds import index as plain_index
from tests.helpers.mini_llava import save_mini_llava
from tests.helpers.small_disk import grow, small_disk
from tests.helpers.stages import caption

LEFT_TO_RIGHT = np.tile(np.linspace(0, 255, 40), (80, 1))


@pytest.fixture(scope="module")
def config(module_folder):
    model = save_mini_llava(module_folder("mini") / "llava")
    return CaptionConfig(model=str(model), dtype="float32", max_new_tokens=6, batch_size=2, workers=1, device="cpu")


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "home")


def few_colors(seed: int) -> np.ndarray:
    """A picture [80, 40, 3] with few enough colors for a palette."""
    rng = np.random.default_rng(seed)
    return np.repeat(np.repeat(rng.integers(0, 255, (8, 4, 3)).astype(np.uint8), 10, axis=0), 10, axis=1)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def palette() -> tuple[bytes, np.ndarray]:
    """A PNG with a palette whose entry 0 is transparent, and the pixels that it shows."""
    picture = few_colors(1)
    image = Image.fromarray(picture).quantize(64)
    table = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    table[0] = 255  # blended with white
    return encoded(image, "PNG", transparency=0), table[np.asarray(image)]


def cmyk() -> tuple[bytes, np.ndarray]:
    """A CMYK JPEG in flat colors, whose values survive the compression."""
    ink = np.zeros((80, 40, 4), np.uint8)
    ink[:40, :, 1] = 255  # magenta at the top, black at the bottom
    ink[40:, :, 3] = 255
    shown = np.zeros((80, 40, 3), np.uint8)
    shown[:40] = (255, 0, 255)
    return encoded(Image.fromarray(ink, "CMYK"), "JPEG", quality=100), shown


def sixteen_bits() -> tuple[bytes, np.ndarray]:
    gray = LEFT_TO_RIGHT.round().astype(np.uint16)
    return encoded(Image.fromarray(gray * 257), "PNG"), np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)


def turned() -> tuple[bytes, np.ndarray]:
    """A JPEG stored sideways, with its orientation in EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(np.rot90(few_colors(2))), "JPEG", exif=exif, quality=95)
    stored = np.asarray(Image.open(io.BytesIO(content)))
    return content, np.rot90(stored, -1)


def one_pixel() -> tuple[bytes, np.ndarray]:
    pixel = np.full((1, 1, 3), 90, np.uint8)
    return encoded(Image.fromarray(pixel), "PNG", pnginfo=None, compress_level=9), pixel


ODD = {
    "palette.png": palette,
    "cmyk.jpg": cmyk,
    "sixteen.png": sixteen_bits,
    "turned.jpg": turned,
    "pixel.png": one_pixel,
}


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Name -> bytes that cannot be captioned, and the reason."""
    photo = encoded(Image.fromarray(few_colors(3)), "JPEG")
    huge = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    return {
        "text.jpg": (b"I am no image", "not_an_image"),
        "half.jpg": (photo[: len(photo) // 2], "truncated"),
        "empty.png": (b"", "empty_file"),
        "huge.png": (huge, "too_large"),
    }


@pytest.mark.parametrize("name", ODD)
def test_an_unusual_image_has_the_caption_of_its_content(store, tmp_path, config, name):
    content, shown = ODD[name]()
    root = tmp_path / "people"
    root.mkdir()
    (root / name).write_bytes(content)
    Image.fromarray(shown).save(root / "shown.png")
    Image.fromarray(few_colors(9)).save(root / "zzz.png")
    rows = captions_of(caption(store, images=plain_index(store, root), images_root=root, config=config).made)
    by_name = rows.set_index("image_path")["raw_text"]
    assert rows["error"].isna().all()
    assert by_name[name] == by_name["shown.png"] != by_name["zzz.png"]


def test_every_file_has_a_row_whatever_its_content(store, tmp_path, config):
    """All of them at once, in an index that did not check the files."""
    root = draw(tmp_path / "people", 3)
    bad = bad_files()
    for name, content in {name: make()[0] for name, make in ODD.items()}.items():
        (root / name).write_bytes(content)
    for name, (content, _) in bad.items():
        (root / name).write_bytes(content)
    outcome = caption(store, images=plain_index(store, root), images_root=root, config=config)
    rows = captions_of(outcome.made).set_index("image_path")
    assert sorted(rows.index) == sorted(path.name for path in root.iterdir())
    assert rows.loc[rows["status"] == "image_error", "error"].to_dict() == {name: why for name, (_, why) in bad.items()}
    assert rows["caption"].notna().sum() == 3 + len(ODD) == outcome.generated
    assert outcome.failed == len(bad)


def test_what_the_index_rejects_is_counted_there_and_the_rest_is_captioned(store, tmp_path, config):
    files = {name: make()[0] for name, make in ODD.items()} | {name: bad for name, (bad, _) in bad_files().items()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "manifest.csv").write_text(
        "\n".join(["path,split,pid,camid", *(f"{name},train,1,1" for name in files)])
    )
    settings = DatasetConfig(reader="manifest", root=str(tmp_path), require_splits=(), min_side=1)
    found = index(store, config=settings)
    rejected = pd.read_parquet(found.made.ref.folder / "rejected.parquet").set_index("path")
    assert rejected["reason"].to_dict() == {name: why for name, (_, why) in bad_files().items()}
    made = caption(store, images=found.made.ref, images_root=found.images.root, config=config).made
    rows = captions_of(made)
    assert sorted(rows["image_path"]) == sorted(ODD)
    assert rows["caption"].notna().all()


def test_a_file_that_vanishes_during_the_run_has_a_row_and_is_captioned_later(store, tmp_path, config):
    root = draw(tmp_path / "people", 40)
    images = plain_index(store, root)
    gone: dict[str, bytes] = {}

    def remove_some(done: int, total: int, note: str) -> None:
        if done >= 2 and not gone:  # after the first batch some of the other images have been read ahead
            gone.update({path.name: path.read_bytes() for path in sorted(root.iterdir())[::2]})
            for name in gone:
                (root / name).unlink()

    outcome = caption(store, images=images, images_root=root, config=config, progress=remove_some)
    rows = captions_of(outcome.made).set_index("image_path")
    lost = rows[rows["status"] == "image_error"]
    assert len(rows) == 40
    assert set(lost["error"]) == {"missing"}
    assert set(lost.index) <= set(gone)
    assert 10 <= len(lost) == outcome.failed
    for name, content in gone.items():
        (root / name).write_bytes(content)
    outcome = caption(store, images=images, images_root=root, config=config)
    assert (outcome.generated, outcome.reused, outcome.failed) == (len(lost), 40 - len(lost), 0)


@pytest.mark.parametrize(("size", "at_least"), [("64k", 0), ("160k", 8)])
def test_a_full_disk_is_named_and_earlier_captions_are_kept(tmp_path, monkeypatch, size, at_least):
    """A shard takes about 9 KB: the smaller disk may be full before the first shard."""

    def load(_):
        return StubEngine(tmp_path / "log", 0)

    monkeypatch.setattr(stage_work, "load_engine", load)
    root = draw(tmp_path / "people", 200)
    config = fake_model(tmp_path / "model")
    elsewhere = ArtifactStore(tmp_path / "elsewhere")
    images = plain_index(elsewhere, root)
    with small_disk(tmp_path / "disk", size) as disk:
        store = ArtifactStore(disk / "home")
        with pytest.raises(ClipScgiError, match=f"the disk of {disk}.* is full: the newest captions could not"):
            worker_of(store, images=images, root=root, config=config, load=load, flush_rows=8).work(patient=True)
        kept = len(written(store.root / "captions" / captions_folder(elsewhere, config).name))
        assert at_least <= kept < 200
        assert not list(disk.rglob("*.tmp"))
        grow(disk, "20m")
        outcome = caption(store, images=images, images_root=root, config=config)
        assert (outcome.generated, outcome.reused, outcome.failed) == (200 - kept, kept, 0)
        rows = captions_of(outcome.made)
        assert rows["image_path"].tolist() == sorted(path.name for path in Path(root).iterdir())
        assert rows["caption"].notna().all()
