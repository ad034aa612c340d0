"""Memory that captioning and training need, estimated without a model, against what the device has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from captioning.model_size import ModelSize, model_size
from data.device import CPU
from data.errors import ClipScgiError
from flows.preflight.devices import device_of, number_of
from flows.preflight.disk import weight_bytes
from flows.preflight.machine import Memory
from flows.preflight.plan import Plan
from flows.terminal import size

_PER_PIXEL: Final = {"tiny": 330, "vit_b16": 3_200, "rn50": 2_700}
"""Bytes of float32 activations that training keeps per pixel of an image, measured for CLIP-SCGI."""
_STATE: Final = 4
"""Weight, gradient and Adam's two moments, in multiples of the weights; an upper bound, as the text tower is frozen."""
_LARGE: Final = 1_000_000_000
"""Parameters from which a captioner takes tens of seconds per image on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """Memory that a stage needs on a device, and what the device has. is_exact: False for a guess by a model's name."""

    stage: str
    device: str
    needed: int
    memory: Memory
    is_exact: bool = True

    @property
    def needs(self) -> str:
        """What the stage needs, for a table."""
        return f"{'' if self.is_exact else 'about '}{size(self.needed)}"

    @property
    def has(self) -> str:
        """What the device has, and its name, for a table."""
        return f"{size(self.memory.free)} {'RAM' if self.device == CPU else self.device}"


def memory_needs(plan: Plan) -> list[Need]:
    """Return what captioning and training need, for the stages that will run and whose size is known."""
    return [need for need in (_captioning(plan), _training(plan)) if need is not None]


def memory_of(plan: Plan, device: str) -> Memory:
    """Return the memory of a device, "cpu" or "cuda:N"."""
    return plan.ram() if device == CPU else plan.cuda.memory(number_of(device))


def captioner_size(plan: Plan) -> ModelSize | None:
    """Return the size of the captioner, or None if it is unknown, is on a server, or will not run."""
    if "caption" not in plan.stages:
        return None
    try:
        return model_size(plan.caption, squareness=_squareness(plan))
    except ClipScgiError:
        return None  # `captioner_problems` reports it


def _squareness(plan: Plan) -> float:
    """Return the shorter side of the most square image in its longer ones; 1 if the images are not indexed."""
    if not plan.is_indexed or plan.caption.image_tokens == "all":
        return 1.0
    table = plan.run.images.rows("width", "height")
    sides = np.stack([table["width"].to_numpy(), table["height"].to_numpy()])
    return float((sides.min(0) / sides.max(0)).max(initial=0.0)) or 1.0


def _captioning(plan: Plan) -> Need | None:
    found = captioner_size(plan)
    device = None if found is None else device_of(plan, plan.caption.device)
    if found is None or device is None:
        return None
    needed = found.of_batch(plan.caption.batch_size)
    memory = memory_of(plan, device)
    return Need(stage="caption", device=device, needed=needed, memory=memory, is_exact=found.exact)


def _training(plan: Plan) -> Need | None:
    device = device_of(plan, plan.train.device) if "train" in plan.stages else None
    if device is None:
        return None
    train, backbone = plan.train, plan.train.backbone
    images = train.batch.identities * train.batch.images // plan.scale.trainers
    activations = images * backbone.height * backbone.width * _PER_PIXEL[backbone.name]
    weights = weight_bytes(train)
    frozen = weights if train.loss.distill_weight else 0  # a copy of the image tower, at most
    if train.precision != "no":
        activations = activations // 2 + weights // 2  # half of the bytes, and a copy of the weights
    needed = _STATE * weights + frozen + activations
    return Need(stage="train", device=device, needed=needed, memory=memory_of(plan, device))


def memory_problems(plan: Plan) -> Iterator[str]:
    """Yield a captioner whose weights alone do not fit into the memory of its device."""
    found = captioner_size(plan)
    device = None if found is None else device_of(plan, plan.caption.device)
    if found is None or device is None or not found.exact:
        return
    total = memory_of(plan, device).total
    if found.weights > total:
        yield (
            f"the weights of caption.model={plan.caption.model} take {size(found.weights)} in "
            f"{_format(plan)}, and {_named(device)} has {size(total)}: {_smaller(plan, device)}"
        )


def memory_notices(plan: Plan) -> Iterator[str]:
    """Yield a captioner or a training that may run out of memory, and a large captioner on a CPU."""
    problems = any(memory_problems(plan))
    for need in memory_needs(plan):
        if need.needed <= need.memory.free or (need.stage == "caption" and problems):
            continue
        where = f"{_named(need.device)} has {size(need.memory.free)} free"
        what = "a batch" if need.is_exact else "the weights"
        about = f"{need.stage}: about {size(need.needed)} of memory for {what}"
        yield f"{about}, and {where}: {_smaller_batch(plan, need)}"
    found = captioner_size(plan)
    if found is not None and found.parameters >= _LARGE and device_of(plan, plan.caption.device) == CPU:
        yield (
            f"caption.model={plan.caption.model} has {found.parameters / 1e9:.1f} billion parameters and runs on the "
            "CPU, which takes tens of seconds per image: use a machine with a GPU, a server (caption.engine=openai) or "
            "caption.model=tiny"
        )


def _smaller_batch(plan: Plan, need: Need) -> str:
    if need.stage == "train":
        helps = plan.train.precision == "no" and not (need.device == CPU and plan.processor.emulates("bfloat16"))
        return (
            "set train.batch.identities or train.batch.images lower, with train.batch.accumulate=2 for the same number "
            "of images per step" + (", or train.precision=bf16" if helps else "")
        )
    found = captioner_size(plan)
    room = need.memory.free - found.weights if found is not None else 0
    fitting = room // found.per_image if found is not None and found.per_image else 0
    if fitting >= 1:
        return f"set caption.batch_size={fitting} (on a GPU the batch is halved until it fits)"
    return _smaller(plan, need.device)


def _smaller(plan: Plan, device: str) -> str:
    """Return how a captioner takes less memory."""
    remedies = ["caption.model=tiny"]
    if plan.caption.dtype == "float32" and plan.caption.model != "tiny":
        remedies.insert(0, "caption.dtype=bfloat16")
    if device != CPU and plan.caption.quantization != "4bit":
        remedies.insert(0, "caption.quantization=4bit")
    return f"set {' or '.join(remedies)}, or use a server (caption.engine=openai)"


def _format(plan: Plan) -> str:
    return plan.caption.number_format if plan.caption.quantization == "none" else plan.caption.quantization


def _named(device: str) -> str:
    return "this machine" if device == CPU else device
