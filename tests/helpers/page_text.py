"""Pages as a browser reads them: their elements, and their text without charts, styles, pixels and settings."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = "<script>alert(1)</script> \"><img src=x onerror=alert(2)> '); </style></svg>{{ 7 * 7 }} &amp;"
"""A name that is dangerous where it is not escaped."""
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


class Page(HTMLParser):
    """The page as a browser's parser sees it: elements with their attributes, and the text outside style."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def classed(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.elements if name in (attrs.get("class") or "").split()]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())
