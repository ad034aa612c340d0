"""features.parquet: its rows and metadata, what a rerun and a killed run compute, and what is refused."""

import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.artifacts.fingerprint import digest_bytes
from data.artifacts.store import ArtifactStore
from data.columns.digests import digests_of
from data.columns.rejected import Rejected
from data.errors import ConfigError, DataError
from data.process import locks
from reid import Embedder
from reid.config.train import TrainConfig
from reid.embedding.embedder import EmbedConfig
from reid.embedding.files import embed_files, rejected_file
from reid.embedding.images import ImageFile
from reid.embedding.journal import Journal
from reid.embedding.table import read_heading
from tests.helpers.small_models import write_model, write_world

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class Killed(BaseException):
    """Stops a run in the middle, as Ctrl-C does."""


@pytest.fixture(scope="module")
def source(module_folder):
    """An Embedder, the folder of the images, and the images."""
    base = module_folder("files")
    store = ArtifactStore(base / "home")
    index = write_world(store, base / "images")
    rows = pq.read_table(index.folder / "images.parquet").to_pylist()[:11]
    images = [ImageFile(row["path"], row["sha256"], row["split"], row["pid"], row["camid"]) for row in rows]
    return Embedder.load(write_model(store), device="cpu", batch_size=4), base / "images", images


@pytest.fixture
def world(source, tmp_path):
    embedder, root, images = source
    return embedder, shutil.copytree(root, tmp_path / "images"), images


def run(world, out, images=None, **options):
    embedder, root, own = world
    return embed_files(embedder, own if images is None else images, root=root, out=out, **options)


def test_the_file_has_the_embedding_of_every_image_with_its_labels(world, tmp_path):
    embedder, root, images = world
    out, seen = tmp_path / "features.parquet", []
    done = run(world, out, progress=lambda done, total, _: seen.append((done, total)))
    assert (done.images, done.computed, done.rejected, done.replaced) == (11, 11, [], False)
    assert seen == [(4, 11), (8, 11), (11, 11)]
    expected = embedder.embed_images([root / image.path for image in images])
    frame = pd.read_parquet(out)
    np.testing.assert_allclose(np.stack(frame["embedding"]), expected, **CLOSE)
    assert np.stack(frame["embedding"]).dtype == np.float32
    assert frame["path"].tolist() == [image.path for image in images]
    assert frame["sha256"].tolist() == [digest_bytes((root / image.path).read_bytes()) for image in images]
    assert frame["pid"].tolist() == [image.pid for image in images]
    assert frame["label"].isna().all()
    assert set(frame["model_fingerprint"]) == {embedder.fingerprint}
    table = pq.read_table(out)
    assert str(table.schema.field("embedding").type) == f"fixed_size_list<element: float>[{embedder.width()}]"
    flat = table["embedding"].combine_chunks().flatten().to_numpy().reshape(11, -1)
    np.testing.assert_array_equal(flat, np.stack(frame["embedding"]))
    heading = read_heading(out)
    assert heading.root == str(root)
    assert heading.identity["model"] == embedder.fingerprint
    assert (heading.identity["mode"], heading.identity["comparable_with_texts"]) == ("image", False)
    assert heading.identity["preprocessing"] == embedder.preprocessing
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.parquet", "images"]


def test_a_rerun_opens_only_new_images_whatever_they_are_called(world, tmp_path):
    _, root, images = world
    out = tmp_path / "features.parquet"
    run(world, out, images[:7])
    first = pd.read_parquet(out)
    before = out.stat()
    assert run(world, out, images[:7]).computed == 0
    assert out.stat() == before, "nothing was written"
    for image in images[:7]:
        (root / image.path).unlink()
    renamed = [images[3]._replace(path="elsewhere.png", pid=77), *images[5:9]]
    done = run(world, out, renamed)
    assert (done.images, done.computed, done.rejected) == (5, 2, [])
    second = pd.read_parquet(out)
    assert second["path"].tolist() == [image.path for image in renamed]
    assert second["pid"].tolist()[0] == 77
    rows = np.stack(first["embedding"])
    np.testing.assert_array_equal(np.stack(second["embedding"])[:3], rows[[3, 5, 6]])


@pytest.mark.parametrize("save_seconds", [0.0, 1000.0])
def test_a_killed_run_continues_where_it_stopped(world, tmp_path, save_seconds):
    out = tmp_path / "features.parquet"

    def kill(done, total, note):
        if done >= 8:
            raise Killed

    with pytest.raises(Killed):
        run(world, out, progress=kill, save_seconds=save_seconds)
    assert not out.exists()
    assert (tmp_path / "features.parquet.parts").is_dir()
    seen = []
    done = run(world, out, progress=lambda done, total, _: seen.append((done, total)))
    assert done.computed == 3
    assert seen == [(11, 11)]
    assert not (tmp_path / "features.parquet.parts").exists()
    fresh = tmp_path / "fresh.parquet"
    run(world, fresh)
    np.testing.assert_allclose(
        np.stack(pd.read_parquet(out)["embedding"]), np.stack(pd.read_parquet(fresh)["embedding"]), **CLOSE
    )


def test_what_a_power_failure_leaves_incomplete_is_dropped(tmp_path):
    identity, rows = {"model": "a"}, np.arange(12, dtype=np.float32).reshape(4, 3)
    journal = Journal(tmp_path / "parts", identity, 3)
    stored = digests_of(pa.array([letter * 64 for letter in "abcde"]))
    journal.append(stored[:2], rows[:2])
    journal.append(stored[2:4], rows[2:])
    vectors, keys = tmp_path / "parts/embeddings.f32", tmp_path / "parts/keys.txt"
    vectors.write_bytes(vectors.read_bytes()[:-5])  # the fourth row is cut
    with keys.open("ab") as stream:
        stream.write(b"half a ke")
    again = Journal(tmp_path / "parts", identity, 3)
    assert len(again) == 3
    again.append(stored[4:], rows[:1] + 100)
    np.testing.assert_array_equal(again.read(np.array([2, 3, 0])), [[6, 7, 8], [100, 101, 102], [0, 1, 2]])
    reopened = Journal(tmp_path / "parts", identity, 3)
    np.testing.assert_array_equal(np.concatenate([*reopened.stored_keys()]), stored[[0, 1, 2, 4]])
    np.testing.assert_array_equal(reopened.read(np.array([3, 2])), [[100, 101, 102], [6, 7, 8]])
    other = Journal(tmp_path / "parts", {"model": "b"}, 3)
    assert len(other) == 0
    assert other.read(np.array([], dtype=np.int64)).shape == (0, 3)
    keys.write_bytes(b"x" * 64 + b"\n")
    vectors.write_bytes(bytes(12))
    with pytest.raises(DataError, match=r"keys\.txt is damaged; delete .*parts and run again"):
        next(Journal(tmp_path / "parts", {"model": "b"}, 3).stored_keys())


def test_damaged_and_changed_images_are_rejected_with_their_reason_and_counted(world, tmp_path):
    _, root, images = world
    (root / images[1].path).unlink()
    (root / images[2].path).write_bytes(b"changed")
    broken = ImageFile("broken.jpg", digest_bytes(b"\xff\xd8\xff\xe0"))
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    known = Rejected("small.png", "too_small", "3 x 3 pixels")
    copy = images[1]._replace(path="copy.png")
    out = tmp_path / "features.parquet"
    done = run(world, out, [*images[:4], copy, broken], rejected=[known])
    assert [row[:2] for row in done.rejected] == sorted(
        [
            ("broken.jpg", "truncated"),
            ("copy.png", "missing"),
            (images[1].path, "missing"),
            (images[2].path, "changed"),
            ("small.png", "too_small"),
        ]
    )
    assert pd.read_parquet(out)["path"].tolist() == [images[0].path, images[3].path]
    assert pd.read_parquet(rejected_file(out))["path"].tolist() == [row.path for row in done.rejected]
    (root / "copy.png").write_bytes((world[1] / images[0].path).read_bytes())
    whole = images[0]._replace(path="copy.png")
    again = run(world, out, [whole._replace(path="gone.png"), whole])
    assert (again.images, again.computed, again.rejected) == (2, 0, [])
    assert not rejected_file(out).exists(), "the file of the run before is removed"


def test_identical_files_are_embedded_once_from_the_one_that_can_be_opened(world, tmp_path):
    images = world[2]
    gone = images[0]._replace(path="gone.png")
    done = run(world, tmp_path / "features.parquet", [gone, images[0]])
    assert (done.images, done.computed, done.rejected) == (2, 1, [])


def test_another_mode_or_model_replaces_the_embeddings_and_says_so(world, tmp_path):
    embedder, _, images = world
    out = tmp_path / "features.parquet"
    run(world, out, images[:3])
    done = run(world, out, images[:3], mode="joint")
    assert (done.computed, done.replaced) == (3, True)
    assert read_heading(out).identity["comparable_with_texts"]
    joint = np.stack(pd.read_parquet(out)["embedding"])
    assert joint.shape == (3, embedder.width("joint"))
    assert (joint @ embedder.embed_texts(["a man"]).T).shape == (3, 1)


def test_another_precision_replaces_the_embeddings(world, tmp_path):
    embedder, root, images = world
    out = tmp_path / "features.parquet"
    run(world, out, images[:3])
    assert "precision" not in read_heading(out).identity
    config = EmbedConfig(device="cpu", batch_size=4, precision="bf16")
    half = Embedder(embedder.task, embedder.model, config, "cpu")
    done = run((half, root, images), out, images[:3])
    assert (done.computed, done.replaced) == (3, True)
    assert read_heading(out).identity["precision"] == "bf16"
    assert run((half, root, images), out, images[:3]).computed == 0


def change_rows(path, change):
    """Rewrite a features file with `change` made to its rows; its metadata stay."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def test_rows_of_another_model_and_broken_ones_are_embedded_again(world, tmp_path):
    _, _, images = world
    out = tmp_path / "features.parquet"
    run(world, out, images[:6])
    expected = np.stack(pd.read_parquet(out)["embedding"])

    def mix(rows):
        rows[1] |= {"model_fingerprint": "f" * 32, "embedding": rows[0]["embedding"]}
        rows[2]["model_fingerprint"] = None
        rows[3]["embedding"] = [2 * value for value in rows[3]["embedding"]]
        rows[4]["embedding"] = [float("nan")] * len(rows[4]["embedding"])

    change_rows(out, mix)
    done = run(world, out, images[:6])
    assert (done.images, done.computed, done.unusable, done.replaced) == (6, 4, 4, False)
    np.testing.assert_allclose(np.stack(pd.read_parquet(out)["embedding"]), expected, **CLOSE)
    again = run(world, out, images[:6])
    assert (again.computed, again.unusable) == (0, 0)


def test_other_columns_than_those_of_embed_are_named(world, tmp_path):
    _, _, images = world
    out = tmp_path / "features.parquet"
    run(world, out, images[:3])
    table = pq.read_table(out)
    pq.write_table(table.drop_columns(["sha256", "label"]), out)
    with pytest.raises(DataError, match=r"features\.parquet does not have the column\(s\) sha256, label, which"):
        run(world, out, images[:3])
    short = pa.array([[1.0] + [0.0] * 7] * 3, pa.list_(pa.float32(), 8))
    pq.write_table(
        table.drop_columns(["embedding"])
        .append_column("embedding", short)
        .replace_schema_metadata(table.schema.metadata),
        out,
    )
    with pytest.raises(DataError, match="has embeddings of 8 values, but its metadata say"):
        run(world, out, images[:3])


def test_nothing_else_is_overwritten(world, tmp_path):
    for name, content in (("notes.parquet", b"text"), ("captions.parquet", None)):
        out = tmp_path / name
        if content is None:
            pd.DataFrame({"caption": ["a man"]}).to_parquet(out)
        else:
            out.write_bytes(content)
        before = out.read_bytes()
        with pytest.raises(ConfigError, match=f"{name} exists and is not a file of embeddings"):
            run(world, out)
        assert out.read_bytes() == before
    damaged = tmp_path / "features.parquet"
    run(world, damaged, world[2][:2])
    content = bytearray(damaged.read_bytes())
    content[4:200] = bytes(196)
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=r"features\.parquet cannot be read .*delete it and run again"):
        run(world, damaged)


def test_an_untrained_model_is_refused_because_a_rerun_could_not_tell_it_from_another(world, tmp_path):
    _, root, images = world
    untrained = Embedder.untrained(TrainConfig(device="cpu"), device="cpu")
    with pytest.raises(ConfigError, match="give a trained model"):
        run((untrained, root, images), tmp_path / "features.parquet")


def test_two_processes_cannot_write_one_file(world, tmp_path):
    out = tmp_path / "features.parquet"
    with locks.lock(tmp_path / "features.parquet.parts/lock"), pytest.raises(ConfigError, match="another process"):
        run(world, out)


def test_a_model_with_camera_embeddings_embeds_by_camera_and_refuses_unknown_ones(world, tmp_path):
    _, root, images = world
    config = TrainConfig(method="clip_baseline", device="cpu", sie=1.0)
    sie = Embedder.load(write_model(ArtifactStore(tmp_path / "home"), config), device="cpu")
    out = tmp_path / "features.parquet"
    twice = [images[0], images[0]._replace(camid=images[0].camid % 4 + 1)]
    done = run((sie, root, twice), out)
    assert done.computed == 2
    rows = np.stack(pd.read_parquet(out)["embedding"])
    assert np.abs(rows[0] - rows[1]).max() > 1e-4
    for camid in (None, -1):
        with pytest.raises(ConfigError, match=r"but the camera is unknown for 1 image, such as .*train\.sie=0"):
            run((sie, root, [images[0]._replace(camid=camid)]), out)
    with pytest.raises(DataError, match=r"the images include cameras \[9\]"):
        run((sie, root, [images[0]._replace(camid=9)]), out)
