"""The images that a file of corrections may name, and the captions of the model, as columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from captioning.corrections.current import Current
from captioning.corrections.record import Correction, ModelCaption
from data.artifacts.contents import caption_texts
from data.columns.codes import Code, Codes
from data.columns.digests import Digests, digests_of, first_equal, in_groups, one_digest, one_text, positions
from data.columns.distinct import one_array
from data.columns.texts import Texts
from data.stages.images import ImageDigests

Ints = NDArray[np.int64]

_AT_ONCE: Final = 1 << 16


class _Sorted(NamedTuple):
    """Digests in order, [N], and the place of each before they were sorted; equal ones keep their order."""

    digests: Digests
    place: Ints

    @classmethod
    def of(cls, digests: Digests) -> Self:
        order, _ = in_groups(digests)
        return cls(digests[order], order)

    def number(self, sha256: str) -> int | None:
        """Return the first place of a digest in `digests`, None if it does not occur or `sha256` is not a digest."""
        try:
            wanted = one_digest(sha256)
        except ValueError:
            return None
        at = int(positions(self.digests, wanted)[0])
        return None if at < 0 else at

    def first_place(self, sha256: str) -> int | None:
        """Return the first place of a digest before they were sorted, None if it does not occur."""
        number = self.number(sha256)
        return None if number is None else int(self.place[number])


class ModelCaptions(Mapping[str, ModelCaption]):
    """sha256 of an image -> the model's caption, for the images that have one."""

    def __init__(self, digests: Digests, texts: Texts, captioners: Code, names: list[str]) -> None:
        self._sorted = _Sorted.of(digests)
        self._texts = texts
        self._captioners = captioners
        self._names = names

    @classmethod
    def read(cls, batches: Iterable[pa.Table]) -> Self:
        """Return the captions in batches of the columns image_sha256, caption and captioner_fingerprint."""
        digests, texts, captioners, names = [], [], [], Codes()
        for rows in batches:
            said = Texts(caption_texts(one_array(rows["caption"])))
            has_caption = said.lengths() > 0
            digests.append(digests_of(rows["image_sha256"])[has_caption])
            texts.append(said[has_caption].array)
            captioners.append(names.encode(one_array(rows["captioner_fingerprint"]))[has_caption])
        if not digests:
            return cls(np.empty(0, dtype="S32"), Texts([]), np.empty(0, dtype=np.int32), [])
        joined = Texts(pa.chunked_array(texts, pa.large_string()))
        return cls(np.concatenate(digests), joined, np.concatenate(captioners), names.values)

    def __len__(self) -> int:
        """Return the number of images with a caption; copies count once."""
        return len(np.unique(self._sorted.digests))

    def __iter__(self) -> Iterator[str]:
        """Yield the digests, sorted."""
        distinct = np.unique(self._sorted.digests)
        return (one_text(distinct, place) for place in range(len(distinct)))

    def __getitem__(self, sha256: str) -> ModelCaption:
        """Return the caption of an image. Raises KeyError if it has none."""
        place = self._sorted.first_place(sha256)
        if place is None:
            raise KeyError(sha256)
        return ModelCaption(self._texts[place], self._names[self._captioners[place]])


@dataclass(frozen=True, kw_only=True)
class DatasetImages:
    """The images that a file may name. root: their folder, as the start of absolute paths.

    captions: sha256 -> the model's caption, for the images that have one.
    """

    paths: ImageDigests
    root: str
    captions: Mapping[str, ModelCaption] = field(default_factory=dict)

    @cached_property
    def _sorted(self) -> _Sorted:
        return _Sorted.of(self.paths.digests)

    def __len__(self) -> int:
        """Return the number of images; copies count once."""
        return len(np.unique(self._sorted.digests))

    def path_of(self, sha256: str) -> str | None:
        """Return the path of the first image with these bytes, None if the dataset has none."""
        place = self._sorted.first_place(sha256)
        return None if place is None else self.paths.paths[place]

    def number_of(self, sha256: str) -> int | None:
        """Return the place of an image among the sorted digests, None if the dataset does not have it."""
        return self._sorted.number(sha256)

    def with_entry(self, current: Current) -> Iterator[tuple[str, Correction]]:
        """Yield the path and the change of the images that have one, in the order of the dataset; copies once."""
        is_first = np.zeros(len(self.paths), dtype=bool)
        is_first[first_equal(self.paths.digests)] = True
        for start in range(0, len(is_first), _AT_ONCE):
            places = current.places(self.paths.digests[start : start + _AT_ONCE])
            rows = np.flatnonzero((places >= 0) & is_first[start : start + _AT_ONCE])
            yield from zip(self.paths.paths[start + rows], current.entries(places[rows]), strict=True)
