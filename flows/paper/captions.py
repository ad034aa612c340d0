"""People with their captions: several images per person, with the attributes on which their captions disagree."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from captioning.audit.agreement import identity_table, people
from captioning.audit.contact_sheet import SheetConfig, SheetRow, chosen, sheet_columns
from data.artifacts.contents import CAPTIONS_FILE
from data.artifacts.store import ArtifactStore, read_uses
from data.errors import ConfigError, DataError, counted
from data.images.root import find_root
from data.images.thumbnails import Thumbnail, Thumbnails
from data.people import IdentityName
from data.slots import SLOTS
from flows.naming import Kind
from flows.report.language import SLOT_NAMES, STATUS_MEANINGS

COMMAND: Final = "paper captions"
CAPTIONS: Final = Kind(
    command=COMMAND,
    stages=("caption", "correct", "caption_control"),
    file=CAPTIONS_FILE,
    one="captions",
    many="captions",
    done="captioned",
)
_ATTRIBUTES: Final = [f"attr_{slot}" for slot in SLOTS]
_TEXTS: Final = ("raw_text", "error", "model_id", "template_id")
_SAMPLE: Final = 200  # images that are looked up to find their folder
_HEIGHT: Final = 320  # pixels of a thumbnail


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One attribute of a caption. captions: of the person that say so. named: that mention the attribute at all.

    disputed: the captions of the person disagree on it. minor: another value is more frequent.
    """

    slot: str
    value: str
    captions: int
    named: int
    disputed: bool
    minor: bool

    @property
    def sign(self) -> str:
        """Return the mark of a disputed attribute."""
        return "≠" if self.minor else "="


@dataclass(frozen=True, kw_only=True)
class CaptionedImage:
    """One image with its caption. problem: why it has no caption, or what is wrong with it; else ""."""

    path: str
    camid: int
    split: str
    text: str
    problem: str
    attributes: Sequence[Attribute]
    image: Thumbnail

    @property
    def disputed(self) -> list[Attribute]:
        """Return the attributes on which the captions of the person disagree."""
        return [attribute for attribute in self.attributes if attribute.disputed]


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """An attribute on which the captions of a person disagree. values: with their numbers of captions."""

    slot: str
    values: Sequence[tuple[str, int]]


@dataclass(frozen=True, kw_only=True)
class Person:
    """A person, or images of unknown people (identity: None). n_images: in all, of which some are shown."""

    identity: IdentityName | None
    n_images: int
    conflicts: Sequence[Conflict]
    images: Sequence[CaptionedImage]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Everything that the page and the picture show. source: whose captions they are. notices: sentences."""

    title: str
    source: str
    rule: str
    notices: Sequence[str]
    persons: Sequence[Person]


def gallery(folder: Path, store: ArtifactStore, config: SheetConfig, images: Path | None = None) -> Gallery:
    """Return the gallery of the captions.parquet in `folder`.

    images: the folder of the images; by default, where they were when they were indexed. Raise ConfigError without
    captions, and DataError if the file cannot be read.
    """
    captions = _read(folder / CAPTIONS_FILE)
    if captions["caption"].isna().all() and captions["raw_text"].isna().all():
        raise ConfigError(
            f"{COMMAND}: none of the {counted(len(captions), 'image')} in {folder} has a caption "
            f"({', '.join(sorted(captions['status'].unique()))}); run `clip-scgi caption` again"
        )
    root = images or find_root(store, *_sampled(captions))
    thumbnail = Thumbnails(
        root or Path(), dict(zip(captions["image_path"], captions["image_sha256"], strict=True)), _HEIGHT
    )
    persons = _persons(captions, config, thumbnail)
    notices = [] if root else ["the images are not shown: their folder is unknown; name it with --images FOLDER"]
    return Gallery(
        title=next((use["dataset"] for use in reversed(read_uses(folder))), folder.name),
        source=_source(captions),
        rule=_rule(persons, config),
        notices=notices,
        persons=persons,
    )


def _read(path: Path) -> pd.DataFrame:
    """Return the columns of captions.parquet that the gallery shows, ordered by path."""
    try:
        names = pq.read_schema(path).names
        columns = dict.fromkeys([*sheet_columns(names), *_TEXTS, *_ATTRIBUTES])
        return pd.read_parquet(path, columns=list(columns)).sort_values("image_path", ignore_index=True)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"{COMMAND}: {path} cannot be read ({error}); run `clip-scgi caption` again") from error


def _sampled(captions: pd.DataFrame) -> tuple[list[str], list[str]]:
    some = captions.iloc[:: max(1, len(captions) // _SAMPLE)]
    return some["image_path"].tolist(), some["image_sha256"].tolist()


def _source(captions: pd.DataFrame) -> str:
    models = ", ".join(sorted(captions["model_id"].dropna().unique())) or "no model named"
    failed = int((captions["status"] != "ok").sum())
    return f"{counted(len(captions), 'image')}, captioned by {models}; {failed:,} without a usable caption"


def _rule(persons: Sequence[Person], config: SheetConfig) -> str:
    drawn = f"drawn at random with seed {config.seed}"
    if persons and persons[0].identity is None:
        return f"The people are unknown, so the images are {drawn} and nothing can disagree."
    return (
        f"{counted(len(persons), 'person', 'people')} {drawn}, each with up to {counted(config.each, 'image')}, spread "
        "over the cameras. What the captions of a person disagree on is counted over all images of the person."
    )


def _persons(captions: pd.DataFrame, config: SheetConfig, thumbnail: Thumbnails) -> list[Person]:
    """Return the people to show, those with several images if there are any, or else images of unknown people."""
    known = captions[people(captions)]
    if known.empty:
        return _strangers(captions, config, thumbnail)
    several = known[known.groupby("pid")["pid"].transform("size") > 1]
    shown = chosen(several if len(several) else known, config)
    agreement = identity_table(known[known["pid"].isin({person[0].pid for person in shown})])
    rows = captions.set_index("image_path")
    return [_person(person, agreement[agreement["pid"] == person[0].pid], rows, thumbnail) for person in shown]


def _strangers(captions: pd.DataFrame, config: SheetConfig, thumbnail: Thumbnails) -> list[Person]:
    order = np.random.default_rng(config.seed).permutation(len(captions))[: config.identities * config.each]
    rows = captions.iloc[np.sort(order)].to_dict("records")
    images = [_image({str(key): value for key, value in row.items()}, {}, thumbnail) for row in rows]
    return [Person(identity=None, n_images=len(captions), conflicts=(), images=images)]


def _person(shown: Sequence[SheetRow], slots: pd.DataFrame, rows: pd.DataFrame, thumbnail: Thumbnails) -> Person:
    tallies: dict[str, dict[str, int]] = {row["slot"]: json.loads(row["values"]) for row in slots.to_dict("records")}
    found = [{"image_path": row.image_path, **rows.loc[row.image_path]} for row in shown]
    return Person(
        identity=IdentityName(shown[0].pid, shown[0].label or ""),
        n_images=int(slots["n_images"].iloc[0]),
        conflicts=[
            Conflict(slot=SLOT_NAMES[slot], values=sorted(tally.items(), key=lambda pair: (-pair[1], pair[0])))
            for slot, tally in tallies.items()
            if len(tally) > 1
        ],
        images=[_image(row, tallies, thumbnail) for row in found],
    )


def _image(row: Mapping[str, Any], tallies: Mapping[str, Mapping[str, int]], thumbnail: Thumbnails) -> CaptionedImage:
    texts = {name: "" if pd.isna(row[name]) else str(row[name]) for name in ("caption", "raw_text", "error")}
    return CaptionedImage(
        path=row["image_path"],
        camid=int(row["camid"]),
        split=row["split"],
        text=texts["caption"] or texts["raw_text"],
        problem="" if row["status"] == "ok" else _problem(row["status"], texts["error"]),
        attributes=[
            _attribute(slot, row[f"attr_{slot}"], tallies.get(slot, {}))
            for slot in SLOTS
            if not pd.isna(row[f"attr_{slot}"])
        ],
        image=thumbnail(row["image_path"]),
    )


def _problem(status: str, error: str) -> str:
    meaning = STATUS_MEANINGS.get(status, "")
    return ": ".join(part for part in (status.replace("_", " "), meaning, error) if part)


def _attribute(slot: str, value: str, tally: Mapping[str, int]) -> Attribute:
    """Return an attribute of one caption. tally: value -> captions of the person, empty if the person is unknown."""
    count = tally.get(value, 1)
    return Attribute(
        slot=SLOT_NAMES[slot],
        value=value,
        captions=count,
        named=sum(tally.values()) or 1,
        disputed=len(tally) > 1,
        minor=count < max(tally.values(), default=count),
    )
