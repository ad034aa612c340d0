"""The commands ``clip-scgi corrections import``, ``export``, ``info`` and ``log``.

`flows.cli.commands` imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from flows.cli.options import Home, Overrides, RecipeName

corrections: Final = typer.Typer(
    no_args_is_help=True,
    help="Correct captions, or use captions that were made elsewhere.\n\n"
    "Example: clip-scgi corrections export demo -o corrections.csv",
)


@corrections.command("import", no_args_is_help=True)
def import_(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .csv, .tsv or .parquet file.")],
    recipe: Annotated[str, typer.Option(metavar="RECIPE", help="The recipe whose images the file names.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what changes, and save nothing.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also replace edits of people that are newer than the rows.")
    ] = False,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out rows of images that the dataset does not have.")
    ] = False,
    author: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Author of rows that do not name one.", show_default="your user name"),
    ] = None,
    overrides: Overrides,
    home: Home = None,
) -> None:
    """Import captions from a table: image_path or image_sha256, and caption or attr_<slot>.

    All rows are checked first; if any of them cannot be imported, nothing is.

    Example: clip-scgi corrections import captions.csv --recipe demo --dry-run
    """
    from flows.cli.corrections.transfer import import_file

    import_file(
        file,
        recipe,
        overrides,
        home=home,
        author=author,
        dry_run=dry_run,
        force=force,
        skip_unknown=skip_unknown,
    )


@corrections.command("export", no_args_is_help=True)
def export(
    *,
    recipe: RecipeName,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="A .csv, .tsv or .parquet file to write.")
    ] = Path("corrections.csv"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    overrides: Overrides,
    home: Home = None,
) -> None:
    """Write the corrections of the images of a recipe to a table, to edit or to import elsewhere.

    Example: clip-scgi corrections export demo -o corrections.csv
    """
    from flows.cli.corrections.transfer import export_file

    export_file(recipe, overrides, output, home=home, overwrite=overwrite)


@corrections.command("info", no_args_is_help=True)
def info(*, recipe: RecipeName, overrides: Overrides, home: Home = None) -> None:
    """Print how many captions of a recipe are corrected, by whom, and whether training uses them.

    Example: clip-scgi corrections info demo
    """
    from flows.cli.corrections.listing import show_info

    show_info(recipe, overrides, home=home)


@corrections.command("log", no_args_is_help=True)
def log(
    *,
    recipe: RecipeName,
    image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Only of this image: its path in the dataset, or its sha256.")
    ] = None,
    last: Annotated[int, typer.Option("--last", "-n", min=1, help="Number of changes to print.")] = 20,
    overrides: Overrides,
    home: Home = None,
) -> None:
    """Print the last changes of captions of a recipe, oldest first.

    Example: clip-scgi corrections log demo -n 50
    """
    from flows.cli.corrections.listing import show_log

    show_log(recipe, overrides, image=image, last=last, home=home)
