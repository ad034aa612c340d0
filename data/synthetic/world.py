"""A procedural pedestrian world: the built-in default data, drawn together with its true attributes.

Every image is a function of (seed, domain, identity, camera, shot) alone: the same seed gives the same bytes
whatever the number of workers, the number of images or the order of drawing.

Two domains never share an identity, even under one integer seed, because the domain is part of the entropy
every identity is drawn from: the *stream* (``training_sample``), on which captioners and CLIP are trained,
and the *worlds* (``write_market1501``), whose train, test and distractor populations are separate too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DataError, raise_settings
from data.process.children import follow, shielded
from data.slots import SLOTS
from data.synthetic.cameras import Camera, decode, encode, sample_camera
from data.synthetic.people import Person, make_person, sample_attributes, sample_outfit, wear
from data.synthetic.render import render, render_nobody

IMAGES_PER_IDENTITY: Final = 4
"""Consecutive training samples that show the same person."""

DOMAINS: Final = {"stream": 11, "train": 21, "test": 22, "distractor": 23, "junk": 24, "cameras": 31}
"""Population or purpose -> part of the entropy that keeps it apart from the others."""
_STREAM_CAMERAS: Final = 64
_STREAM_LOOKALIKES: Final = 2
_MAX_CAMERAS: Final = 9
_COARSE, _FINE, _SHOT = 1, 2, 3
_LOOK: Final = ("pattern", "hat", "upper_rgb", "lower_rgb")
_LATER: Final[Mapping[str, Any]] = {"train_cameras": (), "test_cameras": (), "clothes": 1}
"""Settings that were added later -> default, at which they are not part of the identity of a world."""


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """The size and difficulty of one synthetic dataset.

    ``images_per_camera`` counts per identity and camera; in the test split the first of them is the query.
    ``lookalikes`` consecutive identities share every caption slot and differ in details only.
    ``difficulty`` in 0..1 scales color cast, blur, occlusion and pose variety and shrinks the differences
    between lookalikes. ``distractors`` and ``junk`` count gallery images under pid 0000 and -1.
    ``train_cameras`` and ``test_cameras`` are the numbers (from 1) of the cameras that take the images of each split;
    empty: all ``cameras``. Each person has ``clothes`` outfits and wears the same one in every image of a camera:
    outfit (camera - 1) modulo ``clothes``. An outfit is what is worn above the waist and on the head, with the true
    attributes of it; all else stays.
    """

    seed: int
    train_identities: int
    test_identities: int
    images_per_camera: int = 4
    cameras: int = 4
    lookalikes: int = 3
    difficulty: float = 0.5
    distractors: int = 0
    junk: int = 0
    train_cameras: tuple[int, ...] = ()
    test_cameras: tuple[int, ...] = ()
    clothes: int = 1

    def __post_init__(self) -> None:
        """Raise one ``ConfigError`` with all settings that cannot work."""
        least = {
            "seed": 0,
            "train_identities": 0,
            "test_identities": 0,
            "images_per_camera": 2 if self.test_identities else 1,
            "cameras": 2 if self.test_identities else 1,
            "lookalikes": 1,
            "distractors": 0,
            "junk": 0,
            "clothes": 1,
        }
        problems = [
            (name, f"must be at least {low}, not {getattr(self, name)}; set {{at}}{name}={low}")
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        if self.cameras > _MAX_CAMERAS:
            told = f"must be at most {_MAX_CAMERAS}, not {self.cameras}; set {{at}}cameras={_MAX_CAMERAS}"
            problems.append(("cameras", told))
        if not 0.0 <= self.difficulty <= 1.0:
            problems.append(("difficulty", f"must be in 0..1, not {self.difficulty}; set {{at}}difficulty=0.5"))
        if self.train_identities + self.test_identities > 9999:
            told = "plus {at}test_identities must not exceed 9999, because a pid has four digits; lower one of them"
            problems.append(("train_identities", told))
        problems += self._camera_problems()
        raise_settings(problems)

    def _camera_problems(self) -> Iterator[tuple[str, str]]:
        """Yield the problems of the settings that refer to cameras by number, as (setting, message)."""
        for name in ("train_cameras", "test_cameras"):
            chosen = getattr(self, name)
            given = f"not {list(chosen)}; set {{at}}{name}={'[1,2]' if self.cameras > 1 else '[1]'}"
            if any(not 1 <= camera <= self.cameras for camera in chosen):
                yield name, f"must be numbers from 1 to {self.cameras}, the number of cameras, {given}"
            elif len(set(chosen)) < len(chosen):
                yield name, f"must be different cameras, {given}"
            elif name == "test_cameras" and len(chosen) == 1 and self.test_identities:
                yield name, f"must be at least 2 cameras, because queries are matched across cameras, {given}"
        if self.clothes > max(1, self.cameras):
            yield "clothes", f"must be at most the number of cameras, {self.cameras}; set {{at}}clothes={self.cameras}"

    def taken_by(self, domain: str) -> tuple[int, ...]:
        """Return the indexes (from 0) of the cameras that take the images of a population (`DOMAINS`)."""
        chosen = self.train_cameras if domain == "train" else self.test_cameras
        return tuple(camera - 1 for camera in sorted(chosen)) or tuple(range(self.cameras))

    def identity(self) -> dict[str, Any]:
        """Return the settings as plain values; their digest names the folder of the world.

        Settings that were added later are left out at their default, so that existing folders keep their names.
        """
        plain = asdict(self)
        return {name: value for name, value in plain.items() if name not in _LATER or value != _LATER[name]}


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """One training image of the endless stream, encoded as JPEG and decoded again."""

    index: int
    identity: int
    camera: int
    view: str
    image: np.ndarray
    """uint8 [128, 64, 3], RGB."""
    attributes: Mapping[str, str]
    visible: Mapping[str, bool]
    parts: np.ndarray
    """uint8 [128, 64], as in ``Rendered``."""


def _rng(*entropy: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(entropy))


# People -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def person_at(root: tuple[int, ...], index: int, lookalikes: int, difficulty: float, outfit: int = 0) -> Person:
    """Return identity `index` of the population with the entropy `root`, in one of its outfits.

    Each run of `lookalikes` consecutive identities shares all caption slots, those of every outfit included.
    """
    group = index // lookalikes
    attributes = sample_attributes(_rng(*root, _COARSE, group))
    person = make_person(attributes, _rng(*root, _FINE, index), difficulty)
    if not outfit:
        return person
    changed = sample_outfit(attributes, _rng(*root, _COARSE, group, outfit))
    return wear(person, make_person(changed, _rng(*root, _FINE, index, outfit), difficulty))


@lru_cache(maxsize=16)
def _cameras(seed: int, domain: int, count: int, difficulty: float) -> tuple[Camera, ...]:
    return tuple(
        sample_camera(_rng(seed, DOMAINS["cameras"], domain, index), index, difficulty) for index in range(count)
    )


# The training stream ----------------------------------------------------------------------------------


def training_sample(seed: int, index: int, *, difficulty: float = 0.5) -> Sample:
    """Return sample `index` of the endless training stream of `seed`.

    ``IMAGES_PER_IDENTITY`` consecutive samples show one person through as many cameras. The identities are drawn in a
    domain of their own: none of them occurs in a world of ``write_market1501``, whatever its seed.
    """
    identity, shot = divmod(index, IMAGES_PER_IDENTITY)
    stream = DOMAINS["stream"]
    person = person_at((seed, stream), identity, _STREAM_LOOKALIKES, difficulty)
    cameras = _cameras(seed, stream, _STREAM_CAMERAS, difficulty)
    order = _rng(seed, stream, _SHOT, identity).permutation(_STREAM_CAMERAS)
    camera = cameras[int(order[shot])]
    shown = render(person, camera, _rng(seed, stream, _SHOT, identity, camera.index, shot), difficulty=difficulty)
    return Sample(
        index=index,
        identity=identity,
        camera=camera.index,
        view=shown.view,
        image=decode(encode(shown.image, camera.quality)),
        attributes=dict(person.attributes),
        visible=shown.visible,
        parts=shown.parts,
    )


def training_samples(seed: int, count: int, start: int = 0, *, difficulty: float = 0.5) -> Iterator[Sample]:
    """Yield samples `start` .. `start + count - 1` of the stream; each depends on (seed, index) only."""
    for index in range(start, start + count):
        yield training_sample(seed, index, difficulty=difficulty)


# A dataset on disk ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One identity, distractor or junk box to write."""

    domain: str
    index: int
    pid: int


@dataclass(frozen=True, kw_only=True)
class _Truth:
    """One image and its true attributes. person: None for junk. visible: slot -> whether its value can be seen."""

    path: str
    split: str
    pid: int
    camid: int
    view: str | None
    person: Person | None
    visible: Mapping[str, bool]

    def row(self) -> dict[str, str | int | bool | None]:
        """Return the row of attributes.parquet."""
        attributes = self.person.attributes if self.person else {}
        look = self.person.look if self.person else {}
        return {
            "path": self.path,
            "split": self.split,
            "pid": self.pid,
            "camid": self.camid,
            "view": self.view,
            **{slot: attributes.get(slot) for slot in SLOTS},
            **{f"visible_{slot}": self.visible.get(slot, False) for slot in SLOTS},
            **{item: look.get(item) for item in _LOOK},
        }


def write_market1501(root: Path, config: WorldConfig, workers: int = 1) -> Path:
    """Write the world of `config` under `root` in the Market-1501 layout and return `root`.

    ``bounding_box_train``, ``query`` (one image per test identity and camera) and ``bounding_box_test`` hold
    the images; ``attributes.parquet`` holds the true attributes, one row per image. The folder appears complete or not
    at all; raises ``DataError`` if `root` already exists and is not empty. `workers` processes share the work; their
    number does not change a byte.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root} already exists and is not empty; remove it or choose another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    try:
        world = holder / "world"
        for folder in ("bounding_box_train", "query", "bounding_box_test"):
            (world / folder).mkdir(parents=True)
        truths = _write_images(world, config, workers)
        _write_table(world / "attributes.parquet", truths)
        world.rename(root)
    finally:
        shutil.rmtree(holder, ignore_errors=True)
    return root


def _jobs(config: WorldConfig) -> list[_Job]:
    first_test = config.train_identities + 1
    train = [_Job(domain="train", index=i, pid=i + 1) for i in range(config.train_identities)]
    test = [_Job(domain="test", index=i, pid=first_test + i) for i in range(config.test_identities)]
    extra = [_Job(domain="distractor", index=i, pid=0) for i in range(config.distractors)]
    junk = [_Job(domain="junk", index=i, pid=-1) for i in range(config.junk)]
    return train + test + extra + junk


def _write_images(world: Path, config: WorldConfig, workers: int) -> list[_Truth]:
    jobs = _jobs(config)
    results: Iterable[list[_Truth]]
    if workers <= 1 or len(jobs) < 2:
        results = [_write_job(world, config, job) for job in jobs]
    else:
        # "spawn": the caller may hold threads and locks, which a fork would copy in an unknown state.
        with ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=follow, initargs=(os.getpid(),)
        ) as pool:
            chunk = max(1, len(jobs) // (8 * workers))
            with shielded():
                drawn = pool.map(_write_job, repeat(world), repeat(config), jobs, chunksize=chunk)
            results = list(drawn)
    return sorted((truth for truths in results for truth in truths), key=lambda truth: truth.path)


def _write_job(world: Path, config: WorldConfig, job: _Job) -> list[_Truth]:
    every = _cameras(config.seed, 0, config.cameras, config.difficulty)
    cameras = [every[index] for index in config.taken_by(job.domain)]
    if job.domain == "junk":
        return [_write_junk(world, config, job, cameras)]
    if job.domain == "distractor":
        return [_write_shot(world, config, job, camera=cameras[job.index % len(cameras)], shot=0)]
    return [
        _write_shot(world, config, job, camera=camera, shot=shot)
        for camera in cameras
        for shot in range(config.images_per_camera)
    ]


def _write_shot(world: Path, config: WorldConfig, job: _Job, *, camera: Camera, shot: int) -> _Truth:
    root = (config.seed, DOMAINS[job.domain])
    lookalikes = config.lookalikes if job.domain != "distractor" else 1
    person = person_at(root, job.index, lookalikes, config.difficulty, camera.index % config.clothes)
    rng = _rng(config.seed, DOMAINS[job.domain], _SHOT, job.index, camera.index, shot)
    shown = render(person, camera, rng, difficulty=config.difficulty)
    folder = {"train": "bounding_box_train", "test": "query" if shot == 0 else "bounding_box_test"}.get(
        job.domain, "bounding_box_test"
    )
    name = _name(job, camera, shot)
    (world / folder / name).write_bytes(encode(shown.image, camera.quality))
    return _Truth(
        path=f"{folder}/{name}",
        split={"bounding_box_train": "train", "query": "query"}.get(folder, "gallery"),
        pid=job.pid,
        camid=camera.index + 1,
        view=shown.view,
        person=person,
        visible=shown.visible,
    )


def _name(job: _Job, camera: Camera, shot: int) -> str:
    """Return a name such as ``0002_c1s1_000451_03.jpg``: pid, camera and sequence, frame, box."""
    frame = 25 * job.index + 7 * shot + 1
    pid = f"{job.pid:04d}" if job.pid >= 0 else "-1"
    return f"{pid}_c{camera.index + 1}s1_{frame:06d}_{shot + 1:02d}.jpg"


def _write_junk(world: Path, config: WorldConfig, job: _Job, cameras: Sequence[Camera]) -> _Truth:
    """Write a false detection: background alone, or a slice of a person."""
    camera = cameras[job.index % len(cameras)]
    rng = _rng(config.seed, DOMAINS["junk"], _SHOT, job.index)
    image = render_nobody(camera, rng, difficulty=config.difficulty)
    name = _name(job, camera, 0)
    (world / "bounding_box_test" / name).write_bytes(encode(image, camera.quality))
    path = f"bounding_box_test/{name}"
    return _Truth(path=path, split="gallery", pid=-1, camid=camera.index + 1, view=None, person=None, visible={})


def _write_table(path: Path, truths: Sequence[_Truth]) -> None:
    text, number, flag = pa.string(), pa.int64(), pa.bool_()
    schema = pa.schema([
        ("path", text), ("split", text), ("pid", number), ("camid", number), ("view", text),
        *((slot, text) for slot in SLOTS),
        *((f"visible_{slot}", flag) for slot in SLOTS),
        *((item, text) for item in _LOOK),
    ])  # fmt: skip
    pq.write_table(pa.Table.from_pylist([truth.row() for truth in truths], schema=schema), path)
