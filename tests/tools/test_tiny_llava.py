"""The embedded captioner: its files, its training, and its accuracy on unseen people."""

from __future__ import annotations

from itertools import count

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from captioning.attributes.parse import parse_caption
from captioning.captioner import TINY_FOLDER
from captioning.config import CaptionConfig
from captioning.engines.llava import Engine
from captioning.prompts.templates import builtin_templates, compose
from data.slots import NONE, SLOTS, VOCABULARY
from data.synthetic.world import training_sample
from tools.tiny_llava.compare import answers_of, calibration_table, reliability_table
from tools.tiny_llava.data import Pool, augment, frame, normalize
from tools.tiny_llava.measure import measure, score
from tools.tiny_llava.render import CLASSES, caption_of, labels_of
from tools.tiny_llava.train import Plan, Training

# Accuracy that the embedded model must reach, by slot.
WANTED = {
    "gender": 0.93,
    "upper_color": 0.93,
    "lower_color": 0.93,
    "carrying": 0.93,
    "upper_type": 0.80,
    "lower_type": 0.80,
    "hair": 0.80,
    "shoes": 0.80,
}


@pytest.fixture(scope="module")
def engine():
    return Engine.load(CaptionConfig(device="cpu"))


@pytest.fixture(scope="module")
def people():
    return [Image.fromarray(training_sample(77, 4 * i).image) for i in range(8)]


def test_transformers_alone_loads_it():
    model = LlavaForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(TINY_FOLDER)
    assert isinstance(processor, LlavaProcessor)
    inputs = processor(
        images=Image.new("RGB", (128, 128)), text=CaptionConfig().prompt_template.prompt(), return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=60, do_sample=False)
    text = processor.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert parse_caption(text)["gender"]


def test_it_is_small_and_nothing_is_pickled():
    files = [path for path in TINY_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 14e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    assert (TINY_FOLDER / "README.md").read_text().count("| gender |") == 1


def test_the_tokenizer_reads_anything_and_knows_captions_by_word(engine):
    tokenizer = engine.llava.processor.tokenizer
    for text in ("", "naïve Ünïcode — 你好 🚶", "tabs\tand\nlines", "brackets [age] {x}"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    for slot, values in VOCABULARY.items():
        if slot in ("upper_color", "lower_color", "lower_type"):
            assert all(len(tokenizer(f" {value}", add_special_tokens=False).input_ids) == 1 for value in values[1:])
    for template in builtin_templates():
        assert len(tokenizer(template.instruction, add_special_tokens=False).input_ids) == 1


def test_labels_are_what_a_caption_of_the_visible_says():
    attributes = {slot: VOCABULARY[slot][0] for slot in SLOTS}
    seen = labels_of(attributes, dict.fromkeys(SLOTS, True))
    assert parse_caption(caption_of(np.array(seen))) == attributes
    hidden = labels_of(attributes, dict.fromkeys(SLOTS, False))
    assert caption_of(np.array(hidden)) == compose({}) == "A person."
    assert [CLASSES[slot][index] for slot, index in zip(SLOTS, hidden, strict=True)].count(NONE) == 2


def test_frame_is_the_framing_of_the_engine(engine, people):
    crops = torch.from_numpy(np.stack([np.asarray(person) for person in people]).transpose(0, 3, 1, 2).copy())
    real = engine.pixels([engine.prepare(person) for person in people])
    assert (frame(normalize(crops)) - real).abs().max() < 0.01


def test_augmentation_is_seeded_and_moves_parts_with_pixels():
    sample = training_sample(5, 3)
    crop = np.where(sample.parts[..., None] > 0, 255, 0).astype(np.uint8).repeat(3, axis=-1)
    from tools.tiny_llava.data import Batch

    batch = Batch(
        images=torch.from_numpy(crop.transpose(2, 0, 1).copy()).expand(8, -1, -1, -1),
        labels=torch.zeros(8, len(SLOTS), dtype=torch.long),
        parts=torch.from_numpy(sample.parts[::2, ::2].copy()).expand(8, 1, -1, -1),
    )
    pixels, parts = augment(batch, torch.Generator().manual_seed(1))
    again, _ = augment(batch, torch.Generator().manual_seed(1))
    assert torch.equal(pixels, again)
    points = pixels.mean(dim=1)[:, 2::4, 2::4]
    assert ((points > 0) == (parts > 0)).float().mean() > 0.95
    assert not torch.equal(parts[0], parts[1])


def test_training_runs_goes_on_and_saves_what_transformers_loads(tmp_path):
    seconds = count()  # a step reads the clock twice, so each takes one second of the budget
    small = {"capacity": 24, "unseen": 16, "batch": 8}
    plan = Plan(folder=tmp_path, pool=tmp_path / "pool", minutes=4 / 60, seed=9, workers=2, **small)
    Training(plan, clock=lambda: float(next(seconds))).run()
    assert Pool(tmp_path / "pool", seed=9, capacity=24).ready == 24
    again = Training(plan)
    assert again.elapsed == 4
    assert again.steps == {"crops": 1, "tower": 1, "caption": 2}
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "final", dtype=torch.float32)
    trained = again.model.state_dict()["model.multi_modal_projector.linear_1.weight"]
    saved = model.state_dict()["model.multi_modal_projector.linear_1.weight"]
    assert torch.equal(saved, trained.half().float())


def test_score_counts_by_hand():
    frame = pd.DataFrame({f"visible_{slot}": [True, True, True, False] for slot in SLOTS})
    for slot in SLOTS:
        frame[slot] = ["x"] * 4
        frame[f"attr_{slot}"] = ["x", "y", None, "x"]
    frame["carrying"] = [NONE, "backpack", NONE, NONE]
    frame["attr_carrying"] = [None, None, "backpack", None]
    by_slot = {item.slot: item for item in score(frame)}
    assert (by_slot["hair"].images, by_slot["hair"].right, by_slot["hair"].omitted) == (3, 1, 1)
    assert (by_slot["carrying"].images, by_slot["carrying"].right, by_slot["carrying"].omitted) == (3, 1, 0)


def test_captions_of_unseen_people_are_right():
    scores, rows = measure(CaptionConfig(device="cpu"), images=320)
    found = {item.slot: item.accuracy for item in scores}
    assert {slot: found[slot] for slot, share in WANTED.items() if found[slot] < share} == {}
    assert set(rows["status"]) == {"ok"}
    assert not rows["raw_text"].str.contains(r"\bno\b|\bnot\b", regex=True).any()


def test_calibration_worked_by_hand():
    frame = pd.DataFrame({f"visible_{slot}": [True, True, True, False] for slot in SLOTS})
    for slot in SLOTS:
        frame[slot], frame[f"attr_{slot}"] = ["x"] * 4, ["x", "y", "x", "x"]
        frame[f"conf_{slot}"] = np.log([0.5, 0.5, 1.0, 1.0])
    probability, right = answers_of(frame, "hair")
    assert probability == pytest.approx([0.5, 0.5, 1.0])
    assert right.tolist() == [1.0, 0.0, 1.0]
    # Three parts of one image each: |0.5 - 1|, |0.5 - 0| and |1 - 1|; the surer half is the second and third.
    assert "| hair | 66.7% | 66.7% | 33.3% | 50.0% |" in calibration_table(frame)
    assert "| 0.50 to 0.70 | 20 | 50.0% | 50.0% |" in reliability_table(frame)
    assert "| 0.99 to 1.00 | 10 | 100.0% | 100.0% |" in reliability_table(frame)


def test_four_bit_on_the_cpu_still_describes_people(people):
    engine = Engine.load(CaptionConfig(quantization="4bit", device="cpu"))
    replies = engine.reply([engine.prepare(person) for person in people])
    assert all(parse_caption(reply.text)["gender"] and not reply.truncated for reply in replies)


def test_slot_filling_says_much_the_same_as_free_text(engine, people):
    slots = Engine.load(CaptionConfig(decoding="slots", device="cpu"))
    framed = [engine.prepare(person) for person in people]
    same = [a.text == b.text for a, b in zip(engine.reply(framed), slots.reply(framed), strict=True)]
    assert sum(same) >= 7
