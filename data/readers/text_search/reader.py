"""CUHK-PEDES, ICFG-PEDES and RSTPReid.

Their protocol searches all test images with all test sentences. The split of test images into queries and gallery, for
search by image, is this project's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

from data.errors import DataError, RejectedRow, counted
from data.people import UNKNOWN_CAMERA
from data.readers.base import Collector, Counts, Scan, compare_sizes, locate
from data.readers.list_files import msmt17_camera
from data.readers.paths import PATH_DETAILS, PathGate
from data.readers.text_search.annotations import IMAGES, Annotation, image_path, read_annotations
from data.sources.places import exists, is_dir
from data.splits import GALLERY, QUERY, TRAIN

_RSTPREID_NAME: Final = re.compile(r"\d+_c(\d{1,18})_\d+\.\w+\Z", re.ASCII)


class _Image(NamedTuple):
    """One image with the sentences of all rows that name it."""

    split: str
    pid: int
    sentences: tuple[str, ...]
    n_rows: int


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Layout of a dataset.

    files: names that its JSON file may have. path_key: field with the path of an image. published: size of train and
    test; images are rows of the file. test_sentences: their published number. camera: returns the camera in a path;
    None if the dataset has none. bases: split -> what is added to its identities, where both splits may count from 0.
    """

    files: tuple[str, ...]
    path_key: str
    published: Mapping[str, Counts]
    test_sentences: int
    camera: Callable[[str], int | None] | None = None
    bases: Mapping[str, int] = field(default_factory=dict)


def _rstpreid_camera(path: str) -> int | None:
    """Return the camera of a name such as 0000_c14_0031.jpg."""
    match = _RSTPREID_NAME.match(path.rpartition("/")[2])
    return int(match[1]) if match else None


TextSearch = Literal["cuhk_pedes", "icfg_pedes", "rstpreid"]

_LAYOUTS: Final[dict[TextSearch, _Layout]] = {
    # Li et al., CVPR 2017. Identities are numbered from 1 over all splits. The folders tell the datasets that the
    # images come from; cam_a and cam_b are cameras of one of them.
    "cuhk_pedes": _Layout(
        files=("reid_raw.json",),
        path_key="file_path",
        published={"train": Counts(11003, 34054), "test": Counts(1000, 3074)},
        test_sentences=6156,
    ),
    # Ding et al., arXiv:2107.12666. The images keep the names of MSMT17, whose third field is the camera.
    "icfg_pedes": _Layout(
        files=("ICFG-PEDES.json", "ICFG_PEDES.json"),
        path_key="file_path",
        published={"train": Counts(3102, 34674), "test": Counts(1000, 19848)},
        test_sentences=19848,
        camera=msmt17_camera,
        bases={"train": 1, "test": 10_001},  # as in data.readers.list_files.msmt17
    ),
    # Zhu et al., ACM MM 2021: images of MSMT17 under other names.
    "rstpreid": _Layout(
        files=("data_captions.json",),
        path_key="img_path",
        published={"train": Counts(3701, 18505), "test": Counts(200, 1000)},
        test_sentences=2000,
        camera=_rstpreid_camera,
    ),
}


def text_search(root: Path, *, name: TextSearch, by_rule: bool = False) -> Scan:
    """Read the dataset `name`: train and test; split val is only counted.

    by_rule: splits are assigned by rule later, so the notice about the queries is left out.
    """
    layout = _LAYOUTS[name]
    base = locate(root, layout.files, f"it needs {' or '.join(layout.files)} and the folder {IMAGES}")
    file = next(base / option for option in layout.files if exists(base / option))
    if not is_dir(base / IMAGES):
        raise DataError(f"{base} has {file.name}, but not the folder {IMAGES} with the images: put it there")
    collector = Collector(name=name, root=base, version="")
    rows = list(read_annotations(collector, file, layout.path_key))
    images = _images(collector, (row for row in rows if row.split != "val"))
    queries = _add(collector, layout, images)
    collector.notices += [*_sizes(name, layout, images.values()), *_left_out(rows, images.values())]
    if queries and not by_rule:
        collector.notices.append(_rule(queries))
    return collector.finish()


def _add(collector: Collector, layout: _Layout, images: Mapping[str, _Image]) -> int:
    """Add the images to `collector`; return the number of queries."""
    cameras, queries = _cameras(collector, layout, images), _queries(images)
    for path, image in images.items():
        split = TRAIN if image.split == "train" else QUERY if path in queries else GALLERY
        pid = image.pid + layout.bases.get(image.split, 0)
        collector.add(path, split, pid, cameras[path], sentences=image.sentences)
    return len(queries)


def _images(collector: Collector, rows: Iterable[Annotation]) -> dict[str, _Image]:
    """Return path -> image of the rows whose image exists; `collector` rejects the others.

    Rows with one path and the same labels describe one image. If their labels differ, none of them is used.
    """
    gate, found = PathGate(collector.root), defaultdict[str, list[Annotation]](list)
    for row in rows:
        try:
            found[image_path(gate, row.path)].append(row)
        except RejectedRow as error:
            collector.reject(row.path, error.reason, f"{row.place}: {PATH_DETAILS[error.reason]}")
    images = {}
    for path, same in found.items():
        if len({(row.split, row.pid) for row in same}) == 1:
            sentences = tuple(text for row in same for text in row.sentences)
            images[path] = _Image(same[0].split, same[0].pid, sentences, len(same))
            continue
        told = ", ".join(f"{row.place.rpartition(' ')[2]} ({row.split} id {row.pid})" for row in same)
        for row in same:
            collector.reject(row.path, "contradictory_rows", f"{row.place}: one path has different labels, rows {told}")
    return images


def _cameras(collector: Collector, layout: _Layout, images: Iterable[str]) -> dict[str, int]:
    """Return path -> camera. If one of the names does not have a camera, all are unknown."""
    if layout.camera is None:
        return dict.fromkeys(images, UNKNOWN_CAMERA)
    cameras = {path: layout.camera(path) for path in images}
    nameless = sorted(path for path, camera in cameras.items() if camera is None)
    if nameless:
        collector.notices.append(
            f"the names of {counted(len(nameless), 'image')} do not have a camera, such as {nameless[0]}: the cameras"
            " of all images are unknown"
        )
    return {path: UNKNOWN_CAMERA if nameless or camera is None else camera for path, camera in cameras.items()}


def _queries(images: Mapping[str, _Image]) -> set[str]:
    """Return the first path of each test identity."""
    first: dict[int, str] = {}
    for path in sorted(images):
        if images[path].split == "test":
            first.setdefault(images[path].pid, path)
    return set(first.values())


def _sizes(name: str, layout: _Layout, images: Iterable[_Image]) -> Iterator[str]:
    """Yield notices on sizes that differ from the published ones."""
    parts = {split: [image for image in images if image.split == split] for split in layout.published}
    found = {
        split: Counts(len({image.pid for image in part}), sum(image.n_rows for image in part))
        for split, part in parts.items()
    }
    yield from compare_sizes(name, found, layout.published)
    sentences = sum(len(image.sentences) for image in parts["test"])
    if found["test"] == layout.published["test"] and sentences != layout.test_sentences:
        yield (
            f"{name} test: {sentences:,} sentences; published: {layout.test_sentences:,}. Results are not"
            " comparable with published ones"
        )


def _left_out(rows: Sequence[Annotation], images: Iterable[_Image]) -> Iterator[str]:
    """Yield notices on rows and sentences that are not used, or not as they are."""
    unused = [row for row in rows if row.split == "val"]
    if unused:
        sentences = sum(len(row.sentences) for row in unused)
        yield f"split val is not used: {counted(len(unused), 'image')} with {counted(sentences, 'sentence')}"
    repeated = [image for image in images if image.n_rows > 1]
    if repeated:
        n_rows = sum(image.n_rows for image in repeated)
        yield f"{n_rows:,} rows describe {counted(len(repeated), 'image')}: the sentences of one path are put together"
    empty = [row for row in rows if row.n_empty]
    if empty:
        n_empty = sum(row.n_empty for row in empty)
        yield f"{counted(n_empty, 'empty sentence')} left out, such as in {empty[0].place}"


def _rule(n_queries: int) -> str:
    """Return the notice about the split into queries and gallery."""
    return (
        f"search by image: the first path of each test identity is a query ({n_queries:,}), the other test images are"
        " the gallery. This rule is not part of the dataset, which only defines search by text, in all test images"
    )
