"""Datasets in an object store: the file system in memory that fsspec has, and what an address may be."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pyarrow.parquet as pq
import pytest

from data.artifacts.root import usable_root
from data.artifacts.store import ArtifactStore
from data.config import build_config
from data.datasets import DatasetConfig
from data.errors import ConfigError, DataError, RejectedRow, RetryableError
from data.images.root import find_root
from data.index.examine import ChangedError, Reading, examine
from data.index.stage import index
from data.readers.paths import PathGate
from data.sources import client, remote
from data.sources.address import shown
from data.stages.images import IndexedImages
from tests.helpers.data_trees import MARKET, described, litter, market, picture, put, settle
from tests.helpers.stores import copy_tree


def config_of(root, reader="market1501", **options):
    return DatasetConfig(reader=reader, root=str(root), **options)


def reads_of(monkeypatch):
    """Return the list of objects that are read from now on."""
    kind, read = type(fsspec.filesystem("memory")), []
    original = kind.cat_file

    def cat_file(self, path, start=None, end=None, **options):
        read.append(path)
        return original(self, path, start=start, end=end, **options)

    monkeypatch.setattr(kind, "cat_file", cat_file)
    return read


@pytest.fixture
def local(tmp_path):
    root = market(tmp_path / "set")
    settle()
    return root


# The same content gives the same index


@pytest.mark.parametrize("reader", ["market1501", "images"])
def test_the_index_equals_that_of_the_local_copy(store, tmp_path, bucket, reader, local):
    copy_tree(local, bucket, "/set")
    here = index(store, config=config_of(local, reader))
    there = index(ArtifactStore(tmp_path / "other"), config=config_of("memory://set", reader))
    assert there.made.ref.fingerprint == here.made.ref.fingerprint
    assert (there.made.ref.folder / "images.parquet").read_bytes() == (
        here.made.ref.folder / "images.parquet"
    ).read_bytes()
    assert there.images.root == Path("memory:/set")


def test_a_listing_of_a_folder_is_newer_than_one_of_the_folder_around_it(bucket):
    bucket.pipe_file("/set/part/1.jpg", b"1")
    remote.refresh(Path("memory:/set"))
    bucket.pipe_file("/set/part/2.jpg", b"22")
    remote.refresh(Path("memory:/set/part"))
    assert remote.entry_of("memory:/set/part/2.jpg").size == 2


def test_a_folder_around_the_dataset_is_found(store, bucket, local):
    copy_tree(local, bucket, "/outer/Market-1501")
    found = index(store, config=config_of("memory://outer")).images
    assert shown(found.root) == "memory://outer/Market-1501"


def test_folders_that_are_no_dataset_are_named_by_their_addresses(store, bucket, local):
    copy_tree(local, bucket, "/outer/one")
    copy_tree(local, bucket, "/outer/two")
    for folder, text in (("", "contains more than one dataset"), ("/one/query", "does not have the layout")):
        root = f"memory://outer{folder}"
        with pytest.raises(DataError, match=f"^{root} {text}") as error:
            index(store, config=DatasetConfig(reader="market1501", root=root))
        assert "memory:/outer" not in str(error.value)


def test_a_manifest_beside_the_images_and_on_this_machine(store, tmp_path, bucket):
    put(tmp_path / "set", "a/1.jpg", "a/2.jpg", "b/ü 3.jpg")
    table = "path,split,pid,camid\na/1.jpg,train,1,1\na/2.jpg,query,2,1\nb/ü 3.jpg,gallery,2,2\n../x.jpg,train,1,1\n"
    (tmp_path / "set" / "manifest.csv").write_text(table)
    copy_tree(tmp_path / "set", bucket, "/set")
    here = index(store, config=config_of(tmp_path / "set", "manifest")).made.ref
    there = index(store, config=config_of("memory://set", "manifest")).made.ref
    own = index(store, config=config_of("memory://set", "manifest", manifest=str(tmp_path / "set/manifest.csv"))).made
    file = index(store, config=config_of("memory://set/manifest.csv", "manifest")).made
    assert here.fingerprint == there.fingerprint == own.ref.fingerprint == file.ref.fingerprint


def test_sentences_of_a_text_dataset(store, tmp_path, bucket):
    import json

    rows = [described("train", 1, "a/1.jpg", "A man."), described("test", 2, "a/2.jpg", "A woman.")]
    put(tmp_path / "set", "imgs/a/1.jpg", "imgs/a/2.jpg")
    (tmp_path / "set/reid_raw.json").write_text(json.dumps(rows))
    copy_tree(tmp_path / "set", bucket, "/set")
    options = {"require_splits": ("train",)}
    here = index(store, config=config_of(tmp_path / "set", "cuhk_pedes", **options)).made.ref
    there = index(store, config=config_of("memory://set", "cuhk_pedes", **options)).made.ref
    assert here.fingerprint == there.fingerprint


# Stamps


def test_an_unchanged_object_is_not_read_again(store, bucket, local, monkeypatch):
    copy_tree(local, bucket, "/set")
    assert index(store, config=config_of("memory://set")).found.n_read == len(MARKET)
    read = reads_of(monkeypatch)
    again = index(store, config=config_of("memory://set"))
    assert (again.made.cached, again.found.n_read, read) == (True, 0, [])
    bucket.pipe_file("/set/query/0001_c1s1_001051_00.jpg", picture(99))
    changed = index(store, config=config_of("memory://set"))
    assert (changed.made.cached, changed.found.n_read) == (False, 1)
    assert [path.rpartition("/")[2] for path in read] == ["0001_c1s1_001051_00.jpg"]


def test_a_deleted_object_leaves_the_index_and_later_stages_see_it(store, bucket, local):
    copy_tree(local, bucket, "/set")
    images = index(store, config=config_of("memory://set")).images
    gone = "bounding_box_test/0003_c1s6_015971_04.jpg"
    digest = images.digests()[gone]
    assert images.open(gone, digest).mode == "RGB"
    bucket.rm("/set/" + gone)
    with pytest.raises(RejectedRow, match="missing"):
        images.open(gone, digest)
    after = index(store, config=config_of("memory://set", require_splits=("train",)))
    assert gone not in after.images.digests()


def test_an_object_that_changes_after_the_index_is_not_used(store, bucket, local):
    copy_tree(local, bucket, "/set")
    images = index(store, config=config_of("memory://set")).images
    path, digest = next(iter(images.digests().items()))
    bucket.pipe_file(f"/set/{path}", picture(7))
    with pytest.raises(RejectedRow, match="changed"):
        images.open(path, digest)
    again = IndexedImages.from_json(images.to_json())
    assert again.root == images.root


def test_the_folder_of_an_index_is_found_by_the_digests(store, bucket, local):
    copy_tree(local, bucket, "/set")
    images = index(store, config=config_of("memory://set")).images
    paths, digests = zip(*images.digests().items(), strict=True)
    assert find_root(store, paths, digests) == images.root


# Names


def test_keys_with_blanks_unicode_and_dots(store, bucket):
    names = ["Alice B/1 2.jpg", "Émile/%41 #1.jpg", "x/../../etc.jpg", "y//z.jpg", ".hidden/a.jpg", "note.txt"]
    for seed, name in enumerate(names):
        bucket.store["/set/" + name] = _file(bucket, "/set/" + name, picture(seed))
    outcome = index(store, config=config_of("memory://set", "images"))
    assert sorted(outcome.images.digests()) == ["Alice B/1 2.jpg", "Émile/%41 #1.jpg"]
    reasons = {row.path: row.reason for row in outcome.found.rejected}
    assert reasons == {
        ".hidden": "hidden",
        "note.txt": "not_an_image",
        "x/../../etc.jpg": "outside_root",
        "y//z.jpg": "bad_path",
    }


def _file(files, path, content):
    files.pipe_file("/set/made.tmp", content)
    return files.store.pop("/set/made.tmp")


def test_a_key_that_s3fs_would_read_as_a_version_of_another_object():
    with pytest.raises(RejectedRow, match="bad_path"):
        PathGate(Path("s3:/bucket/set")).admit("1.jpg?versionId=2.jpg")


def test_an_object_that_vanishes_is_named_by_its_address(store, bucket):
    bucket.pipe_file("/set/1.jpg", picture(1))
    kept = remote.refresh(Path("memory:/set"))
    bucket.rm("/set/1.jpg")
    how = Reading(max_pixels=1 << 20)
    with pytest.raises(ChangedError, match=r"^memory://set/1.jpg vanished"):
        examine(Path("memory:/set"), kept.paths.array, store.memo, how)


def test_two_buckets_keep_their_digests_apart(store, bucket, tmp_path):
    for number in (1, 2):
        put(tmp_path / str(number), "a.jpg", first_seed=number)
        copy_tree(tmp_path / str(number), bucket, f"/{number}")
    first, second = (index(store, config=config_of(f"memory://{number}", "images")) for number in (1, 2))
    assert (first.found.n_read, second.found.n_read) == (1, 1)
    assert first.found.dataset_hash != second.found.dataset_hash
    assert index(store, config=config_of("memory://1", "images")).found.n_read == 0


def test_litter_is_ignored(store, bucket, tmp_path):
    put(tmp_path / "set", "p/a.jpg")
    litter(tmp_path / "set/p")
    copy_tree(tmp_path / "set", bucket, "/set")
    found = index(store, config=config_of("memory://set", "folders", require_splits=("train",), train_fraction=1)).found
    assert [record.path for record in found.records] == ["p/a.jpg"]
    assert found.rejected == []


# Errors


def test_an_empty_place_is_one_clear_error(store, bucket):
    with pytest.raises(DataError, match=r"memory://none does not exist or is empty; set data.root"):
        index(store, config=config_of("memory://none"))


def test_a_transient_error_is_repeated_and_a_lasting_one_can_be_retried(store, bucket, local, monkeypatch):
    copy_tree(local, bucket, "/set")
    kind, failures = type(bucket), [ConnectionResetError("SECRET in the text of a provider")] * 2
    original = kind.cat_file

    def cat_file(self, path, **options):
        if failures:
            raise failures.pop()
        return original(self, path, **options)

    monkeypatch.setattr(kind, "cat_file", cat_file)
    assert index(store, config=config_of("memory://set")).found.n_read == len(MARKET)
    failures[:] = [ConnectionResetError("SECRET")] * 1000
    bucket.pipe_file("/set/query/0001_c1s1_001051_00.jpg", picture(99))
    with pytest.raises(RetryableError, match=r"cannot be reached.*after 4 attempts") as caught:
        index(store, config=config_of("memory://set"))
    assert "SECRET" not in str(caught.value)


def test_a_web_server_needs_a_manifest(store):
    with pytest.raises(DataError, match=r"cannot be listed.*data.reader=manifest"):
        index(store, config=config_of("http://localhost:9/set", "images"))


class _Sizeless(SimpleHTTPRequestHandler):
    """Does not tell how large a file is, as servers that compress."""

    def send_header(self, keyword, value):
        if keyword != "Content-Length":
            super().send_header(keyword, value)


def test_a_web_server_that_does_not_tell_sizes_is_refused(store, tmp_path):
    put(tmp_path / "set", "1.jpg")
    (tmp_path / "manifest.csv").write_text("path,split,pid,camid\n1.jpg,train,1,1\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Sizeless, directory=str(tmp_path / "set"))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(DataError, match=r"1.jpg cannot be read, because its server does not tell the size"):
            index(
                store,
                config=config_of(
                    f"{root}/", "manifest", manifest=str(tmp_path / "manifest.csv"), require_splits=("train",)
                ),
            )
        server.shutdown()


class _Busy(SimpleHTTPRequestHandler):
    """Answers 503 for everything in the folder `busy`."""

    def do_GET(self):
        self.answer(super().do_GET)

    def do_HEAD(self):
        self.answer(super().do_HEAD)

    def answer(self, otherwise):
        if self.path.startswith("/busy/"):
            self.send_error(503)
        else:
            otherwise()


def test_a_web_server_that_does_not_answer_is_not_one_without_images(store, tmp_path):
    put(tmp_path / "set", "a/1.jpg", "busy/2.jpg")
    market(tmp_path / "set/market")
    table = "path,split,pid\na/1.jpg,train,1\nbusy/2.jpg,train,1\n"
    (tmp_path / "set/manifest.csv").write_text(table)
    settle()
    options = {"require_splits": ("train",)}
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Busy, directory=str(tmp_path / "set"))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(RetryableError, match=r"busy/2.jpg cannot be reached \(ClientResponseError\)"):
            index(store, config=config_of(root, "manifest", **options))
        assert not remote.is_gone(f"{root}/busy/2.jpg")
        assert remote.is_gone(f"{root}/a/none.jpg")
        with pytest.raises(DataError, match=rf"{root}/market cannot be listed.*data.reader=manifest"):
            index(store, config=config_of(f"{root}/market"))
        server.shutdown()
    assert not remote.is_gone(f"{root}/a/1.jpg")


class _Refusing(SimpleHTTPRequestHandler):
    """Tells the size of the files in the folder `closed`, and refuses to send them."""

    def do_GET(self):
        if self.path.startswith("/closed/"):
            self.send_error(403)
        else:
            super().do_GET()


def test_an_image_that_a_web_server_refuses_is_one_image_that_is_not_used(store, tmp_path):
    put(tmp_path / "set", "a/1.jpg", "closed/2.jpg")
    (tmp_path / "set/manifest.csv").write_text("path,split,pid\na/1.jpg,train,1\nclosed/2.jpg,train,1\n")
    settle()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Refusing, directory=str(tmp_path / "set"))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        made = index(store, config=config_of(root, "manifest", require_splits=("train",)))
        server.shutdown()
    rejected = pq.read_table(made.made.ref.folder / "rejected.parquet").to_pylist()
    assert [(row["path"], row["reason"]) for row in rejected] == [("closed/2.jpg", "unreadable")]


def test_an_endpoint_without_a_scheme_is_named_at_once(monkeypatch):
    pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    client.filesystem.cache_clear()
    with pytest.raises(ConfigError, match=r"s3://bucket/set cannot be read: the endpoint is not a URL.*http://"):
        remote.refresh(Path("s3://bucket/set"))
    client.filesystem.cache_clear()


def test_a_manifest_lists_the_images_of_a_web_server(store, tmp_path):
    put(tmp_path / "set", "a/1 2.jpg", "a/ü#3.jpg")
    table = "path,split,pid\na/1 2.jpg,train,1\na/ü#3.jpg,gallery,2\na/none.jpg,train,1\n"
    (tmp_path / "set/manifest.csv").write_text(table)
    settle()
    options = {"require_splits": ("train",)}
    here = index(store, config=config_of(tmp_path / "set", "manifest", **options)).made.ref
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "set"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        there = index(store, config=config_of(root, "manifest", **options)).made.ref
        server.shutdown()
    assert there.fingerprint == here.fingerprint


def test_a_missing_package_names_its_installation(monkeypatch):
    def filesystem(scheme, **options):
        raise ImportError(scheme)

    monkeypatch.setattr(fsspec, "filesystem", filesystem)
    client.filesystem.cache_clear()
    with pytest.raises(ConfigError, match=r"s3:// need the package s3fs.*pip install 'clip-scgi\[remote\]'"):
        remote.read(Path("s3:/bucket/a.jpg"))
    with pytest.raises(ConfigError, match="pip install gcsfs"):
        remote.read(Path("gs:/bucket/a.jpg"))
    client.filesystem.cache_clear()


@pytest.mark.parametrize(
    ("root", "problem"),
    [
        ("s3://AKIA:hunter2@bucket/x", "contains credentials"),
        ("https://host/set?sig=hunter2", "contains credentials"),
        ("s3://bucket/../hunter2", "empty name, . or .."),
        ("s3://bucket//hunter2", "empty name, . or .."),
        ("s3:/bucket/hunter2", "write two"),
        ("file:///hunter2", "remove file://"),
        ("ftp://hunter2/x", "unknown scheme"),
        ("s3://", "not the address of one folder"),
    ],
)
def test_addresses_that_are_refused_without_being_repeated(root, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        build_config(DatasetConfig, {"root": root}, "x")
    assert "hunter2" not in str(caught.value)


def test_artifacts_stay_on_a_posix_folder():
    with pytest.raises(ConfigError, match=r"s3://bucket/home is in an object store.*--home"):
        usable_root(Path("s3://bucket/home"))


# Other schemes


class Cloud(fsspec.AbstractFileSystem):
    """Objects in memory, with names and details as gcsfs, adlfs and huggingface_hub give them: bucket/key, no slash."""

    protocol = ("gs", "gcs", "az", "abfs", "hf")
    cachable = False
    root_marker = ""

    def __init__(self, scheme, objects):
        super().__init__()
        self.scheme, self.objects = scheme, objects

    def pipe_file(self, path, value, **options):
        self.objects[self._strip_protocol(path)] = value

    def _details(self, path):
        content, written = self.objects[path], datetime(2026, 1, 2, tzinfo=UTC)
        tag = hashlib.md5(content).hexdigest()
        details = {
            "gs": {"etag": tag, "updated": written.isoformat()},
            "az": {"etag": tag, "last_modified": written},
            "hf": {"blob_id": tag, "last_commit": None},
        }[{"gcs": "gs", "abfs": "az"}.get(self.scheme, self.scheme)]
        return {"name": path, "size": len(content), "type": "file", **details}

    def ls(self, path, detail=True, **options):
        base = self._strip_protocol(path)
        if base in self.objects:
            return [self._details(base)]
        below = sorted(name for name in self.objects if name.startswith(f"{base}/"))
        if not below:
            raise FileNotFoundError(base)
        folders = {f"{base}/{name[len(base) + 1 :].partition('/')[0]}": name for name in below}
        return [
            self._details(name) if name in self.objects else {"name": name, "size": 0, "type": "directory"}
            for name in folders
        ]

    def cat_file(self, path, start=None, end=None, **options):
        name = self._strip_protocol(path)
        if name not in self.objects:
            raise FileNotFoundError(name)
        return self.objects[name][start:end]


@pytest.mark.parametrize("scheme", Cloud.protocol)
def test_each_scheme_gives_the_index_of_the_local_copy(store, bucket, local, scheme, monkeypatch):
    files = Cloud(scheme, {})
    monkeypatch.setattr(fsspec, "filesystem", lambda name, **options: files if name == scheme else 1 / 0)
    client.filesystem.cache_clear()
    copy_tree(local, files, "people/set")
    config = config_of(f"{scheme}://people/set")
    other = ArtifactStore(store.root.with_name("other"))
    here, there = index(other, config=config_of(local)), index(store, config=config)
    assert there.made.ref.fingerprint == here.made.ref.fingerprint
    path = there.found.records[0].path
    assert there.images.open(path, there.found.facts[0].sha256).size == (8, 16)
    files.pipe_file(f"people/set/{path}", picture(90))
    assert index(store, config=config).found.n_read == 1
    assert index(store, config=config).found.n_read == 0
    del files.objects[f"people/set/{path}"]
    assert len(index(store, config=config).found.records) == len(here.found.records) - 1
    client.filesystem.cache_clear()


def test_an_object_whose_size_is_listed_is_read_by_one_request(store, bucket, local, monkeypatch):
    copy_tree(local, bucket, "/set")
    seen, original = [], type(bucket).cat_file
    monkeypatch.setattr(
        type(bucket), "cat_file", lambda self, path, **span: seen.append(span) or original(self, path, **span)
    )
    index(store, config=config_of("memory://set"))
    assert len(seen) == 10
    assert all(span["start"] == 0 and span["end"] > 1 for span in seen)


def test_an_object_that_grows_after_it_was_listed_has_changed(store, bucket, local, monkeypatch):
    copy_tree(local, bucket, "/set")
    path, original = next(iter(MARKET)), type(bucket).cat_file

    def cat_file(self, name, **span):
        if name.endswith(path) and len(bucket.store[f"/set/{path}"].getvalue()) < 5000:
            bucket.pipe_file(f"/set/{path}", picture(8) + bytes(5000))
        return original(self, name, **span)

    monkeypatch.setattr(type(bucket), "cat_file", cat_file)
    found = index(store, config=config_of("memory://set")).found
    assert dict(zip((record.path for record in found.records), found.facts, strict=True))[path].size > 5000
