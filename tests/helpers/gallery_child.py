"""A process that adds to a gallery and reports what it has added, to be killed by a test.

It waits before the end: a test that is slow to kill it must not find it finished.

python -m tests.helpers.gallery_child rows GALLERY COUNT
python -m tests.helpers.gallery_child images GALLERY MODEL FOLDER
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from data.artifacts.fingerprint import digest_file
from reid.gallery.entry import Entry
from reid.gallery.gallery import Gallery
from tests.helpers.galleries import SPACE, entry, vectors


def report(done: int) -> None:
    """Print what is added, at once."""
    sys.stdout.write(f"{done}\n")
    sys.stdout.flush()


def add_rows(folder: Path, count: int) -> None:
    """Add made-up entries, seven at a time, beginning with those that an earlier process may have added."""
    gallery = Gallery.open(folder, space=SPACE)
    rows = vectors(count)
    for start in range(0, count, 7):
        some = range(start, min(start + 7, count))
        if some.stop == count:
            signal.pause()
        gallery.add([entry(number) for number in some], rows[some.start : some.stop])
        report(some.stop)


def add_files(folder: Path, model: Path, images: Path) -> None:
    """Embed the images of a folder and save after every batch of four."""
    from reid import Embedder
    from reid.gallery.images import add_images

    entries = [Entry(path=str(path), sha256=digest_file(path)) for path in sorted(images.iterdir())]
    embedder = Embedder.load(model, device="cpu", batch_size=4)

    def progress(done: int, total: int, note: str) -> None:
        report(done)
        if done > total - 8:
            signal.pause()

    add_images(folder, embedder, entries, save_seconds=0.0, progress=progress)


if __name__ == "__main__":
    if sys.argv[1] == "rows":
        add_rows(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        add_files(*map(Path, sys.argv[2:5]))
