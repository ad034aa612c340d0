"""The changes in effect of one moment, read from the history when they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from captioning.corrections.edits import Kind
from captioning.corrections.lines import KINDS, Ints, Lines
from captioning.corrections.record import Correction
from data.artifacts.fingerprint import digest_bytes
from data.columns.digests import WIDTH, Digests, in_groups, one_digest, one_text, positions
from data.people import Mask

_AT_ONCE: Final = 1 << 16
_RESET: Final = KINDS.index("reset")
_WITH_TEXT: Final = [KINDS.index(kind) for kind in KINDS if kind in ("text", "slots")]


class Current(Mapping[str, Correction]):
    """Image sha256 -> its change in effect. 40 bytes per image in memory; each change is read when it is asked for.

    Later changes do not appear in it. digests: of the images, distinct and sorted, [N]. lines: the line of each, [N].
    """

    def __init__(self, history: Lines | None, digests: Digests, lines: Ints) -> None:
        self._history = history
        self.digests = digests
        self._lines = lines

    @classmethod
    def nothing(cls) -> Self:
        """Return the changes of a history that does not exist."""
        return cls(None, np.empty(0, dtype=f"S{WIDTH}"), np.empty(0, dtype=np.int64))

    def after(self, history: Lines, start: int) -> Self:
        """Return the changes in effect after the lines of `history` from number `start`, which were added since."""
        added = start + np.flatnonzero(history.applied[start:])
        digests = history.images[added]
        order, is_first = in_groups(digests)
        last = order[np.append(is_first[1:], True)[: len(order)]]
        digests, added = digests[last], added[last]
        if not len(self):
            return type(self)(history, digests, added)
        at = positions(self.digests, digests)
        lines, is_new = self._lines.copy(), at < 0
        lines[at[~is_new]] = added[~is_new]
        places = np.searchsorted(self.digests, digests[is_new])
        merged = np.insert(self.digests, places, digests[is_new])
        return type(self)(history, merged, np.insert(lines, places, added[is_new]))

    def __len__(self) -> int:
        """Return the number of images with a change."""
        return len(self.digests)

    def __iter__(self) -> Iterator[str]:
        """Yield the digests of the images, sorted."""
        return (one_text(self.digests, place) for place in range(len(self)))

    def __getitem__(self, sha256: str) -> Correction:
        """Return the change of an image. Raises KeyError if it has none."""
        try:
            wanted = one_digest(sha256)
        except ValueError:
            raise KeyError(sha256) from None
        place = int(self.places(wanted)[0])
        if place < 0:
            raise KeyError(sha256)
        return next(self.entries(np.array([place])))

    def places(self, wanted: Digests) -> Ints:
        """Return for each digest the place of its image in `digests`, -1 if the image has no change."""
        return positions(self.digests, wanted)

    def entries(self, places: Ints | None = None) -> Iterator[Correction]:
        """Yield the changes of the images at `places`, in that order; None: of all images, sorted by digest."""
        if self._history is not None:
            yield from self._history.entries(self._lines if places is None else self._lines[places])

    def among(self, images: Iterable[Digests]) -> Self:
        """Return the changes of some images. images: batches in any order; images without a change are ignored."""
        is_here = np.zeros(len(self), dtype=bool)
        for batch in images if len(self) else ():
            for start in range(0, len(batch), _AT_ONCE):
                places = self.places(batch[start : start + _AT_ONCE])
                is_here[places[places >= 0]] = True
        return self._only(is_here)

    def without_resets(self) -> Self:
        """Return the changes that have an effect on the caption."""
        return self._only(self._kinds() != _RESET)

    def with_text(self) -> Self:
        """Return the changes that give the image another text."""
        return self._only(np.isin(self._kinds(), _WITH_TEXT))

    def count_kinds(self) -> Counter[Kind]:
        """Return the number of changes of each kind that occurs."""
        counts = np.bincount(self._kinds(), minlength=len(KINDS)).tolist()
        return Counter({kind: count for kind, count in zip(KINDS, counts, strict=True) if count})

    def version(self) -> str:
        """Return a digest that is another one after any later change in effect."""
        inode = 0 if self._history is None else self._history.file.inode
        return digest_bytes(b"".join((inode.to_bytes(8, "big"), self.digests.tobytes(), self._lines.tobytes())))

    def _kinds(self) -> NDArray[np.uint8]:
        return np.empty(0, dtype=np.uint8) if self._history is None else self._history.kinds[self._lines]

    def _only(self, mask: Mask) -> Self:
        return self if mask.all() else type(self)(self._history, self.digests[mask], self._lines[mask])
