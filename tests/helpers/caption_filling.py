"""Workers that fill a caption store for images that exist as digests only, with an engine that answers at once."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from captioning.captioner import Captioner
from captioning.config import CaptionConfig
from captioning.prompts.replies import Reply
from captioning.reading import Loaded
from captioning.stage.worker import Worker
from captioning.stage.worklist import WorkList
from captioning.store.rows import CaptionRow
from captioning.store.store import CaptionStore
from data.columns.digests import Digests
from data.progress import silent

WHO = Captioner(fingerprint="f" * 32, model_id="stub", model_revision="", ingredients={})


def folder_of(home: Path) -> Path:
    """Return the folder of the store under the artifact root `home`."""
    return CaptionStore(home, WHO).folder


def digests(images: int) -> Digests:
    """Return the digests of that many images."""
    return np.random.default_rng(0).integers(0, 256, (images, 32), dtype=np.uint8).reshape(-1).view("S32")


class InstantEngine:
    """Engine that answers for images that it cannot read."""

    width = 64

    def prepare(self, image: Image.Image) -> Image.Image:
        """Return the image as it is."""
        return image

    def rows(self, images: Iterable[Loaded]) -> Generator[list[CaptionRow], None, None]:
        """Yield one row per image."""
        for item in images:
            yield [CaptionRow.of(item.sha256, Reply(text=f"A man near {item.sha256}.", n_tokens=4, truncated=False))]


def fill(home: str, images: int) -> None:
    """Caption what is missing, as one of several workers; wait for the others."""
    paths = pa.chunked_array([pa.repeat("absent.jpg", images)])
    worker = Worker(
        CaptionStore(Path(home), WHO),
        images=WorkList(digests(images), paths),
        root=Path(home),
        config=CaptionConfig(workers=1),
        progress=silent,
        check_model=lambda: None,
        load=lambda _: InstantEngine(),
        flush_rows=max(16, images // 1600),
    )
    worker.work(patient=True)


def start(context: ForkServerContext, home: Path, images: int) -> ForkServerProcess:
    """Start `fill` in a new process."""
    child = context.Process(target=fill, args=(str(home), images))
    child.start()
    return child
