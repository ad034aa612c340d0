"""Content digests: the parts of an index or of captions that later stages depend on.

The digest of a whole file would cover too much: training depends neither on file names nor on which captioner wrote a
text. Content digests are computed once, when the artifact is written, and stored in its ``artifact.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.artifacts.store import ArtifactRef
from data.columns.codes import Codes
from data.columns.digests import WIDTH, Digests, digests_of, texts_of
from data.columns.distinct import each_distinct, has_plain_ends, one_array
from data.columns.json_rows import RowDigest
from data.columns.shuffle import BLOCK_ROWS, Shuffle
from data.columns.source import BATCH_ROWS, ParquetRows, RowSource, TableRows
from data.errors import DataError
from data.people import JUNK, Mask, is_person
from data.schemas import LABEL
from data.slots import SLOTS
from data.splits import TRAIN

IMAGES_FILE: Final = "images.parquet"
SENTENCES_FILE: Final = "sentences.parquet"
CAPTIONS_FILE: Final = "captions.parquet"

AUDITED: Final = (
    "image_path",
    "image_sha256",
    "split",
    "pid",
    "camid",
    "raw_text",
    "status",
    "error",
    "template_id",
    "truncated",
    *(f"attr_{slot}" for slot in SLOTS),
    *(f"conf_{slot}" for slot in SLOTS),
)
"""The columns of captions.parquet that the audit reads; see `audited_columns`."""

_LABELED: Final = ("pid", "camid", "sha256")
_RANKED: Final = ("split", "path", *_LABELED)
_TRAINED: Final = ("pid", "camid", "image_sha256", "caption")
_TRAINED_ROWS: Final = pa.schema(
    [("pid", pa.int64()), ("camid", pa.int64()), ("image_sha256", pa.string()), ("caption", pa.string())]
)

Contents = Mapping[str, str]
"""Name of a part -> its digest, 64 hex digits."""


def image_contents(images: ArtifactRef) -> Contents:
    """Return the content digests of an index artifact.

    train: (pid, camid, sha256) of the training images, independent of order. test: the same, with the split, of queries
    and gallery. ranked: the rows of queries and gallery in order, which a ranking lists, with their paths and whether
    each shows a person (this can depend on the training images, see `data.people`).
    """
    return _recorded(images, IMAGES_FILE, lambda file: contents_of_images(ParquetRows(file)))


def caption_contents(captions: ArtifactRef) -> Contents:
    """Return the content digests of a caption artifact.

    train: (pid, camid, sha256, caption) of the training images, independent of order. audit: the columns
    `audited_columns`, in order.
    """
    return _recorded(captions, CAPTIONS_FILE, lambda file: contents_of_captions(ParquetRows(file)))


def contents_of_images(images: pa.Table | RowSource, *, block: int = BLOCK_ROWS) -> dict[str, str]:
    """Compute the digests of `image_contents` from the rows of images.parquet.

    block: of more rows than these, the digests are sorted as columns of bytes instead of text.
    """
    source = TableRows(images) if isinstance(images, pa.Table) else images
    ranked, at, persons = RowDigest(), 0, _persons(source)
    for rows in source.batches(*_RANKED):
        person = pa.array(persons[at : at + len(rows)])
        ranked.update(rows.append_column("person", person).filter(_is_tested(rows)))
        at += len(rows)
    in_order = _sorted_rows if source.n_rows <= block else _sorted_columns
    return {
        "train": _digest(rows.select(_LABELED) for rows in in_order(source, _is_trained)),
        "test": _digest(in_order(source, _is_tested)),
        "ranked": ranked.hexdigest(),
    }


def _is_trained(rows: pa.Table) -> pa.ChunkedArray:
    """Return the mask of the rows of training images that are not junk."""
    return pc.and_(pc.equal(rows["split"], TRAIN), pc.not_equal(rows["pid"], JUNK))


def _is_tested(rows: pa.Table) -> pa.ChunkedArray:
    """Return the mask of the rows of queries and gallery."""
    return pc.not_equal(rows["split"], TRAIN)


def _persons(images: RowSource) -> Mask:
    """Return whether each image shows a person; the texts of the splits are not made once per image."""
    splits, pids = Codes(), np.empty(images.n_rows, dtype=np.int64)
    codes, at = np.empty(images.n_rows, dtype=np.int8), 0
    for rows in images.batches("split", "pid"):
        codes[at : at + len(rows)] = splits.encode(one_array(rows["split"]))
        pids[at : at + len(rows)] = rows["pid"].to_numpy()
        at += len(rows)
    return is_person(np.array([*splits.values, None], dtype=object)[codes], pids)


def _sorted_rows(images: RowSource, chosen: Callable[[pa.Table], pa.ChunkedArray]) -> Iterator[pa.Table]:
    """Yield the rows (split, pid, camid, sha256) of the chosen images, sorted by all columns."""
    parts = [rows.filter(chosen(rows)) for rows in images.batches("split", *_LABELED)]
    if not parts:
        return
    rows = pa.concat_tables(parts)
    yield rows.take(pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in rows.column_names]))


def _sorted_columns(images: RowSource, chosen: Callable[[pa.Table], pa.ChunkedArray]) -> Iterator[pa.Table]:
    """Yield what `_sorted_rows` yields, many rows at a time."""
    splits, at = Codes(), 0
    split = np.empty(images.n_rows, dtype=np.int8)
    pid, camid = np.empty((2, images.n_rows), dtype=np.int64)
    sha256: Digests = np.empty(images.n_rows, dtype=f"S{WIDTH}")
    for rows in images.batches("split", *_LABELED):
        some = rows.filter(chosen(rows))
        here = slice(at, at + len(some))
        split[here] = splits.encode(one_array(some["split"]))
        pid[here], camid[here], sha256[here] = some["pid"], some["camid"], digests_of(some["sha256"])
        at += len(some)
    rank = splits.ranks().astype(np.int8)[split[:at]]
    order = np.lexsort((sha256[:at], camid[:at], pid[:at], rank))
    for start in range(0, len(order), BATCH_ROWS):
        rows = order[start : start + BATCH_ROWS]
        columns = {"split": splits.decode(split[rows].astype(np.int32)), "pid": pid[rows], "camid": camid[rows]}
        yield pa.table(columns | {"sha256": texts_of(sha256[rows])})


def contents_of_captions(
    captions: pa.Table | RowSource, *, block: int = BLOCK_ROWS, scratch: Path | None = None
) -> dict[str, str]:
    """Compute the digests of `caption_contents` from the rows of captions.parquet.

    block: more rows than these are sorted on the disk, this many at a time. scratch: a folder for that, by default the
    system's.
    """
    source = TableRows(captions) if isinstance(captions, pa.Table) else captions
    audit = RowDigest()
    for rows in source.batches(*audited_columns(source.names)):
        audit.update(rows)
    return {"train": _trained(source, block, scratch), "audit": audit.hexdigest()}


def _trained(source: RowSource, block: int, scratch: Path | None) -> str:
    """Return the digest of the rows (pid, camid, image_sha256, text for training) of training images, sorted."""
    found = RowDigest()
    if source.n_rows <= block:
        trained = (_of_training(rows).cast(_TRAINED_ROWS) for rows in source.batches("split", *_TRAINED))
        for rows in _sorted(pa.concat_tables([_TRAINED_ROWS.empty_table(), *trained])):
            found.update(rows)
        return found.hexdigest()
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="clip-scgi-", dir=scratch) as folder:
        for rows in _sorted_on_disk(source, Path(folder), block):
            found.update(rows)
    return found.hexdigest()


def _of_training(rows: pa.Table) -> pa.Table:
    """Return the rows of training images that are not junk, without their split."""
    return rows.filter(_is_trained(rows)).drop_columns(["split"])


def _sorted(rows: pa.Table) -> Iterator[pa.Table]:
    """Yield `rows` with the text that training reads instead of the caption, sorted by all columns."""
    texts = caption_texts(one_array(rows["caption"]))
    rows = rows.set_column(rows.schema.get_field_index("caption"), "caption", texts)
    yield rows.take(pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in _TRAINED]))


def _sorted_on_disk(source: RowSource, folder: Path, block: int) -> Iterator[pa.Table]:
    """Yield what `_sorted` yields of all training rows, `block` rows at a time."""
    numbers = _places_in_order(source)
    with Shuffle(len(numbers), folder / "rows", rows=block) as shuffle:
        at = 0
        for rows in source.batches("split", *_TRAINED):
            trained = _of_training(rows)
            shuffle.add(numbers[at : at + len(trained)], trained)
            at += len(trained)
        last: pa.Table | None = None
        for rows in shuffle.read():
            (ordered,) = _sorted(rows)
            if last is not None:
                _check_tie(last, ordered.slice(0, 1))
            last = ordered.slice(len(ordered) - 1)
            yield ordered


def _places_in_order(source: RowSource) -> NDArray[np.int64]:
    """Return the place of each training row among them all, sorted by all columns but the caption."""
    keys = [_keys(_of_training(rows)) for rows in source.batches("split", *_TRAINED[:-1])]
    columns = [np.concatenate(column) for column in zip(*keys, strict=True)]
    del keys
    order = np.lexsort(columns[::-1])
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(order))
    return numbers


def _check_tie(last: pa.Table, first: pa.Table) -> None:
    """Raise DataError if rows of two blocks are out of order: their order by caption would depend on the blocks."""
    (before,), (after,) = last.to_pylist(), first.to_pylist()
    if tuple(before.values()) > tuple(after.values()):
        raise DataError(
            f"captions.parquet has different captions for image {after['image_sha256']}: run the caption stage again"
        )


def _keys(rows: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64], Digests]:
    return rows["pid"].to_numpy(), rows["camid"].to_numpy(), digests_of(rows["image_sha256"])


def audited_columns(names: Sequence[str]) -> list[str]:
    """Return the columns that the audit reads from a captions.parquet with the columns `names`."""
    return [*AUDITED, *(name for name in names if name == LABEL.name)]


def caption_text(caption: str | None) -> str:
    """Return the text that training reads from the column caption; empty if the value is missing."""
    return (caption or "").strip()


def caption_texts(column: pa.Array) -> pa.Array:
    """Return `caption_text` of every value of the column caption."""
    texts = column.cast(pa.string()).fill_null("")
    return texts if has_plain_ends(texts) else each_distinct(texts, caption_text)


def _recorded(ref: ArtifactRef, file: str, compute: Callable[[Path], dict[str, str]]) -> Contents:
    """Return the digests stored in artifact.json; compute them from `file` if the artifact was written without any.

    Raises DataError when the file cannot be read.
    """
    kept = ref.contents()
    if kept:
        return kept
    try:
        return compute(ref.folder / file)
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{ref.folder / file} cannot be read ({error}); delete its folder and run the {ref.stage} stage again"
        ) from error


def _digest(tables: Iterable[pa.Table]) -> str:
    found = RowDigest()
    for rows in tables:
        found.update(rows)
    return found.hexdigest()
