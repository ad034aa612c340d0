"""Actions of ``clip-scgi paper top10`` and ``clip-scgi paper captions``, which only read finished artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from captioning.audit.contact_sheet import SheetConfig
from data.config import build_config
from flows.cli.inputs import artifact_store
from flows.comparison.compare import compare
from flows.comparison.runs import find_run
from flows.naming import folder_named
from flows.paper import caption_figure
from flows.paper.captions import CAPTIONS, COMMAND, gallery
from flows.paper.top10 import Top10Config, figure, write_figure
from flows.preflight.disk import check_output
from flows.terminal import notice_line, plain_console


def make_top10(
    names: tuple[str, str],
    *,
    home: Path | None,
    out: Path,
    models: Sequence[str],
    modes: Sequence[str],
    choice: Mapping[str, int],
    images: Path | None,
    different_galleries: bool,
) -> None:
    """Write the figure of two evaluations to `out`. choice: the fields of `Top10Config`."""
    config = build_config(Top10Config, dict(choice), "paper top10")
    check_output(out, "--out")
    store = artifact_store(home)
    runs = [find_run(name, store) for name in names]
    comparison = compare(runs, store, models=models, modes=modes, different_galleries=different_galleries)
    _announce(*write_figure(out, figure(comparison, store, config, images)))


def make_captions(name: str, *, home: Path | None, out: Path, choice: Mapping[str, int], images: Path | None) -> None:
    """Write the gallery of the captions that `name` names to `out`. choice: fields of `SheetConfig`."""
    config = build_config(SheetConfig, dict(choice), COMMAND)
    check_output(out, "--out")
    store = artifact_store(home)
    _announce(*caption_figure.write_figure(out, gallery(folder_named(name, store, CAPTIONS), store, config, images)))


def _announce(written: Sequence[Path], notices: Sequence[str]) -> None:
    for notice in notices:
        plain_console(stderr=True).print(notice_line(notice), soft_wrap=True)
    for path in written:
        kind = "page" if path.suffix == ".html" else "picture"
        plain_console().print(f"{kind:<9} {path.resolve()}", highlight=False, soft_wrap=True)
