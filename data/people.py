"""The rules for the labels of images, shared by index, captioning, training, evaluation and report.

Identity -1 is junk: a detection without a person. Identity 0 is a person if any training or query image has it, because
the dataset then numbers its people from 0; if only gallery images have it, it stands for all distractors, as in
Market-1501. Every other identity is a person.

Camera -1 is unknown. The cameras of a dataset are either all known or all unknown; the index refuses a mixture. Without
cameras, images are not excluded by camera in any ranking, and camera embeddings (SIE) cannot be trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from data.splits import GALLERY

JUNK: Final = -1
"""The identity of images that no metric counts."""
DISTRACTOR: Final = 0
"""The identity of gallery images of people without a query, unless it is a person (see the module docstring)."""
UNKNOWN_CAMERA: Final = -1
"""The camera of every image of a dataset without cameras (see the module docstring)."""

Labels = Sequence[Any] | NDArray[Any]
Mask = NDArray[np.bool_]


def is_junk(pids: Labels) -> Mask:
    """Return the mask [N] of junk among the identities `pids`, [N]."""
    mask: Mask = np.asarray(pids, dtype=np.int64) == JUNK
    return mask


def is_person(splits: Labels, pids: Labels) -> Mask:
    """Return the mask [N] of images that show a known person, neither junk nor a distractor.

    splits, pids: split and identity of every image of the whole dataset, [N]; a part does not decide what 0 means.
    """
    split, pid = np.asarray(splits, dtype=object), np.asarray(pids, dtype=np.int64)
    zero_is_a_person = bool(((pid == DISTRACTOR) & (split != GALLERY)).any())
    mask: Mask = (pid != JUNK) & ((pid != DISTRACTOR) | zero_is_a_person)
    return mask


def cameras_known(camids: Labels) -> bool:
    """Return True unless one of the cameras `camids` is unknown, and hence those of the whole dataset."""
    return not bool((np.asarray(camids, dtype=np.int64) == UNKNOWN_CAMERA).any())
