"""captions.parquet: the captions of a store as a table of one dataset, one row per image.

The store is read once, in its own order, and the rows are brought into the order of the index in blocks
(`data.columns.shuffle`), so that a dataset of any size needs the memory of some blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from captioning.captioner import Captioner
from captioning.config import CaptionConfig
from captioning.prompts.cleaning import CleaningConfig
from captioning.stage.cleaned import DatasetCleaning
from captioning.stage.texts import ATTRIBUTES, TIDIED, TextReader
from captioning.stage.worker import Failure
from captioning.store.snapshot import ShardGoneError
from data.columns.digests import Digests, digests_of, texts_of
from data.columns.shuffle import BLOCK_ROWS, Shuffle
from data.columns.source import in_blocks
from data.errors import DataError, RetryableError, counted
from data.files import write_tables
from data.schemas import CAPTIONS, LABEL, SHARD
from data.stages.images import IndexedImages

_KEY: Final = "image_sha256"
_FROM_THE_STORE: Final = tuple(name for name in SHARD.names if name != _KEY)
_FILLED: Final = pa.schema(
    [*(SHARD.field(name) for name in _FROM_THE_STORE), *((name, pa.string()) for name in (TIDIED, *ATTRIBUTES))]
)
_PLACE: Final = {"image_path": "path", _KEY: "sha256", "split": "split", "pid": "pid", "camid": "camid"}
"""Column of captions.parquet -> its column in images.parquet."""
_AT_ONCE: Final = 1 << 16


class Failures(NamedTuple):
    """Why images are not captioned.

    of: image sha256 -> its failure. otherwise: the failure of all others, None if they must have a caption.
    """

    of: Mapping[str, Failure]
    otherwise: Failure | None = None


class Replies(Protocol):
    """Replies for the images of a dataset: of a store (`Snapshot`), or the dataset's own sentences."""

    def refresh(self) -> None:
        """Find the replies again after a ShardGoneError."""

    def read(self, images: Digests) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """Yield rows of schemas.SHARD in any order, each with its index in `images`, which are those of the index."""


class View:
    """The captions of one dataset.

    captions: the store, as of its last refresh. block: rows per row group of the file, and in memory at a time.
    """

    def __init__(
        self,
        images: IndexedImages,
        captions: Replies,
        failures: Failures,
        captioner: Captioner,
        config: CaptionConfig,
        *,
        block: int = BLOCK_ROWS,
    ) -> None:
        self._images = images
        self._captions = captions
        self._failures = failures
        self._captioner = captioner
        self._config = config
        self._block = block

    def write(self, file: Path, scratch: Path) -> None:
        """Write captions.parquet (schemas.CAPTIONS, and schemas.LABEL if the index has it), in the order of the index.

        scratch: a folder for temporary files. Raises RetryableError for an image that has neither a caption nor failed.
        """
        digests = self._images.sha256()
        has_label = LABEL.name in self._images.columns()
        columns = [*_PLACE.values(), *([LABEL.name] if has_label else [])]
        cleaning = None if self._config.cleaning == CleaningConfig() else DatasetCleaning(self._images, self._config)
        with Shuffle(len(digests), scratch / "rows", rows=self._block) as shuffle:
            while not self._filled(shuffle, digests, cleaning):
                shuffle.clear()
                self._captions.refresh()
            index = in_blocks(self._images.batches(*columns), self._block)
            blocks = (self._rows(place, rows, cleaning) for place, rows in zip(index, shuffle.read(), strict=True))
            write_tables(file, blocks, CAPTIONS.append(LABEL) if has_label else CAPTIONS)

    def _filled(self, shuffle: Shuffle, digests: Digests, cleaning: DatasetCleaning | None) -> bool:
        """Add the rows of all images; return False if the store was packed meanwhile.

        digests: of every image of the index, [N].
        """
        is_found = np.zeros(len(digests), dtype=np.bool_)
        reader = TextReader()
        try:
            for at, replies in self._captions.read(digests):
                if not np.array_equal(digests_of(replies[_KEY]), digests[at]):
                    raise DataError("the caption store was changed while it was read: run the caption stage again")
                rows = reader.read(replies.drop_columns([_KEY]))
                is_found[at] = True
                if cleaning is not None:
                    cleaning.see(at, rows)
                shuffle.add(at, rows.select(_FILLED.names).cast(_FILLED))
        except ShardGoneError:
            return False
        for at, rows in self._failed(np.flatnonzero(~is_found), digests):
            shuffle.add(at, rows)
        return True

    def _failed(self, missing: NDArray[np.int64], digests: Digests) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """Yield rows without a text for the images that are not captioned."""
        gone: set[str] = set()
        for start in range(0, len(missing), _AT_ONCE):
            at = missing[start : start + _AT_ONCE]
            failures = [self._failure(image) for image in texts_of(digests[at]).to_pylist()]
            gone |= {failure for failure in failures if isinstance(failure, str)}
            known = [failure for failure in failures if isinstance(failure, Failure)]
            if not gone:
                status, error = zip(*known, strict=True)
                columns = {"status": status, "error": error}
                arrays = [pa.array(columns.get(field.name, [None] * len(at)), field.type) for field in _FILLED]
                yield at, pa.Table.from_arrays(arrays, schema=_FILLED)
        if gone:
            raise RetryableError(
                f"the captions of {counted(len(gone), 'image')} disappeared from the store during captioning; run again"
            )

    def _failure(self, image: str) -> Failure | str:
        """Return why an image is not captioned; the image itself if that is unknown."""
        return self._failures.of.get(image) or self._failures.otherwise or image

    def _rows(self, place: pa.Table, rows: pa.Table, cleaning: DatasetCleaning | None) -> pa.Table:
        """Return one block of captions.parquet. place: its rows of images.parquet."""
        columns = {name: rows[name] for name in (*_FROM_THE_STORE, *ATTRIBUTES)}
        columns |= {name: place[of] for name, of in _PLACE.items()}
        same = np.zeros(len(rows), dtype=np.int64)
        for name, value in _provenance(self._captioner, self._config).items():
            columns[name] = pa.array([value], pa.string()).take(same)
        columns["caption"] = pc.coalesce(rows[TIDIED], rows["raw_text"])
        if cleaning is not None:
            columns["caption"] = cleaning.cleaned(pa.table(columns))
        if LABEL.name in place.column_names:
            columns[LABEL.name] = place[LABEL.name]
        return pa.table(columns)


def _provenance(captioner: Captioner, config: CaptionConfig) -> dict[str, str | None]:
    local = config.engine == "transformers"
    return {
        "template_id": config.prompt_template.id,
        "model_id": captioner.model_id,
        "model_revision": captioner.model_revision,
        "captioner_fingerprint": captioner.fingerprint,
        "dtype": config.number_format if local else None,
        "quantization": config.quantization if local else None,
    }
