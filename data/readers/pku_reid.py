"""PKU-Reid: two cameras, eight orientations per person and camera, in one folder, without an official split."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np

from data.errors import DataError
from data.readers.base import Collector, Scan, accepted_files, existing_folder
from data.splits import GALLERY, QUERY, TRAIN

# The published files are named .png; some of them contain JPEG data.
_PATTERN: Final = re.compile(
    r"(?P<pid>\d+)_(?P<cam>0*[12])_(?P<orientation>\d+)\.(?:png|jpg|jpeg)\Z", re.IGNORECASE | re.ASCII
)
_LAYOUT: Final = "files named <person>_<camera>_<orientation>.png, camera 1 or 2, such as 003_01_7.png"


def pku_reid(root: Path, *, split_seed: int, train_fraction: float) -> Scan:
    """Read PKU-Reid and split its identities by a shuffle seeded with `split_seed`.

    Of test identities, camera 1 is the query and camera 2 the gallery. train_fraction: share of the identities in the
    train split; at least one identity is left on either side. Source: Ma et al., arXiv:1605.02464.
    """
    version = f"split_seed={split_seed} train_fraction={train_fraction}"
    collector = Collector(name="pku_reid", root=existing_folder(root), version=version)
    found: list[tuple[str, int, int]] = []
    for name in accepted_files(collector, "."):
        match = _PATTERN.match(name)
        if match is None:
            collector.reject(name, "bad_name", f"expected {_LAYOUT}")
        else:
            found.append((name, int(match["pid"]), int(match["cam"])))
    train = training_identities({pid for _, pid, _ in found}, split_seed, train_fraction)
    if not train:
        raise DataError(
            f"{collector.root} has images of fewer than two people of PKU-Reid. Expected {_LAYOUT}; found {len(found)}"
            f" such names and {len(collector.rejected)} others. Check data.root"
        )
    for name, pid, camid in found:
        collector.add(name, TRAIN if pid in train else QUERY if camid == 1 else GALLERY, pid, camid)
    return collector.finish()


def training_identities(pids: set[int], seed: int, fraction: float) -> set[int]:
    """Return the training identities: the first of a seeded shuffle; none if there are fewer than two identities."""
    if len(pids) < 2:
        return set()
    shuffled = np.random.default_rng(seed).permutation(sorted(pids))
    count = min(max(round(fraction * len(pids)), 1), len(pids) - 1)
    return {int(pid) for pid in shuffled[:count]}
