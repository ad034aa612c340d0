"""The command ``clip-scgi export``: a trained model as ONNX and open_clip files with a model card.

`flows.cli.commands` imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import Home

if TYPE_CHECKING:
    from reid.export.export import Exported


class ExportFormat(StrEnum):
    """The formats of an export (`reid.export.export.Format`)."""

    ONNX = "onnx"
    OPEN_CLIP = "open_clip"
    ALL = "all"


class ExportMode(StrEnum):
    """The modes of an ONNX encoder (`reid.embedding.embedder.Embedder.modes`)."""

    IMAGE = "image"
    FUSED = "fused"
    JOINT = "joint"


def export(
    *,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="The trained model: a fingerprint, the folder of a train artifact, or the recipe that trained it.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The folder to write.")],
    format_: Annotated[ExportFormat, typer.Option("--format", help="Which files to write.")] = ExportFormat.ALL,
    modes: Annotated[
        list[ExportMode],
        typer.Option(
            "--mode",
            default_factory=list,
            show_default="image and, if the model has it, fused",
            help="Mode of an ONNX encoder; joint also writes the encoder of sentences. Repeatable.",
        ),
    ],
    home: Home = None,
) -> None:
    """Write a trained model for other programs, with its preprocessing and a model card.

    Each encoder is compared with the model first; a folder that exists is complete and checked.

    Examples:
    clip-scgi export demo -o exported
    clip-scgi export demo -o exported --format onnx --mode joint
    """
    from flows.cli.inputs import artifact_store
    from flows.terminal import plain_console
    from reid.embedding.embedder import Embedder
    from reid.export.export import export_model

    store = artifact_store(home)
    embedder = Embedder.load(model, home=store.root, device="cpu")
    console = plain_console(stderr=True)
    done = export_model(
        embedder,
        store,
        out,
        format=format_.value,
        modes=[mode.value for mode in modes],
        report=lambda name: console.print(f"writing {name}", highlight=False),
    )
    _show(out, done, embedder.fingerprint)


def _show(out: Path, done: Exported, fingerprint: str) -> None:
    from flows.terminal import notice_line, plain_console, size
    from reid.export.open_clip_files import CLIP_FILE

    lines = [
        f"{file.name}: {file.width:,} values, {size(file.size)}; largest difference to torch {file.difference:.1e}"
        for file in done.onnx
    ]
    if done.open_clip is not None:
        lines.append(f"{CLIP_FILE}: largest difference in open_clip {done.open_clip.difference:.1e}")
    console = plain_console()
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    for note in done.notes:
        console.print(notice_line(note), soft_wrap=True)
    console.print(f"{out}: {size(done.n_bytes)}, model train/{fingerprint}", highlight=False, soft_wrap=True)
