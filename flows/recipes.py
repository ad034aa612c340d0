"""Recipes: named functions that return the full config of a run."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import Field, model_validator

from captioning.audit.stage import AuditConfig
from captioning.config import CaptionConfig
from data.config import RUNTIME, Config, examine_config
from data.datasets import DatasetConfig, Reader
from data.errors import ConfigError, raise_problems, raise_settings
from data.settings import nearest
from data.synthetic.world import WorldConfig
from flows.overrides import apply_overrides
from flows.report.stage import ReportConfig
from reid.config.evaluate import EvaluateConfig
from reid.config.published import published_training, with_sie_and_olp
from reid.config.renamed import RENAMED
from reid.config.train import AugmentConfig, LossConfig, PromptConfig, ScgiConfig, ScheduleConfig, TrainConfig

_ADDRESS: Final = re.compile(r"[^\s:]+:[1-9]\d{0,4}", re.ASCII)
_LLAVA: Final = "llava-hf/llava-1.5-7b-hf"


class ScaleConfig(Config):
    """The processes and machines that caption, embed and train. They change no result, so no cache key has them."""

    caption_workers: int = Field(default=0, ge=0, le=1024)
    """Workers that caption one dataset at the same time; each loads the captioner itself. 0: one, or with
    scale.runner=ray one per GPU of the cluster (per CPU of a node if no node has a GPU)."""
    embed_workers: int = Field(default=0, ge=0, le=1024)
    """Workers that encode the images of `clip-scgi embed` and of the evaluation, counted as caption_workers are."""
    runner: Literal["threads", "processes", "ray"] = "processes"
    """Where these workers run: threads of one process, processes of this machine, or actors of the Ray cluster that the
    environment variable RAY_ADDRESS names (without it, of this machine), which needs the extra `ray`."""
    ray_wait: int = Field(default=600, ge=0)
    """Seconds to wait for a Ray cluster that was lost during the work, such as while its head restarts."""
    train_processes: int = Field(default=1, ge=1, le=1024)
    """Processes of `accelerate launch` that train together on this machine, one per GPU. 1: train in the task."""
    train_machines: int = Field(default=1, ge=1, le=1024)
    """Machines that train together, each with train_processes processes and the same artifact root. The same command
    runs on each, with its own train_machine."""
    train_machine: int = Field(default=0, ge=0, lt=1024)
    """Number of this machine among train_machines; 0 is the one that the others connect to."""
    train_address: str = Field(default="", max_length=300)
    """Address of machine 0 with a free port, HOST:PORT, the same on all machines; needed for train_machines > 1."""

    @model_validator(mode="after")
    def _machines_can_meet(self) -> ScaleConfig:
        problems = []
        if self.train_machine >= self.train_machines:
            most = self.train_machines - 1
            problems.append(("train_machine", f"machines are numbered from 0: set 0 to {most}, or train_machines"))
        if self.train_machines > 1 and not _ADDRESS.fullmatch(self.train_address):
            problems.append(("train_address", "set HOST:PORT of machine 0, such as 10.0.0.1:29500, on all machines"))
        raise_settings(problems)
        return self

    @property
    def trainers(self) -> int:
        """The number of processes of all machines that train together."""
        return self.train_processes * self.train_machines

    def shares(self, workers: int) -> bool:
        """Return True if `workers`, one of the settings above, means other workers than the task itself."""
        return self.runner == "ray" or workers > 1


class Recipe(Config):
    """The full config of a run of caption-and-train."""

    name: str
    """Name of the recipe; not part of any cache key."""
    data: DatasetConfig
    """The dataset and its folder."""
    synthetic: WorldConfig | None = None
    """The synthetic people to draw if data.root is not set."""
    caption: CaptionConfig = CaptionConfig()
    """The captioner."""
    audit: AuditConfig = AuditConfig()
    """The rules that flag a caption."""
    train: TrainConfig = TrainConfig()
    """The method, its backbone and its training."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How the model is evaluated."""
    report: ReportConfig = ReportConfig()
    """Content of the report."""
    scale: Annotated[ScaleConfig, RUNTIME] = ScaleConfig()
    """The processes and machines that caption, embed and train."""


def setting_default(keys: Sequence[str], absent: Any) -> Any:
    """Return the default of the setting of a recipe whose dotted key has the parts `keys`; `absent` without one."""
    value: Any = Recipe
    for key in keys:
        fields = getattr(value if isinstance(value, type) else type(value), "model_fields", {})
        if key not in fields:
            return absent
        if not isinstance(value, type):
            value = getattr(value, key)
        else:
            required = fields[key].is_required()
            value = fields[key].annotation if required else fields[key].get_default(call_default_factory=True)
    return absent if isinstance(value, type | Config) else value


def tiny_training() -> TrainConfig:
    """Return CLIP-SCGI on the tiny CLIP, at about a hundred times the published learning rates: the model is small."""
    return TrainConfig(
        schedule=ScheduleConfig(epochs=36, lr_clip=1e-3, lr_new=3e-3, warmup_epochs=4, milestones=(25, 32)),
        augment=AugmentConfig(pad=4, erase_probability=0.1),
        # Half of the batch trains CFF with the prompt it will have at test time.
        scgi=ScgiConfig(fixed_prompt_ratio=0.5),
        checkpoint_every=50,  # about half a minute of two cores
    )


def tiny_clip_reid() -> TrainConfig:
    """Return CLIP-ReID on the tiny CLIP: published loss weights, learning rates scaled to the model."""
    # A small dataset has few steps per epoch, hence ten times the published rate. The tiny CLIP's features are longer
    # than CLIP's, which the temperature compensates.
    prompts = PromptConfig(epochs=60, lr=3.5e-3, temperature=3.0)
    changes = {"method": "clip_reid", "loss": LossConfig(id_weight=0.25), "prompts": prompts}
    return tiny_training().model_copy(update=changes)


def tiny_baseline() -> TrainConfig:
    """Return the fine-tuned baseline on the tiny CLIP."""
    return tiny_training().model_copy(update={"method": "clip_baseline"})


def demo() -> Recipe:
    """Synthetic people, the embedded captioner and the embedded CLIP: minutes on two cores, no download."""
    return Recipe(
        name="demo",
        data=DatasetConfig(name="demo"),
        synthetic=WorldConfig(seed=2024, train_identities=128, test_identities=40, images_per_camera=2, lookalikes=4),
        train=tiny_training(),
    )


def benchmark() -> Recipe:
    """Harder synthetic people than the demo's, trained for fewer epochs: the default of `clip-scgi study`."""
    training = tiny_training()
    schedule = training.schedule.model_copy(update={"epochs": 24, "warmup_epochs": 3, "milestones": (17, 22)})
    return Recipe(
        name="benchmark",
        data=DatasetConfig(name="benchmark"),
        synthetic=WorldConfig(
            seed=4100, train_identities=96, test_identities=64, images_per_camera=2, lookalikes=4, difficulty=0.6
        ),
        train=training.model_copy(update={"schedule": schedule}),
    )


def benchmark_language() -> Recipe:
    """Few people to train on and no lookalikes: captions tell everybody apart, so they have the most to give."""
    people = WorldConfig(
        seed=5200, train_identities=32, test_identities=96, images_per_camera=4, lookalikes=1, difficulty=0.9
    )
    return _study_world("benchmark_language", people, epochs=12)


def benchmark_domain() -> Recipe:
    """People in the cameras 1 and 4 to train on, other people in the cameras 2 and 3 to test on."""
    people = WorldConfig(
        seed=5300,
        train_identities=48,
        test_identities=96,
        images_per_camera=4,
        lookalikes=4,
        difficulty=0.1,
        train_cameras=(1, 4),
        test_cameras=(2, 3),
    )
    return _study_world("benchmark_domain", people)


def benchmark_clothes() -> Recipe:
    """People who wear other clothes in each of the two cameras, so captions of one person disagree: a trap."""
    people = WorldConfig(
        seed=5400,
        train_identities=48,
        test_identities=64,
        images_per_camera=4,
        cameras=2,
        lookalikes=2,
        difficulty=0.1,
        clothes=2,
    )
    return _study_world("benchmark_clothes", people)


def _study_world(name: str, people: WorldConfig, *, epochs: int = 16) -> Recipe:
    """Return a recipe that trains CLIP-SCGI on the tiny CLIP for 96 steps.

    The worlds were tuned with other seeds, so that no result is one of the people they were tuned on.
    """
    training = tiny_training()
    schedule = training.schedule.model_copy(
        # The rates of the demo overfit so few people.
        update={
            "epochs": epochs,
            "lr_clip": 5e-4,
            "lr_new": 1.5e-3,
            "warmup_epochs": 2,
            "milestones": (round(0.7 * epochs), epochs - 1),
        }
    )
    return Recipe(
        name=name,
        data=DatasetConfig(name=name),
        synthetic=people,
        train=training.model_copy(update={"schedule": schedule}),
    )


def pku_reid() -> Recipe:
    """PKU-Reid with the embedded models (set data.root)."""
    return Recipe(name="pku_reid", data=DatasetConfig(name="pku_reid", reader="pku_reid"), train=tiny_training())


def market1501() -> Recipe:
    """Market-1501 as published: captions by LLaVA-1.5-7B, CLIP-SCGI on ViT-B/16 (set data.root; needs a GPU)."""
    return _published("market1501")


def msmt17() -> Recipe:
    """MSMT17, either edition, as published: captions by LLaVA-1.5-7B, CLIP-SCGI on ViT-B/16 (set data.root)."""
    return _published("msmt17")


def cuhk_pedes() -> Recipe:
    """CUHK-PEDES: CLIP-SCGI on ViT-B/16 as published, with the dataset's own sentences as captions (set data.root)."""
    return _described("cuhk_pedes")


def icfg_pedes() -> Recipe:
    """ICFG-PEDES: CLIP-SCGI on ViT-B/16 as published, with the dataset's own sentences as captions (set data.root)."""
    return _described("icfg_pedes")


def rstpreid() -> Recipe:
    """RSTPReid: CLIP-SCGI on ViT-B/16 as published, with the dataset's own sentences as captions (set data.root)."""
    return _described("rstpreid")


def manifest() -> Recipe:
    """Your own images, listed in a Parquet or CSV file in data.root, with the published models and settings."""
    return _published("manifest")


def folders() -> Recipe:
    """Your own people, one folder each, with the embedded models (set data.root)."""
    return Recipe(name="folders", data=DatasetConfig(name="folders", reader="folders"), train=tiny_training())


def images() -> Recipe:
    """Your own images without labels, to caption and to search, with the embedded models (set data.root)."""
    return Recipe(name="images", data=DatasetConfig(name="images", reader="images"), train=tiny_training())


def _published(reader: Reader) -> Recipe:
    return Recipe(
        name=reader,
        data=DatasetConfig(name=reader, reader=reader),
        caption=CaptionConfig(model=_LLAVA),
        train=published_training("clip_scgi"),
    )


def _described(reader: Reader) -> Recipe:
    """Return a published recipe whose captions are the sentences of the dataset."""
    caption = CaptionConfig(engine="dataset", template="free", model=_LLAVA)
    return _published(reader).model_copy(update={"caption": caption})


def _variant(
    base: Callable[[], Recipe], suffix: str, title: str, train: Callable[[], TrainConfig]
) -> Callable[[], Recipe]:
    """Return the recipe `base` with another training, named BASE_SUFFIX."""

    def recipe() -> Recipe:
        return base().model_copy(update={"name": recipe.__name__, "train": train()})

    recipe.__name__ = f"{base.__name__}_{suffix}"
    recipe.__doc__ = f"{title}, on the data of {base.__name__}."
    return recipe


_TINY: Final[dict[str, tuple[str, Callable[[], TrainConfig]]]] = {
    "clip_reid": ("CLIP-ReID", tiny_clip_reid),
    "baseline": ("The fine-tuned baseline", tiny_baseline),
}
_PUBLISHED: Final[dict[str, tuple[str, Callable[[], TrainConfig]]]] = {
    "clip_reid": ("CLIP-ReID on ViT-B/16", partial(published_training, "clip_reid")),
    "clip_reid_sie_olp": (
        "CLIP-ReID on ViT-B/16 with SIE and OLP",
        lambda: with_sie_and_olp(published_training("clip_reid")),
    ),
    "clip_reid_rn50": ("CLIP-ReID on ResNet-50", partial(published_training, "clip_reid", "rn50")),
    "baseline": ("The fine-tuned baseline on ViT-B/16", partial(published_training, "clip_baseline")),
    "baseline_rn50": ("The fine-tuned baseline on ResNet-50", partial(published_training, "clip_baseline", "rn50")),
    "rn50": ("CLIP-SCGI on ResNet-50", partial(published_training, "clip_scgi", "rn50")),
}
_VARIANTS: Final = (
    *(_variant(base, name, *what) for base in (demo, pku_reid, folders) for name, what in _TINY.items()),
    *(_variant(base, name, *what) for base in (market1501, msmt17, manifest) for name, what in _PUBLISHED.items()),
    *(
        _variant(base, name, *_PUBLISHED[name])
        for base in (cuhk_pedes, icfg_pedes, rstpreid)
        for name in ("clip_reid", "baseline")
    ),
)
_SYNTHETIC: Final = (demo, benchmark, benchmark_language, benchmark_domain, benchmark_clothes)

RECIPES: Final[dict[str, Callable[[], Recipe]]] = {
    recipe.__name__: recipe
    for recipe in (
        *_SYNTHETIC,
        *(pku_reid, folders, images),
        *(market1501, msmt17, cuhk_pedes, icfg_pedes, rstpreid, manifest),
        *_VARIANTS,
    )
}
"""Recipe by name. A dataset's bare name is CLIP-SCGI; other methods append their name."""


class ExaminedRecipe(NamedTuple):
    """A recipe with its overrides applied, except those with a problem.

    problems: one per override that cannot work. notices: one per override that uses the old key of a renamed setting.
    """

    recipe: Recipe
    problems: Sequence[str] = ()
    notices: Sequence[str] = ()


def examine_recipe(name: str, overrides: Sequence[str] = (), *, size: Sequence[str] = ()) -> ExaminedRecipe:
    """Return the recipe `name` with settings changed by ``key=value`` texts, and the problems of these texts.

    overrides: see `flows.overrides`. size: further ones, which `overrides` win over. Raises ConfigError if the recipe
    does not exist.
    """
    if name not in RECIPES:
        near = nearest(name.lower(), RECIPES)
        guess = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(f"recipe {name!r} does not exist; {guess}known: {', '.join(sorted(RECIPES))}")
    own = RECIPES[name]()
    base = own.model_dump(mode="json")
    values = copy.deepcopy(base)
    sized = apply_overrides(Recipe, values, size, RENAMED)
    applied = apply_overrides(Recipe, values, overrides, RENAMED)
    built = examine_config(Recipe, values, base=base)
    problems = dict.fromkeys([*sized.problems, *applied.problems, *built.problems])
    return ExaminedRecipe(built.config or own, list(problems), applied.notices)


def build_recipe(
    name: str,
    overrides: Sequence[str] = (),
    *,
    size: Sequence[str] = (),
    notify: Callable[[str], object] = lambda notice: None,
) -> Recipe:
    """Return the recipe `name` with settings changed by ``key=value`` texts (`examine_recipe`).

    notify: called with a notice for each override that uses the old key of a renamed setting.

    Raises:
        ConfigError: it lists every problem.
    """
    examined = examine_recipe(name, overrides, size=size)
    for notice in examined.notices:
        notify(notice)
    raise_problems(f"recipe {name}", examined.problems, ConfigError)
    return examined.recipe
