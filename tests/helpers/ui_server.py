"""The page of ``clip-scgi ui`` for tests: a server in a thread, and a store of many generated rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import uvicorn

from captioning.audit.flags import FLAGS
from captioning.audit.stage import FLAG_ROWS
from data.artifacts.contents import caption_contents, contents_of_captions, contents_of_images
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.files import write_table
from data.schemas import CAPTIONS, LABELED_IMAGES
from data.slots import SLOTS, VOCABULARY
from flows.ui.app import create_app
from flows.ui.server import listen
from tests.helpers.stages import describe_by_hand, make_artifact


@contextmanager
def serving(store: ArtifactStore, *folders: Path) -> Iterator[str]:
    """Serve the page of `store` and yield its address."""
    found = listen(0, exactly=True)
    app = create_app(store, folders)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [found]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{found.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


def images_table(count: int, label: str = "person") -> pa.Table:
    """Return images.parquet of `count` images, four per person."""
    number = np.arange(count)
    return pa.table(
        {
            "path": [f"images/{n:06d}.jpg" for n in range(count)],
            "split": np.array(["train", "query", "gallery"], dtype=object)[number % 3],
            "pid": number // 4,
            "camid": number % 6,
            "sha256": [f"{n:064x}" for n in range(count)],
            "size": np.full(count, 2000),
            "width": np.full(count, 64, np.int32),
            "height": np.full(count, 128, np.int32),
            "label": [f"{label} {n // 4}" for n in range(count)],
        },
        schema=LABELED_IMAGES,
    )


def large_store(store: ArtifactStore, count: int, label: str = "person") -> ArtifactRef:
    """Write index, captions and audit of `count` images without any file, and return the index."""
    images = images_table(count, label)
    sizes = {"images": count, "identities": count // 4, "cameras": 6}

    def write_index(folder: Path) -> None:
        write_table(folder / "images.parquet", images, LABELED_IMAGES)
        describe_by_hand(folder, counts={"train": sizes})

    made = make_artifact(
        store, "index", {"count": count}, write_index, contents=lambda _: contents_of_images(images)
    ).ref
    captions = _captions(images)
    captioned = make_artifact(
        store,
        "caption",
        {"images": made.digests_of("images.parquet")},
        lambda folder: write_table(folder / "captions.parquet", captions, CAPTIONS),
        contents=lambda _: contents_of_captions(captions),
    ).ref
    flags = _flags(captions)
    audited = caption_contents(captioned)["audit"]
    make_artifact(
        store, "audit", {"captions": audited}, lambda folder: write_table(folder / "flags.parquet", flags, FLAG_ROWS)
    )
    return made


def _captions(images: pa.Table) -> pa.Table:
    rng, count = np.random.default_rng(0), images.num_rows
    values = {slot: rng.choice(np.array(VOCABULARY[slot], dtype=object), count) for slot in SLOTS}
    texts = [
        f"A {gender} person in a {color} {kind} and {lower}."
        for gender, color, kind, lower in zip(
            *(values[slot] for slot in ("gender", "upper_color", "upper_type", "lower_type")), strict=True
        )
    ]
    columns = {
        **dict.fromkeys(CAPTIONS.names, pa.nulls(count)),
        **{name: images[name] for name in ("split", "pid", "camid")},
        **{"image_path": images["path"], "image_sha256": images["sha256"]},
        **{"caption": texts, "raw_text": texts, "status": ["ok"] * count, "model_id": ["drawn"] * count},
        "template_id": ["scgi"] * count,
        **{f"attr_{slot}": values[slot] for slot in SLOTS},
        **{f"conf_{slot}": np.log(rng.uniform(0.2, 1, count)).astype(np.float32) for slot in SLOTS},
    }
    return pa.table(columns).cast(CAPTIONS)


def _flags(captions: pa.Table) -> pa.Table:
    count = captions.num_rows
    raised = {flag: np.arange(count) % (50 + number) == 0 for number, flag in enumerate(FLAGS)}
    keys = {name: captions[name] for name in ("image_path", "image_sha256", "pid", "camid")}
    empty = pa.array([[]] * count, pa.list_(pa.string()))
    return pa.table({**keys, "flags": empty, **raised, "dissent_slots": empty}).cast(FLAG_ROWS)
