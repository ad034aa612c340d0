"""Slot-filling decoding: greedy, held to the template's grammar, with far fewer passes through the model than tokens.

Whatever needs no choice is fed in one chunk onto the key-value cache, for the whole batch at once. Where most options
go one way (" and" rather than "."), that way is fed along as a guess and checked against the model's own choice in the
same pass; a wrong guess is written over. So only real choices, such as a colour, cost a pass. The tokens are
those of plain greedy decoding in which every token that leads to no legal caption is forbidden.

Shape legend: B batch, L prompt tokens, C tokens of a chunk, D width, K tokens that any legal caption can hold.
"""

# ruff: noqa: N803, N806 - shape suffixes are upper case

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from captioning.engines.slots.grammar import Grammar, Node, State
from captioning.engines.slots.row_cache import RowCache


@dataclass(kw_only=True)
class Filling:
    """One caption being written.

    tokens: decided so far, the end token included once `done`. chunk: what is fed next; its first `sure` tokens are
    decided, the rest guessed. confidence: slot -> sum of the log-probabilities of the choices that narrowed it.
    """

    node: Node
    tokens: list[int] = field(default_factory=list)
    chunk: list[int] = field(default_factory=list)
    confidence: dict[str, float] = field(default_factory=dict)
    done: bool = False

    def take(self, token: int, log_probability: float, grammar: Grammar) -> None:
        """Go on with `token`, chosen with `log_probability` among the legal ones."""
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
        """Put the token that was decided `last` and, behind it, the way most options go into `chunk`."""
        self.chunk = [last]
        node = self.node
        while node.guess is not None:
            token = node.guess
            node = node.children[token]
            option = node.option
            if option is not None:
                if option.after is None:
                    return  # the end is not fed: nothing comes after it
                node = grammar.decision(option.after)
            self.chunk.append(token)

    def read(self, logits_CK: np.ndarray, grammar: Grammar) -> int:
        """Choose tokens as long as the chunk's logits reach, and return how many of the chunk's tokens were right."""
        used = 0
        while not self.done:
            token, log_probability = choose(self.node, logits_CK[used])
            self.take(token, log_probability, grammar)
            used += 1
            if used >= len(self.chunk) or self.chunk[used] != token:
                break
        return used


def choose(node: Node, logits_K: np.ndarray) -> tuple[int, float]:
    """Return the likeliest legal token (of equal ones the smallest id) and its log-probability among the legal ones."""
    if len(node.legal) == 1:
        return int(node.legal[0]), 0.0
    values = logits_K[node.columns].astype(np.float64)
    best = int(values.argmax())
    shifted = values - values[best]
    return int(node.legal[best]), float(-np.log(np.exp(shifted).sum()))


@torch.inference_mode()
def fill_slots(
    model: Any, prompt_BL: torch.Tensor, pixels_B3HW: torch.Tensor, grammar: Grammar, *, fixed: bool = False
) -> list[Filling]:
    """Write one caption for each image of a batch, all in step.

    fixed: let few shapes occur, for a compiled model: chunks of 1, 2, 4, 8.. tokens, attention over the whole cache.
    """
    batch, length = prompt_BL.shape
    device = prompt_BL.device
    cache = RowCache(model.config.text_config.num_hidden_layers, length + grammar.longest + 1)
    tokens_K = torch.from_numpy(grammar.tokens).to(device)
    rows = [Filling(node=grammar.decision(State())) for _ in range(batch)]
    for row in rows:
        row.plan(int(prompt_BL[0, -1]), grammar)
    guess_G = torch.tensor(rows[0].chunk[1:], dtype=prompt_BL.dtype, device=device)
    # No padding, so no mask: attention is causal by itself.
    out = model.model(
        input_ids=torch.cat([prompt_BL, guess_G.expand(batch, -1)], dim=1),
        pixel_values=pixels_B3HW,
        past_key_values=cache,
        use_cache=True,
    )
    logits_BCK = _logits(model, out.last_hidden_state[:, length - 1 :], tokens_K)
    # What was guessed wrong is written over by the next chunk.
    lengths_B = length - 1 + np.array([row.read(logits_BCK[i], grammar) for i, row in enumerate(rows)])
    while not all(row.done for row in rows):
        chunk_BC = _chunks(rows, grammar, fixed=fixed)
        places_BC = lengths_B[:, None] + np.arange(chunk_BC.shape[1])
        places = torch.from_numpy(places_BC).to(device)
        hidden_BCD = model.model.language_model(
            input_ids=torch.from_numpy(chunk_BC).to(device),
            attention_mask=cache.aim(places, out.last_hidden_state.dtype, None if fixed else int(places_BC.max()) + 1),
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits_BCK = _logits(model, hidden_BCD, tokens_K)
        lengths_B += [0 if row.done else row.read(logits_BCK[i], grammar) for i, row in enumerate(rows)]
    return rows


def _logits(model: Any, hidden_BCD: torch.Tensor, tokens_K: torch.Tensor) -> np.ndarray:
    # Only what can be chosen leaves the device: a small part of a vocabulary (of LLaVA's, 32,064 tokens).
    logits_BCK: np.ndarray = model.lm_head(hidden_BCD)[:, :, tokens_K].float().cpu().numpy()
    return logits_BCK


def _chunks(rows: list[Filling], grammar: Grammar, *, fixed: bool) -> np.ndarray:
    """Return the chunks [B, C] of all rows, padded on the right; fixed: C is a power of two."""
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
