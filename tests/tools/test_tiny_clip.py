"""The tiny CLIP: its sentences, its loss, its training script, and what the shipped weights can do."""

import json
import math
import random

import numpy as np
import pytest
import torch

from captioning.prompts.templates import compose
from data.slots import NONE, SLOTS, VOCABULARY
from reid.config.backbone import BackboneConfig
from reid.models.backbone import build_backbone
from reid.models.pretrained import TINY_FOLDER
from tools.tiny_clip.__main__ import load_tiny, main
from tools.tiny_clip.measure import UNSEEN_SEED, attribute_accuracy, image_features, retrieval, unseen
from tools.tiny_clip.text import mentioned, template_sentences, training_text
from tools.tiny_clip.train import STREAM_SEED, TinyRun, codes, contrastive_loss, rate_at, true_of


def _people(seed, count):
    """Random facts, some of the slots unknown."""
    rng = random.Random(seed)
    for _ in range(count):
        facts = {slot: rng.choice(values) for slot, values in VOCABULARY.items()}
        yield {slot: value for slot, value in facts.items() if rng.random() < 0.8}


def test_the_template_is_the_captioners():
    for known in _people(0, 500):
        facts = mentioned(known)  # a color without its garment is worded differently there
        assert template_sentences(facts) == compose({slot: facts.get(slot) for slot in SLOTS})


def test_a_sentence_by_hand():
    facts = {"gender": "female", "age": "elderly", "upper_color": "orange", "upper_type": "coat"}
    facts |= {"lower_color": "blue", "lower_type": "skirt", "shoes": "sandals", "carrying": "handbag"}
    facts |= {"hair": "bald", "glasses": NONE}
    assert template_sentences(facts) == (
        "An elderly woman is wearing an orange coat and a blue skirt. The woman is wearing sandals and carrying a "
        "handbag. The woman has a bald head."
    )


def test_training_texts_tell_what_they_say_they_tell():
    rng = random.Random(1)
    for facts in _people(2, 300):
        text, told = training_text(facts, rng)
        assert set(told.items()) <= set(facts.items())
        assert told == mentioned(told)
        for slot, value in told.items():
            if slot not in ("gender", "hair"):
                assert value in text
        for color in VOCABULARY["upper_color"]:
            if f" {color} " in text:
                assert color in [*told.values(), *told.get("shoes", "").split()]


def test_a_text_is_true_of_every_image_that_shows_its_facts():
    images = [{"gender": "male", "shoes": "sandals"}, {"gender": "male"}, {"gender": "female", "shoes": "sandals"}]
    texts = [{"gender": "male"}, {}, {"shoes": "sandals", "gender": "female"}]
    got = true_of(torch.tensor([codes(x) for x in images]), torch.tensor([codes(x) for x in texts]))
    assert got.tolist() == [[True, True, False], [True, True, False], [False, True, True]]


def test_contrastive_loss_with_several_positives_equals_the_loop():
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    true = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]], bool)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    logits, total = 5.0 * a @ b.T, 0.0
    for rows, positives in ((logits, true), (logits.T, true.T)):
        for row, positive in zip(rows, positives, strict=True):
            log_share = row - math.log(np.exp(row).sum())
            total -= log_share[positive].mean() / len(rows) / 2
    got = contrastive_loss(*(torch.tensor(x) for x in (image, text)), torch.tensor(5.0), torch.tensor(true))
    assert got.item() == pytest.approx(total, rel=1e-5)


def test_learning_rate_warms_up_and_falls():
    run = TinyRun(steps=1000, seed=0, warmup=100, rate=1e-3)
    assert rate_at(0, run) == pytest.approx(1e-5)
    assert rate_at(99, run) == pytest.approx(1e-3)
    assert rate_at(999, run) == pytest.approx(1e-5, rel=0.05)


def test_the_stream_it_learns_from_is_not_the_one_it_is_judged_on():
    assert not 0 <= UNSEEN_SEED - STREAM_SEED < 1_000_000


def test_the_script_trains_saves_and_measures(tmp_path):
    threads = torch.get_num_threads()
    try:
        main(["train", "--out", str(tmp_path / "a"), "--steps", "2", "--batch", "32", "--seed", "5"])
    finally:
        torch.set_num_threads(threads)
    history = json.loads((tmp_path / "a" / "training.json").read_text())
    assert history["steps"] == 2
    assert "--steps 2 --batch 32" in history["command"]
    model = load_tiny(tmp_path / "a")
    assert model.text(["a man"]).shape == (1, 128)


def test_the_shipped_weights_are_small_and_described():
    assert sum(path.stat().st_size for path in TINY_FOLDER.iterdir()) <= 11_000_000
    card = (TINY_FOLDER / "README.md").read_text()
    measured = json.loads((TINY_FOLDER / "measurements.json").read_text())
    assert measured["training"]["command"] in card
    assert f"{measured['measured']['text_to_image_r1']:.3f}" in card


def test_the_shipped_weights_see_the_attributes_of_unseen_people():
    model = build_backbone(BackboneConfig()).eval()
    images, facts = unseen(200)
    features = image_features(model, images)
    scores = attribute_accuracy(model, features, facts)
    card = json.loads((TINY_FOLDER / "measurements.json").read_text())["measured"]["attributes"]
    for slot, score in scores.items():
        assert score == pytest.approx(card[slot], abs=0.15), slot
    assert scores["upper_color"] > 0.4, "one of eleven by chance"
    assert retrieval(model, features, facts, 100) > 0.3, "one of a hundred by chance"
