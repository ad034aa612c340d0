"""Recipes: each one builds, dotted keys change settings, and all mistakes are reported together."""

from __future__ import annotations

import json

import pytest

from data.config import Config
from data.errors import ConfigError
from data.settings import settings_of
from flows.cli.study import preset_recipe
from flows.overrides import apply_overrides
from flows.recipes import RECIPES, Recipe, build_recipe
from reid.config.evaluate import RerankConfig
from reid.config.renamed import RENAMED


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_builds_and_survives_json(name):
    recipe = build_recipe(name)
    assert recipe.name == name
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert RECIPES[name].__doc__


METHODS = {"", "_clip_reid", "_baseline", "_rn50", "_clip_reid_rn50", "_baseline_rn50", "_clip_reid_sie_olp"}


def test_the_promised_recipes_exist():
    published = {f"{data}{method}" for data in ("market1501", "msmt17", "manifest") for method in METHODS}
    small = ("demo", "pku_reid", "folders")
    tiny = {f"{data}{method}" for data in small for method in ("", "_clip_reid", "_baseline")}
    worlds = {"benchmark", "benchmark_language", "benchmark_domain", "benchmark_clothes"}
    assert published | tiny | worlds | {"images"} <= set(RECIPES)


def test_cameras_and_clothes_are_settings():
    people = build_recipe("demo", ["synthetic.train_cameras=[1,2]", "synthetic.clothes=4"]).synthetic
    assert (people.train_cameras, people.test_cameras, people.clothes) == ((1, 2), (), 4)
    assert problems_of("synthetic.test_cameras=[3,5]", "synthetic.clothes=9") == [
        "synthetic.test_cameras: must be numbers from 1 to 4, the number of cameras, not [3, 5]; "
        "set synthetic.test_cameras=[1,2]",
        "synthetic.clothes: must be at most the number of cameras, 4; set synthetic.clothes=4",
    ]


# As written in the public code (configs/person/{vit,cnn}_{clipreid,base}.yml) and, for CLIP-SCGI, in its paper:
# epochs, rate of CLIP, rate of new modules, milestones, weight decay, warm-up factor, weight of L_id, first stage.
PUBLISHED = {
    "": (60, 5e-6, 5e-5, (20, 40), 1e-4, 0.1, 1.0, None),
    "_clip_reid": (60, 5e-6, 5e-6, (30, 50), 1e-4, 0.1, 0.25, 120),
    "_clip_reid_sie_olp": (60, 5e-6, 5e-6, (30, 50), 1e-4, 0.1, 0.25, 120),
    "_baseline": (60, 5e-6, 5e-6, (30, 50), 1e-4, 0.1, 1.0, None),
    "_rn50": (120, 5e-6, 5e-5, (40, 70), 1e-4, 0.1, 1.0, None),
    "_clip_reid_rn50": (120, 3.5e-4, 3.5e-4, (40, 70), 5e-4, 0.01, 1.0, 60),
    "_baseline_rn50": (120, 3.5e-4, 3.5e-4, (40, 70), 5e-4, 0.01, 1.0, None),
}


@pytest.mark.parametrize("data", ["market1501", "msmt17", "manifest"])
@pytest.mark.parametrize("method", sorted(PUBLISHED))
def test_published_settings(data, method):
    train = build_recipe(f"{data}{method}").train
    epochs, lr_clip, lr_new, milestones, decay, warmup, id_weight, prompts = PUBLISHED[method]
    schedule, loss, backbone = train.schedule, train.loss, train.backbone
    assert (schedule.epochs, schedule.milestones, schedule.gamma) == (epochs, milestones, 0.1)
    assert (schedule.lr_clip, schedule.lr_new, schedule.bias_factor) == (lr_clip, lr_new, 2.0)
    assert (schedule.weight_decay, schedule.warmup_epochs, schedule.warmup_factor) == (decay, 10, warmup)
    assert (loss.id_weight, loss.triplet_weight, loss.contrast_weight) == (id_weight, 1.0, 1.0)
    assert (loss.margin, loss.smoothing) == (0.3, 0.1)
    assert (train.batch.identities, train.batch.images, train.batch.accumulate) == (16, 4, 1)
    assert (backbone.height, backbone.width, backbone.weights) == (256, 128, "openai")
    assert backbone.name == ("rn50" if "rn50" in method else "vit_b16")
    assert (train.sie, backbone.stride) == ((1.0, 12) if "olp" in method else (0.0, 0))
    assert train.method == ("clip_reid" if "reid" in method else "clip_baseline" if "base" in method else "clip_scgi")
    assert train.needs_captions == (train.method == "clip_scgi")
    if prompts is not None:
        first = train.prompts
        assert (first.epochs, first.batch, first.words, first.lr) == (prompts, 64, 4, 3.5e-4)
        assert (first.warmup_epochs, first.lr_warmup, first.lr_min, first.weight_decay) == (5, 1e-5, 1e-6, 1e-4)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_methods_on_one_dataset_share_its_images_and_captions(name):
    recipe = build_recipe(name)
    plain = build_recipe(recipe.data.name)
    assert name.startswith(plain.name)
    for part in ("data", "synthetic", "caption", "audit", "evaluate"):
        assert getattr(recipe, part) == getattr(plain, part)


def test_the_tiny_methods_differ_only_in_the_method():
    ours, reid, baseline = (build_recipe(f"demo{method}").train for method in ("", "_clip_reid", "_baseline"))
    assert ours.schedule == reid.schedule == baseline.schedule
    assert ours.augment == reid.augment == baseline.augment
    assert (reid.method, reid.loss.id_weight) == ("clip_reid", 0.25)
    assert (baseline.method, baseline.loss.id_weight) == ("clip_baseline", 1.0)


def test_overrides_reach_nested_settings():
    recipe = build_recipe("demo", ["train.schedule.epochs=3", "data.root=/images", "synthetic.seed=5"])
    assert recipe.train.schedule.epochs == 3
    assert recipe.data.root == "/images"
    assert recipe.synthetic.seed == 5


def test_all_problems_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        build_recipe("demo", ["train.schedule.epochs=-1", "train.schedule.epoch=3", "caption.batch_size=zero"])
    message = str(caught.value)
    assert "train.schedule.epochs" in message
    assert "train.schedule.epoch: no such setting; did you mean train.schedule.epochs?" in message
    assert "caption.batch_size" in message


def problems_of(*overrides: str, name: str = "demo") -> list[str]:
    """Return the problems of the overrides, one text per problem."""
    with pytest.raises(ConfigError) as caught:
        build_recipe(name, overrides)
    text = str(caught.value).removeprefix(f"recipe {name}: ")
    return [line.removeprefix("  - ") for line in text.splitlines() if not line.endswith(" problems")]


def test_no_problem_hides_another():
    """Unknown groups, malformed texts, values out of range, combinations: one message with all of them."""
    found = problems_of(
        "nothing.here=1",
        "train.schedule.epochs",
        "train.schedule.epochs=-1",
        "train.schedule.milestones=[9,3]",
        "train.precision=bf6",
        "synthetic.cameras=99",
        "caption.decoding=slots",
        "caption.max_new_tokens=7",
        "train.scgi.fusion_tokens=refined",
        "train.scgi.cgi=false",
        "train.backbone.name=rn50",
    )
    keys = [problem.partition(":")[0] for problem in found]
    assert sorted(keys) == sorted(
        [
            "nothing.here",
            "invalid override 'train.schedule.epochs'",
            "train.schedule.epochs",
            "train.schedule.milestones",
            "train.precision",
            "synthetic.cameras",
            "caption.max_new_tokens",
            "train.scgi.fusion_tokens",
            "train.backbone.weights",
        ]
    )


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("train.schedule.epoch", "train.schedule.epochs"),
        ("train.schedul.epochs", "train.schedule.epochs"),
        ("tran.schedule.epochs", "train.schedule.epochs"),
        ("schedule.epochs", "train.schedule.epochs"),
        ("Train.Batch.Identities", "train.batch.identities"),
        ("train.batch.identity", "train.batch.identities"),
        ("batch_size", "caption.batch_size or evaluate.batch_size"),
        ("train.milestones", "train.schedule.milestones"),
        ("evaluate.rerank.k3", "evaluate.rerank.k2"),
        ("synthetic.camera", "synthetic.cameras"),
        ("caption.server.adress", None),
        ("synthetic.nothing", None),
    ],
)
def test_an_unknown_key_suggests_the_nearest(key, near):
    (problem,) = problems_of(f"{key}=1")
    if near:
        assert problem == f"{key}: no such setting; did you mean {near}?"
    else:
        assert problem.startswith(f"{key}: no such setting; known here: ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train.schedule.milestones=25,32", "for example train.schedule.milestones=[25,32]"),
        ("data.require_splits=[train]", "for example data.require_splits=[]"),
        ("train.scgi.cgi=maybe", "for example train.scgi.cgi=true"),
        ("train.schedule.epochs=2.5", "for example train.schedule.epochs=36"),
        ("train.schedule.epochs=True", "for example train.schedule.epochs=36"),
        ("train.schedule.epochs=true", "train.schedule.epochs: must be a number or text, not true or false"),
        ("train.schedule.milestones=[1,true]", "must be a number or text, not true or false"),
        ("synthetic.seed=true", "synthetic.seed: must be a number or text, not true or false"),
        ("train.loss.margin=nan", "for example train.loss.margin=0.3 (or null)"),
        ("train.loss.margin=NaN", "for example train.loss.margin=0.3 (or null)"),
        ("train.loss.margin=1e400", "for example train.loss.margin=0.3 (or null)"),
        ("train.loss.margin=None", "train.loss.margin: None is written null: train.loss.margin=null"),
        ("caption.revision=None", "caption.revision: None is written null: caption.revision=null"),
        ("train.precision=bf61", "did you mean train.precision=bf16?"),
        ("train.schedule=5", 'several as a JSON object, such as train.schedule={"epochs": 60}'),
        ("train.schedule=null", "train.schedule: a group of settings; set one, such as train.schedule.epochs=60"),
        ("evaluate.rerank=20", "or evaluate.rerank=null"),
        ("train.method.x=1", "train.method.x: no such setting; train.method is a single setting"),
        ("evaluate.gallery_draws.x=1", "evaluate.gallery_draws is a single setting"),
        ('train.schedule={"epochs":2,"epochs":3}', "train.schedule: the JSON object names epochs twice"),
        ('train.schedule={"epoch":2}', "train.schedule.epoch: no such setting; did you mean train.schedule.epochs?"),
        ("=3", "invalid override '=3': expected key=value"),
        ("train.seed=1e30", "for example train.seed=0"),
        ("train.seed=18446744073709551616", "for example train.seed=0"),
    ],
)
def test_a_value_that_does_not_fit_suggests_one_that_does(text, told):
    (problem,) = problems_of(text)
    assert told in problem


@pytest.mark.parametrize(
    "text", ["train.seed=" + "1" * 5000, "train.seed=" + "[" * 5000, "train.seed=" + "x" * 5000, "caption.model=\udce9"]
)
def test_a_value_that_cannot_be_read_is_a_short_message(text):
    """Longer integers and deeper nesting than Python reads; a path that is not UTF-8."""
    (problem,) = problems_of(text)
    assert problem.startswith(text.partition("=")[0] + ": ")
    assert len(problem) < 300
    assert problem.encode()


@pytest.mark.parametrize("key", ["name", "data.root", "data.name", "caption.model", "train.backbone.weights"])
def test_text_that_json_cannot_represent_is_refused(key):
    for text in ("caf\udce9", "caf\\udce9"):
        value = json.dumps("caf\udce9") if "\\" in text else text
        (problem,) = problems_of(f"{key}={value}")
        assert problem.startswith(f"{key}: is not valid UTF-8 text")


@pytest.mark.parametrize("texts", [["loss.contrast_weight=0"], ["method=clip_reid", "loss.contrast_weight=0"], []])
def test_training_without_a_loss_is_refused(texts):
    method = next((text.partition("=")[2] for text in texts if "method" in text), "clip_scgi" if texts else None)
    zero = ["loss.id_weight=0", "loss.triplet_weight=0", *(texts or ["method=clip_baseline"])]
    (problem,) = problems_of(*(f"train.{text}" for text in zero))
    assert problem == (
        f"train.loss.id_weight: every loss term of {method or 'clip_baseline'} has weight 0, so nothing is trained; "
        "set train.loss.id_weight=1"
    )
    for kept in ("loss.id_weight", "loss.triplet_weight"):
        assert build_recipe("demo", [f"train.{text}" for text in zero if not text.startswith(kept)])


def test_the_smallest_erased_area_is_not_above_the_largest():
    (problem,) = problems_of("train.augment.erase_min_area=0.4")
    value = problem.rpartition("train.augment.erase_min_area=")[2]
    assert problem.startswith("train.augment.erase_min_area: is above train.augment.erase_max_area=0.333333; set")
    assert build_recipe("demo", [f"train.augment.erase_min_area={value}"]).train.augment.erase_min_area == 1 / 3


@pytest.mark.parametrize(
    ("texts", "key"),
    [
        (["train.seed=1", "train.seed=2"], "train.seed"),
        (["train.seed=1", "train.seed=1"], "train.seed"),
        (["train.schedule.epochs=3", 'train.schedule={"epochs":4}'], "train.schedule.epochs"),
        (["evaluate.rerank=null", "evaluate.rerank.k1=3"], "evaluate.rerank.k1"),
    ],
)
def test_one_key_is_set_once(texts, key):
    assert problems_of(*texts) == [f"{key}: set twice; give it once"]


def test_a_group_set_as_json_keeps_what_it_does_not_name():
    plain, changed = build_recipe("demo"), build_recipe("demo", ['train.schedule={"epochs":3}'])
    assert changed.train.schedule == plain.train.schedule.model_copy(update={"epochs": 3})
    assert build_recipe("demo", ["evaluate.rerank={}"]).evaluate.rerank == RerankConfig()
    assert build_recipe("demo", ['evaluate.rerank={"k1":30}']).evaluate.rerank == RerankConfig(k1=30)
    assert build_recipe("demo", ["evaluate.rerank.k1=30"]).evaluate.rerank == RerankConfig(k1=30)
    assert build_recipe("demo", ["evaluate.rerank=null"]).evaluate.rerank is None


def test_text_stays_text_and_numbers_may_be_written_in_any_way():
    recipe = build_recipe("demo", ["data.name=007", "caption.model=true", "train.schedule.epochs=1e3", "train.seed= 3"])
    assert (recipe.data.name, recipe.caption.model) == ("007", "true")
    assert (recipe.train.schedule.epochs, recipe.train.seed) == (1000, 3)
    assert build_recipe("demo", ['data.name="a b"']).data.name == "a b"
    assert build_recipe("demo", ["train.loss.margin=null"]).train.loss.margin is None


def test_overrides_win_over_a_study_preset():
    assert preset_recipe("benchmark", "quick", []).train.schedule.epochs == 6
    recipe = preset_recipe("benchmark", "quick", ["train.schedule.epochs=9"])
    assert (recipe.train.schedule.epochs, recipe.train.schedule.milestones) == (9, (5,))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train.schedule.milestones=[9,3]", "schedule.milestones: must increase (given: [9, 3]); set train.schedule."),
        ("train.validation.keep=best", 'validation.keep: "best" needs evaluations during training; set train.valida'),
        ("train.backbone.name=vit_b16", "backbone.weights: no weights are shipped for vit_b16; set train.backbone."),
        ("train.backbone.weights=a.pt", "backbone.weights: a.pt is a PyTorch pickle"),
        ("caption.revision=main", "revision: only hub ids have a revision, the embedded model does not; set"),
        ("data.split_seed=3", "split_seed: has no effect with the reader market1501, only with pku_reid, vehicleid"),
    ],
)  # fmt: skip
def test_messages_of_inner_configs_name_full_keys(text, told):
    (problem,) = problems_of(text)
    assert problem.startswith(f"{text.partition('.')[0]}.{told}")


def test_a_secret_is_not_repeated():
    with pytest.raises(ConfigError) as caught:
        build_recipe(
            "demo",
            ["caption.server.url=http://me:hidden@x/v1", "train.seed=-1", "caption.server.url=http://b:hidden@y"],
        )
    assert "caption.server.url: must not contain a user" in str(caught.value)
    assert "caption.server.url: set twice" in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"did you mean market1501\? known: .*msmt17"):
        build_recipe("market")
    with pytest.raises(ConfigError, match=r"did you mean demo_clip_reid"):
        build_recipe("demo_clipreid")
    with pytest.raises(ConfigError, match=r"'xyz' does not exist; known: "):
        build_recipe("xyz")


class Inner(Config):
    """A group."""

    size: int = 3
    """A setting."""
    name: str = "x"
    """A setting."""


class Outer(Config):
    """A config."""

    inner: Inner = Inner()
    """A group."""
    seed: int = 0
    """A setting."""


OLD_KEYS = {"inner.width": "inner.size", "random": "seed"}


@pytest.mark.parametrize(
    ("texts", "values", "notices"),
    [
        (["inner.width=5"], {"inner": {"size": 5}}, ["setting 'inner.width' is now 'inner.size'"]),
        (["random=7", "inner.size=4"], {"seed": 7, "inner": {"size": 4}}, ["setting 'random' is now 'seed'"]),
        (
            ['inner={"width":5,"name":"y"}'],
            {"inner": {"size": 5, "name": "y"}},
            ["setting 'inner.width' is now 'inner.size'"],
        ),
        (["inner.size=5"], {"inner": {"size": 5}}, []),
    ],
)
def test_the_old_key_of_a_renamed_setting_sets_the_new_one(texts, values, notices):
    found: dict = {}
    assert apply_overrides(Outer, found, texts, OLD_KEYS) == ([], notices)
    assert found == values


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (["inner.width=5", "inner.size=5"], "inner.size: set twice; give it once"),
        (["inner.width=true"], "inner.size: must be a number or text, not true or false; for example inner.size=3"),
        (["inner.sizes=5"], "inner.sizes: no such setting; did you mean inner.size?"),
    ],
)
def test_problems_name_the_new_key(texts, problem):
    assert apply_overrides(Outer, {}, texts, OLD_KEYS).problems == [problem]


def test_every_renamed_setting_exists_and_its_old_key_does_not():
    settings = settings_of(Recipe)
    assert RENAMED
    assert set(RENAMED.values()) <= set(settings)
    assert not set(RENAMED) & set(settings)


def test_configs_are_frozen():
    recipe = build_recipe("demo")
    with pytest.raises(Exception, match="frozen"):
        recipe.train.schedule.epochs = 5


def test_runtime_settings_and_names_are_not_part_of_the_identity():
    recipe = build_recipe("demo")
    moved = build_recipe("demo", ["data.root=/elsewhere", "caption.batch_size=7", "data.workers=3"])
    assert json.dumps(recipe.data.identity()) == json.dumps(moved.data.identity())
    assert recipe.caption.identity() == moved.caption.identity()
