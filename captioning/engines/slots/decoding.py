"""Slot-filling decoding: greedy decoding within the template's grammar, with far fewer model passes than tokens.

Tokens without a choice are fed to the key-value cache in one chunk, for the whole batch at once. If most options
continue the same way (" and" rather than "."), that way is fed as a guess and compared with the model's choice in the
same pass; a wrong guess is overwritten. So only real choices, such as a color, cost a pass. The tokens equal those of
plain greedy decoding in which all tokens that lead to no legal caption are forbidden.

Shape legend: B batch, L prompt tokens, C tokens per chunk, D width, K tokens that any legal caption can contain.
"""

# ruff: noqa: N803, N806 - shape suffixes are upper case

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch

from captioning.engines.slots.grammar import Grammar, Node, State
from captioning.engines.slots.prompts import Prompts
from captioning.engines.slots.row_cache import RowCache

_PROMPT: Final = -1
"""Takes the place of the last chosen token in the first chunk, which follows the prompt."""


@dataclass(kw_only=True)
class Filling:
    """A caption in progress.

    tokens: chosen so far, including the end token once `done`. chunk: the tokens to feed next, the first one chosen and
    the others guessed. confidence: slot -> sum of the log-probabilities of the choices that narrowed it.
    """

    node: Node
    tokens: list[int] = field(default_factory=list)
    chunk: list[int] = field(default_factory=list)
    confidence: dict[str, float] = field(default_factory=dict)
    done: bool = False

    def take(self, token: int, log_probability: float, grammar: Grammar) -> None:
        """Append `token`, chosen with `log_probability` among the legal tokens."""
        for slot in self.node.narrowed[token]:
            self.confidence[slot] = self.confidence.get(slot, 0.0) + log_probability
        self.node = self.node.children[token]
        self.tokens.append(token)
        option = self.node.option
        if option is None:
            return
        if option.after is None:
            self.done = True
            return
        self.node = grammar.decision(option.after)

    def plan(self, last: int, grammar: Grammar) -> None:
        """Set `chunk` to the token that was chosen `last` and the guesses after it."""
        self.chunk = [last]
        node = self.node
        while node.guess is not None:
            token = node.guess
            node = node.children[token]
            option = node.option
            if option is not None:
                if option.after is None:
                    return  # nothing follows the end token, so it is not fed
                node = grammar.decision(option.after)
            self.chunk.append(token)

    def accept(self, logits_CK: np.ndarray, grammar: Grammar) -> int:
        """Choose tokens from the logits of the chunk until a guess is wrong; return how many tokens were right."""
        used = 0
        while not self.done:
            token, log_probability = choose(self.node, logits_CK[used])
            self.take(token, log_probability, grammar)
            used += 1
            if used >= len(self.chunk) or self.chunk[used] != token:
                break
        return used


def choose(node: Node, logits_K: np.ndarray) -> tuple[int, float]:
    """Return the most likely legal token (for ties the smallest id) and its log-probability among the legal tokens."""
    if len(node.legal) == 1:
        return int(node.legal[0]), 0.0
    values = logits_K[node.columns].astype(np.float64)
    best = int(values.argmax())
    shifted = values - values[best]
    return int(node.legal[best]), float(-np.log(np.exp(shifted).sum()))


@torch.inference_mode()
def fill_slots(model: Any, prompts: Prompts, grammar: Grammar, *, fixed: bool = False) -> list[Filling]:
    """Write one caption per image of a batch, in parallel.

    fixed: use few tensor shapes, for a compiled model: chunks of 1, 2, 4, 8, ... tokens, and attention over the whole
    cache.
    """
    batch, width, _ = prompts.embeds.shape
    device = prompts.embeds.device
    cache = RowCache(model.config.text_config, width + grammar.longest + 1)
    tokens_K = torch.from_numpy(grammar.tokens).to(device)
    rows = [Filling(node=grammar.decision(State())) for _ in range(batch)]
    for row in rows:
        row.plan(_PROMPT, grammar)
    hidden_BCD = _read(model, prompts, rows[0].chunk[1:], cache)
    logits_BCK = _logits(model, hidden_BCD, tokens_K)
    skipped_B1 = (prompts.after - prompts.counts)[:, None]
    # The next chunk overwrites wrong guesses.
    lengths_B = prompts.counts - 1 + np.array([row.accept(logits_BCK[i], grammar) for i, row in enumerate(rows)])
    while not all(row.done for row in rows):
        chunk_BC = _plan_chunks(rows, grammar, fixed=fixed)
        columns_BC = lengths_B[:, None] + np.arange(chunk_BC.shape[1])
        used = None if fixed else int(columns_BC.max()) + 1
        hidden_BCD = model.model.language_model(
            input_ids=torch.from_numpy(chunk_BC).to(device),
            attention_mask=cache.aim(torch.from_numpy(columns_BC).to(device), hidden_BCD.dtype, used),
            position_ids=torch.from_numpy(columns_BC + skipped_B1).to(device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits_BCK = _logits(model, hidden_BCD, tokens_K)
        lengths_B += [0 if row.done else row.accept(logits_BCK[i], grammar) for i, row in enumerate(rows)]
    return rows


def _read(model: Any, prompts: Prompts, guess: list[int], cache: RowCache) -> torch.Tensor:
    """Feed the prompts and the first guess; return the hidden states from the end of each prompt on [B, C, D]."""
    device = prompts.embeds.device
    guess_GD = model.get_input_embeddings()(torch.tensor(guess, dtype=torch.long, device=device))
    fed = prompts.followed_by(guess_GD)
    # The padding follows all tokens, so no mask is needed: attention is causal.
    hidden_BND = model.model.language_model(
        inputs_embeds=fed.embeds, position_ids=fed.positions, past_key_values=cache, use_cache=True
    ).last_hidden_state
    columns_BC = torch.from_numpy(prompts.counts[:, None] - 1 + np.arange(len(guess) + 1)).to(device)
    return hidden_BND.take_along_dim(columns_BC[:, :, None], dim=1)


def _logits(model: Any, hidden_BCD: torch.Tensor, tokens_K: torch.Tensor) -> np.ndarray:
    # Only the tokens that can be chosen leave the device, a small part of the vocabulary (32,064 tokens for LLaVA).
    logits_BCK: np.ndarray = model.lm_head(hidden_BCD)[:, :, tokens_K].float().cpu().numpy()
    return logits_BCK


def _plan_chunks(rows: list[Filling], grammar: Grammar, *, fixed: bool) -> np.ndarray:
    """Plan the next chunk of every row and return them [B, C], padded on the right; fixed: C is a power of two."""
    for row in rows:
        if row.done:
            row.chunk = []
        else:
            row.plan(row.tokens[-1], grammar)
    width = max(len(row.chunk) for row in rows)
    if fixed:
        width = 1 << (width - 1).bit_length()
    chunk_BC = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        chunk_BC[i, : len(row.chunk)] = row.chunk
    return chunk_BC
