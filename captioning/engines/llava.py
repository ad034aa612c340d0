"""The in-process captioning engine: turns images into rows of the caption store, in batches.

Shape legend: B batch, L prompt tokens, G generated tokens, H and W pixels.
"""

# ruff: noqa: N806 - shape suffixes are upper case

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import torch
from PIL import Image
from transformers import GenerationConfig, LogitsProcessorList

from captioning.config import CaptionConfig
from captioning.engines.body_tower import BodyTower
from captioning.engines.image_tokens import PatchGrid, embed_prompts, image_features, kept_tokens
from captioning.engines.llava_check import end_tokens, overflow_remedy
from captioning.engines.llava_load import Llava, compile_llava, compiled_part, explained, load_llava
from captioning.engines.sampling import GumbelNoise
from captioning.engines.slots.decoding import fill_slots
from captioning.engines.slots.grammar import Grammar
from captioning.engines.slots.prompts import Prompts
from captioning.framing import frame
from captioning.prompts.pattern import SPACE
from captioning.prompts.replies import Reply, prompt_until_well_formed
from captioning.reading import Loaded
from captioning.store.rows import CaptionRow
from data.errors import ClipScgiError, ConfigError, WeightsError
from data.process.environment import exact_float32

log = logging.getLogger(__name__)

_SPAN: Final = (0.5, 20.0)
"""Bounds of the difference between normalized white and black: 1 without image_std, 2 for 0.5, 3.7 for CLIP."""


class Engine:
    """A loaded LLaVA with one prompt and one decoding method."""

    def __init__(self, llava: Llava, config: CaptionConfig) -> None:
        self.llava = llava
        self.config = config
        self.prompt = llava.form.prompt(config.prompt_template)
        self.prompt_1L = encode_prompt(llava, self.prompt)
        self._check_length()
        self._batch_size = config.batch_size
        self._grid = PatchGrid.of(llava.family)
        self._body_tower = BodyTower(llava.model, self._grid) if config.image_tokens == "body_only" else None
        self._grammar = self._slot_grammar() if config.decoding == "slots" else None
        self._check_tokens()

    @classmethod
    def load(cls, config: CaptionConfig) -> Engine:
        """Load the model of `config` and run it once.

        Raises WeightsError if the model is unusable, ConfigError if the settings do not fit it.
        """
        engine = cls(load_llava(config), config)
        engine._try_out()
        if config.compile:
            compile_llava(engine.llava)
            if engine._body_tower is not None:
                engine._body_tower.compile(partial(compiled_part, device=engine.llava.device))
        return engine

    @property
    def width(self) -> int:
        """Images per batch."""
        return self._batch_size

    def _check_tokens(self) -> None:
        rows = self.llava.model.get_input_embeddings().num_embeddings
        ids = self.prompt_1L[0].tolist() + (self._grammar.tokens.tolist() if self._grammar is not None else [])
        if max(ids) >= rows:
            raise WeightsError(
                f"{self.llava.folder / 'tokenizer.json'} encodes the template with token {max(ids)}, but the weights "
                f"embed {rows} tokens (0 to {rows - 1}): the tokenizer belongs to another model; copy the model's own"
            )

    @torch.inference_mode()
    def _try_out(self) -> None:
        """Raise WeightsError if the model cannot caption a blank image, before any image is read."""
        llava = self.llava
        with explained(llava.folder, llava.device):
            inputs = self.inputs([self.prepare(Image.new("RGB", (64, 128)))])
            found, expected = list(inputs["pixel_values"].shape), [1, *llava.family.shape]
            if found != expected:
                raise WeightsError(
                    f"the image processor in {llava.folder} returns pixels of shape {found}, but "
                    f"the model takes {expected}: use the model's own processor_config.json or "
                    "preprocessor_config.json"
                )
            self._check_span()
            logits = llava.model(
                input_ids=self.prompt_1L,
                attention_mask=torch.ones_like(self.prompt_1L),
                logits_to_keep=1,
                **inputs,
            ).logits
        if not logits.isfinite().all():
            raise WeightsError(
                f"the model in {llava.folder} computes NaN or infinity in {self.config.number_format}, although its "
                f"weights are finite: {overflow_remedy(self.config.number_format)}"
            )

    def _check_span(self) -> None:
        """Raise WeightsError if normalized black and white are closer or farther apart than for any known model."""
        size = self.llava.family.size
        black, white = self.pixels([Image.new("RGB", size, color) for color in ("black", "white")]).float()
        span = white - black
        if not (span.min() > _SPAN[0] and span.max() < _SPAN[1]):  # also for NaN
            raise WeightsError(
                f"the image processor in {self.llava.folder} normalizes black to {float(black.mean()):.4g} and white "
                f"to {float(white.mean()):.4g} (CLIP: -1.675 and 2.05), which fits no model: check do_rescale, "
                "rescale_factor, image_mean and image_std"
            )

    def _check_length(self) -> None:
        longest = self.llava.model.config.text_config.max_position_embeddings
        needed = self.prompt_1L.shape[1] + self.config.token_limit
        if needed > longest:
            raise ConfigError(
                f"prompt and reply can take {needed} tokens together, but the model has room for {longest}: lower "
                "caption.max_new_tokens or shorten the template"
            )

    def prepare(self, image: Image.Image) -> Image.Image:
        """Frame one RGB image for this model; thread-safe."""
        mean = self.llava.processor.image_processor.image_mean
        return frame(image, self.config.framing, self.llava.family.size, mean)

    def inputs(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Return the model's inputs for framed images, other than the prompt."""
        made = self.llava.family.inputs(self.llava.processor, images)
        pixels = made["pixel_values"].to(self.llava.device, self.llava.dtype)
        if pixels.dim() == 4:  # convolutions on a CPU are faster with channels last
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return {name: value.to(self.llava.device) for name, value in made.items()} | {"pixel_values": pixels}

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return the normalized pixels of framed images: [B, 3, H, W], or [B, V, 3, H, W] with V views."""
        return self.inputs(images)["pixel_values"]

    @torch.inference_mode()
    @exact_float32(torch)
    def reply(self, images: Sequence[Image.Image], seeds: Sequence[int] | None = None) -> list[Reply]:
        """Caption framed `images` as one batch. All rows share one prompt, so nothing is padded.

        seeds: one per image, to sample the replies at the temperature of `regenerate`; None for greedy replies.
        """
        count = len(images)
        if self.config.compile:  # a batch of another size would be compiled again
            missing = self._batch_size - count
            images = [*images, *[images[-1]] * missing]
            seeds = [*seeds, *[seeds[-1]] * missing] if seeds else None
        if self._grammar is not None:
            return self._filled(images, self._grammar)[:count]
        return self._generated(images, seeds)[:count]

    def _filled(self, images: Sequence[Image.Image], grammar: Grammar) -> list[Reply]:
        fillings = fill_slots(self.llava.model, self._prompts(images), grammar, fixed=self.config.compile)
        return [self._decoded(filling.tokens, filling.confidence) for filling in fillings]

    def _prompts(self, images: Sequence[Image.Image]) -> Prompts:
        model, inputs, fixed = self.llava.model, self.inputs(images), self.config.compile
        kept_BP = kept_tokens(images, self._grid) if self.config.image_tokens != "all" else None
        features = (
            image_features(model, inputs)
            if self._body_tower is None
            else self._body_tower.features(images, inputs["pixel_values"], fixed=fixed)
        )
        prompt_BL = self.prompt_1L.expand(len(images), -1)
        return embed_prompts(model, prompt_BL, features, kept_BP, fixed=fixed)

    def _generated(self, images: Sequence[Image.Image], seeds: Sequence[int] | None) -> list[Reply]:
        noise = [] if seeds is None else [GumbelNoise(seeds, self.config.regenerate.temperature)]
        embeds_BND, mask_BN, positions_BN = self._prompts(images).padded_left()
        # Without `input_ids`, `generate` returns only the reply.
        generated = self.llava.model.generate(
            inputs_embeds=embeds_BND,
            attention_mask=mask_BN,
            position_ids=positions_BN,
            generation_config=self._generation(),
            logits_processor=LogitsProcessorList(noise),
        )
        return [self._decoded(tokens) for tokens in generated.tolist()]

    def _decoded(self, tokens: list[int], confidence: Mapping[str, float] | None = None) -> Reply:
        """Return the reply whose generated tokens are `tokens`, up to the first end token."""
        ends = set(self._ends())
        length = next((i for i, token in enumerate(tokens) if token in ends), None)
        text = self.llava.processor.tokenizer.decode(tokens[:length], skip_special_tokens=True)
        n_tokens = len(tokens[:length])
        return Reply(text=text, n_tokens=n_tokens, truncated=length is None, confidence=confidence or {})

    def _slot_grammar(self) -> Grammar:
        tokenizer = self.llava.processor.tokenizer

        def encode(text: str) -> list[int]:
            ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
            return ids

        ends = self._ends()
        # Several end tokens are those of a chat and of its base model; the tokenizer names the one that ends a reply.
        end = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0]
        start = "" if self.prompt[-1:].isspace() else SPACE
        return Grammar(self.config.prompt_template.pattern, encode, end, start)

    def _ends(self) -> list[int]:
        return end_tokens(self.llava.model, self.llava.processor.tokenizer)

    def _generation(self) -> GenerationConfig:
        own = self.llava.model.generation_config
        ends = self._ends()
        # `load_llava` has removed all settings of the model but its token ids.
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.config.token_limit,
            bos_token_id=own.bos_token_id,
            eos_token_id=ends,
            pad_token_id=own.pad_token_id if own.pad_token_id is not None else ends[0],
            # Compiled code needs tensors of constant shape. The model was compiled when it was loaded.
            cache_implementation="static" if self.config.compile else None,
            disable_compile=True,
        )

    def rows(self, images: Iterable[Loaded]) -> Generator[list[CaptionRow], None, None]:
        """Caption a stream of images and yield their rows, one batch at a time, in order.

        An unreadable image becomes a row with status ``image_error``. When the device runs out of memory, the batch
        size is halved for the rest of the run.
        """
        for batch in _batches(images, lambda: self._batch_size):
            framed = {item.sha256: item.image for item in batch if item.image is not None}
            replies = prompt_until_well_formed(
                framed, self._reply_in_memory, self.config.regenerate, self.config.prompt_template.id
            )
            yield [
                CaptionRow.of(item.sha256, replies[item.sha256])
                if item.sha256 in replies
                else CaptionRow(image_sha256=item.sha256, status="image_error", error=item.reason)
                for item in batch
            ]

    def _reply_in_memory(self, images: Sequence[Image.Image], seeds: Sequence[int] | None) -> list[Reply]:
        """Caption framed `images` in batches that fit the device's memory."""
        done: list[Reply] = []
        while len(done) < len(images):
            part = slice(len(done), len(done) + self._batch_size)
            try:
                replies = self.reply(images[part], seeds[part] if seeds is not None else None)
            except torch.OutOfMemoryError as error:
                self._halve(len(images[part]), error)
            else:
                done += [replace(reply, batch_size=len(replies)) for reply in replies]
        return done

    def _halve(self, size: int, error: BaseException) -> None:
        if size == 1:
            raise ClipScgiError(
                f"{self.llava.device} does not have enough memory for a single image: set caption.quantization=4bit, "
                "caption.device=cpu, or a smaller caption.model"
            ) from error
        self._batch_size = size // 2
        log.warning("out of memory with %d images per batch; continuing with %d", size, self._batch_size)
        torch.cuda.empty_cache()


def encode_prompt(llava: Llava, prompt: str) -> torch.Tensor:
    """Return the token ids [1, L] of `prompt`, with one token per image feature, on the model's device."""
    processor, wanted = llava.processor, llava.family.image_tokens
    text = prompt.replace("<image>", processor.image_token * wanted)
    begin = processor.tokenizer.bos_token
    # A chat template may write the start token itself.
    special = begin is None or not prompt.startswith(begin)
    ids = processor.tokenizer(text, add_special_tokens=special, return_tensors="pt").input_ids
    found = int((ids == llava.model.config.image_token_id).sum())
    if found != wanted:
        raise WeightsError(
            f"the tokenizer in {llava.folder} returns {found} image tokens, but the model has {wanted} "
            "image features: the files belong to different models; copy the whole folder again"
        )
    return ids.to(llava.device)


def _batches(images: Iterable[Loaded], size: Callable[[], int]) -> Iterator[list[Loaded]]:
    batch: list[Loaded] = []
    for item in images:
        batch.append(item)
        if len(batch) >= size():
            yield batch
            batch = []
    if batch:
        yield batch
