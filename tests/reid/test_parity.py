"""CLIP-ReID computes the numbers of the public code (Syliz517/CLIP-ReID), with the same weights and images.

golden/clip_reid_parity.json has the numbers of the public code; tools/parity_peer is the program that wrote it and
tools/parity_peer/world.py draws the weights and images of both sides.

Intended differences, which the golden file does not cover:
- Prompts are encoded at their real length instead of 77 tokens. The text tower is causal, so the end token is the same.
- The public code uses half precision (autocast, and float16 in its re-ranking); the comparison is in float32.
- If the batch size divides the number of images, its first stage has one more batch, which is empty; its gradient
  scaler skips the NaN loss of that batch. This project has no such batch.
- It resizes training images bicubically and test images bilinearly; the pixel cache of this project is bicubic.
"""

import copy
from typing import NamedTuple

import pytest
import torch

from reid.config.published import published_training, with_sie_and_olp
from reid.config.train import PromptConfig
from reid.models.backbone import Backbone, OpenClipTokenizer, build_clip, load_clip
from reid.tasks.base import Batch, preprocess_of
from reid.tasks.image import BaselineTask, ClipReidTask
from reid.tasks.losses import identity_loss, triplet_loss
from reid.training.optim import parameter_groups, rate_factor
from reid.training.prompt_learning import PromptLearner, all_texts, prompt_rate, prompt_terms
from tests.helpers.parity_golden import GOLDEN, TOLERANCE, same
from tools.parity_peer import world
from tools.parity_peer.world import CASES

LABELS, CAMERAS = torch.tensor(world.LABELS), torch.tensor(world.CAMERA_NUMBERS)
# Names of the public code, the more specific ones first.
OUR_NAMES = {
    "image_encoder.": "backbone.clip.visual.",
    "bottleneck_proj.": "heads.joint.neck.",
    "classifier_proj.": "heads.joint.classifier.",
    "bottleneck.": "heads.last.neck.",
    "classifier.": "heads.last.classifier.",
    "cv_embed": "camera_shift_KV",
}


def our_name(name):
    theirs = next(prefix for prefix in OUR_NAMES if name.startswith(prefix))
    return OUR_NAMES[theirs] + name.removeprefix(theirs)


def backbone_of(case):
    clip = build_clip(case.shape, world.HEIGHT, world.WIDTH, 0 if case.backbone == "rn50" else case.stride)
    load_clip(clip, world.clip_state(case), "the parity world")
    backbone = Backbone(clip, OpenClipTokenizer(), is_resnet=case.backbone == "rn50").eval()
    backbone.freeze_text()
    return backbone


def learner_of(backbone, noun="person"):
    learner = PromptLearner(backbone, world.IDENTITIES, world.WORDS, noun)
    learner.words_CNW.data = world.words()
    return learner


def config_of(case, method="clip_reid"):
    training = published_training(method, case.backbone)
    return training.model_copy(update={"sie": case.sie})


def with_weights(task, case):
    for part in ("last", "joint"):
        getattr(task.heads, part).load_state_dict(world.head_state(case, part))
    if case.sie:
        task.camera_shift_KV.data = world.camera_shift(case)
    return task.eval()


class Ours(NamedTuple):
    """One case: our task before training, the golden numbers, and the cameras if the case uses them."""

    case: world.Case
    backbone: Backbone
    learner: PromptLearner
    task: ClipReidTask
    cameras: torch.Tensor | None
    golden: dict


@pytest.fixture(scope="module", params=sorted(CASES))
def ours(request):
    case = CASES[request.param]
    backbone = backbone_of(case)
    learner = learner_of(backbone)
    texts = all_texts(backbone, learner)
    task = ClipReidTask(
        backbone, config_of(case), identities=world.IDENTITIES, cameras=range(world.CAMERAS), texts_CD=texts
    )
    cameras = CAMERAS if case.sie else None
    return Ours(case, backbone, learner, with_weights(task, case), cameras, GOLDEN["cases"][request.param])


class Step(NamedTuple):
    """A training step of a copy of the task, after its backward pass."""

    task: ClipReidTask
    features: list[torch.Tensor]
    scores: list[torch.Tensor]
    terms: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def step(ours):
    task = copy.deepcopy(ours.task).train()
    batch = Batch(images_BCHW=world.images(), labels_B=LABELS, items_B=torch.arange(8), cameras_B=ours.cameras)
    terms = task(batch)
    task.total(terms).backward()
    with torch.no_grad():
        seen = task.encode_image(batch.images_BCHW, ours.cameras)
        scores = [task.heads.last(seen.last_BV), task.heads.joint(seen.joint_BD)]
    return Step(task, [seen.penultimate_BV, seen.last_BV, seen.joint_BD], scores, terms)


# The first stage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("noun", sorted(GOLDEN["prompts"]))
def test_prompts_hold_the_same_tokens(noun):
    backbone, golden = backbone_of(CASES["vit"]), GOLDEN["prompts"][noun]
    learner, tokenizer = learner_of(backbone, noun), backbone.tokenizer
    ids = golden["token_ids"]
    assert [tokenizer.start, *tokenizer.words("A photo of a")] == ids[:5]
    assert [*tokenizer.words(f"{noun}."), tokenizer.end] == ids[5 + world.WORDS :]
    same(learner.prompt.embeddings(learner.words_CNW[:3]), golden["tokens"])


def test_first_stage_gives_the_same_features_terms_and_gradient(ours):
    golden, labels = ours.golden["first"], torch.tensor(world.PROMPT_LABELS)
    with torch.no_grad():
        image = ours.backbone.image(world.images()).joint_BD
    learner = copy.deepcopy(ours.learner)
    same(image, golden["image"])
    same(learner(ours.backbone, labels), golden["text"])
    terms = prompt_terms(image, labels, ours.backbone, learner, PromptConfig().temperature)
    for name in ("i2t", "t2i"):
        same(terms[name], golden[name])
    (terms["i2t"] + terms["t2i"]).backward()
    same(learner.words_CNW.grad, golden["words_gradient"])


# The second stage -------------------------------------------------------------------------------------


def test_retrieval_features_are_the_same_before_and_after_the_necks(ours):
    task, golden = ours.task, ours.golden["test"]
    with torch.no_grad():
        before = task.encoders()["image"](world.images(), ours.cameras)
        seen = task.encode_image(world.images(), ours.cameras)
        after = torch.cat([task.heads.last.neck(seen.last_BV), task.heads.joint.neck(seen.joint_BD)], 1)
    same(before, golden["before"])
    same(after, golden["after"])


def test_features_and_scores_of_a_training_step_are_the_same(ours, step):
    golden = ours.golden["second"]
    same(ours.task.texts_CD, golden["texts"])
    same(step.features[2] @ ours.task.texts_CD.T, golden["logits"])
    for got, expected in zip([*step.features, *step.scores], golden["features"] + golden["scores"], strict=True):
        same(got, expected)


def test_every_loss_term_is_the_same(ours, step):
    golden, loss = ours.golden["second"], ours.task.loss
    same(step.terms["id"], sum(golden["id"]))
    same(step.terms["tri"], sum(golden["tri"]))
    same(step.terms["i2t"], golden["i2t"])
    same(step.task.total(step.terms), golden["total"])
    for scores, expected in zip(step.scores, golden["id"], strict=True):
        same(identity_loss(scores, LABELS, loss.smoothing), expected)
    for features, hard, soft in zip(step.features, golden["tri"], golden["tri_soft"], strict=True):
        same(triplet_loss(features, LABELS, loss.margin), hard)
        same(triplet_loss(features, LABELS, None), soft)


def test_the_same_parameters_get_the_same_gradients(ours, step):
    golden = {our_name(name): norm for name, norm in ours.golden["second"]["gradients"].items()}
    got = {name: p.grad.norm().item() for name, p in step.task.named_parameters() if p.requires_grad}
    assert got.keys() == golden.keys()
    assert got == pytest.approx(golden, rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("name", sorted(GOLDEN["baseline"]))
def test_the_baseline_has_the_same_loss(name):
    case = CASES[name]
    task = BaselineTask(backbone_of(case), config_of(case, "clip_baseline"), identities=world.IDENTITIES)
    batch = Batch(images_BCHW=world.images(), labels_B=LABELS, items_B=torch.arange(8))
    same(task.total(with_weights(task, case).train()(batch)), GOLDEN["baseline"][name]["total"])


# Published settings -----------------------------------------------------------------------------------


def test_every_parameter_starts_at_the_same_rate(ours):
    golden = {our_name(name): rate for name, rate in ours.golden["second"]["rates"].items()}
    groups = parameter_groups(ours.task, config_of(ours.case).schedule)
    assert {name: group["base_rate"] for group in groups for name in group["names"]} == pytest.approx(golden)


def same_training(training, golden):
    """The batch, Adam's settings and every epoch's rate of a (second) stage."""
    schedule = training.schedule
    assert training.batch.identities * training.batch.images == golden["batch"]
    assert [schedule.weight_decay] * 2 == golden["weight_decay"]
    assert (schedule.lr_clip, schedule.lr_new) == (golden["rate"], golden["rate"])
    assert (schedule.bias_factor, schedule.epochs) == (golden["bias_factor"], golden["epochs"])
    rates = [schedule.lr_clip * rate_factor(epoch, schedule) for epoch in range(schedule.epochs)]
    assert rates == pytest.approx(golden["rates"])


@pytest.mark.parametrize("backbone", ["vit_b16", "rn50"])
def test_published_settings_are_those_of_the_public_code(backbone):
    golden, training = GOLDEN["published"][backbone], published_training("clip_reid", backbone)
    same_training(training, golden["stage2"])
    assert training.batch.images == golden["images_of_an_identity"]
    assert training.loss.margin == golden["margin"]
    wanted = preprocess_of(training.backbone)
    assert (list(wanted.mean), list(wanted.std)) == (golden["mean"], golden["std"])
    prompts, first = training.prompts, golden["stage1"]
    assert (prompts.epochs, prompts.batch, prompts.lr) == (first["epochs"], first["batch"], first["rate"])
    assert [prompts.weight_decay] * 2 == first["weight_decay"]
    assert [prompt_rate(epoch, prompts) for epoch in range(prompts.epochs)] == pytest.approx(first["rates"])


@pytest.mark.parametrize("name", sorted(GOLDEN["baseline"]))
def test_published_baselines_are_those_of_the_public_code(name):
    same_training(published_training("clip_baseline", CASES[name].backbone), GOLDEN["baseline"][name])


def test_the_published_sie_and_olp_are_the_case_compared():
    case, training = CASES["vit_sie_olp"], with_sie_and_olp(published_training("clip_reid"))
    assert (training.sie, training.backbone.stride) == (case.sie, case.stride)
