"""Actions of ``clip-scgi corrections info`` and ``log``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from captioning.corrections.edits import Kind
from captioning.corrections.record import Correction, Provenance
from data.errors import ConfigError
from flows.cli.corrections.transfer import Scope, cut, open_scope, said
from flows.terminal import plain_console


def show_info(name: str, overrides: Sequence[str], *, home: Path | None) -> None:
    """Print how many captions are corrected, by whom, and whether the recipe uses them."""
    scope = open_scope(name, overrides, home)
    found = _tally(scope)
    lines = {
        "template": scope.kept.template.id,
        "images": f"{len(scope.images):,}, {len(scope.images.captions):,} with a caption by the model",
        "corrected": f"{found.kinds.total():,}{_listed(found.kinds)}",
        "source": f"{found.sources['human']:,} human, {found.sources['import']:,} import",
        "authors": ", ".join(f"{author} {count:,}" for author, count in found.authors.most_common()) or "none",
        "stale": f"{found.stale:,} made against another text of the model",
        "use": _use(scope),
        "history": str(scope.kept.file),
    }
    for key, value in lines.items():
        plain_console().print(Text(f"{key:<10}{value}"), soft_wrap=True)


@dataclass(kw_only=True)
class _Tally:
    """Numbers of corrections. stale: made against another text, of the images that have a caption by the model."""

    kinds: Counter[Kind] = field(default_factory=Counter)
    authors: Counter[str] = field(default_factory=Counter)
    sources: Counter[Provenance] = field(default_factory=Counter)
    stale: int = 0


def _tally(scope: Scope) -> _Tally:
    """Count the corrections of the images of the dataset, one by one."""
    found, captions = _Tally(), scope.images.captions
    for entry in scope.current().without_resets().entries():
        found.kinds[entry.kind] += 1
        found.authors[entry.author] += 1
        found.sources[entry.provenance] += 1
        against = captions.get(entry.sha256)
        found.stale += against is not None and entry.is_stale(against.text)
    return found


def _listed(kinds: Counter[Kind]) -> str:
    return f" ({', '.join(f'{count:,} {kind}' for kind, count in sorted(kinds.items()))})" if kinds else ""


def _use(scope: Scope) -> str:
    if scope.recipe.caption.corrections == "use":
        return "caption.corrections=use: audit and training read them"
    return "caption.corrections=ignore: audit and training read the model's captions"


def show_log(name: str, overrides: Sequence[str], *, image: str | None, last: int, home: Path | None) -> None:
    """Print the last changes of the images of a recipe, oldest first."""
    scope = open_scope(name, overrides, home)
    count = 0

    def history() -> Iterator[Correction]:
        nonlocal count
        kept = scope.kept
        found = kept.everything(scope.images.paths.digests) if image is None else kept.history(_sha256(image, scope))
        for entry in found:
            count += 1
            yield entry

    entries = nlargest(last, history(), key=lambda entry: (entry.time, entry.sha256, entry.revision))[::-1]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("time (UTC)", "author", "image", "rev.", "kind", "caption"):
        table.add_column(column, justify="right" if column == "rev." else "left", overflow="fold")
    for entry in entries:
        table.add_row(*map(Text, _cells(entry, scope.images.path_of(entry.sha256) or "")))
    console = plain_console()
    console.print(table)
    console.print(f"{len(entries):,} of {count:,} changes", highlight=False)


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
