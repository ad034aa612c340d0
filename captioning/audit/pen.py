"""Text on pictures: wrapped lines of words, each character in the first font that has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from functools import cache, lru_cache
from itertools import groupby
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from data.errors import counted

Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SIZE: Final = 12
_WORD_GAP: Final = 5  # pixels; the font's own space rounds to 2 or 3 at this size, as wide as the gap between letters
_NOWHERE: Final = "\U0010ffff"
"""A code point that never is a character: every font draws its sign for a missing one."""


class Pen:
    """Writes lines of words on an image, with a visible gap between words.

    fonts: a character is drawn with the first of them that has it, or else with the first one; by default, Pillow's
    built-in font. gap: pixels between words. missing: the characters written so far that no font has.
    """

    def __init__(self, image: Image.Image, fonts: Sequence[Font] = (), *, gap: int = _WORD_GAP) -> None:
        self._draw = ImageDraw.Draw(image)
        self._fonts = tuple(fonts) or (_built_in(),)
        self._gap = gap
        self.missing: set[str] = set()

    def length(self, words: Sequence[str]) -> float:
        """Return the width of one line of `words` in pixels."""
        return sum(map(self._width, words)) + self._gap * max(len(words) - 1, 0)

    def write(self, left: float, top: float, words: Sequence[str], ink: Color) -> None:
        """Write one line of `words` with its upper left corner at (`left`, `top`)."""
        for word in words:
            for font, text in self._runs(word):
                self._draw.text((left, top), text, fill=ink, font=font)
                left += self._draw.textlength(text, font=font)
            left += self._gap

    def wrapped(self, words: Sequence[str], width: float) -> Iterator[list[str]]:
        """Yield lines of `words` that are at most `width` pixels wide; a wider word continues on the next line."""
        line: list[str] = []
        for word in words:
            for piece in self._pieces(word, width):
                if line and self.length([*line, piece]) > width:
                    yield line
                    line = []
                line.append(piece)
        if line:
            yield line

    def _pieces(self, word: str, width: float) -> Iterator[str]:
        """Yield `word` in pieces that are at most `width` pixels wide but have at least one character."""
        while len(word) > 1 and self._width(word) > width:
            size = next((n for n in range(len(word) - 1, 1, -1) if self._width(word[:n]) <= width), 1)
            yield word[:size]
            word = word[size:]
        yield word

    def _width(self, word: str) -> float:
        return sum(self._draw.textlength(text, font=font) for font, text in self._runs(word))

    def _runs(self, word: str) -> Iterator[tuple[Font, str]]:
        """Yield the parts of a word that one font draws."""
        for font, characters in groupby(word, key=self._font_of):
            yield font, "".join(characters)

    def _font_of(self, character: str) -> Font:
        for font in self._fonts:
            if has_glyph(font, character):
                return font
        self.missing.add(character)
        return self._fonts[0]


def missing_notice(missing: Set[str], picture: str) -> str:
    """Return a sentence for the user about the characters of a picture that no font has, at least one."""
    characters, some = counted(len(missing), "character is", "characters are"), " ".join(sorted(missing)[:5])
    return f"{picture}: {characters} in no installed font that this command knows ({some})"


@cache
def _built_in() -> Font:
    return ImageFont.load_default(_SIZE)


@lru_cache(maxsize=65536)
def has_glyph(font: Font, character: str) -> bool:
    """Return True if `font` draws `character` by a glyph of its own."""
    if character.isspace():
        return True
    own, none = font.getmask(character), font.getmask(_NOWHERE)
    return own.size != none.size or bytes(own) != bytes(none)
