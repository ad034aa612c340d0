"""An adapter for open_clip's CLIP: image tokens, text tokens at their real length, weights from safetensors.

This is the only module that imports open_clip.

Shapes: B batch, L image tokens (class token first), T text tokens, V vision width, W text width, D joint width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import open_clip
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F

from data.errors import ConfigError
from data.files import read_json
from data.process.environment import exact_float32
from data.weights import read_tensors
from reid.config.backbone import PATCH, BackboneConfig
from reid.models.loading import ClipShape, check_stored, load_clip, refuse_other_model, resize_positions
from reid.models.pretrained import TINY_CONFIG, TINY_FOLDER, TINY_TOKENIZER
from reid.models.tokens import BpeTokenizer, TextTokenizer, with_ends
from reid.models.weights_source import activation_of, read_source

__all__ = [
    "Backbone",
    "ImageFeatures",
    "OpenClipTokenizer",
    "build_backbone",
    "build_clip",
    "load_clip",
    "resize_positions",
    "seeded",
]

# OpenAI's models were trained with QuickGELU, which open_clip's plain ViT-B-16 config does not use.
_OPEN_CLIP_NAMES: Final = {"vit_b16": "ViT-B-16-quickgelu", "rn50": "RN50-quickgelu"}
# How open_clip's SimpleTokenizer splits lower-case text, and the quotes that it replaces.
_CLIP_WORDS: Final = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CURLY_QUOTES: Final = {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'}


class ImageFeatures(NamedTuple):
    """Outputs of the image tower. For a ResNet, the two class vectors are average-pooled stages 3 and 4."""

    penultimate_BV: Tensor
    """Class token after the second-to-last block (layer 11 of ViT-B/16), not normalized."""
    last_BV: Tensor
    """Class token after the last block and the final layer norm (layer 12)."""
    tokens_BLD: Tensor
    """Class token and patches, projected into the joint space."""

    @property
    def joint_BD(self) -> Tensor:
        """CLIP's image feature: the projected class token."""
        return self.tokens_BLD[:, 0]


class OpenClipTokenizer:
    """OpenAI's BPE tokenizer, with the vocabulary that open_clip ships."""

    def __init__(self) -> None:
        self._tokenizer = SimpleTokenizer()
        self.start: int = self._tokenizer.sot_token_id
        self.end: int = self._tokenizer.eot_token_id

    def words(self, text: str) -> list[int]:
        """Return the ids of `text`, without start and end tokens."""
        return self._tokenizer.encode(text)

    def portable(self) -> Tokenizer:
        """Return the same byte-pair encoding. It does not repair broken Unicode and HTML entities, as `words` does."""
        clip = self._tokenizer
        tokenizer = Tokenizer(models.BPE(clip.encoder, list(clip.bpe_ranks), end_of_word_suffix="</w>"))
        straight = [normalizers.Replace(curly, plain) for curly, plain in _CURLY_QUOTES.items()]
        spaces = normalizers.Replace(Regex(r"\s+"), " ")
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), *straight, spaces, normalizers.Strip(), normalizers.Lowercase()]
        )
        words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([clip.decoder[self.start], clip.decoder[self.end]])
        return tokenizer


class Backbone(nn.Module):
    """CLIP with the calls that the re-identification methods need.

    Input images are [B, 3, H, W] floats, already normalized with mean and deviation 0.5 (CLIP-ReID, datasets).
    """

    def __init__(self, clip: CLIP, tokenizer: TextTokenizer, *, is_resnet: bool) -> None:
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer
        self.is_resnet = is_resnet
        self.context: int = clip.context_length
        self.text_width: int = clip.token_embedding.embedding_dim
        self.joint_width: int = clip.text_projection.shape[1]
        if is_resnet:
            self.last_width: int = clip.visual.attnpool.k_proj.in_features
            self.penultimate_width: int = self.last_width // 2
        else:
            self.last_width = self.penultimate_width = clip.visual.transformer.width

    def image(self, images_BCHW: Tensor, class_shift_BV: Tensor | None = None) -> ImageFeatures:
        """Encode images. `class_shift_BV` is added to the class token before the positions (CLIP-ReID's SIE)."""
        return self._image(self.clip.visual, images_BCHW, class_shift_BV)

    def _image(self, visual: Any, images_BCHW: Tensor, class_shift_BV: Tensor | None = None) -> ImageFeatures:
        if self.is_resnet:
            return _resnet_features(visual, images_BCHW)
        return _vit_features(visual, images_BCHW, class_shift_BV)

    def frozen_image(self) -> Callable[[Tensor], ImageFeatures]:
        """Return an encoder of images with a copy of the image tower as it is now, without gradients.

        The copy is on the same device, in evaluation mode, and not a part of this module.
        """
        visual = copy.deepcopy(self.clip.visual).eval().requires_grad_(False)

        @torch.no_grad()
        def encode(images_BCHW: Tensor) -> ImageFeatures:
            return self._image(visual, images_BCHW)

        return encode

    def token_ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return ids [B, T], padded with 0 to the longest text, and the position [B] of each end token.

        Texts longer than the context lose their last words, but keep their end token.
        """
        rows = [with_ends(self.tokenizer, self.tokenizer.words(text), self.context) for text in texts]
        ends = torch.tensor([len(row) - 1 for row in rows])
        ids = torch.zeros(len(rows), int(ends.max()) + 1, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
        return ids, ends

    def embed_ids(self, ids_BT: Tensor) -> Tensor:
        """Return the token embeddings [B, T, W] of ids, without positions."""
        return self.clip.token_embedding(ids_BT)

    def text_tokens(self, embeddings_BTW: Tensor) -> Tensor:
        """Encode token embeddings (no positions yet) and return every token projected: [B, T, D].

        T may be any length up to the context: the tower is causal, so tokens after the end token would change nothing.
        """
        clip, length = self.clip, embeddings_BTW.shape[1]
        x_BTW = embeddings_BTW + clip.positional_embedding[:length]
        x_BTW = clip.transformer(x_BTW, attn_mask=clip.attn_mask[:length, :length])
        return clip.ln_final(x_BTW) @ clip.text_projection

    def text(self, texts: Sequence[str]) -> Tensor:
        """Return CLIP's text features [B, D]: the projected end tokens, not normalized."""
        ids, ends = self.token_ids(texts)
        device = self.clip.positional_embedding.device
        return self.text_from_ids(ids.to(device), ends.to(device))

    def text_from_ids(self, ids_BT: Tensor, ends_B: Tensor) -> Tensor:
        """Return CLIP's text features [B, D] of ids whose end tokens are at `ends_B`."""
        tokens_BTD = self.text_tokens(self.embed_ids(ids_BT))
        return tokens_BTD[torch.arange(len(ends_B), device=ends_B.device), ends_B]

    def image_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (name, parameter) of the image tower; names are relative to this module."""
        return ((f"clip.visual.{name}", value) for name, value in self.clip.visual.named_parameters())

    def freeze_joint(self) -> None:
        """Freeze what maps image features into the joint space: the projection, or a ResNet's attention pooling."""
        visual = self.clip.visual
        (visual.attnpool if self.is_resnet else visual.proj).requires_grad_(False)

    def freeze_text(self) -> None:
        """Freeze all parameters outside the image tower. Gradients still flow *through* the text tower."""
        for name, parameter in self.clip.named_parameters():
            if not name.startswith("visual."):
                parameter.requires_grad_(False)


def _vit_features(visual: Any, images_BCHW: Tensor, class_shift_BV: Tensor | None) -> ImageFeatures:
    patches_BPV = visual.conv1(images_BCHW).flatten(2).transpose(1, 2)
    class_B1V = visual.class_embedding.to(patches_BPV.dtype).expand(patches_BPV.shape[0], 1, -1)
    if class_shift_BV is not None:
        class_B1V = class_B1V + class_shift_BV[:, None].to(patches_BPV.dtype)
    x_BLV = torch.cat([class_B1V, patches_BPV], dim=1) + visual.positional_embedding.to(patches_BPV.dtype)
    x_BLV = visual.ln_pre(x_BLV)
    blocks = visual.transformer.resblocks
    for block in blocks[:-1]:
        x_BLV = block(x_BLV)
    last_BLV = visual.ln_post(blocks[-1](x_BLV))
    return ImageFeatures(x_BLV[:, 0], last_BLV[:, 0], last_BLV @ visual.proj)


def _resnet_features(visual: Any, images_BCHW: Tensor) -> ImageFeatures:
    x_BVHW = visual.layer2(visual.layer1(visual.stem(images_BCHW)))
    third_BVHW = visual.layer3(x_BVHW)
    fourth_BVHW = visual.layer4(third_BVHW)
    return ImageFeatures(
        third_BVHW.mean((2, 3)), fourth_BVHW.mean((2, 3)), _attention_pool(visual.attnpool, fourth_BVHW)
    )


def _attention_pool(pool: Any, x_BVHW: Tensor) -> Tensor:
    """Return CLIP's attention pooling at every position [B, 1 + H * W, D], not only at the first."""
    patches_BPV = x_BVHW.flatten(2).transpose(1, 2)
    x_BLV = torch.cat([patches_BPV.mean(1, keepdim=True), patches_BPV], dim=1) + pool.positional_embedding
    heads = (-1, x_BLV.shape[1], pool.num_heads, x_BLV.shape[2] // pool.num_heads)
    query, key, value = (layer(x_BLV).view(heads).transpose(1, 2) for layer in (pool.q_proj, pool.k_proj, pool.v_proj))
    return pool.c_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's default initial weights with `seed`, and restore the global generator afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@exact_float32(torch)
def build_backbone(config: BackboneConfig, *, seed: int = 0) -> Backbone:
    """Build the backbone of `config` on the CPU in float32. `seed` only matters for random weights.

    Raises WeightsError if the weights are missing, damaged, of another architecture, or have an unknown activation or
    grid.
    """
    source = read_source(config)
    shape: ClipShape = {**_shape_of(config), "quick_gelu": activation_of(config, source) == "quick_gelu"}
    if source is not None and source.config is not None:
        refuse_other_model(source.config, _with_defaults(shape))
    with seeded(seed):
        backbone = _backbone(config, shape)
    if source is None:
        return backbone
    load_clip(backbone.clip, load_file(source.path), str(source.path), source.grid)
    return backbone


def check_backbone(config: BackboneConfig) -> None:
    """Raise WeightsError if the weights of `config` are unusable. Reads the file, and loads no weights into a model.

    Names, shapes and formats are compared with a model without memory; the values are searched for NaN and infinity.
    """
    source = read_source(config)
    if source is None:
        return
    shape: ClipShape = {**_shape_of(config), "quick_gelu": source.activation == "quick_gelu"}
    if source.config is not None:
        refuse_other_model(source.config, _with_defaults(shape))
    with torch.device("meta"):
        clip = build_clip(shape, config.height, config.width, config.stride)
    check_stored(clip, read_tensors(source.path), str(source.path))


def _shape_of(config: BackboneConfig) -> ClipShape:
    if config.name == "tiny":
        shape: ClipShape = read_json(TINY_FOLDER / TINY_CONFIG)["clip"]
        return shape
    found: ClipShape = open_clip.get_model_config(_OPEN_CLIP_NAMES[config.name])
    return found


def _with_defaults(shape: ClipShape) -> ClipShape:
    """Return `shape` completed with open_clip's defaults."""
    return {
        **shape,
        "vision_cfg": asdict(CLIPVisionCfg(**shape["vision_cfg"])),
        "text_cfg": asdict(CLIPTextCfg(**shape["text_cfg"])),
    }


def _backbone(config: BackboneConfig, shape: ClipShape) -> Backbone:
    clip = build_clip(shape, config.height, config.width, config.stride)
    return Backbone(clip, tokenizer_of(config), is_resnet=config.name == "rn50")


def tokenizer_of(config: BackboneConfig) -> TextTokenizer:
    """Return the tokenizer of a backbone."""
    return BpeTokenizer(TINY_FOLDER / TINY_TOKENIZER) if config.name == "tiny" else OpenClipTokenizer()


def context_of(config: BackboneConfig) -> int:
    """Return the context length of a backbone's text tower in tokens, start and end included."""
    return int(_shape_of(config)["text_cfg"]["context_length"])


def open_clip_shape(config: BackboneConfig) -> ClipShape:
    """Return the architecture of a backbone as the `model_cfg` of an open_clip_config.json, image size included.

    Raises ConfigError if open_clip cannot build it: a ResNet with a stage 4 of full resolution, or overlapping patches.
    """
    problem = {"rn50": "a ResNet-50 whose stage 4 keeps its resolution (CLIP-ReID)"}.get(config.name, "")
    if config.name != "rn50" and config.stride not in (0, PATCH):
        problem = f"overlapping patches (train.backbone.stride={config.stride})"
    if problem:
        raise ConfigError(f"open_clip cannot build {problem}: choose --format onnx")
    shape = _shape_of(config)
    return {
        "embed_dim": shape["embed_dim"],
        "quick_gelu": activation_of(config, None) == "quick_gelu",
        "vision_cfg": {**shape["vision_cfg"], "image_size": [config.height, config.width]},
        "text_cfg": shape["text_cfg"],
    }


def open_clip_features(folder: Path, images_BCHW: Tensor, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the image and text features, of length one, of the model that open_clip loads from `folder`."""
    model = open_clip.create_model(f"local-dir:{folder}", device="cpu").eval()
    with torch.inference_mode():
        return model.encode_image(images_BCHW, normalize=True), model.encode_text(ids_BT, normalize=True)


def build_clip(shape: ClipShape, height: int, width: int, stride: int = 0) -> CLIP:
    """Build open_clip's CLIP of `shape` for images of `height` x `width` pixels, with default initial weights."""
    vision = dict(shape["vision_cfg"])
    is_resnet = isinstance(vision["layers"], list)
    if not is_resnet:
        vision["image_size"] = [height, width]
    clip = CLIP(**{**shape, "vision_cfg": vision})
    if is_resnet:
        _keep_stage4_resolution(clip.visual)
        _replace_positions(clip.visual.attnpool, (height // 16) * (width // 16))
    elif stride:
        patch_height, patch_width = clip.visual.patch_size
        clip.visual.conv1.stride = (stride, stride)
        clip.visual.grid_size = ((height - patch_height) // stride + 1, (width - patch_width) // stride + 1)
        _replace_positions(clip.visual, clip.visual.grid_size[0] * clip.visual.grid_size[1])
    if is_resnet:
        clip.visual.grid_size = (height // 16, width // 16)
    return clip


def _keep_stage4_resolution(visual: Any) -> None:
    """Give stage 4 stride 1, as CLIP-ReID does (clip/model.py): 16 x 8 positions at 256 x 128."""
    first = visual.layer4[0]
    first.avgpool = nn.Identity()
    setattr(first.downsample, "-1", nn.Identity())


def _replace_positions(module: Any, positions: int) -> None:
    width = module.positional_embedding.shape[1]
    module.positional_embedding = nn.Parameter(torch.randn(positions + 1, width) * width**-0.5)
