# ruff: noqa: N803, N806 - shape suffixes are upper case
"""Training of the tiny LLaVA on two CPU cores within a time budget, in three stages.

(a) The convolutions learn the slots through a throw-away head, on crops without padding: the fastest way to see.
(b) The whole vision tower learns them through heads that any mixture of its patches must serve, and which part of the
    person each point shows; the padding comes in.
(c) Projector and language model learn to write the caption of what is visible; the tower stands still, and the loss is
    on the answer alone.

Learning rates follow the clock, not the step count, so that a run always ends with a finished cosine.

Shape legend: B batch, L tokens, P patches, D width of the vision tower, S slots, A answer tokens.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from captioning.templates import builtin_templates, compose, get_template
from captioning.tiny_llava_data import CLASSES, HEIGHT, WIDTH, Pool, augment, caption_of, frame, normalise
from captioning.tiny_llava_model import IMAGE_SIZE, PATCH_SIZE, build_model, build_processor, build_tokenizer
from data.files import read_json, write_json
from data.slots import NONE, SLOTS, VOCABULARY

log = logging.getLogger(__name__)

BATCH: Final = 64
_POINTS: Final = 4  # per side of a patch
_PARTS: Final = 14  # of data.synthetic_drawing, with the background
_SIZES: Final = [len(CLASSES[slot]) for slot in SLOTS]
_STAGES: Final = (("crops", 0.2), ("tower", 0.6), ("caption", 1.0))  # with the part of the budget at which each ends
_SAVE_SECONDS: Final = 120.0
_CHECK_SECONDS: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One training run. minutes: time budget of all stages together."""

    folder: Path
    pool: Path
    minutes: float
    seed: int = 20_260_000
    capacity: int = 60_000
    workers: int = 1


class Heads(nn.Module):
    """The throw-away heads of stages (a) and (b)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        patches = (HEIGHT // PATCH_SIZE) * (WIDTH // PATCH_SIZE)
        classes = sum(_SIZES)
        self.crop = nn.Sequential(
            nn.Flatten(), nn.Linear(patches * width, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, classes)
        )
        self.norm = nn.LayerNorm(width)
        self.mean = nn.Linear(width, classes)
        self.points = nn.Linear(width, _POINTS * _POINTS * _PARTS)

    def from_crop(self, patches_BPD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return one logits tensor [B, classes] per slot, from the patches of a crop in their places."""
        return self.crop(patches_BPD).split(_SIZES, dim=-1)

    def from_mean(self, features_BPD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the same from the mean patch."""
        return self.mean(self.norm(features_BPD).mean(dim=1)).split(_SIZES, dim=-1)

    def parts(self, features_BPD: torch.Tensor) -> torch.Tensor:
        """Return the logits of the part at each point of each patch [B, P, 4, 4, parts]."""
        return self.points(self.norm(features_BPD)).unflatten(-1, (_POINTS, _POINTS, _PARTS))


class Writer:
    """Turns labels into prompt and answer tokens, one prompt a batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.images = "<image>" * image_tokens
        self.prompts = [get_template("scgi").prompt(), *(t.prompt() for t in builtin_templates() if t.id != "scgi")]
        self._answers: dict[bytes, list[int]] = {}

    def answers(self, labels_BS: torch.Tensor) -> torch.Tensor:
        """Return the answers with their end token [B, A], padded on the right."""
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
        """Return the token ids [1, L] of a prompt, image tokens spread out."""
        return self.tokenizer(prompt.replace("<image>", self.images), return_tensors="pt").input_ids

    def draw(self, rng: np.random.Generator) -> torch.Tensor:
        """Return one prompt [1, L]: mostly the paper's, else another built-in one or one with a few words left."""
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
    """Return the tokenizer of captions of random people and of every built-in prompt."""
    rng = np.random.default_rng(seed)
    captions = [
        " " + compose({slot: (None if rng.random() < 0.1 else str(rng.choice(VOCABULARY[slot]))) for slot in SLOTS})
        for _ in range(6000)
    ]
    templates = builtin_templates()
    prompts = [template.prompt() for template in templates for _ in range(300)]
    return build_tokenizer([*captions, *prompts], [template.instruction for template in templates])


class Training:
    """A run that can be stopped and started again: weights and elapsed time are kept, optimiser moments are not."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tokenizer = make_tokenizer(plan.seed)
        torch.manual_seed(plan.seed)  # only the weights are drawn from it, in this process of our own
        self.model: LlavaForConditionalGeneration = build_model(self.tokenizer)
        self.tower: Any = self.model.model.vision_tower
        self.heads = Heads(self.model.config.vision_config.hidden_size)
        self.writer = Writer(self.tokenizer, self.model.config.image_seq_length)
        self.elapsed = 0.0
        self.steps = {name: 0 for name, _ in _STAGES}
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.rng = np.random.default_rng(plan.seed)
        self._resume()
        self.pool = Pool(plan.pool, seed=plan.seed, capacity=plan.capacity)
        self.unseen = Pool(plan.pool, seed=plan.seed + 1_000_000, capacity=1000)

    def run(self) -> None:
        """Train until the time budget is spent, then save the finished model."""
        self.unseen.fill_in_background(self.plan.workers).join()
        self.pool.fill_in_background(self.plan.workers)
        while self.pool.ready < min(4000, self.pool.capacity):
            time.sleep(1)
        start = 0.0
        for name, share in _STAGES:
            end = 60 * self.plan.minutes * share
            self._stage(name, start, end)
            start = end
        save_model(self.model, build_processor(self.tokenizer), self.plan.folder / "final")
        facts = {"minutes": self.plan.minutes, "seed": self.plan.seed, "people": self.plan.capacity}
        write_json(self.plan.folder / "training.json", facts | {"steps": self.steps, "batch": BATCH})

    def _stage(self, name: str, start: float, end: float) -> None:
        if self.elapsed >= end:
            return
        losses_of = {"crops": self._crops_loss, "tower": self._tower_loss, "caption": self._caption_loss}
        self.tower.train(name != "caption")
        optimizer = self._optimizer(name)
        step, saved, checked, losses = 0, time.monotonic(), time.monotonic(), []
        while self.elapsed < end:
            begun = time.monotonic()
            factor = min(1.0, (step + 1) / 200) * cosine((self.elapsed - start) / (end - start))
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            loss = losses_of[name]()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
            optimizer.step()
            losses.append(loss.item())
            step += 1
            self.steps[name] += 1
            self.elapsed += time.monotonic() - begun
            if time.monotonic() - checked > _CHECK_SECONDS:
                self._report(name, step, losses)
                checked = time.monotonic()
            if time.monotonic() - saved > _SAVE_SECONDS:
                self._save()
                saved = time.monotonic()
        self._report(name, step, losses)
        self._save()

    def _optimizer(self, name: str) -> torch.optim.Optimizer:
        if name == "crops":
            return _adamw([*self.tower.patch_embeddings.parameters(), *self.heads.parameters()], 2e-3)
        if name == "tower":
            return _adamw([*self.tower.parameters(), *self.heads.parameters()], 1.5e-3)
        seen = {id(p) for p in self.tower.parameters()}
        return _adamw([p for p in self.model.parameters() if id(p) not in seen], 2e-3)

    def _crops_loss(self) -> torch.Tensor:
        batch = self.pool.batch(BATCH, self.rng)
        pixels, _ = augment(batch, self.generator)
        with torch.autocast("cpu", torch.bfloat16):
            patches = self.tower.patch_embeddings(pixels)
        return _slots_loss(self.heads.from_crop(patches.float()), batch.labels)

    def _tower_loss(self) -> torch.Tensor:
        batch = self.pool.batch(BATCH, self.rng)
        pixels, parts = augment(batch, self.generator)
        with torch.autocast("cpu", torch.bfloat16):
            features = self.tower(frame(pixels)).last_hidden_state.float()
        return _slots_loss(self.heads.from_mean(features), batch.labels) + self._parts_loss(features, parts)

    def _parts_loss(self, features_BPD: torch.Tensor, parts_BHW: torch.Tensor) -> torch.Tensor:
        side = (IMAGE_SIZE - WIDTH) // 2 * _POINTS // PATCH_SIZE
        square = F.pad(parts_BHW, (side, side))
        patches = IMAGE_SIZE // PATCH_SIZE
        target = square.view(-1, patches, _POINTS, patches, _POINTS).transpose(2, 3)
        return F.cross_entropy(self.heads.parts(features_BPD).flatten(0, -2), target.flatten())

    def _caption_loss(self) -> torch.Tensor:
        batch = self.pool.batch(BATCH, self.rng)
        labels = batch.labels
        pixels = frame(augment(batch, self.generator)[0], self.generator)
        answers_BA = self.writer.answers(labels)
        prompt_BL = self.writer.draw(self.rng).expand(BATCH, -1)
        ids = torch.cat([prompt_BL, answers_BA], dim=1)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            features = self.tower(pixels).last_hidden_state.float()
        image_embeds = self.model.model.multi_modal_projector(features)
        embeds = self.model.get_input_embeddings()(ids)
        places = (ids == self.model.config.image_token_index).unsqueeze(-1)
        embeds = embeds.masked_scatter(places, image_embeds)
        # Padding stands behind the end token, where causal attention keeps it from everything that counts.
        hidden = self.model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        logits = self.model.lm_head(hidden[:, -answers_BA.shape[1] - 1 : -1])
        return F.cross_entropy(logits.flatten(0, 1), answers_BA.flatten(), ignore_index=self.tokenizer.pad_token_id)

    @torch.inference_mode()
    def _report(self, name: str, step: int, losses: list[float]) -> None:
        recent = losses[-100:]
        self.tower.eval()
        self.heads.eval()
        right = self._captions_right() if name == "caption" else self._heads_right(name)
        self.tower.train(name != "caption")
        self.heads.train()
        table = " ".join(f"{slot}={value:.3f}" for slot, value in zip(SLOTS, right, strict=True))
        log.info(
            "%s %.1f min step %d loss %.4f pool %d | %s",
            name, self.elapsed / 60, step, sum(recent) / len(recent), self.pool.ready, table,
        )  # fmt: skip

    def _heads_right(self, name: str) -> list[float]:
        batch = self.unseen.take(slice(None))
        pixels = normalise(batch.images)
        if name == "crops":
            logits = self.heads.from_crop(self.tower.patch_embeddings(pixels))
        else:
            logits = self.heads.from_mean(self.tower(frame(pixels)).last_hidden_state)
        pairs = zip(SLOTS, logits, strict=True)
        return [accuracy(batch.labels[:, i], out.argmax(dim=-1), slot) for i, (slot, out) in enumerate(pairs)]

    def _captions_right(self) -> list[float]:
        batch = self.unseen.take(slice(256))
        images, labels = batch.images, batch.labels
        prompt = self.writer.encode(self.writer.prompts[0]).expand(len(images), -1)
        ids = self.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            pixel_values=frame(normalise(images)),
            max_new_tokens=60,
            do_sample=False,
        )
        texts = self.tokenizer.batch_decode(ids[:, prompt.shape[1] :], skip_special_tokens=True)
        log.info("for example:%s", texts[0])
        from captioning.attributes import parse_caption

        parsed = [parse_caption(text) for text in texts]
        right = []
        for i, slot in enumerate(SLOTS):
            classes = CLASSES[slot]
            nothing = classes.index(NONE) if NONE in classes else classes.index(None)
            known = {value: index for index, value in enumerate(classes)}
            said = torch.tensor([known.get(row[slot], nothing) for row in parsed])
            right.append(accuracy(labels[:, i], said, slot))
        return right

    def _save(self) -> None:
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items() if k != "lm_head.weight"}
        tensors |= {f"heads.{k}": v for k, v in self.heads.state_dict().items()}
        save_file({k: v.contiguous() for k, v in tensors.items()}, self.plan.folder / "checkpoint.safetensors")
        write_json(self.plan.folder / "checkpoint.json", {"elapsed": self.elapsed, "steps": self.steps})

    def _resume(self) -> None:
        state = self.plan.folder / "checkpoint.json"
        if not state.exists():
            return
        tensors = load_file(self.plan.folder / "checkpoint.safetensors")
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, strict=False)
        self.heads.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("heads.")})
        self.elapsed = float(read_json(state)["elapsed"])
        self.steps = dict(read_json(state)["steps"])
        self.generator.manual_seed(self.plan.seed + int(self.elapsed))
        self.rng = np.random.default_rng(self.plan.seed + int(self.elapsed))
        log.info("going on after %.1f minutes", self.elapsed / 60)


def _slots_loss(logits: tuple[torch.Tensor, ...], labels_BS: torch.Tensor) -> torch.Tensor:
    return torch.stack([F.cross_entropy(out, labels_BS[:, i]) for i, out in enumerate(logits)]).sum()


def _adamw(parameters: list[nn.Parameter], peak: float) -> torch.optim.Optimizer:
    group = {"params": parameters, "peak": peak}
    return torch.optim.AdamW([group], lr=0.0, betas=(0.9, 0.98), weight_decay=0.03)


def cosine(done: float) -> float:
    """Return the learning rate's factor, from 1 at the start to 0.01 at the end."""
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def accuracy(truth: torch.Tensor, said: torch.Tensor, slot: str) -> float:
    """Return the share of right answers among the images in which the slot is visible ("none" counts as an answer)."""
    visible = torch.ones_like(truth, dtype=torch.bool)
    if None in CLASSES[slot]:
        visible = truth != CLASSES[slot].index(None)
    return float((truth == said)[visible].float().mean())


def save_model(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write model and processor as transformers does, in half precision: rounding it changes no answer."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
