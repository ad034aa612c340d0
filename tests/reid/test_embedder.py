"""reid.Embedder: embeddings equal the evaluation's features, whatever the form of an image, the batch and the order."""

import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from data.artifacts.store import SIDECAR, ArtifactStore
from data.errors import ConfigError, DataError, WeightsError
from data.files import read_json, write_json
from reid import Embedder
from reid.config.train import ScgiConfig, TrainConfig
from reid.embedding.find import find_model
from reid.inputs.embed import embed
from reid.inputs.pixel_cache import load_pixels
from reid.training.checkpoint import load_task
from tests.helpers.data_trees import TURNED
from tests.helpers.small_models import write_model, write_world
from tests.helpers.stages import pixels

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def world(module_folder):
    base = module_folder("embedder")
    store = ArtifactStore(base / "home")
    return store, write_world(store, base / "images"), write_model(store), base / "images"


@pytest.fixture(scope="module")
def embedder(world):
    return Embedder.load(world[2], device="cpu", batch_size=5)


@pytest.fixture(scope="module")
def paths(world):
    _, images, _, root = world
    return [root / path for path in pq.read_table(images.folder / "images.parquet")["path"].to_pylist()[:9]]


def evaluated(world, mode, cameras=None, model=None):
    """Return what the evaluate stage computes for the first nine images: features of the pixel cache, unit length."""
    store, images, own, root = world
    task = load_task((model or own).folder)
    shape = task.preprocess
    cache = pixels(store, images=images, images_root=root, height=shape.height, width=shape.width)
    rows = embed(
        task.encoders()[mode],
        load_pixels(cache.ref),
        np.arange(9),
        batch_size=64,
        device="cpu",
        mean=shape.mean,
        std=shape.std,
        cameras=None if cameras is None else task.camera_numbers(cameras),
    )
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("mode", ["image", "fused"])
def test_the_embedding_of_a_path_is_the_feature_of_the_evaluation(world, embedder, paths, mode):
    expected = evaluated(world, mode)
    seen = []
    got = embedder.embed_images(paths, mode=mode, progress=lambda done, total, _: seen.append((done, total)))
    assert (got.dtype, got.shape) == (np.float32, (9, embedder.width(mode)))
    np.testing.assert_allclose(got, expected, **CLOSE)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    assert seen == [(5, 9), (9, 9)]
    assert np.abs(got - got.mean(axis=0)).max() > 0.01  # the images do differ


def test_neither_batch_nor_order_nor_company_changes_an_embedding(world, embedder, paths):
    expected = embedder.embed_images(paths)
    alone = Embedder.load(world[2], device="cpu", batch_size=1)
    np.testing.assert_allclose(alone.embed_images(paths), expected, **CLOSE)
    order = np.random.default_rng(0).permutation(9)
    np.testing.assert_allclose(embedder.embed_images([paths[n] for n in order]), expected[order], **CLOSE)
    company = [np.zeros((7, 3, 3), np.uint8), paths[2], paths[2], Image.new("RGB", (9, 9), "white")]
    np.testing.assert_allclose(embedder.embed_images(company)[1:3], expected[[2, 2]], **CLOSE)


@pytest.mark.parametrize("mode", ["image", "fused", "joint"])
def test_bf16_embeddings_are_float32_of_length_one_and_nearly_the_same(world, embedder, paths, mode):
    half = Embedder.load(world[2], device="cpu", batch_size=5, precision="bf16").embed_images(paths, mode=mode)
    full = embedder.embed_images(paths, mode=mode)
    assert half.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-6)
    assert (half * full).sum(axis=1).min() >= 0.999
    assert np.abs(half - full).max() > 1e-5  # the encoder did run in bf16


def test_every_form_of_an_image_gives_the_same_embedding(embedder, paths):
    image = Image.open(paths[0])
    array = np.asarray(image.convert("RGB"))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [str(paths[0]), image, image.convert("RGBA"), array, array[:, ::-1][:, ::-1], array / 255]
    forms += [tensor, tensor.float() / 255, (tensor.double() / 255).requires_grad_()]
    got = embedder.embed_images(forms)
    np.testing.assert_allclose(got, np.repeat(embedder.embed_images(paths[:1]), len(forms), axis=0), **CLOSE)
    np.testing.assert_allclose(embedder.embed_images(array[None]), got[:1], **CLOSE)
    np.testing.assert_allclose(embedder.embed_images(tensor[None]), got[:1], **CLOSE)
    np.testing.assert_allclose(embedder.embed_images(image for image in [array]), got[:1], **CLOSE)


def test_a_file_is_turned_upright_and_a_pil_image_is_used_as_it_is(embedder, paths, tmp_path):
    sideways = Image.open(paths[0]).transpose(Image.Transpose.ROTATE_90)
    sideways.save(tmp_path / "turned.png", exif=TURNED)
    plain, turned, as_is = embedder.embed_images([paths[0], tmp_path / "turned.png", sideways])
    np.testing.assert_allclose(turned, plain, **CLOSE)
    assert float(as_is @ plain) < 0.999


def test_no_images_give_no_rows(embedder):
    assert embedder.embed_images([]).shape == (0, embedder.width())
    assert embedder.embed_texts([]).shape == (0, embedder.width("joint"))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("a.jpg", "takes a list of images, not one str"),
        (Image.new("RGB", (4, 4)), "takes a list of images, not one Image"),
        ([np.zeros((4, 4, 3), np.uint8), 3], "image 1 is a int; give a path"),
        (np.zeros((4, 4, 3), np.uint8), r"image 0 has the shape \[4, 3\]; expected \[H, W, 3\]"),
        ([np.zeros((3, 8, 4), np.uint8)], r"the image has the shape \[3, 8, 4\]; expected \[H, W, 3\]"),
        ([torch.zeros(8, 4, 3)], r"the image has the shape \[8, 4, 3\]; expected \[3, H, W\]"),
        ([np.zeros((0, 4, 3), np.uint8)], "the image has the shape"),
        ([np.zeros((8, 4, 3), np.int64)], "the image has the type int64; give uint8"),
        ([torch.zeros(3, 8, 4) - 1], "values outside 0 to 1; .*the model does that"),
        ([np.full((8, 4, 3), np.nan)], "values outside 0 to 1"),
    ],
)
def test_what_is_not_an_image_is_refused(embedder, images, words):
    with pytest.raises(ConfigError, match=words):
        embedder.embed_images(images)


def test_an_unusable_file_is_named_with_its_position_and_reason(embedder, paths, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match=r"image 1 .*broken\.jpg cannot be used: the file is truncated or damaged"):
        embedder.embed_images([paths[0], tmp_path / "broken.jpg"])
    with pytest.raises(DataError, match="the image cannot be used: every pixel is transparent"):
        embedder.embed_images([Image.new("RGBA", (4, 4))])


# Sentences


def test_sentences_are_comparable_with_joint_embeddings(embedder, paths):
    task = embedder.task
    texts = ["a woman in a red coat", "a man", "a man"]
    got = embedder.embed_texts(texts)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(task.backbone.text(texts)).numpy()
        pixel = torch.from_numpy(np.asarray(Image.open(paths[0])).copy()).permute(2, 0, 1)[None]
        joint = torch.nn.functional.normalize(task.backbone.image(pixel / 127.5 - 1).joint_BD).numpy()
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, **CLOSE)
    np.testing.assert_allclose(embedder.embed_images(paths[:1], mode="joint"), joint, **CLOSE)
    assert embedder.modes == ("image", "fused", "joint")


@pytest.mark.parametrize("mode", ["image", "fused"])
def test_sentences_are_refused_for_a_mode_that_they_are_not_comparable_with(embedder, mode):
    with pytest.raises(ConfigError, match=f"not comparable with image embeddings of the mode '{mode}': .*mode='joint'"):
        embedder.embed_texts(["a man"], mode=mode)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ("a man", "takes a list of sentences"),
        ([""], "the sentence has 0 tokens, but this model reads 1 to 75"),
        (["a man", "red " * 100], "sentence 1 has 101 tokens"),
    ],
)
def test_a_sentence_that_the_model_cannot_read_is_refused(embedder, texts, words):
    with pytest.raises(ConfigError, match=words):
        embedder.embed_texts(texts)


# Modes, cameras, devices


def test_a_mode_that_the_model_lacks_is_refused(world):
    bare = Embedder.load(write_model(world[0], TrainConfig(device="cpu", scgi=ScgiConfig(cff=False))), device="cpu")
    assert bare.modes == ("image", "joint")
    with pytest.raises(ConfigError, match="no mode 'fused'; give one of image, joint"):
        bare.embed_images([], mode="fused")


def test_a_model_with_camera_embeddings_needs_the_cameras(world, paths):
    config = TrainConfig(method="clip_baseline", device="cpu", sie=1.0)
    model = write_model(world[0], config)
    sie = Embedder.load(model, device="cpu", batch_size=4)
    cameras = [1 + n % 4 for n in range(9)]
    np.testing.assert_allclose(
        sie.embed_images(paths, cameras=cameras), evaluated(world, "image", cameras, model), **CLOSE
    )
    assert sie.embed_images([], cameras=[]).shape == (0, sie.width())
    with pytest.raises(ConfigError, match=r"embeddings of the cameras \[1, 2, 3, 4\]: give the camera of each image"):
        sie.embed_images(paths)
    with pytest.raises(ConfigError, match="1 value for 9 images"):
        sie.embed_images(paths, cameras=[1])
    with pytest.raises(DataError, match=r"the images include cameras \[7\]"):
        sie.embed_images(paths[:1], cameras=[7])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "gpu"}, "device: must be auto, cpu, cuda"),
        ({"device": "cuda:99"}, "device=cuda:99"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_arguments_are_checked_before_the_model_is_loaded(settings, words):
    with pytest.raises(ConfigError, match=words):
        Embedder.load("nothing", **settings)


# Finding the model


@pytest.fixture
def trained(tmp_path):
    """A store with two models of the recipe demo, the newer one last, and one of another recipe and dataset."""
    store = ArtifactStore(tmp_path / "home")
    models = [write_model(store, TrainConfig(method="clip_baseline", device="cpu", seed=seed)) for seed in (1, 2, 3)]
    for number, model in enumerate(models):
        sidecar = read_json(model.folder / SIDECAR)
        write_json(model.folder / SIDECAR, sidecar | {"created": f"2026-01-0{number + 1}T00:00:00+00:00"})
    for model, use in zip(models, [("people", "demo"), ("people", "demo"), ("cars", "other")], strict=True):
        store.record_use(model, dataset=use[0], recipe=use[1])
    return store, models


def test_a_model_is_named_by_reference_fingerprint_recipe_or_folder(trained, tmp_path):
    store, (old, new, other) = trained
    for name in (new, new.fingerprint, new.fingerprint[:12], f"train/{new.fingerprint[:12]}", new.path, "demo"):
        assert find_model(name, store) == new
    assert find_model(old.folder, store) == old
    assert find_model("other", store) == other
    copied = shutil.copytree(new.folder, tmp_path / "elsewhere")
    assert find_model(copied, store).fingerprint == new.fingerprint
    (copied / SIDECAR).unlink()
    bare = find_model(str(copied), store)
    assert bare.fingerprint != new.fingerprint
    assert bare == find_model(copied, store)


def test_a_name_without_a_model_or_with_several_is_one_clear_message(trained, tmp_path, monkeypatch):
    store, (_, new, other) = trained
    with pytest.raises(ConfigError, match=r"'market1501' does not name a trained model: .*there: demo, other\."):
        find_model("market1501", store)
    with pytest.raises(ConfigError, match="does not contain any model of a recipe"):
        find_model("demo", ArtifactStore(tmp_path / "empty"))
    for text in ("", "~nobody/x", "x" * 5000, "a\0b"):
        with pytest.raises(ConfigError, match="does not name a trained model"):
            find_model(text, store)
    store.record_use(other, dataset="cars", recipe="demo")
    with pytest.raises(ConfigError, match=r"'demo' names 2 models: .*recipe demo on the dataset people.*dataset cars"):
        find_model("demo", store)
    with pytest.raises(ConfigError, match="'train/' names 3 models"):
        find_model("train/", store)
    shutil.copytree(new.folder, tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"'other' names 2 models: .*a folder"):
        find_model("other", store)


def test_a_folder_that_is_not_an_intact_model_is_refused(trained, tmp_path):
    store, (old, new, _) = trained
    with pytest.raises(ConfigError, match=r"config\.json and model\.safetensors missing"):
        find_model(tmp_path, store)
    config = read_json(new.folder / "config.json")
    write_json(new.folder / "config.json", config | {"identities": [1, 2]})
    with pytest.raises(WeightsError, match=r"config\.json of the model in .* differs from what artifact\.json lists"):
        find_model("demo", store)
    (old.folder / SIDECAR).write_text("{}")
    with pytest.raises(WeightsError, match=r"artifact\.json is damaged"):
        find_model(old.folder, store)


def test_looking_a_model_up_keeps_it_from_garbage_collection(trained):
    store, (old, _, _) = trained
    before = next(item for item in store.sidecars("train") if item.fingerprint == old.fingerprint).used
    find_model(old.fingerprint, store)
    assert next(item for item in store.sidecars("train") if item.fingerprint == old.fingerprint).used >= before


def test_importing_reid_does_not_import_torch():
    code = (
        "import sys, reid\nassert 'torch' not in sys.modules\n"
        "try: reid.nothing\nexcept AttributeError as error: assert 'nothing' in str(error)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
