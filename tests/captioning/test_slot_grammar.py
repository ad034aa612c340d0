"""The grammar of slot filling, without a model: all captions of a small pattern, and the values left at each node."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from captioning.engines.slots.decoding import Filling, _plan_chunks, choose
from captioning.engines.slots.grammar import Grammar, Node, Option, State
from captioning.engines.slots.row_cache import RowCache
from captioning.prompts.pattern import PAPER_PATTERN, PORT_PATTERN, Clause, Sentence, compose
from data.errors import ConfigError
from data.slots import NONE, VOCABULARY

SMALL = (
    Sentence(introduces=True, clauses=(Clause(phrase="shoes", first=" is wearing ", later=" and "),)),
    Sentence(
        clauses=(
            Clause(phrase="carrying", first=" is carrying ", later=" and carrying "),
            Clause(phrase="glasses", first=" wears ", later=" and wears "),
        )
    ),
    Sentence(clauses=(Clause(phrase="hair", first=" has ", later=" and "),)),
)
SLOTS_OF_SMALL = ("age", "gender", "shoes", "carrying", "glasses", "hair")
END = 10_000


class Words:
    """A tokenizer of whole words with their leading space, numbered in order of appearance."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def __call__(self, text: str) -> list[int]:
        return [self.ids.setdefault(word, 100 + len(self.ids)) for word in re.findall(r" ?[^ .]+|\.", text)]

    def text(self, tokens) -> str:
        names = {number: word for word, number in self.ids.items()}
        return "".join(names[token] for token in tokens)


@pytest.fixture(scope="module")
def words():
    return Words()


@pytest.fixture(scope="module")
def small(words):
    return Grammar(SMALL, words, END)


def paths(node: Node, tokens: tuple[int, ...] = ()):
    """Every (tokens, option) below a node of a trie."""
    if node.option is not None:
        yield tokens, node.option
    for token, child in node.children.items():
        yield from paths(child, (*tokens, token))


def states(grammar: Grammar) -> list[State]:
    """Every reachable state."""
    found, todo = [], [State()]
    while todo:
        state = todo.pop()
        if state not in found:
            found.append(state)
            todo += [option.after for _, option in paths(grammar.decision(state)) if option.after is not None]
    return found


def captions(grammar: Grammar, state: State | None = State()):  # noqa: B008 - frozen
    """Every (tokens, slots) that can be written from `state`."""
    if state is None:
        yield (), {}
        return
    for tokens, option in paths(grammar.decision(state)):
        for rest, values in captions(grammar, option.after):
            assert not option.values.keys() & values.keys(), "a slot is settled twice"
            yield tokens + rest, option.values | values


@pytest.fixture(scope="module")
def legal(small):
    return dict(captions(small))


def test_the_legal_captions_are_those_of_compose(small, legal, words):
    options = [[*(value for value in VOCABULARY[slot] if value != NONE), None] for slot in SLOTS_OF_SMALL]
    expected = {}
    for chosen in itertools.product(*options):
        values = dict(zip(SLOTS_OF_SMALL, chosen, strict=True))
        expected[" " + compose(values, SMALL)] = values
    assert {words.text(tokens[:-1]): values for tokens, values in legal.items()} == expected
    assert {tokens[-1] for tokens in legal} == {END}
    assert len(legal) == len(expected)


def test_the_longest_caption_and_its_tokens(small, legal):
    assert small.longest == max(len(tokens) for tokens in legal)
    assert small.tokens.tolist() == sorted({token for tokens in legal for token in tokens})
    assert small.tokens.dtype == np.int64


def places(grammar: Grammar):
    """Every (node, remaining tokens, option) group of every trie."""
    for state in states(grammar):
        todo = [grammar.decision(state)]
        while todo:
            node = todo.pop()
            yield node, list(paths(node))
            todo += node.children.values()


@pytest.mark.parametrize("pattern", [SMALL, PAPER_PATTERN, PORT_PATTERN], ids=["small", "paper", "port"])
def test_possible_values_and_guess_of_each_node(pattern):
    grammar = Grammar(pattern, Words(), END)
    everything = {slot: {*VOCABULARY[slot], None} - {NONE} for slot in VOCABULARY}
    guessed = 0
    for node, below in places(grammar):
        assert node.legal.tolist() == sorted(node.children)
        assert node.legal.dtype == np.int64
        assert grammar.tokens[node.columns].tolist() == node.legal.tolist()
        assert node.size == len(below)
        settled = {slot for _, option in below for slot in option.values}
        assert set(node.possible) == settled
        for slot in settled:
            values = [option.values.get(slot, "open") for _, option in below]
            assert node.possible[slot] == (everything[slot] if "open" in values else set(values))
        assert node.narrowed == {
            token: tuple(slot for slot in child.possible if child.possible[slot] != node.possible[slot])
            for token, child in node.children.items()
        }
        counts = Counter(tokens[0] for tokens, _ in below if tokens)
        most = max(counts.values(), default=0)
        expected = min((token for token, count in counts.items() if count == most), default=None)
        assert node.guess == (expected if most and 2 * most >= len(below) else None)
        guessed += node.guess is not None
    assert guessed > 10


def test_a_caption_computed_by_hand(words):
    small = Grammar(SMALL, words, END)
    start = small.decision(State())
    chosen = next(option for _, option in paths(start) if option.text == " An elderly woman")
    assert chosen.values == {"age": "elderly", "gender": "female"}
    assert chosen.after == State(sentence=0, clause=0, started=False, gender="female")
    after = {option.text: option for _, option in paths(small.decision(chosen.after))}
    assert after["."] == Option(
        text=".", values={"shoes": None}, after=State(sentence=1, clause=0, started=False, gender="female")
    )
    assert after[" is wearing sandals"].after == State(sentence=0, clause=1, started=True, gender="female")
    later = {option.text: option for _, option in paths(small.decision(State(sentence=1, gender="female")))}
    assert later[""] == Option(text="", values={"carrying": None, "glasses": None, "hair": None}, after=None)
    bald = later[" The woman has a bald head"]
    assert bald.values == {"carrying": None, "glasses": None, "hair": "bald"}
    assert bald.after == State(sentence=2, clause=1, started=True, gender="female")
    second = {
        option.text: option for _, option in paths(small.decision(later[" The woman is carrying a backpack"].after))
    }
    assert set(second) == {".", " and wears glasses"} | {f" and wears {v}" for v in VOCABULARY["glasses"] if v != NONE}
    assert second["."].values == {"glasses": None}
    assert second["."].after == State(sentence=2, gender="female")


def test_a_decision_is_built_once(small):
    assert small.decision(State()) is small.decision(State())


def test_the_fixed_word_before_an_option_is_not_written(small, words):
    assert words("person")[0] not in small.tokens


def test_a_tokenizer_that_joins_words_is_refused():
    joined = Grammar(SMALL, lambda text: [len(text)], END)
    with pytest.raises(ConfigError) as error:
        joined.decision(State())
    assert str(error.value) == (
        "caption.decoding=slots: this model's tokenizer joins ' A young woman' with the word before it, so slots "
        "cannot be filled one by one; set caption.decoding=free"
    )


def test_tokens_without_a_choice_and_guesses_are_fed_in_one_chunk(words):
    """After the only clause of the first sentence: its full stop, then the subject of the next sentence."""
    grammar = Grammar(SMALL, words, END)
    state = State(sentence=0, clause=1, started=True, gender="male")
    filling = Filling(node=grammar.decision(state))
    filling.plan(77, grammar)
    assert filling.chunk[0] == 77
    assert words.text(filling.chunk[1:]) == ". The man"
    last = State(sentence=2, clause=1, started=True)
    filling = Filling(node=grammar.decision(last))
    filling.plan(78, grammar)
    assert filling.chunk == [78, *words(".")]  # the end is never fed


@pytest.mark.parametrize(("fixed", "widths"), [(False, [1, 2, 3, 4]), (True, [1, 2, 4, 4])])
def test_chunks_are_padded_to_the_longest_or_to_a_power_of_two(words, fixed, widths):
    class Row:
        tokens = (9,)

        def __init__(self, length: int, *, done: bool = False) -> None:
            self.length, self.done, self.chunk = length, done, [5, 5]

        def plan(self, last, grammar):
            assert grammar is words
            self.chunk = [last] * self.length

    for length, width in enumerate(widths, start=1):
        chunk = _plan_chunks([Row(1), Row(length), Row(3, done=True)], words, fixed=fixed)
        assert chunk.tolist() == [[9] + [0] * (width - 1), [9] * length + [0] * (width - length), [0] * width]
        assert chunk.dtype == np.int64


def test_the_choice_is_the_likeliest_legal_token_and_for_ties_the_smallest():
    logits = np.array([9.0, 1.0, 2.0, 2.0], np.float32)
    one = Node(legal=np.array([40]), columns=np.array([1]))
    assert choose(one, logits) == (40, 0.0)
    three = Node(legal=np.array([40, 50, 60]), columns=np.array([1, 2, 3]))
    token, log_probability = choose(three, logits)
    assert token == 50
    assert log_probability == pytest.approx(2 - np.log(np.exp(1) + 2 * np.exp(2)), rel=1e-12)


def test_where_the_cache_writes_and_what_each_token_attends_to():
    cache = RowCache(SimpleNamespace(num_hidden_layers=2), room=6)
    places = torch.tensor([[0, 2], [5, 7]])
    for used, seen in ((None, 6), (3, 3), (99, 6)):
        mask = cache.aim(places, torch.float16, used)
        assert (mask.shape, mask.dtype) == ((2, 1, 2, seen), torch.float16)
        expected = [[[0 if column <= place else -65504 for column in range(seen)] for place in row] for row in places]
        assert mask[:, 0].tolist() == expected
        assert cache._target.columns.tolist() == [[0, 2], [5, 5]]
        assert cache._target.used == seen


def test_chunks_overwrite_wrong_guesses_row_by_row():
    cache = RowCache(SimpleNamespace(num_hidden_layers=1), room=6)
    prompt = torch.arange(2 * 3 * 2.0).reshape(2, 1, 3, 2) + 1
    assert cache.update(prompt, -prompt, 0)[0] is prompt
    assert cache.layers[0].is_initialized is True
    assert cache.get_seq_length() == 0
    cache.aim(torch.tensor([[3, 4], [2, 3]]), torch.float32, 5)
    chunk = torch.full((2, 1, 2, 2), 100.0) + torch.arange(2)[None, None, :, None]
    keys, values = cache.update(chunk, -chunk, 0)
    assert keys[0, 0, :, 0].tolist() == [1, 3, 5, 100, 101]
    assert keys[1, 0, :, 0].tolist() == [7, 9, 100, 101, 0]
    assert values.tolist() == (-keys).tolist()
