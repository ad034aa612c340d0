"""The test images of an evaluation, from the index artifact of its dataset, and the folder that contains them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from data.artifacts.contents import image_contents
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.errors import DataError
from data.images.root import find_root
from data.people import JUNK, Names
from data.splits import GALLERY, TRAIN
from data.stages.images import IndexedImages
from flows.comparison.runs import Run

_SAMPLE: Final = 200
"""Images that are looked up to find their folder."""


@dataclass(frozen=True, kw_only=True)
class TestImages:
    """Queries and gallery of an evaluation.

    digests: path -> sha256. pids: sha256 -> identity. names: of the identities. gallery: sha256 -> number of gallery
    images, without junk.
    """

    digests: Mapping[str, str]
    pids: Mapping[str, int]
    names: Names
    gallery: Counter[str]

    def root(self, store: ArtifactStore) -> Path | None:
        """Return the folder that contains the images, None if it is unknown or does not exist any more."""
        step = max(1, len(self.digests) // _SAMPLE)
        return find_root(store, [*self.digests][::step], [*self.digests.values()][::step])


def find_test_images(run: Run, store: ArtifactStore) -> TestImages | None:
    """Return the test images of `run` from an index artifact of `store`, or None if it has none with these images."""
    for ref in _index_artifacts(store):
        with suppress(DataError):  # a damaged index is as good as none
            if run.test_images and image_contents(ref)["ranked"] == run.test_images:
                return _read(IndexedImages(ref=ref, root=Path()))
    return None


def _index_artifacts(store: ArtifactStore) -> Iterator[ArtifactRef]:
    for sidecar in reversed(store.sidecars("index")):
        if sidecar.fingerprint:
            yield ArtifactRef(
                stage="index", fingerprint=sidecar.fingerprint, content="", path=str(sidecar.folder.absolute())
            )


def _read(images: IndexedImages) -> TestImages:
    table = images.rows("split", "pid", "sha256")
    rows = [
        row for row in zip(*(table[name].to_pylist() for name in table.column_names), strict=True) if row[0] != TRAIN
    ]
    return TestImages(
        digests=images.digests(),
        pids={sha256: pid for _, pid, sha256 in rows},
        names=images.names(),
        gallery=Counter(sha256 for split, pid, sha256 in rows if split == GALLERY and pid != JUNK),
    )


def relabeled(first: TestImages, second: TestImages) -> int:
    """Return how many images of both have another identity in the second; a new number for one does not count."""
    pairs = Counter((pid, second.pids[sha256]) for sha256, pid in first.pids.items() if sha256 in second.pids)
    ours, theirs = {}, {}
    for (pid, other), _ in reversed(pairs.most_common()):
        ours[pid], theirs[other] = other, pid  # the most frequent pair comes last and stays
    return sum(count for (pid, other), count in pairs.items() if (ours[pid], theirs[other]) != (other, pid))
