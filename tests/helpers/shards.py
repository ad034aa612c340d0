"""Small WebDataset shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tests.helpers.data_trees import picture, settle


def tar_of(members: Mapping[str, bytes]) -> bytes:
    """Return the bytes of a tar file."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def sample(key: str, seed: int, *, size: tuple[int, int] = (8, 16), **fields: object) -> dict[str, bytes]:
    """Return the members of one sample: an image and, if there are fields, a json member."""
    image = {f"{key}.jpg": picture(seed, size=size)}
    return image | ({f"{key}.json": json.dumps(fields).encode()} if fields else {})


def put_shard(root: Path, name: str, *samples: Mapping[str, bytes]) -> Path:
    """Write a shard."""
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(tar_of({member: content for one in samples for member, content in one.items()}))
    return file


def people_in_shards(root: Path) -> Path:
    """Write three shards: four training images of two people, two queries and four gallery images of two others."""
    train = [sample(f"{pid}_{cam}", 10 * pid + cam, pid=pid, camid=cam) for pid in (1, 2) for cam in (1, 2)]
    query = [sample(f"q/{pid}", 10 * pid + 1, pid=pid, camid=1) for pid in (3, 4)]
    gallery = [sample(f"g/{pid}_{cam}", 10 * pid + cam, pid=pid, camid=cam) for pid in (3, 4) for cam in (2, 3)]
    put_shard(root, "train-000000.tar", *train[:2])
    put_shard(root, "train-000001.tar", *train[2:])
    put_shard(root, "query-000000.tar", *query)
    put_shard(root, "gallery-000000.tar", *gallery)
    settle()
    return root
