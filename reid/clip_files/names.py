"""Tensor names of CLIP in files: those of open_clip and OpenAI, of Hugging Face, and of train artifacts.

Works on names and shapes only, so that the header of a file is enough. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from data.errors import WeightsError

Naming = Literal["open_clip", "hugging_face"]
Shape = Sequence[int]

ARTIFACT_PREFIX: Final = "backbone.clip."
"""Prefix of CLIP's tensors in a train artifact."""
POSITIONS: Final = "visual.positional_embedding"
POOL_POSITIONS: Final = "visual.attnpool.positional_embedding"
OPENAI_SCALARS: Final = ("input_resolution", "context_length", "vocab_size")
"""Buffers of OpenAI's original archives; they are settings, not weights."""

# Names that only one naming has, in the image tower and in the text tower: each one reveals naming and prefix.
_ANCHORS: Final[tuple[tuple[str, Naming], ...]] = (
    ("visual.conv1.weight", "open_clip"),
    ("ln_final.weight", "open_clip"),
    ("vision_model.embeddings.patch_embedding.weight", "hugging_face"),
    ("text_model.final_layer_norm.weight", "hugging_face"),
)
_HARMLESS: Final = {
    *OPENAI_SCALARS,
    "logit_bias",  # belongs to SigLIP's loss; features do not depend on it
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
}
_HF_TOWERS: Final = (
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
)
_HF_NAMES: Final = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    POSITIONS: "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}
_HF_LAYER_PARTS: Final = (
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
    ("attn.out_proj.", "self_attn.out_proj."),
)
TRANSPOSED: Final = frozenset({"visual.proj", "text_projection"})
"""Hugging Face stores these as weights of linear layers: [out, in] instead of [in, out]."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a file names its tensors: the naming and the prefix of every name."""

    naming: Naming
    prefix: str

    @property
    def is_artifact(self) -> bool:
        """Whether the file is the model of a train artifact."""
        return self.prefix == ARTIFACT_PREFIX

    def sources(self, name: str) -> list[str]:
        """Return the tensors of the file that form CLIP's tensor `name`, in order: one, or query, key and value."""
        if self.naming == "open_clip":
            return [self.prefix + name]
        return [self.prefix + source for source in _hugging_face(name)]

    def source_shapes(self, name: str, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return the shape that each of `sources` must have for CLIP's tensor `name` of `shape`."""
        sources = self.sources(name)
        if len(sources) == 3:
            shape = (shape[0] // 3, *shape[1:])
        elif self.naming == "hugging_face" and name in TRANSPOSED:
            shape = (shape[1], shape[0])
        return dict.fromkeys(sources, tuple(shape))

    def without_harmless(self, names: Collection[str]) -> set[str]:
        """Return `names` without those that change no feature and, in an artifact, without those outside CLIP."""
        harmless = {*_HARMLESS, *(self.prefix + name for name in _HARMLESS)}
        return {name for name in names if name not in harmless and not self.is_left_out(name)}

    def is_left_out(self, name: str) -> bool:
        """Return True if `name` belongs to a part of an artifact outside CLIP: heads, prompts, cameras."""
        return self.is_artifact and not name.startswith(self.prefix)


def _hugging_face(name: str) -> list[str]:
    for ours, theirs in _HF_TOWERS:
        if name.startswith(ours):
            layer, part = name.removeprefix(ours).split(".", 1)
            return [f"{theirs}{layer}.{source}" for source in _hugging_face_layer(part)]
    return [_HF_NAMES.get(name, name)]


def _hugging_face_layer(part: str) -> list[str]:
    if part.startswith("attn.in_proj_"):
        kind = part.removeprefix("attn.in_proj_")
        return [f"self_attn.{letter}_proj.{kind}" for letter in "qkv"]
    for ours, theirs in _HF_LAYER_PARTS:
        if part.startswith(ours):
            return [theirs + part.removeprefix(ours)]
    return [part]


def layout_of(names: Collection[str], source: str) -> Layout:
    """Return how `source` names its tensors. Raises WeightsError if it contains no CLIP or several."""
    found = {
        (naming, name.removesuffix(anchor))
        for anchor, naming in _ANCHORS
        for name in names
        if name.endswith(anchor) and (len(name) == len(anchor) or name[-len(anchor) - 1] == ".")
    }
    if not found:
        raise WeightsError(
            f"{source} is not an open_clip CLIP, a Hugging Face CLIPModel or a train artifact: none of its "
            f"{len(names)} tensors has a name of one (it begins with {', '.join(sorted(names)[:3])})"
        )
    if len(found) > 1:
        prefixes = sorted(f"{prefix}* ({naming})" for naming, prefix in found)
        raise WeightsError(f"{source} contains several models: {', '.join(prefixes)}; save one of them to its own file")
    naming, prefix = found.pop()
    return Layout(naming=naming, prefix=prefix)


_KNOWN_TOWERS: Final = {
    (768, (12,), 32): "ViT-B/32",
    (768, (12,), 16): "ViT-B/16",
    (1024, (24,), 14): "ViT-L/14",
    (1280, (32,), 14): "ViT-H/14",
    (1408, (40,), 14): "ViT-g/14",
    (1664, (48,), 14): "ViT-bigG/14",
    (64, (3, 4, 6, 3), None): "ResNet-50",
    (64, (3, 4, 23, 3), None): "ResNet-101",
    (80, (4, 6, 10, 6), None): "ResNet-50x4",
    (96, (6, 8, 18, 8), None): "ResNet-50x16",
    (128, (3, 15, 36, 10), None): "ResNet-50x64",
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The sizes that distinguish CLIP models; None if a file does not show one. A ResNet has no patch."""

    vision_width: int | None
    patch: int | None
    vision_blocks: tuple[int, ...]
    text_width: int | None
    text_blocks: int
    joint_width: int | None

    def __str__(self) -> str:
        """Return a description, with the name of the image tower if it is known."""
        known = _KNOWN_TOWERS.get((self.vision_width or 0, self.vision_blocks, self.patch))
        kind = "a vision transformer" if len(self.vision_blocks) == 1 else "a ResNet"
        patch = "" if self.patch is None else f", patch {self.patch}"
        blocks = "-".join(map(str, self.vision_blocks))
        return (
            f"{f'a {known}' if known else kind} (vision width {self.vision_width}, {blocks} blocks{patch}; "
            f"text width {self.text_width}, {self.text_blocks} blocks; joint width {self.joint_width})"
        )

    def differences(self, other: Architecture) -> list[str]:
        """Return the names of the sizes that both show and that differ.

        The number of blocks is not compared: loading reports a missing block as missing tensors.
        """
        shown = any(self.vision_blocks) and any(other.vision_blocks)
        same_kind = not shown or len(self.vision_blocks) == len(other.vision_blocks)
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in ("text_width", "joint_width")}
        if same_kind:
            pairs |= {name: (getattr(self, name), getattr(other, name)) for name in ("vision_width", "patch")}
        differing = [name for name, values in pairs.items() if None not in values and values[0] != values[1]]
        return differing if same_kind else ["vision_width", "patch", *differing]


def architecture(shapes: Mapping[str, Shape], layout: Layout) -> Architecture:
    """Return the architecture of a file from the shapes of its tensors."""
    stages = tuple(_blocks(shapes, layout, f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
    first = _size(shapes, layout, "visual.conv1.weight", 0)
    is_resnet = any(stages)
    return Architecture(
        vision_width=2 * first if is_resnet and first is not None else first,
        patch=None if is_resnet else _size(shapes, layout, "visual.conv1.weight", 2),
        vision_blocks=stages if is_resnet else (_blocks(shapes, layout, "visual.transformer.resblocks."),),
        text_width=_size(shapes, layout, "token_embedding.weight", 1),
        text_blocks=_blocks(shapes, layout, "transformer.resblocks."),
        joint_width=_size(shapes, layout, "text_projection", 0 if layout.naming == "hugging_face" else 1),
    )


def _size(shapes: Mapping[str, Shape], layout: Layout, name: str, axis: int) -> int | None:
    shape = shapes.get(layout.sources(name)[0], ())
    return shape[axis] if len(shape) > axis else None


def _blocks(shapes: Mapping[str, Shape], layout: Layout, tower: str) -> int:
    start = layout.prefix + (dict(_HF_TOWERS).get(tower, tower) if layout.naming == "hugging_face" else tower)
    numbers = [int(found[1]) for name in shapes if (found := re.match(rf"{re.escape(start)}(\d+)\.", name))]
    return max(numbers, default=-1) + 1
