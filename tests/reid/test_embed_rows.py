"""Features files of many images, compared with dictionaries of objects: distinct images, reruns, kills, other files."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.artifacts.fingerprint import digest_bytes
from data.columns.digests import digests_of
from data.columns.rejected import Rejected
from data.errors import ConfigError, DataError
from reid.embedding.files import embed_files
from reid.embedding.images import COLUMNS, DistinctImages, ImageFile, ImageFiles
from reid.embedding.known import KeyPlaces
from reid.embedding.table import read_images
from reid.gallery.sources import read_features
from tests.helpers.made_up_embedder import MadeUpEmbedder

GONE = "the file does not exist"


class Killed(BaseException):
    """Stops a run in the middle, as Ctrl-C does."""


def drawn(count, contents, seed=0):
    """Return images, of which some have equal bytes, in no order and with unknown values."""
    rng = np.random.default_rng(seed)
    digests = [digest_bytes(str(number).encode()) for number in range(contents)]
    return [
        ImageFile(
            f"{number:06d}.jpg",
            digests[rng.integers(contents)],
            [None, "train", "gallery"][rng.integers(3)],
            [None, -1, 0, 7][rng.integers(4)],
            int(rng.integers(1, 4)),
            [None, "Ann", "Bo"][rng.integers(3)],
        )
        for number in range(count)
    ]


def key(image, by_camera):
    return (image.sha256, image.camid) if by_camera else image.sha256


def grouped(images, by_camera):
    """Return key -> its images, in the order of the first ones."""
    found = {}
    for image in images:
        found.setdefault(key(image, by_camera), []).append(image)
    return found


def check(out, embedder, images):
    """Compare a features file with the images that can be embedded."""
    kept = [image for image in images if image.sha256 not in embedder.refused]
    table = pq.read_table(out)
    expected = pa.table([list(column) for column in zip(*kept, strict=True)], schema=COLUMNS)
    assert table.select(COLUMNS.names).replace_schema_metadata().equals(expected)
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    np.testing.assert_array_equal(vectors, [embedder.vector(image) for image in kept])
    assert table["model_fingerprint"].unique().to_pylist() == [embedder.fingerprint]


def embed(embedder, images, out, **options):
    return embed_files(embedder, images, root=out.parent, out=out, embed=embedder.embed_distinct, **options)


@pytest.mark.parametrize("by_camera", [False, True])
@pytest.mark.parametrize(("count", "contents"), [(300, 40), (9000, 7000), (17_000, 16_500)])
def test_files_reruns_and_continued_runs_are_those_of_dictionaries(tmp_path, by_camera, count, contents):
    out, images = tmp_path / "features.parquet", drawn(count, contents)
    groups = grouped(images, by_camera)
    refused = frozenset(digest_bytes(str(number).encode()) for number in range(0, contents, 9))
    first = MadeUpEmbedder(by_camera=by_camera, refused=refused)
    half = len(groups) // 2

    def kill(done, total, note):
        if done >= half:
            raise Killed

    with pytest.raises(Killed):
        embed(first, images, out, progress=kill, save_seconds=0.0 if count < 1000 else 1000.0)
    second, seen = MadeUpEmbedder(by_camera=by_camera, refused=refused), []
    done = embed(second, images, out, progress=lambda done, total, _: seen.append((done, total)))
    assert seen[-1] == (len(groups), len(groups))
    assert [*grouped(images, by_camera).values()][: len(first.asked)] == first.asked
    known = {key(same[0], by_camera) for same in first.asked if same[0].sha256 not in refused}
    assert second.asked == [same for which, same in groups.items() if which not in known]
    assert done.images == sum(image.sha256 not in refused for image in images)
    assert done.rejected == [Rejected(it.path, "missing", GONE) for it in images if it.sha256 in refused]
    assert pq.read_table(tmp_path / "features.rejected.parquet")["path"].to_pylist() == [
        it.path for it in done.rejected
    ]
    check(out, second, images)
    usable = [image for image in images if image.sha256 not in refused]
    before = out.read_bytes()
    assert (embed(second, usable, out).computed, out.read_bytes()) == (0, before)

    rerun = [*drawn(50, 10, seed=9), *usable[::-2]]
    rerun += [ImageFile("new.jpg", digest_bytes(b"new"), camid=1)]
    third = MadeUpEmbedder(by_camera=by_camera)
    done = embed(third, rerun, out)
    old = {key(image, by_camera) for image in usable}
    expected = [same for which, same in grouped(rerun, by_camera).items() if which not in old]
    assert (third.asked, done.computed) == (expected, len(expected))
    check(out, third, rerun)


def test_no_images_are_an_empty_file(tmp_path):
    embedder, out = MadeUpEmbedder(), tmp_path / "features.parquet"
    embed(embedder, drawn(5, 3), out)
    assert embed(embedder, [], out).images == 0
    assert (len(read_images(out)), len(pq.read_table(out))) == (0, 0)


def test_a_file_that_another_program_has_written_again_is_recognized(tmp_path):
    embedder, images, out = MadeUpEmbedder(), drawn(9000, 8000), tmp_path / "features.parquet"
    embed(embedder, images, out)
    table = pq.read_table(out)
    texts = [name for name in table.column_names if table.schema.field(name).type == pa.string()]
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        schema = pa.schema([pa.field(it.name, kind if it.name in texts else it.type) for it in table.schema])
        changed = table.cast(schema.with_metadata(table.schema.metadata))
        pq.write_table(changed, out)
        before = out.read_bytes()
        assert embed(MadeUpEmbedder(), images, out).computed == 0
        assert out.read_bytes() == before
        moved = [*images[1:], images[0]]
        assert embed(MadeUpEmbedder(), moved, out).computed == 0
        check(out, embedder, moved)


def test_a_file_of_other_rows_is_written_again(tmp_path):
    embedder, images, out = MadeUpEmbedder(), drawn(9000, 8000), tmp_path / "features.parquet"
    for change in (
        images[:-1],
        [*images[:8500], images[8500]._replace(label="Eve"), *images[8501:]],
        [*images[:10], images[10]._replace(pid=99), *images[11:]],
        [images[0]._replace(camid=None), *images[1:]],
    ):
        embed(embedder, images, out)
        assert embed(embedder, change, out).computed == 0
        check(out, embedder, change)


def test_cameras_that_another_program_made_floats_are_the_same_cameras(tmp_path):
    embedder, images, out = MadeUpEmbedder(by_camera=True), drawn(300, 200), tmp_path / "features.parquet"
    embed(embedder, images, out)
    table = pq.read_table(out)
    pq.write_table(table.set_column(4, "camid", table["camid"].cast(pa.float64())), out)
    moved = [*images[1:], images[0]]
    assert embed(MadeUpEmbedder(by_camera=True), moved, out).computed == 0
    check(out, embedder, moved)


@pytest.mark.parametrize(
    ("name", "value"), [("pid", 1.5), ("pid", "a"), ("camid", {"a": 1}), ("label", [1]), ("model_fingerprint", ["a"])]
)
def test_columns_of_another_kind_are_one_error(tmp_path, name, value):
    images, out = drawn(5, 3), tmp_path / "features.parquet"
    embed(MadeUpEmbedder(), images, out)
    table = pq.read_table(out)
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array([value] * 5)), out)
    with pytest.raises(DataError, match=r"features\.parquet cannot be read \(.*\); delete it and run again"):
        embed(MadeUpEmbedder(), images, out)
    with pytest.raises(DataError, match=r"features\.parquet cannot be read \(.*\); delete it and run again"):
        read_features(out)


def test_digests_that_are_none_are_refused(tmp_path):
    embedder, out = MadeUpEmbedder(), tmp_path / "features.parquet"
    for digest in ("abc", "A" * 64, None):
        with pytest.raises(ConfigError, match="images to embed: a value is not a sha256"):
            embed(embedder, [ImageFile("a.jpg", digest)], out)
    images = drawn(5, 3)
    embed(embedder, images, out)
    table = pq.read_table(out)
    pq.write_table(table.set_column(1, table.schema.field(1), pa.array(["abc"] * 5)), out)
    with pytest.raises(DataError, match=r"features\.parquet cannot be read \(a value is not a sha256"):
        embed(embedder, images, out)


def test_columns_of_images_are_a_sequence_of_them():
    images = drawn(10_000, 9000)
    columns = ImageFiles.of(images)
    assert list(columns) == images
    assert ImageFiles.of(columns) is columns
    assert (columns[3], columns[-1]) == (images[3], images[-1])
    assert list(columns[7:900:3]) == images[7:900:3]
    assert list(columns[5:2]) == []
    assert list(columns[100:].table()["label"].to_pylist()) == [image.label for image in images[100:]]
    some = np.array([9999, 3, 3, 5000])
    assert list(columns[some]) == [images[place] for place in some]
    assert len(ImageFiles.of([])) == 0
    with pytest.raises(IndexError):
        columns[10_000]


@pytest.mark.parametrize("by_camera", [False, True])
@pytest.mark.parametrize("alike", [False, True], ids=["spread", "alike"])
def test_distinct_images_are_found_by_their_keys(by_camera, alike):
    """alike: digests whose first bytes are equal."""
    rng = np.random.default_rng(1)
    images = [
        image._replace(sha256=f"{int(image.sha256[0], 16) % 2:016d}{image.sha256[:48]}") if alike else image
        for image in drawn(6000, 5000)
    ]
    groups = [*grouped(images, by_camera).values()]
    distinct = DistinctImages.of(ImageFiles.of(images), by_camera=by_camera)
    assert list(distinct) == groups
    some = rng.permutation(len(groups))[:700]
    assert list(distinct[some]) == [groups[number] for number in some]
    keys = distinct.keys(by_camera=by_camera)
    assert len(np.unique(keys)) == len(groups)
    part = distinct[some]
    places = KeyPlaces(part, by_camera=by_camera)
    expected = {number: place for place, number in enumerate(some.tolist())}
    assert places.of(keys).tolist() == [expected.get(number, -1) for number in range(len(groups))]
    absent = ImageFiles.of([ImageFile("a", digest_bytes(b"absent"), camid=1), images[0]._replace(camid=9)])
    others = DistinctImages.of(absent, by_camera=by_camera).keys(by_camera=by_camera)
    assert places.of(others).tolist()[0] == -1
    assert not by_camera or places.of(others).tolist()[1] == -1


def test_a_journal_of_text_is_continued(tmp_path):
    """keys.txt has one line per embedding: the digest, and the camera if the model has camera embeddings."""
    for by_camera in (False, True):
        embedder, images = MadeUpEmbedder(by_camera=by_camera), drawn(30, 20)
        out = tmp_path / f"{by_camera}.parquet"

        def kill(done, total, note):
            raise Killed

        with pytest.raises(Killed):
            embed(MadeUpEmbedder(by_camera=by_camera, batch=4), images, out, progress=kill)
        keys = tmp_path / f"{out.name}.parts/keys.txt"
        groups = [same[0] for same in grouped(images, by_camera).values()]
        lines = [f"{image.sha256}:{image.camid}" if by_camera else image.sha256 for image in groups]
        assert keys.read_text().splitlines() == lines[:4]
        keys.write_text("".join(f"{line}\n" for line in lines[5:]))
        vectors = np.stack([embedder.vector(image) for image in groups[5:]])
        keys.with_name("embeddings.f32").write_bytes(vectors.tobytes())
        embed(embedder, images, out)
        assert [same[0] for same in embedder.asked] == groups[:5]
        check(out, embedder, images)


def test_a_journal_with_a_camera_that_is_no_number_of_64_bits_is_one_error(tmp_path):
    images, out = drawn(30, 20), tmp_path / "features.parquet"

    def kill(done, total, note):
        raise Killed

    for camera in ("", "x", "9" * 30):
        with pytest.raises(Killed):
            embed(MadeUpEmbedder(by_camera=True, batch=4), images, out, progress=kill)
        keys = tmp_path / "features.parquet.parts/keys.txt"
        lines = keys.read_text().splitlines()
        keys.write_text("".join(f"{line}\n" for line in [*lines[:-1], f"{lines[-1][:64]}:{camera}"]))
        with pytest.raises(DataError, match=r"keys\.txt is damaged; delete .*features\.parquet\.parts and run again"):
            embed(MadeUpEmbedder(by_camera=True), images, out)
        shutil.rmtree(keys.parent)


def test_the_digest_column_of_a_key_ends_in_any_byte():
    digests = digests_of(pa.array([f"{'ab' * 31}00", f"{'00' * 31}00"]))
    images = ImageFiles.of([ImageFile("a", f"{'ab' * 31}00", camid=256), ImageFile("b", f"{'00' * 32}", camid=0)])
    for by_camera in (False, True):
        distinct = DistinctImages.of(images, by_camera=by_camera)
        assert KeyPlaces(distinct, by_camera=by_camera).of(distinct.keys(by_camera=by_camera)).tolist() == [0, 1]
    assert (images.sha256 == digests).all()
