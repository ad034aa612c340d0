"""The page of ``clip-scgi gallery search --page``: the hits with thumbnails, in one file that loads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from data.artifacts.fingerprint import digest_file
from data.errors import ConfigError
from data.files import write_text
from data.images.thumbnails import Thumbnail, Thumbnails
from data.people import IdentityName
from flows.report.page import page_environment
from reid.gallery.entry import Entry
from reid.gallery.gallery import Found, Hit

_HEIGHT: Final = 224
_TEMPLATE: Final = "gallery.html.j2"
_SUFFIXES: Final = (".html", ".htm")


class Fact(NamedTuple):
    """An attribute of a hit. confidence: the probability of its value, or None."""

    name: str
    value: str
    confidence: float | None


@dataclass(frozen=True, kw_only=True)
class Card:
    """One hit. label: cut to fit; full_label: whole."""

    hit: Hit
    image: Thumbnail
    label: str
    full_label: str
    facts: list[Fact]


def check_page(out: Path) -> None:
    """Raise ConfigError if `out` is a folder or does not end in .html, so that nothing else is overwritten."""
    if out.is_dir():
        raise ConfigError(f"gallery search: --page: {out} is a folder; give a file, such as {out / 'hits.html'}")
    if out.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"gallery search: --page: {out} does not end in .html; give a file such as hits.html")


def write_page(out: Path, found: Found, *, query: str | Path, where: str | None, gallery: Path) -> None:
    """Write the page to `out`. An image that is missing or changed since it was added is a gray field."""
    digests = {_relative(hit.entry.path): hit.entry.sha256 for hit in found.hits}
    thumbnail = Thumbnails(Path("/"), digests, _HEIGHT)
    page = (
        page_environment()
        .get_template(_TEMPLATE)
        .render(
            query=str(query),
            query_image=_query_image(query),
            where=where,
            gallery=str(gallery),
            found=found,
            cards=[_card(hit, thumbnail(_relative(hit.entry.path))) for hit in found.hits],
        )
    )
    write_text(out, page)


def _relative(path: str) -> str:
    return path.lstrip("/")


def _query_image(query: str | Path) -> Thumbnail | None:
    if isinstance(query, str):
        return None
    path = _relative(str(query.absolute()))
    return Thumbnails(Path("/"), {path: digest_file(query)}, _HEIGHT)(path)


def _card(hit: Hit, image: Thumbnail) -> Card:
    name = IdentityName(0, hit.entry.label or "")
    return Card(hit=hit, image=image, label=name.short, full_label=name.full, facts=_facts(hit.entry))


def _facts(entry: Entry) -> list[Fact]:
    return [
        Fact(slot.replace("_", " "), value, entry.confidences.get(slot)) for slot, value in entry.attributes.items()
    ]
