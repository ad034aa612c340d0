"""Train the tiny CLIP on synthetic people, with a contrastive loss in which a sentence may be true of several images.

Shapes: B batch, D joint width, S slots.
"""

from __future__ import annotations

import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F

from data.files import atomic_path, write_json, write_text
from data.slots import SLOTS, VOCABULARY
from data.synthetic.world import training_sample
from reid.models.backbone import Backbone, build_clip, seeded
from reid.models.loading import ClipShape
from reid.models.pretrained import TINY_CONFIG, TINY_TOKENIZER, TINY_WEIGHTS
from reid.models.tokens import END, START, BpeTokenizer
from reid.precision import unit_rows
from tools.tiny_clip.text import mentioned, tokenizer_corpus, training_text

HEIGHT: Final = 128
WIDTH: Final = 64
_VOCABULARY_SIZE: Final = 1000
# Seed of the sample stream. No world of data.synthetic.world has these identities.
STREAM_SEED: Final = 20_241_000


def shape(vocabulary: int) -> ClipShape:
    """Return the architecture in open_clip's terms: 33 image tokens, 77 text tokens."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": [HEIGHT, WIDTH], "layers": 5, "width": 192, "patch_size": 16, "head_width": 64},
        "text_cfg": {"context_length": 77, "vocab_size": vocabulary, "width": 128, "heads": 2, "layers": 2},
    }


@dataclass(frozen=True, kw_only=True)
class TinyRun:
    """Settings of one training run. `steps` and `seed` determine the result on one machine."""

    steps: int
    seed: int
    batch: int = 128
    fresh: int = 24
    """New images per step; the rest of the batch is drawn from the pool of earlier images and augmented again."""
    pool: int = 40_000
    """Images in the pool (24 KiB each); new images replace the oldest."""
    rate: float = 1e-3
    warmup: int = 100


class Pool:
    """Synthetic images seen so far, with their attributes."""

    def __init__(self, capacity: int, seed: int) -> None:
        self._seed = seed
        self._made = 0
        self.images = np.empty((capacity, HEIGHT, WIDTH, 3), np.uint8)
        self.facts: list[dict[str, str]] = []

    def grow(self, count: int) -> list[int]:
        """Draw `count` new samples and return their places."""
        places = []
        for _ in range(count):
            sample = training_sample(self._seed, self._made)
            place = self._made % len(self.images)
            self.images[place] = sample.image
            facts = {slot: sample.attributes[slot] for slot in SLOTS if sample.visible[slot]}
            if place == len(self.facts):
                self.facts.append(facts)
            else:
                self.facts[place] = facts
            self._made += 1
            places.append(place)
        return places


def codes(facts: dict[str, str]) -> list[int]:
    """Return one int per slot: 0 if it is unknown or not mentioned, else 1 + the position in the vocabulary."""
    return [VOCABULARY[slot].index(facts[slot]) + 1 if slot in facts else 0 for slot in SLOTS]


def true_of(images_BS: Tensor, texts_BS: Tensor) -> Tensor:
    """Return [B images, B texts]: True if every fact of a text is true of, and visible in, the image."""
    mentions = texts_BS[None] != 0
    return (~mentions | (texts_BS[None] == images_BS[:, None])).all(-1)


def contrastive_loss(image_BD: Tensor, text_BD: Tensor, scale: Tensor, true_BB: Tensor) -> Tensor:
    """Return CLIP's symmetric loss; the target is uniform over all texts that are true of an image, and vice versa."""
    logits = scale * unit_rows(image_BD) @ unit_rows(text_BD).T
    target = true_BB.float()
    to_text = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    to_image = F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True))
    return (to_text + to_image) / 2


def augment(images: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Flip half of the images, shift each by up to 4 pixels, and normalize: [B, 3, H, W]."""
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="edge")
    out = np.empty_like(images)
    for index, (top, left) in enumerate(rng.integers(0, 9, (len(images), 2))):
        crop = padded[index, top : top + HEIGHT, left : left + WIDTH]
        out[index] = crop[:, ::-1] if rng.random() < 0.5 else crop
    return normalize(out)


def normalize(images: np.ndarray) -> Tensor:
    """Return uint8 [B, H, W, 3] as float [B, 3, H, W] with mean and deviation 0.5."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def train_tokenizer(path: Path, seed: int) -> None:
    """Learn a lower-case byte-level BPE from the tiny CLIP's own sentences and write it to `path`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_SIZE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(tokenizer_corpus(seed, 4000), trainer)
    # Added last to get the highest ids: open_clip finds the end token as the largest id of a text.
    tokenizer.add_special_tokens([START, END])
    write_text(path, tokenizer.to_str(pretty=False))


def rate_at(step: int, run: TinyRun) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine to 1 % of the peak."""
    if step < run.warmup:
        return run.rate * (step + 1) / run.warmup
    share = (step - run.warmup) / max(1, run.steps - run.warmup)
    return run.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def new_model(folder: Path, seed: int) -> Backbone:
    """Write tokenizer and shape into `folder` and return an untrained tiny CLIP."""
    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer(folder / TINY_TOKENIZER, seed)
    tokenizer = BpeTokenizer(folder / TINY_TOKENIZER)
    clip_shape = shape(tokenizer.end + 1)
    write_json(folder / TINY_CONFIG, {"clip": clip_shape})
    with seeded(seed):
        clip = build_clip(clip_shape, HEIGHT, WIDTH)
    return Backbone(clip, tokenizer, is_resnet=False)


def save_weights(model: Backbone, folder: Path) -> None:
    """Write the weights as float16 to halve the file; they are used as float32."""
    with atomic_path(folder / TINY_WEIGHTS) as temporary:
        save_file({name: value.half().contiguous() for name, value in model.clip.state_dict().items()}, temporary)


class Trainer:
    """One training run, step by step."""

    def __init__(self, model: Backbone, run: TinyRun) -> None:
        self.model, self.run = model, run
        self.rng = np.random.default_rng(run.seed)
        self.words = random.Random(run.seed)
        self.pool = Pool(run.pool, STREAM_SEED + run.seed)
        decayed = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=run.rate, betas=(0.9, 0.98))

    def step(self, number: int) -> float:
        """Take one step and return its loss."""
        places = self.pool.grow(self.run.batch if number == 0 else self.run.fresh)
        others = self.rng.integers(0, len(self.pool.facts), self.run.batch - len(places)).tolist()
        loss = self._loss(sorted(set(places + others)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(number, self.run)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.clip.logit_scale.clamp_(max=math.log(100))
        return loss.item()

    def _loss(self, places: list[int]) -> Tensor:
        facts = [self.pool.facts[place] for place in places]
        texts = [training_text(known, self.words) for known in facts]
        images = augment(self.pool.images[places], self.rng)
        true = true_of(
            torch.tensor([codes(known) for known in facts]), torch.tensor([codes(mentioned(said)) for _, said in texts])
        )
        # bfloat16 halves the time of the image tower on CPUs that support it; weights stay float32.
        with torch.autocast("cpu", torch.bfloat16):
            image_BD = self.model.image(images).joint_BD.float()
        text_BD = self.model.text([text for text, _ in texts])
        return contrastive_loss(image_BD, text_BD, self.model.clip.logit_scale.exp(), true)


def steps_within(folder: Path, run: TinyRun, minutes: float) -> int:
    """Return how many steps of `run` take `minutes` under the current load, by timing a few."""
    trainer = Trainer(new_model(folder, run.seed), run)
    trainer.step(0)
    start = time.perf_counter()
    for number in range(1, 9):
        trainer.step(number)
    return round(minutes * 60 / ((time.perf_counter() - start) / 8))


def train(folder: Path, run: TinyRun) -> dict[str, float]:
    """Train and write to `folder`, every 500 steps, so that a stopped run leaves usable weights."""
    model = new_model(folder, run.seed)
    trainer = Trainer(model, run)
    start, mean = time.perf_counter(), float("nan")
    for number in range(run.steps):
        loss = trainer.step(number)
        mean = loss if number == 0 else 0.98 * mean + 0.02 * loss
        if number % 50 == 0 or number == run.steps - 1:
            seconds = time.perf_counter() - start
            sys.stdout.write(f"step {number} loss {mean:.3f} images/s {(number + 1) * run.batch / seconds:.0f}\n")
            sys.stdout.flush()
        if number % 500 == 499:
            save_weights(model, folder)
    save_weights(model, folder)
    return {"loss": mean, "seconds": time.perf_counter() - start}
