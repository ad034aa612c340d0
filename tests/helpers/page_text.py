"""Text of a report page, one line per block, without charts, styles, pixels and the settings in JSON."""

from __future__ import annotations

from html.parser import HTMLParser

INLINE = {"a", "b", "code", "i", "small", "span"}
CELLS = {"td", "th"}
SKIPPED = {"svg", "style", "pre"}


class PageText(HTMLParser):
    """Collects the lines of a page; an image becomes its two texts in brackets."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._words: list[str] = []
        self._skipped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in SKIPPED:
            self._skipped += 1
        elif tag == "img":
            texts = dict(attrs)
            self._words.append(f"[{texts.get('alt')} | {texts.get('title')}]")
        elif tag not in INLINE | CELLS:
            self.end_line()

    def handle_endtag(self, tag: str) -> None:
        if tag in SKIPPED:
            self._skipped -= 1
        elif tag in CELLS:
            self._words.append("|")
        elif tag not in INLINE:
            self.end_line()

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self._words.extend(data.split())

    def end_line(self) -> None:
        if self._words:
            self.lines.append(" ".join(self._words).removesuffix(" |"))
        self._words = []


def page_lines(html: str) -> list[str]:
    """Return the lines of text of a page."""
    reader = PageText()
    reader.feed(html)
    reader.close()
    reader.end_line()
    return reader.lines
