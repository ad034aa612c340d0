"""Training of the tiny LLaVA on two CPU cores within a time budget, in three stages.

(a) The convolutions learn the slots with a temporary head, on crops without padding, which is fastest.
(b) The whole vision tower learns the slots from the mean of its patches, and the body part at each point, on padded
    crops; the head of (a) keeps what the convolutions have learned.
(c) The whole LLaVA learns to write the caption of the visible attributes, with the loss on the caption. The tower
    learns more slowly, with fixed batch statistics.

Learning rates follow the clock, not the step count, so a run always completes its cosine schedule.

Shape legend: B batch, L tokens, P patches, D width of the vision tower, S slots, A answer tokens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from captioning.attributes.parse import parse_caption
from captioning.config import ImageTokens
from captioning.engines.image_tokens import embed_prompts, image_features
from data.files import read_json, write_json
from data.slots import NONE, SLOTS
from tools.tiny_llava.data import Pool, augment, frame, normalize
from tools.tiny_llava.model import IMAGE_SIZE, PATCH_SIZE, build_model, build_processor, load_tokenizer
from tools.tiny_llava.objectives import POINTS, Heads, Writer, accuracy, cosine, make_tokenizer, slots_loss
from tools.tiny_llava.render import CLASSES, WIDTH

log = logging.getLogger(__name__)

_STAGES: Final = (
    ("crops", 0.22),
    ("tower", 0.5),
    ("caption", 1.0),
)  # name, and the part of the budget at which it ends
_HEADS_WEIGHT: Final = 0.2  # of the slot heads in stage (c)
_TOWER_EVERY: Final = 3  # steps of stage (c), one of which trains the tower too, at twice the cost
_WARM_UP: Final = 60  # steps
_FURTHER: Final = 0.15  # learning rates of a finished model that is trained further, relative to stage (c)
_SAVE_SECONDS: Final = 120.0
_CHECK_SECONDS: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One training run.

    minutes: time budget of all stages together. start: the folder of a finished model, of which stage (c) is trained
    further, alone and with a lower learning rate. image_tokens: what the language model reads in stage (c). batch:
    images per step.
    """

    folder: Path
    pool: Path
    minutes: float
    seed: int = 20_260_000
    capacity: int = 60_000
    unseen: int = 1000
    workers: int = 1
    batch: int = 64
    start: Path | None = None
    image_tokens: ImageTokens = "all"


class TrainingFacts(TypedDict):
    """The content of training.json. steps: stage -> number of steps. batch: images per step."""

    minutes: float
    seed: int
    people: int
    steps: dict[str, int]
    batch: int


class Training:
    """A run that can be interrupted and resumed: weights and elapsed time are saved, optimizer moments are not."""

    def __init__(self, plan: Plan, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Build the model, or load its last checkpoint. clock: monotonic seconds, which measure the time budget."""
        self.plan = plan
        self.clock = clock
        self.tokenizer = make_tokenizer(plan.seed) if plan.start is None else load_tokenizer(plan.start)
        torch.manual_seed(plan.seed)  # only for the initial weights
        self.model: LlavaForConditionalGeneration = build_model(self.tokenizer)
        if plan.start is not None:
            finished = LlavaForConditionalGeneration.from_pretrained(plan.start, dtype=torch.float32)
            self.model.load_state_dict(finished.state_dict())
        self.tower: Any = self.model.model.vision_tower
        self.tower.to(memory_format=torch.channels_last)  # convolutions on a CPU are faster in this order
        self.heads = Heads(self.model.config.vision_config.hidden_size)
        self.writer = Writer(self.tokenizer, self.model.config.image_seq_length)
        self.elapsed = 0.0
        self.steps = {name: 0 for name, _ in _STAGES}
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.rng = np.random.default_rng(plan.seed)
        self._resume()
        self.pool = Pool(plan.pool, seed=plan.seed, capacity=plan.capacity)
        self.unseen = Pool(plan.pool, seed=plan.seed + 1_000_000, capacity=plan.unseen)

    def run(self) -> None:
        """Train until the time budget is spent, then save the finished model."""
        self.unseen.fill_in_background(self.plan.workers).join()
        self.pool.fill_in_background(self.plan.workers)
        while self.pool.ready < min(4000, self.pool.capacity):
            time.sleep(1)
        start = 0.0
        for name, share in _STAGES if self.plan.start is None else _STAGES[-1:]:
            end = 60 * self.plan.minutes * share
            self._stage(name, start, end)
            start = end
        save_model(self.model, build_processor(self.tokenizer), self.plan.folder / "final")
        facts = TrainingFacts(
            minutes=self.plan.minutes,
            seed=self.plan.seed,
            people=self.plan.capacity,
            steps=self.steps,
            batch=self.plan.batch,
        )
        write_json(self.plan.folder / "training.json", facts)

    def _stage(self, name: str, start: float, end: float) -> None:
        if self.elapsed >= end:
            return
        losses_of = {"crops": self._crops_loss, "tower": self._tower_loss, "caption": self._caption_loss}
        self._set_training(name)
        optimizer = self._optimizer(name)
        step, saved, checked, losses = 0, self.clock(), self.clock(), []
        while self.elapsed < end:
            begun = self.clock()
            factor = min(1.0, (step + 1) / _WARM_UP) * cosine((self.elapsed - start) / (end - start))
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
            self.elapsed += self.clock() - begun
            if self.clock() - checked > _CHECK_SECONDS:
                self._report(name, step, losses)
                checked = self.clock()
            if self.clock() - saved > _SAVE_SECONDS:
                self._save()
                saved = self.clock()
        self._report(name, step, losses)
        self._save()

    def _set_training(self, name: str) -> None:
        """Switch the tower to training mode; in stage (c) its batch statistics stay fixed."""
        self.tower.train()
        if name == "caption":
            for module in self.tower.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _optimizer(self, name: str) -> torch.optim.Optimizer:
        if name == "crops":
            return _adamw([*self.tower.embeddings.parameters(), *self.heads.parameters()], 2e-3)
        if name == "tower":
            known = [*self.tower.embeddings.parameters(), *self.heads.crop.parameters()]
            seen = {id(p) for p in known}
            fresh = [p for p in (*self.tower.parameters(), *self.heads.parameters()) if id(p) not in seen]
            return _adamw(fresh, 1.5e-3, (known, 6e-4))
        vision = [*self.tower.parameters(), *self.heads.parameters()]
        seen = {id(p) for p in vision}
        scale = 1.0 if self.plan.start is None else _FURTHER
        text = [p for p in self.model.parameters() if id(p) not in seen]
        return _adamw(text, 2e-3 * scale, (vision, 8e-4 * scale))

    def _patches(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the features of the convolutions for crops without padding, float32 [B, P, D]."""
        pixels = pixels_B3HW.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            maps = self.tower.embeddings.projection(self.tower.embeddings.backbone(pixels).feature_maps[-1])
        return maps.flatten(2).transpose(1, 2).float()

    def _encode(self, squares_B3HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the patch features of padded crops before and after attention, float32 [B, P, D]."""
        squares = squares_B3HW.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            states = self.tower(squares, output_hidden_states=True).hidden_states
        return states[0][:, 1:].float(), states[-1][:, 1:].float()

    def _crops_loss(self) -> torch.Tensor:
        batch = self.pool.batch(self.plan.batch, self.rng)
        pixels, _ = augment(batch, self.generator)
        return slots_loss(self.heads.from_crop(self._patches(pixels)), batch.labels)

    def _tower_loss(self) -> torch.Tensor:
        batch = self.pool.batch(self.plan.batch, self.rng)
        pixels, parts = augment(batch, self.generator)
        before, after = self._encode(frame(pixels))
        known = slots_loss(self.heads.from_crop(_middle(before)), batch.labels)
        return known + slots_loss(self.heads.from_mean(after), batch.labels) + self._parts_loss(after, parts)

    def _parts_loss(self, features_BPD: torch.Tensor, parts_BHW: torch.Tensor) -> torch.Tensor:
        side = (IMAGE_SIZE - WIDTH) // 2 * POINTS // PATCH_SIZE
        square = F.pad(parts_BHW, (side, side))
        patches = IMAGE_SIZE // PATCH_SIZE
        target = square.view(-1, patches, POINTS, patches, POINTS).transpose(2, 3)
        return F.cross_entropy(self.heads.parts(features_BPD).flatten(0, -2), target.flatten())

    def _caption_loss(self) -> torch.Tensor:
        batch = self.pool.batch(self.plan.batch, self.rng)
        pixels, _ = augment(batch, self.generator)
        with_tower = self.steps["caption"] % _TOWER_EVERY == 0
        squares = frame(pixels, self.generator)
        with torch.set_grad_enabled(with_tower):
            _, features = self._encode(squares)
        answers_BA = self.writer.answers(batch.labels)
        prompt_BL = self.writer.sample(self.rng).expand(self.plan.batch, -1)
        ids = torch.cat([prompt_BL, answers_BA], dim=1)
        embeds = self.model.get_input_embeddings()(ids)
        places = (ids == self.model.config.image_token_index).unsqueeze(-1)
        embeds = embeds.masked_scatter(places, self.model.model.multi_modal_projector(features))
        kept = self._kept_places(ids[0], squares)
        # Padding follows the end token, so causal attention hides it from all tokens in the loss. Without a mask,
        # transformers would take the gaps between position ids for the borders of packed sequences.
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model.model.language_model(
                inputs_embeds=embeds[:, kept],
                position_ids=kept[None],
                attention_mask=torch.ones(len(ids), len(kept), dtype=torch.long),
                use_cache=False,
            ).last_hidden_state
        logits = self.model.lm_head(hidden[:, -answers_BA.shape[1] - 1 : -1].float())
        loss = F.cross_entropy(logits.flatten(0, 1), answers_BA.flatten(), ignore_index=self.tokenizer.pad_token_id)
        if not with_tower or self.plan.start is not None:  # a finished model has no heads
            return loss
        return loss + _HEADS_WEIGHT * slots_loss(self.heads.from_mean(features), batch.labels)

    def _kept_places(self, ids_L: torch.Tensor, squares_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the places of the tokens that the language model reads, the same for all rows of a batch."""
        kept_L = torch.ones(len(ids_L), dtype=torch.bool)
        if self.plan.image_tokens == "body":
            # Normalized padding is exactly zero.
            shown_HW = (squares_B3HW != 0).any(dim=0).any(dim=0)
            patches = F.max_pool2d(shown_HW[None, None].float(), PATCH_SIZE).flatten() > 0
            kept_L[ids_L == self.model.config.image_token_id] = patches
        return kept_L.nonzero()[:, 0]

    @torch.inference_mode()
    def _report(self, name: str, step: int, losses: list[float]) -> None:
        recent = losses[-100:]
        self.tower.eval()
        self.heads.eval()
        right = self._captions_right() if name == "caption" else self._heads_right(name)
        self._set_training(name)
        self.heads.train()
        table = " ".join(f"{slot}={value:.3f}" for slot, value in zip(SLOTS, right, strict=True))
        log.info(
            "%s %.1f min step %d loss %.4f pool %d | %s",
            name, self.elapsed / 60, step, sum(recent) / len(recent), self.pool.ready, table,
        )  # fmt: skip

    def _heads_right(self, name: str) -> list[float]:
        batch = self.unseen.take(slice(None))
        pixels = normalize(batch.images)
        if name == "crops":
            logits = self.heads.from_crop(self._patches(pixels))
        else:
            logits = self.heads.from_mean(self._encode(frame(pixels))[1])
        pairs = zip(SLOTS, logits, strict=True)
        return [accuracy(batch.labels[:, i], out.argmax(dim=-1), slot) for i, (slot, out) in enumerate(pairs)]

    def _captions_right(self) -> list[float]:
        batch = self.unseen.take(slice(256))
        images, labels = batch.images, batch.labels
        prompt_1L = self.writer.encode(self.writer.prompts[0])
        squares = frame(normalize(images))
        kept = self._kept_places(prompt_1L[0], squares)
        embeds = embed_prompts(
            self.model, prompt_1L.expand(len(images), -1), image_features(self.model, {"pixel_values": squares})
        ).embeds[:, kept]
        ids = self.model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            position_ids=kept.expand(len(images), -1),
            max_new_tokens=60,
            do_sample=False,
        )
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        log.info("example:%s", texts[0])
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
        log.info("resuming after %.1f minutes", self.elapsed / 60)


def _middle(patches_BPD: torch.Tensor) -> torch.Tensor:
    """Return the patches of the crop, without the padding on its left and right."""
    side, width = IMAGE_SIZE // PATCH_SIZE, WIDTH // PATCH_SIZE
    square = patches_BPD.unflatten(1, (side, side))
    left = (side - width) // 2
    return square[:, :, left : left + width].flatten(1, 2)


def _adamw(
    parameters: list[nn.Parameter], peak: float, *more: tuple[list[nn.Parameter], float]
) -> torch.optim.Optimizer:
    groups = [{"params": members, "peak": rate} for members, rate in ((parameters, peak), *more)]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.03)


def save_model(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write model and processor in the format of transformers, in half precision, which changes no caption."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(memory_format=torch.contiguous_format).half().save_pretrained(folder)
    processor.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes files that only their owner can read
