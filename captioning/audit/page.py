"""captions.audit.html: one self-contained page that says where to look. All text of captions is escaped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from captioning.audit.flags import FLAGS, degrading_words
from captioning.config import AuditConfig
from data.slots import SLOTS

if TYPE_CHECKING:
    import pandas as pd

    from data.images.thumbnails import Thumbnail

TEMPLATE: Final = Path(__file__).parents[1] / "pages/audit.html.j2"
SPLITS: Final = ("train", "query", "gallery")
_TOP_VALUES: Final = 8
_IMAGES: Final = 8  # of one identity
_COLUMNS: Final = ["image_path", "pid", "camid", "split", "raw_text", "error", *(f"attr_{slot}" for slot in SLOTS)]

Picture = Callable[[str], "Thumbnail"]
"""image_path -> its thumbnail."""
Majorities = Mapping[Any, str]
"""(pid, slot) -> the value that most captions of the identity give."""


def audit_page(
    captions: pd.DataFrame,
    identities: pd.DataFrame,
    flags: pd.DataFrame,
    summary: dict[str, Any],
    config: AuditConfig,
    *,
    dataset: str | None = None,
    picture: Picture | None = None,
) -> str:
    """Return the page as HTML; the same rows and pictures give the same bytes.

    dataset: its name. picture: gives the thumbnail of an image; without it the page shows text only.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["share"] = lambda share: f"{100 * share:.0f} %"
    environment.filters["thousands"] = lambda number: f"{number:,}"
    counts = captions["split"].value_counts()
    majorities = identities.set_index(["pid", "slot"])["majority"].to_dict()
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        audit=summary,
        dataset=dataset,
        low=config.low_agreement,
        splits={split: int(counts[split]) for split in SPLITS if split in counts},
        slots=[_slot(slot, summary["slots"][slot]) for slot in SLOTS],
        worst=_worst(identities, captions, config.shown, picture),
        flags=[_flag(flag, captions, flags, majorities, shown=config.shown, picture=picture) for flag in FLAGS],
    )


def _slot(slot: str, figures: dict[str, Any]) -> dict[str, Any]:
    tally = _tally(figures["values"])
    return {**figures, "name": _title(slot), "top": tally[:_TOP_VALUES], "more": len(tally[_TOP_VALUES:])}


def _worst(
    identities: pd.DataFrame, captions: pd.DataFrame, count: int, picture: Picture | None
) -> list[dict[str, Any]]:
    """Describe the identities with the least mean agreement over the slots that two captions or more answer."""
    told = identities[identities["n_named"] >= 2]
    mean = told.groupby("pid")["agreement"].mean()
    # Stable, and groupby sorts by identity: equals stay in the order of their numbers.
    worst = mean[mean < 1].sort_values(kind="stable")[:count]
    return [
        _person(pid, agreement, told[told["pid"] == pid], captions[captions["pid"] == pid], picture)
        for pid, agreement in worst.to_dict().items()
    ]


def _person(
    pid: Any, agreement: float, rows: pd.DataFrame, captions: pd.DataFrame, picture: Picture | None
) -> dict[str, Any]:
    differing = rows[rows["agreement"] < 1].sort_values("agreement", kind="stable").to_dict("records")
    majorities = {str(row["slot"]): row["majority"] for row in differing}
    shown = captions.loc[_in_turn(captions, _IMAGES)]
    return {
        "pid": int(pid),
        "agreement": agreement,
        "n_images": int(rows["n_images"].iloc[0]),
        "splits": [split for split in SPLITS if split in set(captions["split"])],
        "rows": [
            {"name": _title(row["slot"]), "agreement": row["agreement"], "tally": _tally(json.loads(row["values"]))}
            for row in differing
        ],
        "shown": [_card(row, _answers(row, majorities), picture) for row in _records(shown)],
    }


def _answers(row: Mapping[str, Any], majorities: Mapping[str, str]) -> list[tuple[str, bool]]:
    """Return what a caption answers in the slots of `majorities`, and whether that is against the majority."""
    answers = ((slot, row[f"attr_{slot}"]) for slot in majorities)
    return [(f"{_title(slot)}: {value}", value != majorities[slot]) for slot, value in answers if value]


def _flag(
    flag: str,
    captions: pd.DataFrame,
    flags: pd.DataFrame,
    majorities: Majorities,
    *,
    shown: int,
    picture: Picture | None,
) -> dict[str, Any]:
    marked = captions[flags[flag]]
    chosen = _in_turn(marked, shown)
    counts = marked["split"].value_counts()
    dissent = flags["dissent_slots"].loc[chosen].tolist()
    return {
        "name": flag,
        "title": _title(flag),
        "meaning": FLAGS[flag],
        "count": len(marked),
        "by_split": {split: int(counts.get(split, 0)) for split in SPLITS},
        "examples": [
            _card(row, [(note, True) for note in _notes(flag, row, slots, majorities)], picture)
            for row, slots in zip(_records(marked.loc[chosen]), dissent, strict=True)
        ],
    }


def _in_turn(rows: pd.DataFrame, count: int) -> list[Any]:
    """Return the index of up to `count` rows, the splits in turn, in each one row of each identity before a second."""
    turn = rows.groupby("pid").cumcount().sort_values(kind="stable").index
    ordered = rows["split"].loc[turn]
    groups: Sequence[Sequence[Any]] = [ordered.index[ordered == split].tolist() for split in SPLITS]
    turns = chain.from_iterable(zip_longest(*(group[:count] for group in groups)))
    return [at for at in turns if at is not None][:count]


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    columns = rows[_COLUMNS].astype(object)
    return [
        {str(key): value for key, value in row.items()} for row in columns.where(columns.notna(), "").to_dict("records")
    ]


def _card(row: Mapping[str, Any], notes: list[tuple[str, bool]], picture: Picture | None) -> dict[str, Any]:
    return {
        "path": row["image_path"],
        "pid": row["pid"],
        "camid": row["camid"],
        "split": row["split"],
        "text": row["raw_text"] or row["error"] or "no text",
        "notes": notes,
        "image": picture(row["image_path"]) if picture else None,
    }


def _notes(flag: str, row: Mapping[str, Any], dissent: Sequence[str], majorities: Majorities) -> list[str]:
    if flag == "dissent":
        return [f"{_title(slot)}: {row[f'attr_{slot}']}, most say {majorities[row['pid'], slot]}" for slot in dissent]
    return list(degrading_words(row["raw_text"])) if flag == "degrading" else []


def _tally(values: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))


def _title(name: str) -> str:
    return name.replace("_", " ")
