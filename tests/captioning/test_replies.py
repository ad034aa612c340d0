"""Re-prompting: when, how often, with which seed, and which reply is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from captioning.captioner import identify
from captioning.config import CaptionConfig
from captioning.engines.llava import Engine
from captioning.engines.sampling import GumbelNoise
from captioning.prompts.replies import RegenerateConfig, Reply, is_malformed, prompt_until_well_formed, seed_of
from data.artifacts.store import ArtifactStore
from data.config import build_config
from data.errors import ConfigError
from tests.helpers.caption_worlds import captions_of, draw, index
from tests.helpers.mini_llava import save_mini_llava
from tests.helpers.stages import caption

GOOD = "A man is wearing a red shirt and blue jeans."


def reply(text: str, *, truncated: bool = False) -> Reply:
    return Reply(text=text, n_tokens=len(text.split()), truncated=truncated)


class Script:
    """Replies to each image from a list of texts, and remembers the prompts."""

    def __init__(self, *texts: list[str]) -> None:
        self.texts = texts
        self.asked: list[tuple[list[int], list[int] | None]] = []

    def __call__(self, images, seeds):
        self.asked.append((list(images), seeds))
        turn = len(self.asked) - 1
        return [reply(self.texts[i][turn]) for i in images]


def kept(script: Script, keys: list[str], **settings) -> list[Reply]:
    images = {key: i for i, key in enumerate(keys)}
    replies = prompt_until_well_formed(images, script, RegenerateConfig(**settings), "scgi")
    return [replies[key] for key in keys]


@pytest.mark.parametrize(
    ("text", "malformed"),
    [
        (GOOD, False),
        ("", True),
        ("A man.", True),
        ("A man is wearing a shirt. " * 3, True),
        ("The image shows a man in a red shirt.", True),
        ("A man is wearing " + "very " * 80 + "red shirt.", True),
    ],
)
def test_what_is_malformed(text, malformed):
    assert is_malformed(reply(text), RegenerateConfig(), "scgi") is malformed
    assert is_malformed(reply(text, truncated=True), RegenerateConfig(), "scgi")


def test_a_free_description_may_open_in_any_way():
    text = reply("The image shows a man in a red shirt.")
    assert not is_malformed(text, RegenerateConfig(), "free")
    assert is_malformed(text, RegenerateConfig(max_words=5), "free")


def test_only_malformed_replies_are_re_prompted_and_the_first_good_one_is_kept():
    script = Script([GOOD], ["bad", "worse", GOOD + " X", "unused"], ["bad", GOOD])
    replies = kept(script, ["a", "b", "c"], times=3)
    seeds = {key: [seed_of(key, attempt) for attempt in (1, 2)] for key in "bc"}
    assert script.asked == [
        ([0, 1, 2], None),
        ([1, 2], [seeds["b"][0], seeds["c"][0]]),
        ([1], [seeds["b"][1]]),
        ([1], [seed_of("b", 3)]),
    ]
    assert [reply.n_replies for reply in replies] == [1, 4, 2]


def test_the_first_reply_is_kept_if_none_is_well_formed():
    (reply,) = kept(Script(["first", "second", "third"]), ["a"], times=2)
    assert (reply.text, reply.first_text, reply.n_replies) == ("first", None, 3)


def test_a_later_reply_is_kept_with_the_text_of_the_first():
    (reply,) = kept(Script(["first", "second", GOOD]), ["a"], times=5)
    assert (reply.text, reply.first_text, reply.n_replies) == (GOOD, "first", 3)


def test_by_default_the_model_is_prompted_once():
    script = Script(["bad"])
    assert kept(script, ["a"])[0].n_replies == 1
    assert script.asked == [([0], None)]


def test_seeds_depend_on_image_and_attempt():
    seeds = {seed_of(f"{image:064x}", attempt) for image in range(50) for attempt in range(1, 4)}
    assert len(seeds) == 150
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of("a" * 64, 1) == seed_of("a" * 64, 1)


# Sampling


def test_gumbel_noise_draws_from_the_softmax_at_the_temperature():
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    expected = torch.softmax(scores[0] / 0.7, 0)
    noise = GumbelNoise(range(400), 0.7)  # 100 samples each
    drawn = torch.cat([noise(torch.empty(0), scores.expand(400, -1)).argmax(-1) for _ in range(100)])
    assert torch.allclose(torch.bincount(drawn, minlength=4) / len(drawn), expected, atol=0.01)


def test_noise_is_separate_for_each_row():
    scores = torch.zeros(3, 50)
    together = GumbelNoise([5, 6, 7], 1.0)
    alone = GumbelNoise([6], 1.0)
    for _ in range(3):
        assert torch.equal(together(torch.empty(0), scores)[1], alone(torch.empty(0), scores[:1])[0])


@pytest.fixture(scope="module")
def mini(module_folder):
    return save_mini_llava(module_folder("mini") / "llava")


def config(mini, **changes) -> CaptionConfig:
    settings = {"model": str(mini), "dtype": "float32", "max_new_tokens": 6, "device": "cpu", "batch_size": 4}
    return CaptionConfig(**(settings | changes))


def test_a_sampled_reply_does_not_depend_on_its_batch(mini):
    rng = np.random.default_rng(3)
    engine = Engine.load(config(mini, regenerate={"times": 1, "temperature": 1.5}))
    images = [engine.prepare(Image.fromarray(rng.integers(0, 255, (64, 32, 3)).astype(np.uint8))) for _ in range(3)]
    together = engine.reply(images, seeds=[1, 2, 3])
    assert [engine.reply([image], seeds=[seed])[0] for image, seed in zip(images, (1, 2, 3), strict=True)] == together
    assert len({engine.reply(images[:1], seeds=[seed])[0].text for seed in range(5)}) > 1


def test_through_the_stage(mini, tmp_path):
    """The random model never ends a reply, so every reply is malformed: of three, the first is kept."""
    store = ArtifactStore(tmp_path / "home")
    root = draw(tmp_path / "people", 5)
    once, thrice = config(mini), config(mini, regenerate={"times": 2})
    rows = [
        captions_of(caption(store, images=index(store, root), images_root=root, config=settings).made)
        for settings in (once, thrice)
    ]
    assert rows[0]["n_replies"].tolist() == [1] * 5
    assert rows[1]["n_replies"].tolist() == [3] * 5
    assert rows[0]["raw_text"].tolist() == rows[1]["raw_text"].tolist()
    assert rows[1]["first_text"].isna().all()
    assert len({identify(settings, store.memo).fingerprint for settings in (once, thrice)}) == 2


def test_settings_that_change_nothing_while_it_is_off(mini, tmp_path):
    store = ArtifactStore(tmp_path / "home")
    other = config(mini, regenerate={"temperature": 1.0, "min_words": 9})
    assert identify(config(mini), store.memo) == identify(other, store.memo)


def test_slots_are_always_well_formed():
    with pytest.raises(ConfigError, match=r"regenerate.times: applies to free decoding.*; set regenerate.times=0"):
        build_config(CaptionConfig, {"decoding": "slots", "regenerate": {"times": 1}}, "caption")
