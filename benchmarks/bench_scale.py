"""Time and peak memory as the dataset grows: index of a new, a changed, a watched and an unchanged folder, content
digests and rows of an index, work list and compaction of the caption store, captions.parquet, and audit.

    python benchmarks/bench_scale.py [--rows 100000 400000] [--million] [--distinct 0.6]

The first index reads and decodes tiny images that a manifest lists, with four names per file; the changed one has an
image and a row more. For the other steps, index and caption store are made up: 20 images per identity (and 4 queries in
the test splits), and a caption for each, and the folder has that many names of a few empty files. Each step runs in a
process of its own, whose peak memory counts everything that it has loaded. On a busy machine, CPU seconds say more than
wall seconds: the slope is that of log(CPU seconds) over log(rows) between the smallest and the largest size, and 1 is
linear. Targets: 1.5 GB per step, and at 4,000,000 rows five minutes for captions.parquet.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from steps import Measured, line_of, measure, print_slopes

from captioning.audit.stage import AuditConfig, AuditStage
from captioning.captioner import identify
from captioning.config import CaptionConfig
from captioning.corrections.stage import CorrectStage
from captioning.prompts.templates import compose
from captioning.stage.probe import uncaptioned
from captioning.stage.stage import CaptionStage
from captioning.store.compaction import compact
from captioning.store.store import CaptionStore
from data.artifacts.contents import IMAGES_FILE, contents_of_images
from data.artifacts.store import ArtifactRef, ArtifactStore, Produced, fingerprint_of
from data.columns.digests import texts_of
from data.datasets import DatasetConfig, scan_dataset
from data.files import write_json, write_tables
from data.index.stage import index as index_of
from data.index.unchanged import Recognized, Watched
from data.schemas import IMAGES, SHARD
from data.slots import SLOTS, VOCABULARY
from data.stages.images import IndexedImages
from data.stages.stage import RunContext
from flows.deploy.watch import look_at
from flows.deploy.watched_images import Counts
from reid.inputs.image_rows import read_rows

ROWS: Final = (100_000, 400_000)
MILLIONS: Final = 4_000_000
PART_ROWS: Final = 256  # as a worker writes them
CONFIG: Final = CaptionConfig(device="cpu")
RANKED: Final = "3" * 64  # made-up digest of queries and gallery
_PER_IDENTITY: Final = 20
_QUERIES: Final = 4  # per identity of the gallery
_AT_ONCE: Final = 1 << 16
_PER_FOLDER: Final = 10_000
_LINKS: Final = 50_000  # names that one file may have, below the limit of ext4
_NAMES: Final = 4  # names per tiny image, all of one person
_LISTED: Final = ["path", "split", "pid", "camid"]

Int64s = NDArray[np.int64]
Step = Callable[[str, dict[str, str]], None]
"""A function at the top of a module that works on the world in a folder, with the reference of its index."""


def write_folder(folder: Path, rows: int) -> None:
    """Write `rows` names of a few empty files, many to a folder."""
    folder.mkdir()
    for number in range(rows):
        part = folder / f"part{number // _PER_FOLDER:05d}"
        if number % _PER_FOLDER == 0:
            part.mkdir()
        if number % _LINKS == 0:
            file = part / f"{number:08d}.jpg"
            file.touch()
        else:
            os.link(file, f"{part}/{number:08d}.jpg")


def write_crops(folder: Path, rows: int) -> None:
    """Write `rows` names of tiny images, four per file, and their manifest: a folder of Parquet files."""
    content = _png()
    (folder / "rows").mkdir(parents=True)
    for number in range(rows):
        path = folder / _path(number)
        if number % _PER_FOLDER == 0:
            path.parent.mkdir()
        if number % _NAMES == 0:
            file = path
            file.write_bytes(content + number.to_bytes(4, "big"))  # decoders ignore what follows the image
        else:
            os.link(file, path)
    parts = (_images(start, rows).select(_LISTED) for start in range(0, rows, _AT_ONCE))
    write_tables(folder / "rows" / "first.parquet", parts, pa.schema([IMAGES.field(name) for name in _LISTED]))


def add_crop(folder: Path, name: str) -> None:
    """Add one image and its row."""
    (folder / f"{name}.png").write_bytes(_png())
    row = {"path": [f"{name}.png"], "split": ["train"], "pid": [1], "camid": [0]}
    pq.write_table(pa.table(row), folder / "rows" / f"{name}.parquet")


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 16), (90, 120, 40)).save(stream, "PNG")
    return stream.getvalue()


def _path(number: int) -> str:
    return f"part{number // _PER_FOLDER:05d}/{number:08d}_c{number % 6}.png"


def _crops(home: str) -> DatasetConfig:
    return DatasetConfig(reader="manifest", root=str(Path(home).with_name("crops")), manifest="rows")


def _watched(store: ArtifactStore) -> Watched:
    root = store.root.with_name("images")
    found = Watched.of(store, DatasetConfig(reader="images", root=str(root)))
    assert found is not None
    return found


def write_world(home: Path, rows: int, distinct: float, *, files: bool) -> ArtifactRef:
    """Write an index of `rows` images and the parts of a caption store.

    distinct: share of texts that occur once. files: also write the folders of images.
    """
    store, index = ArtifactStore(home), write_index(home, rows)
    if files:
        write_folder(home.with_name("images"), rows)
        write_crops(home.with_name("crops"), rows)
        time.sleep(0.2)  # a folder that changed within a clock tick is not remembered
        _watched(store).remember(Recognized(index, home.with_name("images")), rows)
    captions = CaptionStore(home, identify(CONFIG, store.memo))
    captions.folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    common = [_text(rng) for _ in range(5000)]
    order = rng.permutation(rows)
    for start in range(0, rows, PART_ROWS):
        captions.write_part(_replies(order[start : start + PART_ROWS], common, distinct, rng))
    return index


def write_index(home: Path, rows: int) -> ArtifactRef:
    """Write an index of `rows` images."""
    store = ArtifactStore(home)
    about = {"name": "made up", "reader": "none", "dataset_hash": "0" * 32}
    with store.draft("index", fingerprint_of("index", {})) as folder:
        write_tables(folder / IMAGES_FILE, (_images(start, rows) for start in range(0, rows, _AT_ONCE)), IMAGES)
        write_json(folder / "dataset.json", about)
        contents = {"train": "1" * 64, "test": "2" * 64, "ranked": RANKED}
        return store.publish(folder, "index", {}, Produced(contents=contents))


def _digests(numbers: Int64s) -> pa.Array:
    """Return a digest per number, spread like those of images: four words of SplitMix64, the first one unique."""
    words = np.empty((len(numbers), 4), dtype=np.uint64)
    for word in range(4):
        mixed = (numbers.astype(np.uint64) + np.uint64(word << 40)) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        words[:, word] = mixed ^ (mixed >> np.uint64(31))
    return texts_of(words.view("S32").reshape(-1))


def _images(start: int, rows: int) -> pa.Table:
    numbers = np.arange(start, min(start + _AT_ONCE, rows))
    query, gallery = (part // _PER_IDENTITY * _PER_IDENTITY for part in (rows * 2 // 5, rows // 2))
    split = np.select([numbers < query, numbers < gallery], ["train", "query"], "gallery")
    people = np.select(
        [numbers < query, numbers < gallery],
        [numbers // _PER_IDENTITY, query + (numbers - query) // _QUERIES],
        query + (numbers - gallery) // _PER_IDENTITY,
    )
    count = len(numbers)
    columns = {
        "path": [_path(number) for number in numbers.tolist()],
        "split": split.tolist(),
        "pid": people + 1,
        "camid": numbers % 6 + 1,
        "sha256": _digests(numbers),
        "size": np.full(count, 4000),
        "width": np.full(count, 64),
        "height": np.full(count, 128),
    }
    return pa.table(columns).cast(IMAGES)


def _text(rng: np.random.Generator) -> str:
    chosen = {slot: (*VOCABULARY[slot], None)[rng.integers(len(VOCABULARY[slot]) + 1)] for slot in SLOTS}
    return compose(chosen)


def _replies(numbers: Int64s, common: list[str], distinct: float, rng: np.random.Generator) -> pa.Table:
    picked = rng.integers(len(common), size=len(numbers)).tolist()
    own = (rng.random(len(numbers)) < distinct).tolist()
    texts = [
        f"{common[at]} The person stands near sign {number}." if alone else common[at]
        for at, number, alone in zip(picked, numbers.tolist(), own, strict=True)
    ]
    count = len(numbers)
    known = {"image_sha256": _digests(numbers), "raw_text": pa.array(texts), "status": pa.repeat("ok", count)}
    known |= {"n_replies": pa.repeat(pa.scalar(1, pa.int32()), count), "truncated": pa.repeat(False, count)}
    columns = [known[field.name] if field.name in known else pa.nulls(count, field.type) for field in SHARD]
    return pa.table(columns, schema=SHARD)


# The steps, each in a new process: imports are part of it.


def run_of(home: str, index: dict[str, str]) -> RunContext:
    """Return the context of a step."""
    images = IndexedImages(ref=ArtifactRef(**index), root=Path(home))
    return RunContext(store=ArtifactStore(Path(home)), indexed=images)


def first_index(home: str, index: dict[str, str]) -> None:
    """Index the listed images: read, hash and decode each."""
    made = index_of(ArtifactStore(Path(home).with_name("crops store")), config=_crops(home))
    assert made.found.n_read > 0


def changed_index(home: str, index: dict[str, str]) -> None:
    """Index them again with one more: each costs a stat and a look-up."""
    add_crop(Path(home).with_name("crops"), "second")
    made = index_of(ArtifactStore(Path(home).with_name("crops store")), config=_crops(home))
    assert (made.found.n_read, made.made.cached) == (1, False)


def watched_look(home: str, index: dict[str, str]) -> None:
    """Look at them as the watcher does, add one more, and look again: it compares with the images of the first look."""
    store, config = ArtifactStore(Path(home).with_name("crops store")), _crops(home)
    assert look_at(store, dataset="crops", config=config, settle_seconds=0).status == "unchanged"
    add_crop(Path(home).with_name("crops"), "third")
    assert look_at(store, dataset="crops", config=config, settle_seconds=0).counts == Counts(added=1)


def listing(home: str, index: dict[str, str]) -> None:
    """List a folder of images without opening them."""
    scan_dataset(DatasetConfig(reader="images", root=str(Path(home).with_name("images"))))


def unchanged_folder(home: str, index: dict[str, str]) -> None:
    """Recognize the unchanged folder."""
    assert _watched(ArtifactStore(Path(home))).find() is not None


def contents(home: str, index: dict[str, str]) -> None:
    """Compute the content digests of the index."""
    contents_of_images(run_of(home, index).images.rows())


def rows_of_images(home: str, index: dict[str, str]) -> None:
    """Read the rows from which training, evaluation and search select."""
    read_rows(run_of(home, index).images)


def compaction(home: str, index: dict[str, str]) -> None:
    """Move the rows of all parts to packs."""
    run = run_of(home, index)
    assert compact(CaptionStore(run.store.root, identify(CONFIG, run.store.memo)))


def work_list(home: str, index: dict[str, str]) -> None:
    """Find the images without a caption."""
    assert len(uncaptioned(run_of(home, index), CONFIG)) == 0


def count(home: str, index: dict[str, str]) -> None:
    """Count the captions."""
    run = run_of(home, index)
    store = CaptionStore(run.store.root, identify(CONFIG, run.store.memo))
    assert store.count() == run.images.rows("pid").num_rows


def captions(home: str, index: dict[str, str]) -> None:
    """Write captions.parquet from the store."""
    assert not CaptionStage(config=CONFIG).make(run_of(home, index)).cached


def captions_of(run: RunContext) -> ArtifactRef:
    """Return the captions that the step "captions" has written."""
    found = CaptionStage(config=CONFIG).find(run)
    assert found is not None
    return found


def unchanged(home: str, index: dict[str, str]) -> None:
    """Find the captions again, and what the audit would read of them."""
    run = run_of(home, index)
    AuditStage(captions=captions_of(run), config=AuditConfig()).plan(run)


def correct(home: str, index: dict[str, str]) -> None:
    """Write captions.parquet with corrections, of which there are none."""
    run = run_of(home, index)
    CorrectStage(captions=captions_of(run), config=CONFIG).make(run)


def audit(home: str, index: dict[str, str]) -> None:
    """Audit the captions."""
    run = run_of(home, index)
    AuditStage(captions=captions_of(run), config=AuditConfig()).make(run)


STEPS: Final[dict[str, Step]] = {
    "first index": first_index,
    "changed index": changed_index,
    "watched dataset": watched_look,
    "listing": listing,
    "unchanged folder": unchanged_folder,
    "index contents": contents,
    "index rows": rows_of_images,
    "compaction": compaction,
    "count": count,
    "work list": work_list,
    "captions.parquet": captions,
    "correct": correct,
    "audit": audit,
    "unchanged": unchanged,
}


def bench(
    rows: int, distinct: float, steps: Sequence[str], known: Mapping[str, Step] = STEPS, *, captions: bool = True
) -> dict[str, Measured]:
    """Measure all steps on a dataset of `rows` images, and print one line for each.

    known: name -> step. captions: the dataset has a caption store.
    """
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "home"
        index = write_world(home, rows, distinct, files=known is STEPS) if captions else write_index(home, rows)
        found = {}
        for step in steps:
            found[step] = measure(known[step], str(home), index.to_json())
            print(line_of(step, rows, found[step]), flush=True)
    return found


def main(
    known: Mapping[str, Step] = STEPS,
    description: str | None = __doc__,
    needed: Sequence[str] = (),
    *,
    captions: bool = True,
) -> None:
    """Measure and print the table and the slopes.

    known: name -> step. needed: steps that others read the files of. captions: the datasets have a caption store.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[*ROWS], help="images of the datasets")
    parser.add_argument("--million", action="store_true", help=f"also {MILLIONS:,} images (10 GB of disk)")
    parser.add_argument("--distinct", type=float, default=0.6, help="share of the texts that occur once")
    parser.add_argument("--steps", nargs="+", default=[*known], choices=[*known], help="steps, in this order")
    options = parser.parse_args()
    options.steps = list(dict.fromkeys([*needed, *options.steps]))
    sizes = sorted({*options.rows, *([MILLIONS] if options.million else [])})
    texts = f", {100 * options.distinct:.0f} % of the texts occur once" if captions else ""
    print(f"{os.cpu_count()} cores{texts}")
    tables = {rows: bench(rows, options.distinct, options.steps, known, captions=captions) for rows in sizes}
    print_slopes(tables)


if __name__ == "__main__":
    main()
