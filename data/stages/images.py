"""The indexed images of a dataset, for all stages and pages that read images.parquet or open an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from data.artifacts.contents import IMAGES_FILE, SENTENCES_FILE, Contents, image_contents
from data.artifacts.store import ArtifactRef
from data.columns.digests import WIDTH, Digests, digests_of, one_text, texts_of
from data.columns.source import ParquetRows
from data.columns.texts import TextPlaces, Texts
from data.errors import DataError
from data.files import read_json
from data.people import IdentityName, Names, identity_names
from data.schemas import LABEL

if TYPE_CHECKING:
    from PIL.Image import Image

DESCRIPTION_FILE = "dataset.json"


class DatasetDescription(BaseModel):
    """The content of dataset.json; files written by earlier versions may lack fields."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = ""
    """Label of the dataset (`DatasetConfig.label`)."""
    reader: str
    """Name of the reader."""
    version: str | None = None
    """Version of the dataset, from its reader."""
    dataset_hash: str
    """Digest (32 hex digits) of reader, version, and each image's split, path, labels, bytes and sentences."""
    counts: dict[str, dict[str, int]] = {}
    """Split -> numbers of images, identities and cameras."""
    junk_left_out: int = 0
    rejected: int = 0
    """Number of files that cannot be used."""
    rejected_by_reason: dict[str, int] = {}
    notices: tuple[str, ...] = ()
    """Sentences for the user."""


class ImageDigests(Mapping[str, str]):
    """path -> sha256 of images, as two columns. Looking a path up makes no object for the other images."""

    def __init__(self, paths: Texts, digests: Digests) -> None:
        self.paths = paths
        self.digests = digests

    @cached_property
    def _places(self) -> TextPlaces:
        return TextPlaces(self.paths)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def __iter__(self) -> Iterator[str]:
        """Yield the paths, in order."""
        return iter(self.paths)

    def __getitem__(self, path: str) -> str:
        """Return the sha256 of an image. Raises KeyError for an unknown path."""
        return self.image(self._places.of(path))[1]

    def of(self, paths: Texts) -> Digests:
        """Return the sha256 of many images. Raises KeyError for an unknown path."""
        wanted = paths.sorted_distinct()
        place_of = np.full(len(wanted), -1, dtype=np.int64)
        place = self.paths.places_in(wanted)
        shown = np.flatnonzero(place >= 0)
        place_of[place[shown]] = shown
        at = place_of[paths.places_in(wanted)]
        if (at < 0).any():
            raise KeyError(paths[int(np.argmax(at < 0))])
        return self.digests[at]

    def image(self, place: int) -> tuple[str, str]:
        """Return the path and the sha256 of one image. place: in the order of `IndexedImages.rows`."""
        return self.paths[place], one_text(self.digests, place)

    def sample(self, step: int) -> dict[str, str]:
        """Return every `step`-th image."""
        return dict(zip(self.paths[::step], texts_of(self.digests[::step]).to_pylist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class IndexedImages:
    """An index artifact and the folder of its images.

    ref: the index artifact. root: absolute folder that the paths in images.parquet are relative to.
    """

    ref: ArtifactRef
    root: Path

    @cached_property
    def description(self) -> DatasetDescription:
        """The content of dataset.json."""
        return DatasetDescription.model_validate(read_json(self.ref.folder / DESCRIPTION_FILE))

    @property
    def file(self) -> Path:
        """Path of images.parquet, for messages."""
        return self.ref.folder / IMAGES_FILE

    def rows(self, *columns: str) -> pa.Table:
        """Return columns of images.parquet (`data.schemas.IMAGES`), one row per usable image, sorted by (split, path).

        Raises DataError when the file cannot be read.
        """
        return _read(self.file, list(columns) or None)

    def sentences(self) -> pa.Table | None:
        """Return the sentences that come with the dataset (`data.schemas.SENTENCES`), in the order of the images.

        None if the dataset has none. Raises DataError when the file cannot be read.
        """
        file = self.ref.folder / SENTENCES_FILE
        return _read(file, None) if file.exists() else None

    def batches(self, *columns: str) -> Iterator[pa.Table]:
        """Yield what `rows` returns in batches (`data.columns.source`). Raises DataError when the file is unusable."""
        try:
            yield from ParquetRows(self.file).batches(*columns)
        except (OSError, KeyError, pa.ArrowInvalid) as error:
            raise _unusable(self.file, error) from error

    def count(self) -> int:
        """Return the number of images. Raises DataError when the file cannot be read."""
        try:
            return ParquetRows(self.file).n_rows
        except (OSError, pa.ArrowInvalid) as error:
            raise _unusable(self.file, error) from error

    def columns(self) -> list[str]:
        """Return the names of the columns of images.parquet. Raises DataError when the file cannot be read."""
        try:
            return list(pq.read_schema(self.file).names)
        except (OSError, pa.ArrowInvalid) as error:
            raise _unusable(self.file, error) from error

    def sha256(self) -> Digests:
        """Return the sha256 of every image, [N], in the order of `rows`."""
        found: Digests = np.empty(self.count(), dtype=f"S{WIDTH}")
        at = 0
        for rows in self.batches("sha256"):
            found[at : at + len(rows)] = digests_of(rows["sha256"])
            at += len(rows)
        return found

    def digests(self) -> ImageDigests:
        """Return path -> sha256 of every image, in the order of `rows`."""
        return ImageDigests(Texts.joined(rows["path"] for rows in self.batches("path")), self.sha256())

    def names(self) -> Names:
        """Return the function that names an identity: by its label, if the dataset has text labels."""
        if LABEL.name not in self.columns():
            return IdentityName
        named = self.rows("pid", LABEL.name).group_by(["pid", LABEL.name], use_threads=False).aggregate([])
        return identity_names(named["pid"].to_pylist(), named[LABEL.name].to_pylist())

    def contents(self) -> Contents:
        """Return the content digests that later stages depend on (`data.artifacts.contents.image_contents`)."""
        return image_contents(self.ref)

    def open(self, path: str, sha256: str | None) -> Image:
        """Return one image in RGB. Raises RejectedRow if the file is unusable or has changed since it was indexed."""
        from data.images.decode import open_indexed  # a cached stage needs no Pillow

        return open_indexed(self.root, path, sha256)

    def to_json(self) -> dict[str, Any]:
        """Return plain fields; `from_json` restores the object."""
        return {"ref": self.ref.to_json(), "root": str(self.root)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> IndexedImages:
        """Return the object whose fields `to_json` returned."""
        return cls(ref=ArtifactRef(**fields["ref"]), root=Path(fields["root"]))


def _read(file: Path, columns: list[str] | None) -> pa.Table:
    try:
        return pq.read_table(file, columns=columns)
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise _unusable(file, error) from error


def _unusable(file: Path, error: Exception) -> DataError:
    return DataError(f"{file} cannot be read ({error}); delete its folder and run the index stage again")
