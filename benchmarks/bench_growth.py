"""Growth of processor time when the input becomes four times as large: audit, caption store, sampler, loop search.

    python benchmarks/bench_growth.py [turns]

Each case runs in turns at a quarter of the size and at the full size; the least processor time per size counts. Linear
growth is a ratio of 4; the target leaves room for caches and a busy machine.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from captioning.attributes.parse import parse_caption
from captioning.audit.stage import AuditConfig, AuditStage
from captioning.captioner import Captioner
from captioning.prompts.replies import Reply, is_looping
from captioning.prompts.templates import compose
from captioning.store.rows import CaptionRow
from captioning.store.snapshot import Snapshot
from captioning.store.store import CaptionStore
from data.artifacts.store import ArtifactRef, ArtifactStore, Produced, fingerprint_of
from data.files import write_json, write_table
from data.schemas import CAPTIONS
from data.slots import SLOTS, VOCABULARY
from data.stages.images import IndexedImages
from data.stages.stage import RunContext
from reid.inputs.sampler import IdentitySampler

TARGET: Final = 6.0
Job = Callable[[], object]


def audit_job(images: int, folder: Path) -> Job:
    """Audit the captions of `images` images, 22 per identity, as on Market-1501."""
    generator = random.Random(5)
    texts = [compose({slot: generator.choice((*VOCABULARY[slot], None)) for slot in SLOTS}) for _ in range(500)]
    parsed = {text: {f"attr_{slot}": value for slot, value in parse_caption(text).items()} for text in texts}
    rows: list[dict[str, Any]] = []
    for number in range(images):
        text = generator.choice(texts)
        row = dict.fromkeys(CAPTIONS.names) | parsed[text]
        row |= {"image_path": f"{number:06d}.jpg", "image_sha256": "0" * 64, "split": "train", "pid": number // 22 + 1}
        row |= {
            "camid": 1,
            "caption": text,
            "raw_text": text,
            "status": "ok",
            "template_id": "scgi",
            "truncated": False,
        }
        rows.append(row)
    store = ArtifactStore(folder)

    table = pa.Table.from_pylist(rows, schema=CAPTIONS)
    captions = _artifact(store, "caption", lambda target: write_table(target / "captions.parquet", table, CAPTIONS))
    about = {"name": "drawn", "reader": "none", "dataset_hash": "0" * 32}
    index = _artifact(store, "index", lambda target: write_json(target / "dataset.json", about))
    run = RunContext(store=store, indexed=IndexedImages(ref=index, root=folder))
    turns = iter(range(1_000_000))

    # Another threshold each time: an audit that is found in the store does not run.
    def job() -> object:
        config = AuditConfig(majority=0.6 + next(turns) / 1_000_000)
        return AuditStage(captions=captions, config=config).make(run)

    return job


def _artifact(store: ArtifactStore, stage: str, write: Callable[[Path], object]) -> ArtifactRef:
    with store.draft(stage, fingerprint_of(stage, {})) as folder:
        write(folder)
        return store.publish(folder, stage, {}, Produced())


def shards_job(shards: int, folder: Path) -> Job:
    """Read a caption store of `shards` shards."""
    who = Captioner(fingerprint="f" * 32, model_id="m", model_revision="main", ingredients={})
    store = CaptionStore(folder, who)
    reply = Reply(text="A man.", n_tokens=3, truncated=False, batch_size=2)
    for number in range(shards):
        store.append([CaptionRow.of(f"{number:064x}", reply)])

    def job() -> object:
        snapshot = Snapshot(store)
        snapshot.refresh()
        return snapshot.table()

    return job


def sampler_job(identities: int, _: Path) -> Job:
    """Draw ten epochs of 31 images per identity, as on MSMT17."""
    sampler = IdentitySampler(np.repeat(np.arange(identities), 31), identities=16, images=4, seed=0)
    return lambda: [sampler.epoch(epoch) for epoch in range(10)]


def loops_job(words: int, _: Path) -> Job:
    """Search long replies for loops. Each reply is new, because the result for an old one is cached."""
    turns = iter(range(1_000_000))

    def job() -> object:
        turn = next(turns)
        return [
            is_looping(text, 3) for text in (f"{turn} " + "ab" * words, " ".join(map(str, range(turn, turn + words))))
        ]

    return job


CASES: Final[dict[str, tuple[Callable[[int, Path], Job], int, str]]] = {
    "audit": (audit_job, 33_000, "captions"),
    "caption store": (shards_job, 400, "shards"),
    "sampler": (sampler_job, 1_040, "identities"),
    "loop search": (loops_job, 64_000, "words"),
}


def seconds(job: Job) -> float:
    """Return the processor time of one call."""
    start = time.process_time()
    job()
    return time.process_time() - start


def main(turns: int) -> None:
    """Measure and print."""
    print(f"{'case':14s} {'size':>8s} {'':10s} {'quarter':>9s} {'full':>9s} {'growth':>7s}")
    for name, (make, size, unit) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            jobs = [make(part, Path(folder) / str(part)) for part in (size // 4, size)]
            took = [[seconds(job) for job in jobs] for _ in range(turns + 1)][1:]  # the first warms up
        quarter, full = (min(column) for column in zip(*took, strict=True))
        growth = f"{full / quarter:6.2f} x  target <= {TARGET}"
        print(f"{name:14s} {size:8,d} {unit:10s} {quarter:7.3f} s {full:7.3f} s {growth}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
