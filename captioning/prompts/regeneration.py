"""Asking again where a reply is malformed: truncated, looping, off-template, too short or too long.

The first reply is greedy; each further one is drawn at a temperature, with a seed that follows from the image and the
number of the try alone, so that the same image gets the same replies in any batch and on any worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from pydantic import Field

from captioning.prompts.replies import Answer, Reply
from captioning.prompts.reply_form import ReplyForm, is_looping, is_off_template
from data.artifacts.fingerprint import digest_bytes

Ask = Callable[[Sequence[int], Sequence[int] | None], list[Reply]]
"""Called with the indices of images and, from the second reply on, a seed for each; returns their replies."""

_SEED_DIGITS: Final = 7  # hex: 28 bits, which every server takes


class RegenerateConfig(ReplyForm):
    """When and how often the model is asked again. By default it is not."""

    times: int = Field(default=0, ge=0, le=10)
    """Further replies at most; the first well-formed one is kept, or the first reply if none is. 3 is usual (HAM)."""
    temperature: float = Field(default=0.7, gt=0, le=2)
    """Of the further replies: the lower, the nearer to the first one."""


def ask_until_well_formed(keys: Sequence[str], ask: Ask, config: RegenerateConfig, template_id: str) -> list[Answer]:
    """Return the answer to each image of a batch. keys: image digests."""
    answers = [Answer(reply=reply) for reply in ask(range(len(keys)), None)]
    for attempt in range(1, config.times + 1):
        bad = [i for i, answer in enumerate(answers) if is_malformed(answer.reply, config, template_id)]
        if not bad:
            break
        for i, reply in zip(bad, ask(bad, [seed_of(keys[i], attempt) for i in bad]), strict=True):
            answers[i] = _better(answers[i].reply, reply, attempt + 1, config, template_id)
    return answers


def _better(first: Reply, reply: Reply, n_replies: int, config: RegenerateConfig, template_id: str) -> Answer:
    if is_malformed(reply, config, template_id):
        return Answer(reply=first, n_replies=n_replies)
    return Answer(reply=reply, first_text=first.text, n_replies=n_replies)


def is_malformed(reply: Reply, config: RegenerateConfig, template_id: str) -> bool:
    """Say whether a reply has not the form that was asked for."""
    text = reply.text.strip()
    return reply.truncated or is_looping(text, config.loop_repeats) or is_off_template(text, template_id, config)


def seed_of(image_sha256: str, attempt: int) -> int:
    """Return the seed of the reply number `attempt` (from 1 on) after the first."""
    return int(digest_bytes(f"{image_sha256}:{attempt}".encode())[:_SEED_DIGITS], 16)
