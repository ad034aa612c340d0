"""The captioning engine: images in, rows of the caption store out, in batches as large as the device allows.

Shape legend: B batch, L prompt tokens, G generated tokens, H and W pixels.
"""

# ruff: noqa: N806 - shape suffixes are upper case

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import GenerationConfig

from captioning.config import CaptionConfig
from captioning.decoding import Filling, fill_slots
from captioning.framing import frame
from captioning.llava_load import Llava, load_llava
from captioning.reading import Loaded
from captioning.slot_grammar import Grammar
from data.errors import ClipScgiError, ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model wrote about one image.

    text: untouched. n_tokens: generated tokens without the end token. truncated: no end token within the limit.
    confidence: slot -> log-probability, where the decoding knows it.
    """

    text: str
    n_tokens: int
    truncated: bool
    confidence: dict[str, float] = field(default_factory=dict)


class Engine:
    """A loaded LLaVA with one prompt and one way of decoding."""

    def __init__(self, llava: Llava, config: CaptionConfig) -> None:
        self.llava = llava
        self.config = config
        self.prompt_1L = encode_prompt(llava, config.prompt_template.prompt())
        self._check_length()
        self._batch_size = config.batch_size
        self._grammar = self._rails() if config.decoding == "slots" else None

    @classmethod
    def load(cls, config: CaptionConfig) -> Engine:
        """Load the model of `config`; raises WeightsError where it cannot be."""
        return cls(load_llava(config), config)

    def _check_length(self) -> None:
        longest = self.llava.model.config.text_config.max_position_embeddings
        wanted = self.prompt_1L.shape[1] + self.config.token_limit
        if wanted > longest:
            raise ConfigError(
                f"prompt and reply together can take {wanted} tokens, the model has room for {longest}: "
                "lower caption.max_new_tokens or shorten the template"
            )

    def prepare(self, image: Image.Image) -> Image.Image:
        """Frame one RGB image for this model; safe in threads."""
        return frame(image, self.config.framing, self.llava.side, self.llava.processor.image_processor.image_mean)

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return framed images as the processor normalises them [B, 3, H, W]; nothing is left to resize or to cut."""
        made = self.llava.processor.image_processor(
            list(images), do_resize=False, do_center_crop=False, return_tensors="pt"
        )
        return made["pixel_values"].to(self.llava.device, self.llava.dtype)

    @torch.inference_mode()
    def reply(self, images: Sequence[Image.Image]) -> list[Reply]:
        """Caption framed `images` as one batch. The rows share one prompt, so there is no padding."""
        prompt_BL = self.prompt_1L.expand(len(images), -1)
        if self._grammar is not None:
            fillings = fill_slots(self.llava.model, prompt_BL, self.pixels(images), self._grammar)
            return [self._filled(filling) for filling in fillings]
        generated = self.llava.model.generate(
            input_ids=prompt_BL,
            attention_mask=torch.ones_like(prompt_BL),
            pixel_values=self.pixels(images),
            generation_config=self._generation(),
        )
        rows_BG = generated[:, prompt_BL.shape[1] :].tolist()
        return [self._read(row) for row in rows_BG]

    def _rails(self) -> Grammar:
        tokenizer = self.llava.processor.tokenizer

        def encode(text: str) -> list[int]:
            ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
            return ids

        return Grammar(self.config.prompt_template.pattern, encode, ends_of(self._generation().eos_token_id)[0])

    def _filled(self, filling: Filling) -> Reply:
        tokens = filling.tokens[:-1]  # the last one is the end
        text = self.llava.processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return Reply(text=text, n_tokens=len(tokens), truncated=False, confidence=filling.confidence)

    def _generation(self) -> GenerationConfig:
        own = self.llava.model.generation_config
        end = own.eos_token_id if own.eos_token_id is not None else self.llava.processor.tokenizer.eos_token_id
        # Built anew: a model's own file may ask for sampling.
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.config.token_limit,
            bos_token_id=own.bos_token_id,
            eos_token_id=end,
            pad_token_id=own.pad_token_id if own.pad_token_id is not None else ends_of(end)[0],
        )

    def _read(self, tokens: list[int]) -> Reply:
        ends = set(ends_of(self._generation().eos_token_id))
        length = next((i for i, token in enumerate(tokens) if token in ends), None)
        kept = tokens if length is None else tokens[:length]
        text = self.llava.processor.tokenizer.decode(kept, skip_special_tokens=True)
        return Reply(text=text, n_tokens=len(kept), truncated=length is None)

    def rows(self, images: Iterable[Loaded]) -> Iterator[list[dict[str, Any]]]:
        """Caption a stream of images and yield rows of schemas.SHARD, a batch at a time, in order.

        An image without pixels becomes a row with status ``image_error``. When the device runs out of memory the batch
        is halved, for good.
        """
        for batch in _batches(images, lambda: self._batch_size):
            framed = [item.image for item in batch if item.image is not None]
            replies = iter(self._fitting(framed))
            yield [_row(item, next(replies)) if item.image is not None else _failed(item) for item in batch]

    def _fitting(self, images: list[Image.Image]) -> list[tuple[Reply, int]]:
        done: list[tuple[Reply, int]] = []
        while len(done) < len(images):
            part = images[len(done) : len(done) + self._batch_size]
            try:
                done += [(reply, len(part)) for reply in self.reply(part)]
            except torch.OutOfMemoryError as error:
                self._halve(len(part), error)
        return done

    def _halve(self, size: int, error: BaseException) -> None:
        if size == 1:
            raise ClipScgiError(
                f"{self.llava.device} has not enough memory for a single image; "
                "use caption.quantization 4bit or 8bit, another device, or a smaller model"
            ) from error
        self._batch_size = size // 2
        log.warning("out of memory at %d images a batch; going on with %d", size, self._batch_size)
        torch.cuda.empty_cache()


def encode_prompt(llava: Llava, prompt: str) -> torch.Tensor:
    """Return the token ids [1, L] of `prompt` with one token for each image feature, on the model's device."""
    processor = llava.processor
    text = prompt.replace("<image>", processor.image_token * llava.image_tokens)
    ids = processor.tokenizer(text, return_tensors="pt").input_ids
    found = int((ids == llava.model.config.image_token_id).sum())
    if found != llava.image_tokens:
        raise ConfigError(
            f"the tokenizer in {llava.folder} makes {found} image tokens where the model has {llava.image_tokens} "
            "image features; its files do not belong together"
        )
    return ids.to(llava.device)


def ends_of(end: int | list[int]) -> list[int]:
    """Return the end tokens as a list: a model may have several."""
    return end if isinstance(end, list) else [end]


def _batches(images: Iterable[Loaded], size: Callable[[], int]) -> Iterator[list[Loaded]]:
    batch: list[Loaded] = []
    for item in images:
        batch.append(item)
        if len(batch) >= size():
            yield batch
            batch = []
    if batch:
        yield batch


def _row(item: Loaded, answer: tuple[Reply, int]) -> dict[str, Any]:
    reply, batch_size = answer
    return {
        "image_sha256": item.sha256,
        "raw_text": reply.text,
        "status": "truncated" if reply.truncated else "ok",
        "error": None,
        "n_tokens": reply.n_tokens,
        "truncated": reply.truncated,
        "batch_size": batch_size,
        **{f"conf_{slot}": value for slot, value in reply.confidence.items()},
    }


def _failed(item: Loaded) -> dict[str, Any]:
    return {
        "image_sha256": item.sha256,
        "raw_text": None,
        "status": "image_error",
        "error": item.reason,
        "n_tokens": None,
        "truncated": None,
        "batch_size": None,
    }
