"""An engine without a model, and workers that use it: for tests of how work is shared, killed and taken up again."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from captioning.config import CaptionConfig
from captioning.prompts.replies import Reply
from captioning.reading import Loaded
from captioning.stage import stage
from captioning.stage import worker as stage_work
from captioning.store import saver as store_saver
from captioning.store.rows import CaptionRow
from data.artifacts.store import ArtifactRef, ArtifactStore


class StubEngine:
    """Writes a sentence that follows from the image's digest, after `seconds` a batch, and logs what it was asked."""

    width = 8

    def __init__(self, log: Path, seconds: float) -> None:
        self.log = log
        self.seconds = seconds

    def prepare(self, image: Image.Image) -> Image.Image:
        return image

    def rows(self, images: Iterable[Loaded]) -> Iterator[list[CaptionRow]]:
        batch: list[Loaded] = []
        for item in images:
            batch.append(item)
            if len(batch) == self.width:
                yield self.batch(batch)
                batch = []
        if batch:
            yield self.batch(batch)

    def batch(self, items: list[Loaded]) -> list[CaptionRow]:
        time.sleep(self.seconds)
        line = "".join(f"{os.getpid()} {item.sha256}\n" for item in items).encode()
        handle = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, line)  # one write: lines of several processes do not mix
        os.close(handle)
        return [
            CaptionRow.of(item.sha256, stub_reply(item))
            if item.image is not None
            else CaptionRow(image_sha256=item.sha256, status="image_error", error=item.reason)
            for item in items
        ]


def stub_reply(item: Loaded) -> Reply:
    colour = ("red", "blue", "green", "black")[hashlib.sha256(item.sha256.encode()).digest()[0] % 4]
    return Reply(text=f"A man is wearing a {colour} shirt.", n_tokens=8, truncated=False, batch_size=8)


def fake_model(folder: Path) -> CaptionConfig:
    """Settings that name a folder which only looks like a model: enough for a fingerprint."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return CaptionConfig(model=str(folder), batch_size=8, workers=2, device="cpu")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker in another process is to do; plain data, whatever carries it there.

    log: one line a captioned image, with the process. seconds: a batch of eight takes. flush_rows: rows of a shard.
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
        """Caption the part and return the process and how many captions it made."""
        store_saver.FLUSH_ROWS = self.flush_rows
        stage_work.load_engine = lambda _: StubEngine(Path(self.log), self.seconds)
        outcome = stage.caption_part(
            ArtifactStore(Path(self.home)),
            images=ArtifactRef(**self.images),
            images_root=Path(self.root),
            config=CaptionConfig.model_validate_json(self.settings),
            part=self.part,
            of=self.of,
        )
        return os.getpid(), outcome.generated


def run_job(job: Job) -> tuple[int, int]:
    return job.run()


def asked(log: Path) -> list[tuple[int, str]]:
    """Process and image of every caption that was made, in order."""
    return [(int(pid), image) for pid, image in (line.split() for line in log.read_text().splitlines())]
