"""Text to token ids. Both tokenizers put a start token first and an end token, the highest id, last."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

from tokenizers import Tokenizer

from data.errors import WeightsError

START: Final = "<|startoftext|>"
END: Final = "<|endoftext|>"


class TextTokenizer(Protocol):
    """What a backbone needs of its tokenizer."""

    start: int
    """Id of the start token."""
    end: int
    """Id of the end token (EOT); CLIP's text feature is read at its position."""

    def words(self, text: str) -> list[int]:
        """Return the ids of `text`, without start and end tokens."""


class BpeTokenizer:
    """The tiny CLIP's tokenizer: lower-case byte-level BPE, so that any text can be encoded."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self.start = self._id(path, START)
        self.end = self._id(path, END)

    def _id(self, path: Path, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise WeightsError(f"{path} knows no {token}: it is not the tiny CLIP's tokenizer")
        return found

    def words(self, text: str) -> list[int]:
        """Return the ids of `text`, without start and end tokens."""
        # Split special tokens' own text too, so that no caption can hold an end token before its end.
        return self._tokenizer.encode(text.replace("<|", "< |"), add_special_tokens=False).ids


def with_ends(tokenizer: TextTokenizer, words: list[int], context: int) -> list[int]:
    """Return start + words + end, words cut so that at most `context` ids remain and the end is kept."""
    return [tokenizer.start, *words[: context - 2], tokenizer.end]
