"""The grammar of slot-filling decoding: the texts that a template's pattern allows, as tokens.

A caption is a chain of *decisions*. Each decision chooses one *option*: the fixed words and the phrase up to the next
decision, or the end. The options are token sequences in a trie, so the model chooses only between tokens that lead to a
legal caption, and tokens without a choice are given. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from captioning.prompts.pattern import END, PERSON, PHRASES, SPACE, Clause, Pattern, back_reference
from data.errors import ConfigError

Slots = Mapping[str, str | None]
Encode = Callable[[str], list[int]]

# The word before an option when it is tokenized: options begin with a space or a full stop, where tokenizers split.
_BEFORE: Final = "person"
# What is before a caption that begins without a space, because its prompt ends with a line break.
_LINE: Final = "\n"


@dataclass(frozen=True, kw_only=True)
class State:
    """The position of a decision in the caption.

    sentence, clause: the next ones allowed. started: whether the sentence has its subject and a clause. gender:
    determines the subject of later sentences.
    """

    sentence: int = -1
    clause: int = 0
    started: bool = False
    gender: str | None = None


@dataclass(frozen=True, kw_only=True)
class Option:
    """One choice of a decision: its text, the slots that it decides, and the state after it (None: the end)."""

    text: str
    values: dict[str, str | None]
    after: State | None


@dataclass(kw_only=True)
class Node:
    """A node in the trie of a decision.

    children: token -> node. option: set at the end of a sequence. possible: slot -> the values still possible below.
    guess: the next token of at least half of the options below, or None. legal: the allowed next tokens, ascending.
    columns: their indices in `Grammar.tokens`.
    """

    children: dict[int, Node] = field(default_factory=dict)
    option: Option | None = None
    possible: dict[str, frozenset[str | None]] = field(default_factory=dict)
    guess: int | None = None
    size: int = 0
    legal: NDArray[np.int64] = field(default_factory=lambda: _ids(()))
    columns: NDArray[np.int64] = field(default_factory=lambda: _ids(()))

    @cached_property
    def narrowed(self) -> dict[int, tuple[str, ...]]:
        """Token -> the slots that it leaves fewer possible values."""
        return {
            token: tuple(slot for slot, values in child.possible.items() if values != self.possible[slot])
            for token, child in self.children.items()
        }


class Grammar:
    """The decisions of one pattern in the tokens of one tokenizer.

    start: what is written between the prompt and the caption: a space, or nothing after a line break.
    """

    def __init__(self, pattern: Pattern, encode: Encode, end_token: int, start: str = SPACE) -> None:
        self.pattern = pattern
        self._encode = encode
        self._before = {text: encode(text) for text in (_BEFORE, _LINE)}
        self._start = start
        self._end_token = end_token
        self._tries: dict[State, Node] = {}
        phrases = [PERSON, *(PHRASES[clause.phrase] for sentence in pattern for clause in sentence.clauses)]
        pairs = [pair for phrase in phrases for choice in phrase.choices() for pair in choice.values]
        self._values = {slot: frozenset(v for name, v in pairs if name == slot) for slot, _ in pairs}

    def decision(self, state: State) -> Node:
        """Return the root of the trie of the decision at `state`."""
        if state not in self._tries:
            self._tries[state] = self._trie(list(self._options(state)))
        return self._tries[state]

    @cached_property
    def longest(self) -> int:
        """Number of tokens of the longest legal caption, including the end token."""
        longest: dict[State | None, int] = {None: 0}
        for state, steps in reversed(self._steps.items()):
            longest[state] = max(len(tokens) + longest[after] for tokens, after in steps)
        return longest[State()]

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """All tokens that a legal caption can contain, ascending."""
        return _ids({token for steps in self._steps.values() for tokens, _ in steps for token in tokens})

    @cached_property
    def _steps(self) -> dict[State, list[tuple[list[int], State | None]]]:
        """Every reachable state -> its options as (tokens, next state), in text order."""
        todo, found = {State()}, dict[State, list[tuple[list[int], State | None]]]()
        while todo:
            state = todo.pop()
            found[state] = [(self._tokens(option), option.after) for option in self._options(state)]
            todo |= {after for _, after in found[state] if after is not None and after not in found}
        return dict(sorted(found.items(), key=lambda item: (item[0].sentence, item[0].clause)))

    def _options(self, state: State) -> Iterator[Option]:
        if state.sentence < 0:
            yield from self._introductions()
        elif state.started or state.sentence == 0:  # the first sentence has its subject
            yield from self._within(state)
        else:
            yield from self._next_sentence(state)

    def _introductions(self) -> Iterator[Option]:
        for choice in PERSON.choices():
            values = dict(choice.values)
            after = State(sentence=0, gender=values["gender"])
            yield Option(text=self._start + choice.text, values=values, after=after)

    def _within(self, state: State) -> Iterator[Option]:
        """Yield the further clauses of the sentence, and its full stop."""
        clauses = self.pattern[state.sentence].clauses
        for i in range(state.clause, len(clauses)):
            words = clauses[i].later if state.started else clauses[i].first
            after = State(sentence=state.sentence, clause=i + 1, started=True, gender=state.gender)
            yield from _clause_options(clauses[i], words, _skipped(clauses[state.clause : i]), after)
        beyond = State(sentence=state.sentence + 1, gender=state.gender)
        yield Option(text=END, values=_skipped(clauses[state.clause :]), after=beyond)

    def _next_sentence(self, state: State) -> Iterator[Option]:
        """Yield the first clauses of all later sentences, with their subject, and the end of the caption."""
        subject = SPACE + back_reference({"gender": state.gender})
        passed: dict[str, str | None] = {}
        for k in range(state.sentence, len(self.pattern)):
            clauses = self.pattern[k].clauses
            for i, clause in enumerate(clauses):
                after = State(sentence=k, clause=i + 1, started=True, gender=state.gender)
                yield from _clause_options(clause, subject + clause.first, passed | _skipped(clauses[:i]), after)
            passed |= _skipped(clauses)
        yield Option(text="", values=passed, after=None)

    def _trie(self, options: Sequence[Option]) -> Node:
        root = Node()
        reached: list[tuple[Node, Option]] = []
        for option in options:
            node = root
            reached.append((node, option))
            for token in self._tokens(option):
                node = node.children.setdefault(token, Node())
                reached.append((node, option))
            node.option = option
        _summarize(reached, self._values)
        for node in {id(node): node for node, _ in reached}.values():
            node.legal = _ids(node.children)
            node.columns = np.searchsorted(self.tokens, node.legal)
        return root

    def _tokens(self, option: Option) -> list[int]:
        if option.after is None:
            return [self._end_token]
        before = _LINE if option.text[:1].isalpha() else _BEFORE
        skipped, ids = self._before[before], self._encode(before + option.text)
        if ids[: len(skipped)] != skipped:
            raise ConfigError(
                f"caption.decoding=slots: this model's tokenizer joins {option.text!r} with the word before it, so "
                "slots cannot be filled one by one; set caption.decoding=free"
            )
        return ids[len(skipped) :]


def _ids(tokens: Iterable[int]) -> NDArray[np.int64]:
    return np.array(sorted(tokens), dtype=np.int64)


def _clause_options(clause: Clause, words: str, passed: Slots, after: State) -> Iterator[Option]:
    for choice in PHRASES[clause.phrase].choices():
        if choice.text:
            yield Option(text=words + choice.text, values={**passed, **dict(choice.values)}, after=after)


def _skipped(clauses: Sequence[Clause]) -> dict[str, str | None]:
    return {slot: None for clause in clauses for slot in PHRASES[clause.phrase].slots}


def _summarize(reached: Sequence[tuple[Node, Option]], values: Mapping[str, frozenset[str | None]]) -> None:
    """Set `possible`, `size` and `guess` of every node from the options below it."""
    below: dict[int, tuple[Node, list[Option]]] = {}
    for node, option in reached:
        below.setdefault(id(node), (node, []))[1].append(option)
    for node, options in below.values():
        node.size = len(options)
        slots = {slot for option in options for slot in option.values}
        for slot in slots:
            # An option that does not decide a slot leaves all of its values possible.
            left_open = any(slot not in option.values for option in options)
            decided = frozenset(option.values.get(slot) for option in options)
            node.possible[slot] = values[slot] if left_open else decided
    for node, options in below.values():
        if node.children:
            token, child = max(node.children.items(), key=lambda item: (item[1].size, -item[0]))
            node.guess = token if 2 * child.size >= len(options) else None
