"""The test images of an evaluation, from the index artifact of its dataset, and the folder that contains them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.artifacts.contents import image_contents
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.columns.digests import Digests, digests_of, positions
from data.errors import DataError
from data.images.root import find_root
from data.people import Names, is_junk
from data.splits import GALLERY, TRAIN
from data.stages.images import ImageDigests, IndexedImages
from flows.comparison.runs import Run

Ints = NDArray[np.int64]
_SAMPLE: Final = 200
"""Images that are looked up to find their folder."""


class LabeledContents(NamedTuple):
    """The distinct contents of images, [N], sorted, with the identity of the last image of each.

    first: the number of the first image of each content.
    """

    sha256: Digests
    pid: Ints
    first: Ints

    @classmethod
    def of(cls, sha256: Digests, pid: Ints) -> LabeledContents:
        """Return the contents of images in order."""
        order = np.argsort(sha256, kind="stable")
        ordered = sha256[order]
        is_first = np.append(True, ordered[1:] != ordered[:-1])[: len(order)]
        is_last = np.append(is_first[1:], True)[: len(order)]
        return cls(ordered[is_first], pid[order[is_last]], order[is_first])


@dataclass(frozen=True, kw_only=True)
class TestImages:
    """Queries and gallery of an evaluation, as columns.

    digests: path -> sha256 of all images of the dataset. labeled: of queries and gallery. names: of the identities.
    gallery: the digest of every gallery image, without junk.
    """

    digests: ImageDigests
    labeled: LabeledContents
    names: Names
    gallery: Digests

    def root(self, store: ArtifactStore) -> Path | None:
        """Return the folder that contains the images, None if it is unknown or does not exist any more."""
        sample = self.digests.sample(max(1, len(self.digests) // _SAMPLE))
        return find_root(store, [*sample], [*sample.values()])


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
    tested, pids, gallery = [], [], []
    for batch in images.batches("split", "pid", "sha256"):
        rows = batch.filter(pc.not_equal(batch["split"], TRAIN))
        sha256, pid = digests_of(rows["sha256"]), rows["pid"].to_numpy()
        in_gallery = pc.equal(rows["split"], GALLERY).to_numpy() & ~is_junk(pid)
        tested.append(sha256)
        pids.append(pid)
        gallery.append(sha256[in_gallery])
    labeled = LabeledContents.of(np.concatenate(tested), np.concatenate(pids))
    return TestImages(digests=images.digests(), labeled=labeled, names=images.names(), gallery=np.concatenate(gallery))


def count_beyond(ours: Digests, theirs: Digests) -> int:
    """Return the number of images of `ours` for which `theirs` has no image left with the same bytes."""
    contents, counts = np.unique(ours, return_counts=True)
    others, other_counts = np.unique(theirs, return_counts=True)
    place = positions(others, contents)
    there = np.append(other_counts, 0)[place]  # place -1 is the appended 0
    return int(np.maximum(counts - there, 0).sum())


def relabeled(first: TestImages, second: TestImages) -> int:
    """Return how many images of both have another identity in the second; a new number for one does not count."""
    place = positions(second.labeled.sha256, first.labeled.sha256)
    shared = np.flatnonzero(place >= 0)
    shared = shared[np.argsort(first.labeled.first[shared])]  # of equally frequent pairs, the first one counts
    pairs = np.stack([first.labeled.pid[shared], second.labeled.pid[place[shared]]], axis=1)
    distinct, at, counts = np.unique(pairs, axis=0, return_index=True, return_counts=True)
    ours, theirs = {}, {}
    order = np.lexsort((at, -counts))[::-1]
    for pid, other in distinct[order].tolist():
        ours[pid], theirs[other] = other, pid  # the most frequent pair comes last and stays
    renamed = zip(distinct.tolist(), counts.tolist(), strict=True)
    return sum(count for (pid, other), count in renamed if (ours[pid], theirs[other]) != (other, pid))
