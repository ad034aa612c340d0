"""Actions of ``clip-scgi corrections info`` and ``log``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from captioning.corrections.record import Correction
from data.errors import ConfigError
from flows.cli.corrections.transfer import Scope, cut, open_scope, said
from flows.terminal import plain_console


def show_info(name: str, overrides: Sequence[str], *, home: Path | None) -> None:
    """Print how many captions are corrected, by whom, and whether the recipe uses them."""
    scope = open_scope(name, overrides, home)
    corrected = [entry for entry in scope.current().values() if entry.kind != "reset"]
    kinds: Counter[str] = Counter(entry.kind for entry in corrected)
    authors = Counter(entry.author for entry in corrected)
    sources = Counter(entry.provenance for entry in corrected)
    lines = {
        "template": scope.kept.template.id,
        "images": f"{len(scope.images):,}, {len(scope.images.captions):,} with a caption by the model",
        "corrected": f"{len(corrected):,}{_listed(kinds)}",
        "source": f"{sources['human']:,} human, {sources['import']:,} import",
        "authors": ", ".join(f"{author} {count:,}" for author, count in authors.most_common()) or "none",
        "stale": f"{_stale(scope, corrected):,} made against another text of the model",
        "use": _use(scope),
        "history": str(scope.kept.file),
    }
    for key, value in lines.items():
        plain_console().print(Text(f"{key:<10}{value}"), soft_wrap=True)


def _listed(kinds: Counter[str]) -> str:
    return f" ({', '.join(f'{count:,} {kind}' for kind, count in sorted(kinds.items()))})" if kinds else ""


def _stale(scope: Scope, corrected: Sequence[Correction]) -> int:
    """Return how many corrections were made against another text, of the images that have a caption by the model."""
    captions = scope.images.captions
    return sum(entry.is_stale(captions[entry.sha256].text) for entry in corrected if entry.sha256 in captions)


def _use(scope: Scope) -> str:
    if scope.recipe.caption.corrections == "use":
        return "caption.corrections=use: audit and training read them"
    return "caption.corrections=ignore: audit and training read the model's captions"


def show_log(name: str, overrides: Sequence[str], *, image: str | None, last: int, home: Path | None) -> None:
    """Print the last changes of the images of a recipe, oldest first."""
    scope = open_scope(name, overrides, home)
    everything = scope.kept.everything()
    named = {entry.sha256: entry for entry in everything}
    shas = {_sha256(image, scope)} if image is not None else set(scope.images.among(named))
    entries = [entry for entry in everything if entry.sha256 in shas]
    entries.sort(key=lambda entry: (entry.time, entry.sha256, entry.revision))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("time (UTC)", "author", "image", "rev.", "kind", "caption"):
        table.add_column(column, justify="right" if column == "rev." else "left", overflow="fold")
    for entry in entries[-last:]:
        table.add_row(*map(Text, _cells(entry, scope.images.path_of(entry.sha256) or "")))
    console = plain_console()
    console.print(table)
    console.print(f"{min(last, len(entries)):,} of {len(entries):,} changes", highlight=False)


def _cells(entry: Correction, path: str) -> tuple[str, ...]:
    kind = entry.kind if entry.applied else f"{entry.kind}, not applied: revision {entry.seen} was not current"
    return f"{entry.time:%Y-%m-%d %H:%M:%S}", entry.author, path, str(entry.revision), kind, cut(said(entry))


def _sha256(image: str, scope: Scope) -> str:
    """Return the digest of an image of the dataset, named by its path or its digest."""
    found = scope.images.paths.get(image, image.lower())
    if scope.images.path_of(found) is None:
        raise ConfigError(
            f"--image {image}: the dataset has no such image; give a path such as {next(iter(scope.images.paths))}"
        )
    return found
