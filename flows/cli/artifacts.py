"""``clip-scgi artifacts ls|show|verify|gc``: what a person sees of the artefact root."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from data.artifacts.housekeeping import collect, find_leftovers, plan_gc, verify
from data.artifacts.inventory import Entry, folder_size, take_inventory
from data.artifacts.store import SIDECAR, ArtifactStore, read_uses
from data.errors import DataError
from data.files import read_json
from flows.report.retrieval import leading_row
from flows.terminal import plain_console

_UNITS = ("B", "kB", "MB", "GB", "TB")


def artifacts_ls(store: ArtifactStore, *, stage: str | None = None) -> int:
    """List the artifacts, oldest first: dataset and recipe of their last use, date, size and mAP."""
    inventory = take_inventory(store)
    shown = [entry for entry in inventory.entries if stage in (None, entry.stage)]
    has_state = any(entry.state != "finished" for entry in shown)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("artifact", "dataset", "recipe", "made", "size", "mAP", *(["state"] if has_state else [])):
        justify: Literal["left", "right"] = "right" if name in ("size", "mAP") else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name not in ("dataset", "recipe"))
    for entry in shown:
        table.add_row(*map(Text, _cells(entry)), *([entry.state.replace("finished", "")] if has_state else []))
    console = plain_console()
    console.print(table)
    left = find_leftovers(store)
    total, captions = sum(entry.size for entry in inventory.entries), folder_size(store.root / "captions")
    console.print(
        f"{len(inventory.entries)} artefacts, {size(total)}; captions {size(captions)}; left by stages that did not "
        f"finish: {len(left)}, {size(sum(item.size for item in left))}; in {store.root}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _cells(entry: Entry) -> tuple[str, ...]:
    made = entry.created.astimezone().strftime("%Y-%m-%d %H:%M")
    name = f"{entry.stage}/{entry.fingerprint[:8]}"
    return name, entry.dataset or "-", entry.recipe or "-", made, size(entry.size), mean_ap(entry)


def mean_ap(entry: Entry) -> str:
    """Return the mAP of an evaluation in percent: of the trained model in image mode, "" for anything else."""
    if entry.stage != "evaluate" or entry.state == "damaged":
        return ""
    try:
        row = leading_row(read_json(entry.folder / "metrics.json")["results"], "image")
        return f"{100 * row['mAP']:.1f}"
    except (DataError, OSError, KeyError, IndexError, TypeError):  # damaged behind its sidecar
        return "?"


def artifacts_show(store: ArtifactStore, name: str) -> int:
    """Print one artifact: its files, ingredients, who used it, what it was made from and what was made from it."""
    inventory = take_inventory(store)
    entry = inventory.find(name)
    shown: dict[str, Any] = {
        "artefact": entry.key,
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
    return 0


def artifacts_verify(store: ArtifactStore, name: str | None = None) -> int:
    """Compare every file with its digest; 1 when any artefact is damaged. A run repairs what it needs by itself."""
    inventory = take_inventory(store)
    entries = list(inventory.entries) if name is None else [inventory.find(name)]
    problems = verify(inventory, entries)
    console = plain_console()
    for key, found in problems.items():
        console.print(f"{key}: {'; '.join(found)}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"{len(entries)} artefacts, {len(problems)} damaged", highlight=False)
    if problems:
        console.print("the next run that needs a damaged artefact makes it again", highlight=False)
    return 1 if problems else 0


def artifacts_gc(store: ArtifactStore, *, keep: int, days: float, delete: bool) -> int:
    """Say what nothing needs any more, and remove it with `delete`."""
    plan = plan_gc(store, keep_runs=keep, days=days)
    console = plain_console()
    for item in plan.items:
        where = item.folder.relative_to(store.root).as_posix()
        console.print(f"{where}  {size(item.size)}", highlight=False, soft_wrap=True)
    n_items = len(plan.items)
    if not delete:
        console.print(
            f"would remove {n_items} folders, {size(plan.size)}, and keep {plan.kept} artefacts; add --delete to do it",
            highlight=False,
        )
        return 0
    removed = collect(store, plan)
    console.print(f"removed {len(removed)} of {n_items} folders, {size(plan.size)}; kept {plan.kept}", highlight=False)
    return 0


def add_parsers(commands: Any) -> None:
    """Add the sub-command ``artifacts`` to the subparsers of ``clip-scgi``."""
    parser = commands.add_parser("artifacts", help="list, check and clean up what runs have left")
    home = "artifact root (default: $CLIP_SCGI_HOME, else ./artifacts)"
    parser.add_argument("--home", type=Path, help=home)
    # Also behind the verb; a default there would overwrite what stands before it.
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--home", type=Path, default=argparse.SUPPRESS, help=home)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_verb = partial(verbs.add_parser, parents=[shared])
    listing = add_verb("ls", help="list artifacts with dataset, recipe, date, size and mAP")
    listing.add_argument("--stage", help="only this stage")
    show = add_verb("show", help="print one artifact: files, ingredients, what it uses and who uses it")
    show.add_argument("name", metavar="FINGERPRINT", help="fingerprint or stage/fingerprint, or its beginning")
    check = add_verb("verify", help="compare every file with its digest")
    check.add_argument("name", metavar="FINGERPRINT", nargs="?", help="only this artifact")
    collection = add_verb("gc", help="list what nothing needs any more; remove it with --delete")
    collection.add_argument("--keep", type=_count, default=5, help="newest runs kept of each recipe (default 5)")
    collection.add_argument("--days", type=_days, default=30.0, help="keep what is younger than this (default 30)")
    collection.add_argument("--delete", action="store_true", help="remove it; without this nothing is touched")
    parser.set_defaults(handler=_handle)


def _handle(arguments: argparse.Namespace) -> int:
    store = ArtifactStore(arguments.home) if arguments.home else ArtifactStore.default()
    match arguments.verb:
        case "ls":
            return artifacts_ls(store, stage=arguments.stage)
        case "show":
            return artifacts_show(store, arguments.name)
        case "verify":
            return artifacts_verify(store, arguments.name)
        case _:
            return artifacts_gc(store, keep=arguments.keep, days=arguments.days, delete=arguments.delete)


def size(n_bytes: float) -> str:
    """Return bytes for people: "12.3 MB", in steps of a thousand."""
    for unit in _UNITS[:-1]:
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} {_UNITS[-1]}"


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("0 or more")
    return value


def _days(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError("0 or more")
    return value
