"""Images without any label: to caption, to embed and to search."""

from __future__ import annotations

from pathlib import Path

from data.people import DISTRACTOR, UNKNOWN_CAMERA
from data.readers.base import Collector, Scan, existing_folder
from data.readers.tree import image_files
from data.splits import GALLERY


def images(root: Path) -> Scan:
    """Read every image under `root`, at any depth.

    Nothing is known of the people in them, so all are gallery images of distractors without a camera: they can be
    captioned and searched, but neither train nor evaluate a model.
    """
    collector = Collector(name="images", root=existing_folder(root), version="")
    for path in image_files(collector):
        collector.add(path, GALLERY, DISTRACTOR, UNKNOWN_CAMERA)
    return collector.finish()
