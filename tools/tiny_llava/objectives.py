"""Training objectives of the tiny LLaVA: temporary heads for the vision tower, and prompts with their captions.

Shape legend: B batch, L tokens, P patches, D width of the vision tower, S slots, A answer tokens.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerFast

from captioning.prompts.templates import builtin_templates, compose, get_template
from data.slots import SLOTS, VOCABULARY
from tools.tiny_llava.model import PATCH_SIZE, build_tokenizer
from tools.tiny_llava.render import CLASSES, HEIGHT, WIDTH, caption_of

POINTS: Final = 4
"""Points per side of a patch at which the body part is predicted."""
PARTS: Final = 14
"""Body parts of `data.synthetic.canvas`, including the background."""

_SIZES: Final = [len(CLASSES[slot]) for slot in SLOTS]
_WEIGHTS: Final = {"gender": 1.5, "upper_type": 1.5, "carrying": 2.0}  # small and hard to see, but important


class Heads(nn.Module):
    """The temporary heads of stages (a) and (b)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        patches = (HEIGHT // PATCH_SIZE) * (WIDTH // PATCH_SIZE)
        classes = sum(_SIZES)
        self.crop = nn.Sequential(
            nn.Flatten(), nn.Linear(patches * width, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, classes)
        )
        self.norm = nn.LayerNorm(width)
        self.mean = nn.Linear(width, classes)
        self.points = nn.Linear(width, POINTS * POINTS * PARTS)

    def from_crop(self, patches_BPD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return one logits tensor [B, classes] per slot, from the patches of a crop in their order."""
        return self.crop(patches_BPD).split(_SIZES, dim=-1)

    def from_mean(self, features_BPD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the same from the mean of the patches."""
        return self.mean(self.norm(features_BPD).mean(dim=1)).split(_SIZES, dim=-1)

    def parts(self, features_BPD: torch.Tensor) -> torch.Tensor:
        """Return the logits of the body part at each point of each patch [B, P, 4, 4, parts]."""
        return self.points(self.norm(features_BPD)).unflatten(-1, (POINTS, POINTS, PARTS))


class Writer:
    """Encodes prompts, one per batch, and the captions of labels."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.images = "<image>" * image_tokens
        self.prompts = [get_template("scgi").prompt(), *(t.prompt() for t in builtin_templates() if t.id != "scgi")]
        self._answers: dict[bytes, list[int]] = {}

    def answers(self, labels_BS: torch.Tensor) -> torch.Tensor:
        """Return the captions with their end token [B, A], padded on the right."""
        rows = [self._answer(row) for row in labels_BS.numpy().astype(np.int8)]
        out = torch.full((len(rows), max(map(len, rows))), self.tokenizer.pad_token_id)
        for i, row in enumerate(rows):
            out[i, : len(row)] = torch.tensor(row)
        return out

    def _answer(self, labels: np.ndarray) -> list[int]:
        key = labels.tobytes()
        if key not in self._answers:
            ids = self.tokenizer(" " + caption_of(labels), add_special_tokens=False).input_ids
            self._answers[key] = [*ids, self.tokenizer.eos_token_id]
        return self._answers[key]

    def encode(self, prompt: str) -> torch.Tensor:
        """Return the token ids [1, L] of a prompt, with all image tokens."""
        return self.tokenizer(prompt.replace("<image>", self.images), return_tensors="pt").input_ids

    def sample(self, rng: np.random.Generator) -> torch.Tensor:
        """Return a random prompt [1, L]: usually the paper's, sometimes another built-in one or a few words of one."""
        kind = rng.random()
        if kind < 0.8:
            return self.encode(self.prompts[0])
        prompt = self.prompts[int(rng.integers(len(self.prompts)))]
        if kind < 0.95:
            return self.encode(prompt)
        head, _, tail = prompt.partition("\n")
        words = tail.removesuffix(" ASSISTANT:").split(" ")
        kept = words[int(rng.integers(len(words) - 1)) :][:20]
        return self.encode(f"{head}\n{' '.join(kept)} ASSISTANT:")


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on captions of random people and on all built-in prompts."""
    rng = np.random.default_rng(seed)
    captions = [
        " " + compose({slot: (None if rng.random() < 0.1 else str(rng.choice(VOCABULARY[slot]))) for slot in SLOTS})
        for _ in range(6000)
    ]
    templates = builtin_templates()
    prompts = [template.prompt() for template in templates for _ in range(300)]
    return build_tokenizer([*captions, *prompts], [template.instruction for template in templates])


def slots_loss(logits: tuple[torch.Tensor, ...], labels_BS: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of each slot, summed with weights."""
    losses = [F.cross_entropy(out, labels_BS[:, i]) for i, out in enumerate(logits)]
    return torch.stack([_WEIGHTS.get(slot, 1.0) * loss for slot, loss in zip(SLOTS, losses, strict=True)]).sum()


def cosine(done: float) -> float:
    """Return the factor of the learning rate, from 1 at the start to 0.01 at the end."""
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def accuracy(truth: torch.Tensor, said: torch.Tensor, slot: str) -> float:
    """Return the share of right answers where the slot is visible; "none" is an answer."""
    visible = torch.ones_like(truth, dtype=torch.bool)
    if None in CLASSES[slot]:
        visible = truth != CLASSES[slot].index(None)
    return float((truth == said)[visible].float().mean())
