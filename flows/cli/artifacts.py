"""Actions of ``clip-scgi artifacts``: list, show and verify artifacts, and collect garbage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from captioning.store.compaction import compact_all
from captioning.store.shards import stores_under
from data.artifacts.housekeeping import collect, find_leftovers, plan_gc, verify
from data.artifacts.inventory import Entry, folder_size, take_inventory
from data.artifacts.store import SIDECAR, read_uses
from data.errors import DataError, counted
from data.files import read_json
from flows.cli.inputs import artifact_store
from flows.report.retrieval import leading_row
from flows.terminal import plain_console, size
from reid.evaluation.protocol import NO_CAMERAS, camera_note

_HEAD: Final = ("artifact", "dataset", "recipe", "made", "size", "mAP")
_MAP: Final = _HEAD.index("mAP")


def list_artifacts(home: Path | None, *, stage: str | None = None) -> None:
    """Print the artifacts, oldest first: dataset and recipe of their last use, date, size and mAP."""
    store = artifact_store(home)
    inventory = take_inventory(store)
    console = plain_console()
    table = _table([entry for entry in inventory.entries if stage in (None, entry.stage)])
    console.print(table)
    if any("*" in str(cell) for cell in table.columns[_MAP].cells):
        console.print(f"* {NO_CAMERAS}")
    left = find_leftovers(store)
    total, captions = sum(entry.size for entry in inventory.entries), folder_size(store.root / "captions")
    n_captions = sum(shards.count() for shards in stores_under(store.root))
    console.print(
        f"{counted(len(inventory.entries), 'artifact')}, {size(total)}; "
        f"{counted(n_captions, 'caption')}, {size(captions)}; "
        f"leftovers of unfinished stages: {len(left)}, {size(sum(item.size for item in left))}; in {store.root}",
        highlight=False,
        soft_wrap=True,
    )


def _table(entries: list[Entry]) -> Table:
    has_state = any(entry.state != "finished" for entry in entries)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in (*_HEAD, *(["state"] if has_state else [])):
        justify: Literal["left", "right"] = "right" if name in ("size", "mAP") else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name not in ("dataset", "recipe"))
    for entry in entries:
        table.add_row(*map(Text, _cells(entry)), *([entry.state.replace("finished", "")] if has_state else []))
    return table


def _cells(entry: Entry) -> tuple[str, ...]:
    made = entry.created.astimezone().strftime("%Y-%m-%d %H:%M")
    name = f"{entry.stage}/{entry.fingerprint[:8]}"
    return name, entry.dataset or "-", entry.recipe or "-", made, size(entry.size), mean_ap(entry)


def mean_ap(entry: Entry) -> str:
    """Return the mAP of an evaluation in percent, of the trained model in image mode; "" for any other artifact.

    A star marks a dataset without cameras.
    """
    if entry.stage != "evaluate" or entry.state == "damaged":
        return ""
    try:
        metrics = read_json(entry.folder / "metrics.json")
        mark = "*" if camera_note(metrics.get("protocol", {})) else ""
        return f"{100 * leading_row(metrics['results'], 'image')['mAP']:.1f}{mark}"
    except (DataError, OSError, KeyError, IndexError, TypeError):  # metrics.json is damaged, its sidecar is not
        return "?"


def show_artifact(home: Path | None, name: str) -> None:
    """Print one artifact: its files, its ingredients, its users, what it was made from and what was made from it."""
    inventory = take_inventory(artifact_store(home))
    entry = inventory.find(name)
    shown: dict[str, Any] = {
        "artifact": entry.key,
        "folder": str(entry.folder),
        "state": entry.state,
        "size": entry.size,
        "created": entry.created.isoformat(),
        "last_used": entry.used.isoformat(timespec="seconds"),
        "recipes": read_uses(entry.folder),
        "uses": [other.key for other in inventory.uses(entry)],
        "used_by": [other.key for other in inventory.used_by(entry)],
    }
    if entry.state != "damaged":
        sidecar = read_json(entry.folder / SIDECAR)
        shown |= {key: sidecar[key] for key in ("content", "contents", "files", "ingredients") if key in sidecar}
    if entry.stage == "evaluate":
        shown["mAP"] = mean_ap(entry)
    plain_console().print_json(json.dumps(shown))


def verify_artifacts(home: Path | None, name: str | None = None) -> int:
    """Compare every file with its digest and return the exit status: 1 if any artifact is damaged."""
    inventory = take_inventory(artifact_store(home))
    entries = list(inventory.entries) if name is None else [inventory.find(name)]
    problems = verify(inventory, entries)
    console = plain_console()
    for key, found in problems.items():
        console.print(f"{key}: {'; '.join(found)}", highlight=False, soft_wrap=True)
    console.print(f"{counted(len(entries), 'artifact')}, {len(problems)} damaged", highlight=False)
    if problems:
        console.print("the next run that needs a damaged artifact makes it again", highlight=False)
    return 1 if problems else 0


def collect_garbage(home: Path | None, *, keep: int, days: float, delete: bool) -> None:
    """Print the folders that nothing needs any more; if `delete` is set, remove them and compact the caption stores."""
    store = artifact_store(home)
    plan = plan_gc(store, keep_runs=keep, days=days)
    console = plain_console()
    for item in plan.items:
        where = item.folder.relative_to(store.root).as_posix()
        console.print(f"{where}  {size(item.size)}", highlight=False, soft_wrap=True)
    n_items, freed = len(plan.items), size(plan.size)
    if delete:
        removed = len(collect(store, plan))
        compact_all(store.root)
        text = f"removed {removed} of {counted(n_items, 'folder')}, {freed}; kept {counted(plan.kept, 'artifact')}"
    else:
        kept = counted(plan.kept, "artifact")
        text = f"would remove {counted(n_items, 'folder')}, {freed}, and keep {kept}; add --delete to remove them"
    console.print(text, highlight=False)
