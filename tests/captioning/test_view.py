"""captions.parquet in blocks: every row as plain loops write it, whatever the size of the blocks and of the shards."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioning.captioner import Captioner
from captioning.config import CaptionConfig
from captioning.prompts.cleaning import CleaningConfig
from captioning.prompts.replies import Reply
from captioning.prompts.templates import compose
from captioning.stage import texts
from captioning.stage.view import Failures, View
from captioning.stage.worker import Failure
from captioning.store.compaction import compact
from captioning.store.rows import CaptionRow
from captioning.store.snapshot import Snapshot
from captioning.store.store import CaptionStore
from data.artifacts.contents import IMAGES_FILE
from data.artifacts.store import ArtifactStore
from data.errors import RetryableError
from data.files import write_table
from data.schemas import IMAGES, LABEL, LABELED_IMAGES, SHARD
from data.slots import SLOTS, VOCABULARY
from data.stages.images import IndexedImages
from tests.helpers.plain_captions import plain_view
from tests.helpers.stages import make_artifact

WHO = Captioner(fingerprint="f" * 32, model_id="m/x", model_revision="main", ingredients={})
UNREADABLE = Failure("image_error", "truncated file")
SILENT = Failure("server_error", "timeout")


class World:
    """An index of some images, of which some have captions in a store of small shards and others have failed."""

    def __init__(self, folder, *, images=400, label=False, seed=1):
        rng = random.Random(seed)
        self.home = folder / "home"
        self.shas = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(images)]
        rows = []
        for number in range(images):
            row = {"path": f"{number:05d}.jpg", "sha256": rng.choice(self.shas), "size": 1, "width": 1, "height": 1}
            row |= {
                "split": rng.choice(("train", "train", "query", "gallery")),
                "pid": rng.randrange(-1, 9),
                "camid": 1,
            }
            rows.append(row | {"label": f"p{row['pid']}"})
        schema = LABELED_IMAGES if label else IMAGES
        self.index = pa.Table.from_pylist(rows, schema=schema)
        made = make_artifact(
            ArtifactStore(self.home), "index", {}, lambda out: write_table(out / IMAGES_FILE, self.index, schema)
        )
        self.images = IndexedImages(ref=made.ref, root=folder)
        self.failed = {sha: UNREADABLE if n % 2 else SILENT for n, sha in enumerate(self.shas[:30])}
        self.store = CaptionStore(self.home, WHO)
        captioned = [self.row(sha, rng) for sha in self.shas[30:]]
        for start in range(0, len(captioned), 37):
            self.store.append(captioned[start : start + 37])
        self.store.append([self.row(sha, rng) for sha in self.shas[100:120]])  # captioned by two processes at once

    def row(self, sha, rng):
        slots = {slot: rng.choice((*VOCABULARY[slot], None)) for slot in SLOTS}
        text = rng.choice((compose(slots), f" {compose(slots)}\n again", "A red\u2003coat.", "nothing to see", ""))
        confidence = {slot: rng.uniform(-2, 0) for slot in SLOTS if rng.random() < 0.7}
        return CaptionRow.of(
            sha, Reply(text=text, n_tokens=rng.choice((None, 9)), truncated=rng.random() < 0.2, confidence=confidence)
        )

    def snapshot(self, **options):
        snapshot = Snapshot(self.store, **options)
        snapshot.refresh()
        return snapshot

    def write(self, folder, config, *, snapshot=None, failed=None, **options):
        failures = Failures(self.failed if failed is None else failed)
        view = View(self.images, snapshot or self.snapshot(), failures, WHO, config, **options)
        view.write(folder / "captions.parquet", folder / "scratch")
        assert [path.name for path in folder.iterdir() if path.name != "scratch"] == ["captions.parquet"]
        assert not (folder / "scratch" / "rows").exists()
        return folder / "captions.parquet"

    def plain(self, config):
        return plain_view(self.index, self.snapshot().table(), self.failed, WHO, config)


def config_of(**cleaning):
    return CaptionConfig(model="tiny", decoding="slots", cleaning=CleaningConfig(**cleaning))


CLEANINGS = [
    {},
    {"drop_below": 0.4},
    {"drop_dissent": True, "majority": 0.51, "min_images": 2},
    {"drop_below": 0.3, "drop_dissent": True, "majority": 0.51, "recompose": True},
    {"recompose": True},
]


@pytest.mark.parametrize("block", [1 << 17, 64])
@pytest.mark.parametrize("cleaning", CLEANINGS, ids=map(str, range(len(CLEANINGS))))
def test_the_file_has_the_rows_of_plain_loops(tmp_path, cleaning, block):
    world, config = World(tmp_path, label=bool(cleaning)), config_of(**cleaning)
    expected = world.plain(config)
    out = tmp_path / "out"
    out.mkdir()
    file = world.write(out, config, block=block)
    found = pq.read_table(file)
    assert found.schema.equals(expected.schema, check_metadata=True)
    assert found.equals(expected)
    assert (LABEL.name in found.column_names) == bool(cleaning)
    if block > 400:  # one block has the bytes of a file that is written at once
        write_table(tmp_path / "plain.parquet", expected, expected.schema)
        assert file.read_bytes() == (tmp_path / "plain.parquet").read_bytes()
    assert {"ok", "unparsed", "truncated", "image_error", "server_error"} == set(found["status"].to_pylist())


def test_packs_and_parts_give_the_same_file(tmp_path):
    world, config = World(tmp_path), config_of()
    out = [tmp_path / name for name in "abc"]
    for folder in out:
        folder.mkdir()
    before = world.write(out[0], config, block=50)
    stale = world.snapshot()
    assert compact(world.store, most_parts=1, pack_rows=100) > 5
    after = world.write(out[1], config, block=50)
    overtaken = world.write(out[2], config, snapshot=stale, block=50)  # listed before and read after the compaction
    assert before.read_bytes() == after.read_bytes() == overtaken.read_bytes()


def test_a_pack_that_appears_while_the_store_is_read_changes_nothing(tmp_path, monkeypatch):
    world, config = World(tmp_path), config_of()
    out = [tmp_path / name for name in "ab"]
    for folder in out:
        folder.mkdir()
    before = world.write(out[0], config, block=50)
    real, read = CaptionStore.read_shard, []

    def compacting(store, name):
        read.append(name)
        if len(read) == 15:
            monkeypatch.setattr(CaptionStore, "read_shard", real)
            compact(world.store, most_parts=1, pack_rows=100)
        return real(store, name)

    monkeypatch.setattr(CaptionStore, "read_shard", compacting)
    found = world.write(out[1], config, snapshot=world.snapshot(keep_rows=0), block=50)
    assert found.read_bytes() == before.read_bytes()
    assert len(read) == 15


def test_an_image_without_caption_and_failure_is_an_error(tmp_path):
    world = World(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    failed = dict([*world.failed.items()][::2])
    gone = {sha for sha in world.index["sha256"].to_pylist() if sha in world.failed and sha not in failed}
    with pytest.raises(RetryableError, match=f"captions of {len(gone)} image"):
        world.write(out, config_of(), failed=failed)
    assert list(out.glob("*.parquet")) == []


def test_a_dataset_without_images_or_captions(tmp_path):
    world = World(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    nothing = Snapshot(CaptionStore(tmp_path / "empty", WHO))
    view = View(world.images, nothing, Failures({}, otherwise=SILENT), WHO, config_of())
    view.write(out / "captions.parquet", out / "scratch")
    table = pq.read_table(out / "captions.parquet")
    assert table["image_path"].to_pylist() == world.index["path"].to_pylist()
    assert set(table["status"].to_pylist()) == {"server_error"}
    assert table["caption"].null_count == 400


def test_texts_are_read_once_and_few_are_remembered(monkeypatch):
    asked = []
    monkeypatch.setattr(texts, "parse_caption", lambda text: asked.append(text) or dict.fromkeys(SLOTS))
    reader = texts.TextReader(most=3)

    def read(*raw):
        rows = [dict.fromkeys(SHARD.names) | {"raw_text": text, "status": "ok"} for text in raw]
        return reader.read(pa.Table.from_pylist(rows, schema=SHARD))[texts.TIDIED].to_pylist()

    assert read("a", " b", "a", None) == [None, "b", None, None]
    assert read("a", "c", " b") == [None, None, "b"]
    assert asked == ["a", "b", "c"]
    read("d", "e", "f")
    assert read("a") == [None]
    assert asked[3:] == ["d", "e", "f", "a"]


def test_no_row_is_taken_for_another(tmp_path, monkeypatch):
    world = World(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    snapshot, real = world.snapshot(keep_rows=0), world.store.read_shard
    monkeypatch.setattr(world.store, "read_shard", lambda name: real(name).take(np.arange(37)[::-1] % 20))
    with pytest.raises(Exception, match="changed while it was read"):
        world.write(out, config_of(), snapshot=snapshot)
