"""An engine without a model and workers that use it, for tests of how work is shared, interrupted and resumed."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from captioning.config import CaptionConfig
from captioning.prompts.replies import Reply
from captioning.reading import Loaded
from captioning.store.claims import buckets_of_part
from captioning.store.rows import CaptionRow
from data.artifacts.store import ArtifactRef, ArtifactStore
from tests.helpers.caption_worlds import worker_of


class StubEngine:
    """Engine whose sentences depend on the digest of the image alone.

    log: file with one line per image, in the order of the requests. seconds: duration of a batch.
    """

    width = 8

    def __init__(self, log: Path, seconds: float) -> None:
        self.log = log
        self.seconds = seconds

    def prepare(self, image: Image.Image) -> Image.Image:
        """Return the image as it is."""
        return image

    def rows(self, images: Iterable[Loaded]) -> Generator[list[CaptionRow], None, None]:
        """Yield the rows of one batch at a time."""
        batch: list[Loaded] = []
        for item in images:
            batch.append(item)
            if len(batch) == self.width:
                yield self.batch(batch)
                batch = []
        if batch:
            yield self.batch(batch)

    def batch(self, items: list[Loaded]) -> list[CaptionRow]:
        """Return the rows of one batch, and log its images."""
        time.sleep(self.seconds)
        line = "".join(f"{os.getpid()} {item.sha256}\n" for item in items).encode()
        handle = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, line)  # a single write: lines of several processes do not mix
        os.close(handle)
        return [
            CaptionRow.of(item.sha256, stub_reply(item))
            if item.image is not None
            else CaptionRow(image_sha256=item.sha256, status="image_error", error=item.reason)
            for item in items
        ]


def stub_reply(item: Loaded) -> Reply:
    """Return the sentence of an image."""
    color = ("red", "blue", "green", "black")[hashlib.sha256(item.sha256.encode()).digest()[0] % 4]
    return Reply(text=f"A man is wearing a {color} shirt.", n_tokens=8, truncated=False, batch_size=8)


def fake_model(folder: Path) -> CaptionConfig:
    """Return settings whose model is a folder with nothing but a config.json: enough for a fingerprint."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return CaptionConfig(model=str(folder), batch_size=8, workers=2, device="cpu")


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work for a process, as plain data.

    log: file with one line per captioned image. seconds: duration of a batch of eight. flush_rows: rows per shard.
    """

    home: str
    images: dict[str, str]
    root: str
    settings: str
    log: str
    seconds: float
    part: int = 0
    of: int = 1
    flush_rows: int = 16

    def run(self) -> tuple[int, int]:
        """Caption the part; return the id of the process and the number of captions it made."""
        worker = worker_of(
            ArtifactStore(Path(self.home)),
            images=ArtifactRef(**self.images),
            root=Path(self.root),
            config=CaptionConfig.model_validate_json(self.settings),
            load=lambda _: StubEngine(Path(self.log), self.seconds),
            flush_rows=self.flush_rows,
        )
        worker.work(buckets_of_part(self.part, self.of), patient=False)
        return os.getpid(), worker.done.generated


def run_job(job: Job) -> tuple[int, int]:
    """Run a job, as a function that another process can import."""
    return job.run()


def asked(log: Path) -> list[tuple[int, str]]:
    """Return (process, image) per caption, in the order in which they were made."""
    return [(int(pid), image) for pid, image in (line.split() for line in log.read_text().splitlines())]
