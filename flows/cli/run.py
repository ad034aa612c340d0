"""Actions of the commands that run the pipeline, draw a sheet of captions, or print recipes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.padding import Padding
from rich.text import Text

from data.artifacts.root import make_root
from data.artifacts.stages import StageName
from data.artifacts.store import ArtifactStore
from data.config import Config, build_config
from data.datasets import DatasetConfig
from data.errors import ConfigError, counted
from data.files import atomic_path
from data.index.export import SUFFIXES, formulas, keep_existing, write_manifest
from data.index.stage import usable_images
from data.people import JUNK
from data.readers.base import Scan
from data.settings import settings_of, unknown_key
from data.sources.address import is_remote, shown
from flows.cli.inputs import artifact_store, examined_recipe, recipe_of
from flows.execution.server import prefect_server
from flows.overrides import apply_overrides
from flows.preflight.disk import check_output
from flows.preflight.inspection import check_early
from flows.recipes import RECIPES, ExaminedRecipe, Recipe
from flows.summary import RunSummary
from flows.terminal import notice_line, plain_console, progress_bar

Flow = Callable[..., dict[str, Any]]
"""The flow ``caption-and-train``, bound to a recipe, an artifact root and a last stage."""


@contextmanager
def pipeline(name: str, overrides: Sequence[str], home: Path | None, until: StageName) -> Iterator[Flow]:
    """Print a title and yield the flow of recipe `name` with a Prefect server running.

    Raises ConfigError for settings that cannot work, together with everything else that would fail.
    """
    store = artifact_store(home)
    recipe = checked_recipe(name, overrides, store, until)
    title = Text.assemble((f"clip-scgi {name}", "bold"), f": artifacts in {store.root}")
    plain_console().print(title, soft_wrap=True)
    with flow_of(recipe, store, until) as flow:
        yield flow


def checked_recipe(name: str, overrides: Sequence[str], store: ArtifactStore, until: StageName) -> Recipe:
    """Return a recipe without problems of settings and devices; raise ConfigError for all problems if it has some."""
    examined = examined_recipe(name, overrides)
    check_early(store, examined, until)
    return examined.recipe


@contextmanager
def flow_of(recipe: Recipe, store: ArtifactStore, until: StageName) -> Iterator[Flow]:
    """Yield the flow of `recipe` with a Prefect server running."""
    # The flow checks again; here a mistake does not cost the start of a server.
    check_early(store, ExaminedRecipe(recipe), until)
    with prefect_server(store.root):
        # Prefect reads its settings at its first import, so not earlier.
        from flows.pipeline import caption_and_train

        yield partial(caption_and_train, recipe, home=str(store.root), until=until)


def list_recipes() -> None:
    """Print the recipes, one per line."""
    console, width = plain_console(), max(map(len, RECIPES))
    for name, recipe in sorted(RECIPES.items()):
        about = (recipe.__doc__ or "").splitlines()[0]
        console.print(Text.assemble((f"{name:{width}}", "bold"), f" {about}"), soft_wrap=True)


def show_recipe(name: str, overrides: Sequence[str]) -> None:
    """Print every setting of one recipe as JSON."""
    recipe = recipe_of(name, overrides)
    plain_console().print_json(json.dumps(recipe.model_dump(mode="json")))


def explain_settings(name: str, key: str, overrides: Sequence[str]) -> None:
    """Print value, choices and meaning of the setting `key` of a recipe, or of each setting below it."""
    values, settings = recipe_of(name, overrides).model_dump(mode="json"), settings_of(Recipe)
    if key not in settings:
        raise ConfigError(f"--explain {unknown_key(key, settings)}")
    console = plain_console()
    for setting in settings.values():
        if not setting.is_group and f"{setting.key}.".startswith(f"{key}."):
            value: Any = values
            for part in setting.key.split("."):
                value = value and value[part]  # a group that the recipe does not use is None
            console.print(Text.assemble((setting.key, "bold"), f" = {json.dumps(value)}"), soft_wrap=True)
            choices = f"One of {', '.join(map(json.dumps, setting.choices))}." if setting.choices else ""
            if text := f"{setting.meaning} {choices}".strip():
                console.print(Padding(Text(text), (0, 0, 0, 4)))


class _Settings(Config):
    data: DatasetConfig


def write_dataset_manifest(
    root: Path, reader: str, overrides: Sequence[str], home: Path | None, output: Path | None, *, overwrite: bool
) -> None:
    """Write the images that `reader` finds in `root` to a manifest, and print how to read it back.

    output: default: manifest.csv in the folder of the images.
    """
    values = {"data": {"reader": reader, "root": str(root)}}
    applied = apply_overrides(_Settings, values, overrides)
    config = build_config(_Settings, values, "manifest", problems=applied.problems).data
    if output:
        check_output(output, "--output", suffixes=SUFFIXES)
        keep_existing(output, overwrite=overwrite)
    store = artifact_store(home)
    make_root(store.root)  # the digests of the images are kept there
    with progress_bar("manifest") as progress:
        scan = usable_images(store, config=config, progress=progress)
    if output is None and is_remote(scan.root):
        raise ConfigError(f"nothing is written to {shown(scan.root)}: set --output, such as --output manifest.csv")
    file = output.absolute() if output else scan.root / "manifest.csv"
    if not scan.records:
        raise ConfigError("; ".join([f"no image of {shown(scan.root)} can be used", *_left_out(scan)]))
    write_manifest(file, scan.records, overwrite=overwrite)
    for notice in _manifest_notices(scan):
        plain_console(stderr=True).print(notice_line(notice), soft_wrap=True)
    print_line = partial(plain_console().print, soft_wrap=True)
    print_line(Text(f"manifest  {file} ({counted(len(scan.records), 'image')})"))
    check = ["clip-scgi", "check", "manifest", *([] if config.has_identities else ["--until", "caption"])]
    print_line(Text(f"use       {shlex.join([*check, *_manifest_settings(scan, file)])}"))


def _left_out(scan: Scan) -> Iterator[str]:
    if scan.rejected:
        path, _, detail = scan.rejected[0]
        number = counted(len(scan.rejected), "file or row", "files or rows")
        yield f"{number} left out of the manifest, such as {path}: {detail}"


def _manifest_notices(scan: Scan) -> Iterator[str]:
    yield from scan.notices
    yield from _left_out(scan)
    risky = formulas(scan.records)
    if risky:
        yield (
            f"{counted(risky, 'path or label', 'paths or labels')} with =, +, - or @ at the beginning, which a"
            " spreadsheet may run as a formula; import all columns as text"
        )


def _manifest_settings(scan: Scan, file: Path) -> list[str]:
    """Return the options that read the manifest `file` back."""
    settings = [f"data.root={shown(scan.root)}", "data.reader=manifest"]
    if file != scan.root / "manifest.csv":
        settings.append(f"data.manifest={file}")
    if (scan.records.pids == JUNK).any():
        settings.append("data.keep_junk=true")
    return [word for setting in settings for word in ("--set", setting)]


def draw_sheet(
    name: str, overrides: Sequence[str], home: Path | None, out: Path, *, identities: int, each: int, seed: int
) -> None:
    """Caption the images that have no caption yet, and write a contact sheet of the captions to `out`."""
    import pandas as pd
    import pyarrow.parquet as pq

    from captioning.audit.contact_sheet import SheetConfig, contact_sheet, sheet_columns
    from captioning.audit.pen import missing_notice

    config = build_config(SheetConfig, {"identities": identities, "each": each, "seed": seed}, "sheet")
    check_output(out, "--out", suffixes=(".png", ".jpg", ".jpeg"))
    with flow_of(recipe_of(name, overrides), artifact_store(home), "caption") as flow:
        summary = RunSummary.model_validate(flow())
    file = summary.captions.artifact.folder / "captions.parquet"
    captions = pd.read_parquet(file, columns=sheet_columns(pq.read_schema(file).names))
    sheet, missing = contact_sheet(captions, Path(summary["index"].images_root or ""), config)
    with atomic_path(out) as temporary:
        sheet.save(temporary, "JPEG" if out.suffix.lower() in (".jpg", ".jpeg") else "PNG", quality=88, optimize=True)
    if missing:
        plain_console(stderr=True).print(notice_line(missing_notice(missing, out.name)), soft_wrap=True)
    plain_console().print(f"sheet     {out.resolve()}", highlight=False, soft_wrap=True)
