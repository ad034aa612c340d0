"""Tokenizers: text to token ids. Texts begin with a start token and end with an end token, the highest id."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

from tokenizers import Tokenizer

from data.errors import WeightsError

START: Final = "<|startoftext|>"
END: Final = "<|endoftext|>"


class TextTokenizer(Protocol):
    """The tokenizer interface of a backbone."""

    start: int
    """Id of the start token."""
    end: int
    """Id of the end token (EOT); CLIP's text feature is read at its position."""

    def words(self, text: str) -> list[int]:
        """Return the ids of `text`, without start and end tokens."""

    def portable(self) -> Tokenizer:
        """Return a tokenizer of the library `tokenizers` that gives the same words, for other programs."""


class BpeTokenizer:
    """Tokenizer of the tiny CLIP: lower-case byte-level BPE, so that any text can be encoded."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self.start = self._id(path, START)
        self.end = self._id(path, END)

    def _id(self, path: Path, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise WeightsError(
                f"{path} has no token {token}: it is not the tiny CLIP's tokenizer; install the package again"
            )
        return found

    def words(self, text: str) -> list[int]:
        """Return the ids of `text`, without start and end tokens."""
        # Split the text of special tokens too: a caption must not contain an end token before its end.
        return self._tokenizer.encode(text.replace("<|", "< |"), add_special_tokens=False).ids

    def portable(self) -> Tokenizer:
        """Return a copy of the tokenizer. Unlike `words`, it reads the text of a special token as that token."""
        return Tokenizer.from_str(self._tokenizer.to_str())


def with_ends(tokenizer: TextTokenizer, words: list[int], context: int) -> list[int]:
    """Return start + words + end; words are cut so that at most `context` ids remain."""
    return [tokenizer.start, *words[: context - 2], tokenizer.end]
