"""The command ``clip-scgi embed``: write the embeddings of a folder, a manifest or a recipe's images.

`flows.cli.commands` imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data.errors import counted
from flows.cli.options import Home, Overrides

if TYPE_CHECKING:
    from reid.embedding.embedder import Embedder
    from reid.embedding.files import Embedded


def embed(
    *,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder of images, a manifest file, or a recipe.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The Parquet file to write.")] = Path(
        "features.parquet"
    ),
    model: Annotated[
        str | None,
        typer.Option(
            metavar="ARTIFACT|RECIPE",
            help="The trained model: a fingerprint, the folder of a train artifact, or the recipe that trained it.",
            show_default="the model of the recipe SOURCE",
        ),
    ] = None,
    mode: Annotated[
        str | None, typer.Option(metavar="MODE", help="image, fused, or joint.", show_default="image")
    ] = None,
    overrides: Overrides,
    home: Home = None,
) -> None:
    """Write one row per image with its embedding: path, sha256, labels if known, a unit vector.

    A rerun, also after Ctrl-C, embeds only new images. Embeddings of the mode joint are comparable with sentences.

    Examples:
    clip-scgi embed /data/photos --model demo -o features.parquet
    clip-scgi embed demo --mode joint
    """
    run(source, overrides, out=out, model=model, mode=mode, home=home)


def run(
    source: str, overrides: Sequence[str], *, out: Path, model: str | None, mode: str | None, home: Path | None
) -> None:
    """Write the embeddings of the images of `source` to `out`, and print what was done.

    Raises:
        ConfigError: `source` or `model` does not exist or is ambiguous, or the model and the images do not fit.
        DataError: the images as a whole, or `out`, are unusable.
    """
    from flows.cli.inputs import artifact_store
    from flows.cli.retrieval.sources import images_of, own_model, source_of, surveyed
    from flows.execution.gpu import uses_gpu
    from flows.terminal import progress_bar

    wanted = source_of("embed", source, overrides)
    store = artifact_store(home)
    uses_gpu(wanted.recipe.evaluate.device, "evaluate.device")
    found = own_model("embed", wanted, overrides, store, home) if model is None else model
    from flows.workers.together import embed_together
    from reid.embedding.batches import embed_distinct
    from reid.embedding.embedder import Embedder
    from reid.embedding.files import embed_files

    config = wanted.recipe.evaluate
    embedder = Embedder.load(
        found, home=store.root, device=config.device, batch_size=config.batch_size, precision=config.precision
    )
    embedder.resolve_mode(mode)
    survey = surveyed(wanted.recipe, store)
    images, root, rejected = images_of(survey), survey.root, survey.rejected
    del survey  # sizes and times of files are not needed any more
    scale = wanted.recipe.scale
    with progress_bar("embed") as progress:
        shared = embed_together(store, scale, config.device, progress) if scale.shares(scale.embed_workers) else None
        done = embed_files(
            embedder,
            images,
            root=root,
            out=out,
            mode=mode,
            rejected=rejected,
            progress=progress,
            embed=shared or embed_distinct,
        )
    _show(out, done, embedder, embedder.resolve_mode(mode))


def _show(out: Path, done: Embedded, embedder: Embedder, mode: str) -> None:
    from flows.terminal import notice_line, plain_console
    from reid.embedding.files import rejected_file

    console = plain_console()
    if done.replaced:
        notice = f"{out} had embeddings of another model, mode or precision, which are replaced"
        console.print(notice_line(notice), soft_wrap=True)
    if done.unusable:
        notice = (
            f"{counted(done.unusable, 'row')} of {out} had an embedding of another model than the file says, or one "
            "that is not of length one; images of SOURCE among them were embedded again"
        )
        console.print(notice_line(notice), soft_wrap=True)
    console.print(
        f"{out}: {counted(done.images, 'image')}, mode {mode}, {embedder.width(mode):,} values each; "
        f"{done.computed:,} embedded now; model train/{embedder.fingerprint}",
        highlight=False,
        soft_wrap=True,
    )
    if done.rejected:
        console.print(
            f"{counted(len(done.rejected), 'file')} rejected; {rejected_file(out)} says why",
            highlight=False,
            soft_wrap=True,
        )
