"""The command ``clip-scgi compare``: paired differences of finished evaluations.

`flows.cli.commands` imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.options import DifferentGalleries, Home, MovedImages, RunModels, RunModes

if TYPE_CHECKING:
    from flows.comparison.compare import Comparison


def compare(
    *,
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Evaluations: a fingerprint, a folder, or a recipe for its newest one. The first is the baseline.",
        ),
    ],
    model: RunModels,
    mode: RunModes,
    resample: Annotated[
        Literal["identities", "queries"],
        typer.Option(help="What the bootstrap draws. The queries of one identity are correlated."),
    ] = "identities",
    top: Annotated[int, typer.Option(min=0, help="Queries listed as most won, and as most lost.")] = 5,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write an .html page with the images of these queries.")
    ] = None,
    images: MovedImages = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, with all queries.")] = False,
    different_galleries: DifferentGalleries = False,
    home: Home = None,
) -> None:
    """Compare evaluations query by query: differences with intervals, queries won and lost.

    Examples:
    clip-scgi compare demo 3fa1
    clip-scgi compare demo demo --mode image --mode fused --page compare.html
    """
    from flows.cli.inputs import artifact_store
    from flows.comparison.compare import compare as compare_runs
    from flows.comparison.runs import find_run
    from flows.preflight.disk import check_output

    if page is not None:
        check_output(page, "--page", suffixes=(".html",))
    store = artifact_store(home)
    found = compare_runs(
        [find_run(name, store) for name in runs],
        store,
        models=model,
        modes=mode,
        unit=resample,
        different_galleries=different_galleries,
    )
    _show(found, top, as_json=as_json)
    if page is not None:
        from flows.comparison.page import write_page
        from flows.terminal import plain_console

        write_page(page, found, store, top=top, images=images)
        plain_console(stderr=as_json).print(f"page      {page.resolve()}", highlight=False, soft_wrap=True)


def _show(comparison: Comparison, top: int, *, as_json: bool) -> None:
    from flows.comparison.text import lines, to_json
    from flows.terminal import plain_console

    if as_json:
        typer.echo(json.dumps(to_json(comparison), indent=1, ensure_ascii=False))
        return
    console = plain_console()
    for line in lines(comparison, top=top):
        console.print(line, highlight=False)
