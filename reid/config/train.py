"""Config of a training run: method, losses, batches, schedule, augmentation, validation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from data.config import RUNTIME, SECRET, Config, RuntimeStr
from data.device import Device
from data.errors import raise_settings
from reid.config.backbone import RANDOM, BackboneConfig
from reid.config.numbers import Count, Rate, Share, Size, Weight
from reid.config.renamed import RenamedConfig
from reid.config.scgi import ScgiConfig

Method = Literal["clip_scgi", "clip_reid", "clip_baseline"]

FP16_PROBLEM = "train.precision=fp16 needs a GPU; set train.precision=bf16, or train.precision=no"
"""What is wrong with this precision on the CPU."""


class PromptConfig(RenamedConfig):
    """First stage of CLIP-ReID: learnable words for each identity, with both towers frozen."""

    group = "train.prompts"

    words: Size = 4
    """Learnable tokens per identity in "A photo of a [X].. person."."""
    noun: Annotated[str, Field(min_length=1)] = "person"
    """Noun for an identity; CLIP-ReID uses "vehicle" for VeRi-776 and VehicleID."""
    epochs: Size = 120
    """Passes over the cached image features."""
    batch: Annotated[int, Field(ge=2)] = 64
    """Images per batch, drawn regardless of identity."""
    lr: Rate = 3.5e-4
    """Adam's learning rate after the warm-up; it decays along a cosine."""
    lr_min: Weight = 1e-6
    """Learning rate at the end of the decay."""
    warmup_epochs: Count = 5
    """Epochs of linear warm-up."""
    lr_warmup: Weight = 1e-5
    """Learning rate at the start of the warm-up."""
    weight_decay: Weight = 1e-4
    """Adam's L2 term."""
    temperature: Rate = 1.0
    """Divides the dot products of features, which are not normalized."""


class LossConfig(Config):
    """Weights and constants of the loss terms. A weight of 0 turns a term off."""

    id_weight: Weight = 1.0
    """Weight of the label-smoothed cross entropy (CLIP-ReID stage 2: 0.25)."""
    triplet_weight: Weight = 1.0
    """Weight of the batch-hard triplet loss."""
    contrast_weight: Weight = 1.0
    """Weight of the image-text term: L_con of CLIP-SCGI, the image-to-text cross entropy of CLIP-ReID."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Label smoothing: share of the target that is distributed over all identities."""
    margin: Annotated[float, Field(ge=0)] | None = 0.3
    """Triplet margin in feature units; null selects the soft-margin form."""
    distill_weight: Weight = 0.0
    """Weight of the distillation of CLIP's joint space (clip_scgi only): how far the similarities of the batch's images
    and captions have moved from those of the image tower before training, as KL divergence in both directions."""
    distill_temperature: Rate = 0.01
    """Divides the cosine similarities of the distillation. CLIP's models were trained down to 0.01."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that can change a result; the distillation is left out where it is off."""
        fields = super().identity()
        if self.distill_weight:
            return fields
        return {name: value for name, value in fields.items() if not name.startswith("distill_")}


class BatchConfig(Config):
    """Batches of one optimizer step."""

    identities: Annotated[int, Field(ge=2)] = 16
    """P, different identities per batch."""
    images: Size = 4
    """K, images per identity."""
    accumulate: Size = 1
    """P x K batches per step; their gradients are averaged. Losses compare images within a batch only."""


class ScheduleConfig(RenamedConfig):
    """Adam's learning rates, set once per epoch: linear warm-up, then a factor at each milestone."""

    group = "train.schedule"

    epochs: Size = 60
    """Passes over the training identities."""
    lr_clip: Annotated[float, Field(ge=0)] = 5e-6
    """Learning rate of CLIP's image tower."""
    lr_new: Rate = 5e-5
    """Learning rate of everything that starts from random weights."""
    bias_factor: Rate = 2.0
    """Ratio of the learning rate of biases to that of weights."""
    weight_decay: Weight = 1e-4
    """Adam's L2 term, of weights and biases."""
    warmup_epochs: Count = 10
    """Epochs of linear warm-up."""
    warmup_factor: Share = 0.1
    """Ratio of the learning rate at the start of the warm-up to the full one."""
    milestones: tuple[Size, ...] = (20, 40)
    """Epochs (the first is 1) from which on the rate is multiplied by `gamma`, once per milestone."""
    gamma: Rate = 0.1
    """Factor at a milestone."""

    @model_validator(mode="after")
    def _check(self) -> ScheduleConfig:
        given, increasing = list(self.milestones), sorted(set(self.milestones))
        if given != increasing:
            shown = json.dumps(increasing, separators=(",", ":"))
            raise_settings([("milestones", f"must increase (given: {given}); set {{at}}milestones={shown}")])
        return self


class AugmentConfig(Config):
    """Augmentation of training images; the defaults are CLIP-ReID's (flip, pad and crop, random erasing)."""

    flip_probability: Share = 0.5
    """Probability that an image is mirrored left to right."""
    pad: Annotated[int, Field(ge=0)] = 10
    """Black pixels added on every side before a crop of the original size is taken at a random position."""
    erase_probability: Share = 0.5
    """Probability that one rectangle of an image is replaced by normal noise, drawn per pixel."""
    erase_min_area: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Smallest share of the image that is erased."""
    erase_max_area: Annotated[float, Field(gt=0, lt=1)] = 1 / 3
    """Largest share of the image that is erased."""
    erase_min_aspect: Annotated[float, Field(gt=0, le=1)] = 0.3
    """The ratio of height to width is drawn between this and its inverse, uniformly in the logarithm."""

    @model_validator(mode="after")
    def _check(self) -> AugmentConfig:
        if self.erase_min_area > self.erase_max_area:
            most = self.erase_max_area
            message = f"is above {{at}}erase_max_area={most:g}; set {{at}}erase_min_area={most!r}"
            raise_settings([("erase_min_area", message)])
        return self


class ValidationConfig(Config):
    """Evaluation during training, to watch a run and, optionally, to keep its best epoch.

    The score of an epoch that was chosen on the test set is inflated: it is the best of many on the same images. So
    the default ranks identities of the training set that are held out and not trained on. ``images="test"`` shows the
    curve of published logs; if it also chooses the model, the evaluation says so beside its results.
    """

    every: Annotated[int, Field(ge=0)] = 0
    """Epochs between evaluations; the last epoch is always evaluated. 0 never evaluates and holds nothing out."""
    images: Literal["held_out", "test"] = "held_out"
    """What is ranked: images of held-out training identities, each against all others, or the test set."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training identities that are held out (at least two identities)."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed for drawing held-out identities; not the seed of the run, so that runs with several seeds share them."""
    mode: Literal["image", "fused"] = "image"
    """Inference mode to evaluate."""
    keep: Literal["last", "best"] = "last"
    """Epoch that becomes the model: the last, as published, or the one with the highest mAP (the first of equals)."""

    def due(self, done: int, epochs: int) -> bool:
        """Return True if the model is evaluated after `done` of `epochs` epochs."""
        return bool(self.every) and (done % self.every == 0 or done == epochs)

    @property
    def holds_out(self) -> bool:
        """Whether some training identities are held out for the evaluation."""
        return bool(self.every) and self.images == "held_out"

    @model_validator(mode="after")
    def _check(self) -> ValidationConfig:
        if self.keep == "best" and not self.every:
            raise_settings([("keep", '"best" needs evaluations during training; set {at}every=5 or {at}keep=last')])
        return self


class TrainConfig(Config):
    """Settings of a training run. Which groups matter depends on `method`."""

    method: Method = "clip_scgi"
    """Method: CLIP-SCGI, CLIP-ReID (both stages), or only the image tower with ID and triplet losses."""
    backbone: BackboneConfig = BackboneConfig()
    """The CLIP to fine-tune, and the input size."""
    scgi: ScgiConfig = ScgiConfig()
    """Settings of CLIP-SCGI; other methods ignore them."""
    prompts: PromptConfig = PromptConfig()
    """The first stage of CLIP-ReID; other methods ignore it."""
    sie: Weight = 0.0
    """Coefficient of a learned camera embedding added to the class token (SIE of TransReID; CLIP-ReID: 1). 0 turns it
    off. A model with it only encodes images of the cameras it was trained on."""
    retrieval_head: Literal["joint", "separate"] = "joint"
    """Feature beside the last layer that L_id and L_tri see and that retrieval uses: CLIP's joint feature, as in
    CLIP-ReID, or a separate projection of the last class token, so that the joint feature, which sentences are compared
    with, is moved less."""
    blend: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the trained weights in the image tower of the model; the rest are its weights before training (WiSE-FT,
    arXiv:2109.01903). Interpolated once at the end, and for each evaluation during training. New modules are not."""
    loss: LossConfig = LossConfig()
    """Weights and constants of the loss terms."""
    batch: BatchConfig = BatchConfig()
    """Identities and images of a batch."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Epochs and learning rates."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of the training images."""
    validation: ValidationConfig = ValidationConfig()
    """Evaluation during training, and which epoch becomes the model. Off by default."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the new modules' weights, the batches and the augmentation."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of the encoders; weights, identity heads and losses stay float32. fp16 needs a GPU."""
    max_uncaptioned: Share = 0.05
    """Largest share of the training images that may be skipped because they have no caption."""
    device: Device = "auto"
    """auto (the first CUDA device if there is one, else the CPU), cpu, cuda or cuda:N. Several processes
    (scale.train_processes) use one CUDA device each: set auto, cpu or cuda."""
    checkpoint_every: Annotated[int, Field(ge=0), RUNTIME] = 200
    """Steps between checkpoints, from which a killed run continues; 0 writes none."""
    log_every: Annotated[int, Field(ge=1), RUNTIME] = 10
    """Steps between lines of metrics.jsonl and progress reports."""
    tensorboard: RuntimeStr = ""
    """Folder for TensorBoard scalars; empty writes none."""
    tracking: Annotated[Literal["none", "mlflow"], RUNTIME] = "none"
    """Record parameters, metrics and fingerprints of the training with MLflow, or not at all."""
    tracking_uri: RuntimeStr = ""
    """Where MLflow records: sqlite:///FILE, file:///FOLDER, or the http address of a server. Empty: the file mlflow.db
    in the artifact root. MLflow's environment variables do not change it."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that can change the result of this method."""
        ignored = {"clip_scgi": {"prompts"}, "clip_reid": {"scgi", "max_uncaptioned"}}
        skip = ignored.get(self.method, {"prompts", "scgi", "max_uncaptioned"})
        if not self.validation.every:
            skip = {*skip, "validation"}  # without evaluations it changes nothing
        skip = {*skip, *(name for name in _NEWER if getattr(self, name) == type(self).model_fields[name].default)}
        return {name: value for name, value in super().identity().items() if name not in skip}

    @field_validator("tracking_uri")
    @classmethod
    def _known_store(cls, uri: str) -> str:
        parts = urlsplit(uri)
        is_server = parts.scheme in ("http", "https") and bool(parts.hostname)
        if uri and not is_server and not uri.startswith(("sqlite:///", "file:///")):
            raise ValueError("must be a store of MLflow such as sqlite:///mlflow.db or http://127.0.0.1:5000")
        if parts.username or parts.password:
            raise PydanticCustomError(
                "secret_address",
                "must not contain a user or password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
                {SECRET: True},
            )
        return uri

    @property
    def needs_captions(self) -> bool:
        """Whether training reads captions."""
        return self.method == "clip_scgi"

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        problems = [*self.scgi.problems()] if self.method == "clip_scgi" else []
        if self.sie and self.backbone.name == "rn50":
            problems.append(("sie", "camera embeddings need a vision transformer; set {at}sie=0 for rn50"))
        if self.validation.mode == "fused" and not (self.method == "clip_scgi" and self.scgi.cff):
            message = '"fused" needs {at}method=clip_scgi and {at}scgi.cff=true; set {at}validation.mode=image'
            problems.append(("validation.mode", message))
        raise_settings([*problems, *self._joint_space_problems(), *self._loss_problems()])
        return self

    def _joint_space_problems(self) -> Iterator[tuple[str, str]]:
        if self.loss.distill_weight and self.method != "clip_scgi":
            message = f"compares images with captions, which {self.method} does not read"
            yield "loss.distill_weight", f"{message}; set {{at}}loss.distill_weight=0 or {{at}}method=clip_scgi"
        if self.retrieval_head == "separate" and self.method == "clip_scgi" and self.scgi.supervised == "fused":
            message = '"separate" has no loss if L_id and L_tri see the fused embedding only'
            yield "retrieval_head", f"{message}; set {{at}}retrieval_head=joint or {{at}}scgi.supervised=both"
        if self.blend < 1 and self.backbone.weights == RANDOM:
            message = f"the weights before training are random ({{at}}backbone.weights={RANDOM})"
            yield "blend", f"{message}, and a mixture with them is useless; set {{at}}blend=1"

    def _loss_problems(self) -> Iterator[tuple[str, str]]:
        loss = self.loss
        contrast = 0.0 if self.method == "clip_baseline" else loss.contrast_weight
        if not (loss.id_weight or loss.triplet_weight or contrast or loss.distill_weight):
            message = (
                f"every loss term of {self.method} has weight 0, so nothing is trained; set {{at}}loss.id_weight=1"
            )
            yield "loss.id_weight", message


_NEWER: Final = ("retrieval_head", "blend")
"""Settings that fingerprints leave out at their defaults, because many artifacts are older."""
