"""The pixel cache: correct pixels in the correct order, correct keys, and clear errors for changed files."""

import hashlib
import io
import shutil

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data.artifacts.store import ArtifactRef, ArtifactStore
from data.errors import DataError
from data.files import write_table
from data.schemas import IMAGES
from reid.inputs.pixel_cache import load_pixels
from tests.helpers.stages import make_artifact, pixels


def png(rng, height, width):
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def index_artifact(store, root, names):
    """Write images.parquet for the files `names` under `root`, in that order."""
    rows = []
    for name in names:
        content = (root / name).read_bytes()
        width, height = Image.open(io.BytesIO(content)).size
        sha = hashlib.sha256(content).hexdigest()
        rows.append(
            {
                "path": name,
                "split": "train",
                "pid": 1,
                "camid": 1,
                "sha256": sha,
                "size": len(content),
                "width": width,
                "height": height,
            }
        )
    table = pa.Table.from_pylist(rows, IMAGES)
    return make_artifact(
        store, "index", {"rows": rows}, lambda folder: write_table(folder / "images.parquet", table, IMAGES)
    ).ref


@pytest.fixture
def world(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    names = [f"sub/{i:02d}.png" if i % 2 else f"{i:02d}.png" for i in range(23)]
    for i, name in enumerate(names):
        (root / name).write_bytes(png(rng, 20 + i, 10 + i % 5))
    return ArtifactStore(tmp_path / "home"), root, names


def build(store, root, ref, **changes):
    return pixels(store, images=ref, images_root=root, **{"height": 32, "width": 16, "workers": 2, **changes})


def test_pixels_are_each_image_resized_in_the_order_of_the_index(world):
    store, root, names = world
    seen = []
    made = build(
        store, root, index_artifact(store, root, names), progress=lambda done, total, _: seen.append((done, total))
    )
    array = load_pixels(made.ref)
    assert isinstance(array, np.memmap)
    assert not array.flags.writeable
    assert array.shape == (23, 32, 16, 3)
    for got, name in zip(array, names, strict=True):
        with Image.open(root / name) as image:
            expected = np.asarray(image.convert("RGB").resize((16, 32), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(got, expected)
    assert seen[-1] == (23, 23)


def test_found_again_without_the_images_and_whatever_they_are_called(world):
    store, root, names = world
    first = build(store, root, index_artifact(store, root, names))
    (root / "renamed.png").write_bytes((root / names[0]).read_bytes())
    renamed = index_artifact(store, root, ["renamed.png", *names[1:]])
    shutil.rmtree(root)
    again = build(store, root, renamed, workers=1)
    assert again.cached
    assert again.ref.path == first.ref.path


def test_another_size_or_order_is_another_artifact(world):
    store, root, names = world
    refs = [
        build(store, root, index_artifact(store, root, names)).ref,
        build(store, root, index_artifact(store, root, names), height=40).ref,
        build(store, root, index_artifact(store, root, names[::-1])).ref,
    ]
    assert len({ref.fingerprint for ref in refs}) == 3
    np.testing.assert_array_equal(load_pixels(refs[0]), load_pixels(refs[2])[::-1])


def test_files_that_are_not_what_was_indexed_are_named_with_the_remedy(world):
    store, root, names = world
    ref = index_artifact(store, root, names)
    (root / names[3]).unlink()
    (root / names[5]).write_bytes((root / names[6]).read_bytes())
    (root / names[7]).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        build(store, root, ref)
    text = str(caught.value)
    assert "3 of 23" in text
    assert f"{names[3]}: missing" in text
    assert f"{names[5]}: changed" in text
    assert "run the index stage again" in text
    assert not list((store.root / "stages").glob("pixels/*"))  # nothing half-made is left


def test_a_missing_folder_lists_a_few_files_and_counts_the_rest(world):
    store, root, names = world
    ref = index_artifact(store, root, names)
    with pytest.raises(DataError, match="and 13 more"):
        build(store, root / "elsewhere", ref)


def test_a_damaged_cache_is_refused_and_made_again(world):
    store, root, names = world
    ref = index_artifact(store, root, names)
    made = build(store, root, ref).ref
    np.save(made.folder / "pixels.npy", np.zeros((2, 3)))
    with pytest.raises(DataError, match="run again"):
        load_pixels(made)
    again = build(store, root, ref)
    assert not again.cached
    assert load_pixels(ArtifactRef(**again.ref.to_json())).shape == (23, 32, 16, 3)
