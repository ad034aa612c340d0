"""Exported encoders give the embeddings of the model in onnxruntime and open_clip, from the written files alone."""

import shutil
import sys

import numpy as np
import onnxruntime
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from data.artifacts.store import ArtifactStore
from data.errors import ClipScgiError, ConfigError
from data.files import read_json, write_json, write_table
from data.schemas import CORRECTED
from data.synthetic.world import training_sample
from reid import Embedder
from reid.config.backbone import BackboneConfig
from reid.config.train import TrainConfig
from reid.export import onnx_files
from reid.export.card import model_card
from reid.export.export import export_model
from reid.export.onnx_files import OnnxFile, UnitImageEncoder, compared, write_image_encoder
from reid.export.open_clip_files import write_open_clip
from reid.export.provenance import model_facts
from reid.models.backbone import OpenClipTokenizer, build_backbone, open_clip_shape
from reid.tasks.build import build_task
from tests.helpers.small_models import SEED, write_model
from tests.helpers.stages import make_artifact

TEXTS = ["a woman in a red coat", "It's a man with 2 bags!", "Ünïcödé 東京 12345", "The pedestrian " * 60]
CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def store(module_folder):
    return ArtifactStore(module_folder("export") / "home")


@pytest.fixture(scope="module")
def embedder(store):
    return Embedder.load(write_model(store), device="cpu")


@pytest.fixture(scope="module")
def folder(store, embedder, module_folder):
    folder = module_folder("exported") / "model"
    export_model(embedder, store, folder, modes=["image", "fused", "joint"])
    return folder


@pytest.fixture(scope="module")
def photos():
    """Return 33 people as images of a size that the model does not have."""
    images = [Image.fromarray(training_sample(SEED, number).image) for number in range(33)]
    return [image.resize((50 + number, 111)) for number, image in enumerate(images)]


def prepared(photos, rules):
    """Return the input of an encoder, made as preprocessing.json says and without this project."""
    height, width = rules["size"]
    assert (rules["interpolation"], rules["color_order"], rules["layout"]) == ("bicubic", "RGB", "NCHW")
    pixels = [np.asarray(photo.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)) for photo in photos]
    images = (np.stack(pixels) * rules["scale"] - np.array(rules["mean"])) / np.array(rules["std"])
    return images.transpose(0, 3, 1, 2).astype(rules["dtype"])


def run(path, **inputs):
    (features,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["features"], inputs)
    return features


@pytest.mark.parametrize("mode", ["image", "fused", "joint"])
def test_an_image_encoder_gives_the_embeddings_of_the_model_at_any_batch_size(folder, embedder, photos, mode):
    images = prepared(photos, read_json(folder / "preprocessing.json")["images"])
    expected = embedder.embed_images(photos, mode=mode)
    for batch in (1, 2, 7, 33):
        np.testing.assert_allclose(run(folder / f"{mode}.onnx", images=images[:batch]), expected[:batch], **CLOSE)


def test_the_text_encoder_and_the_tokenizer_give_the_embeddings_of_sentences(folder, embedder):
    rules = read_json(folder / "preprocessing.json")["texts"]
    texts = TEXTS[:3]
    ids = [row.ids for row in Tokenizer.from_file(str(folder / rules["tokenizer"])).encode_batch(texts)]
    features = run(folder / "text.onnx", token_ids=np.array(ids, rules["dtype"]))
    np.testing.assert_allclose(features, embedder.embed_texts(texts), **CLOSE)
    padded = np.pad(ids, ((0, 0), (0, rules["context"] - len(ids[0]))), constant_values=rules["padding"])
    np.testing.assert_allclose(run(folder / "text.onnx", token_ids=padded), features, **CLOSE)


@pytest.mark.parametrize("name", ["tiny", "vit_b16"])
def test_tokenizers_cut_pad_and_split_alike(folder, tmp_path, name):
    if name == "tiny":
        backbone, path = build_backbone(BackboneConfig()), folder / "tokenizer.json"
    else:
        from reid.export.tokenizer import write_tokenizer

        backbone = build_backbone(BackboneConfig())
        backbone.tokenizer = OpenClipTokenizer()
        write_tokenizer(tmp_path, backbone)
        path = tmp_path / "tokenizer.json"
    expected, _ = backbone.token_ids([*TEXTS, "a ‘quoted’ word"])
    rows = Tokenizer.from_file(str(path)).encode_batch([*TEXTS, "a ‘quoted’ word"])
    assert [row.ids for row in rows] == expected.tolist()


def test_open_clip_loads_the_folder_and_gives_the_joint_features(folder, embedder, photos):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.inference_mode():
        images = model.eval().encode_image(torch.stack([preprocess(photo) for photo in photos]), normalize=True)
        texts = model.encode_text(tokenize(TEXTS[:2]), normalize=True)
    np.testing.assert_allclose(images, embedder.embed_images(photos, mode="joint"), **CLOSE)
    np.testing.assert_allclose(texts, embedder.embed_texts(TEXTS[:2]), **CLOSE)


def test_the_card_names_what_clip_has_no_place_for(folder):
    card = (folder / "README.md").read_text()
    assert "- `cff` (50): contextual feature fusion" in card
    assert "`beyond_clip/model.safetensors` | the tensors that CLIP has no place for" in card
    assert "does not return the retrieval feature `image`" in card
    assert "No evaluation of this model was in the store" in card


def test_the_card_says_whose_captions_trained_the_model(store):
    row = dict.fromkeys(CORRECTED.names) | {"model_id": "toy/llava", "model_revision": "v1", "template_id": "scgi"}
    row |= {"captioner_fingerprint": "c" * 32, "split": "train", "status": "ok"}
    rows = [row | {"source": source} for source in ("model", "model", "human")] + [row | {"split": "query"}]
    captions = make_artifact(
        store,
        "correct",
        {"rows": rows},
        lambda folder: write_table(folder / "captions.parquet", pa.Table.from_pylist(rows, CORRECTED), CORRECTED),
    ).ref
    model = write_model(store)
    origin = {"dataset": "toy", "dataset_hash": "d" * 32, "version": None, "images": "0" * 32, "libraries": {}}
    facts = model_facts(model, store)
    assert facts.captioned is None
    described = read_json(model.folder / "config.json")
    provenance = {**origin, "captions": captions.fingerprint, "weights": {}, "python": "3.11"}

    def write(folder):
        shutil.copyfile(model.folder / "model.safetensors", folder / "model.safetensors")
        write_json(folder / "config.json", {**described, "provenance": provenance})

    card = model_card(model_facts(make_artifact(store, "train", {"of": "toy"}, write).ref, store), {}, {}, [])
    assert "- toy/llava, revision v1, template `scgi`" in card
    assert "Captions of the train split by status: 3 ok." in card
    assert "Corrections were applied; whose text it is: 2 model, 1 human." in card
    assert "# CLIP-SCGI on tiny CLIP trained on toy\n" in card


def test_an_earlier_export_is_replaced_and_nothing_is_left_beside_it(store, embedder, tmp_path):
    out = tmp_path / "out"
    export_model(embedder, store, out, format="open_clip")
    (out / "old").touch()
    export_model(embedder, store, out, format="open_clip")
    assert not (out / "old").exists()
    assert not list(out.glob("*.onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()} == {0o644}


def test_a_folder_of_something_else_is_refused_first(store, embedder, tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ConfigError, match="exists and is not an earlier export"):
        export_model(embedder, store, tmp_path)
    with pytest.raises(ConfigError, match="this model has no mode 'both'"):
        export_model(embedder, store, tmp_path / "out", modes=["both"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_encoder_that_differs_is_found(folder, embedder):
    task = embedder.task
    other = UnitImageEncoder(task, lambda images, _: task.encoders()["image"](images) + 0.5).eval()
    with pytest.raises(ClipScgiError, match=r"image.onnx differs from the model by [\d.]+e-\d+ \(allowed: 1e-04\)"):
        compared(folder / "image.onnx", other, ("images",), [(torch.zeros(2, 3, 128, 64),)])


def test_an_export_that_fails_leaves_nothing(store, embedder, tmp_path, monkeypatch):
    def fail(*_):
        raise ClipScgiError("differs")

    monkeypatch.setattr("reid.export.export.write_image_encoder", fail)
    with pytest.raises(ClipScgiError, match="differs"):
        export_model(embedder, store, tmp_path / "out", format="onnx", modes=["image"])
    assert not list(tmp_path.iterdir())


def test_without_the_extra_the_message_names_it(store, embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "find_spec", lambda name: None if name == "onnxruntime" else sys)
    with pytest.raises(ConfigError, match=r"needs onnxruntime: pip install 'clip-scgi\[onnx\]', or choose --format"):
        export_model(embedder, store, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_camera_embeddings_are_an_input(store, photos, tmp_path):
    embedder = Embedder.load(
        write_model(store, TrainConfig(device="cpu", sie=1.0, method="clip_baseline")), device="cpu"
    )
    done = export_model(embedder, store, tmp_path / "out")
    rules = read_json(tmp_path / "out/preprocessing.json")
    cameras = [4, 1, 2]
    numbers = np.array([rules["cameras"].index(camera) for camera in cameras])
    found = run(tmp_path / "out/image.onnx", images=prepared(photos[:3], rules["images"]), cameras=numbers)
    np.testing.assert_allclose(found, embedder.embed_images(photos[:3], cameras=cameras), **CLOSE)
    assert "open_clip does not add camera embeddings (SIE)" in done.notes[0]
    assert "camera_shift_KV" in (tmp_path / "out/README.md").read_text()


def test_a_separate_retrieval_head_is_part_of_the_image_mode_only(store, photos, tmp_path):
    embedder = Embedder.load(
        write_model(store, TrainConfig(device="cpu", method="clip_baseline", retrieval_head="separate", blend=0.5)),
        device="cpu",
    )
    with torch.no_grad():
        embedder.task.retrieval.weight_DV.mul_(-1)
    done = export_model(embedder, store, tmp_path / "out")
    rules = read_json(tmp_path / "out/preprocessing.json")
    found = run(tmp_path / "out/image.onnx", images=prepared(photos[:2], rules["images"]))
    np.testing.assert_allclose(found, embedder.embed_images(photos[:2]), **CLOSE)
    assert done.open_clip.difference <= 1e-4
    card = (tmp_path / "out/README.md").read_text()
    assert "class token of the last layer and feature of the retrieval head side by side" in card
    assert "`retrieval` (1): projection of the last class token" in card
    assert "The image tower is 0.5 of its trained weights" in card


@pytest.mark.parametrize(
    "backbone",
    [
        pytest.param(BackboneConfig(name="vit_b16", weights="random", height=32, width=16), marks=pytest.mark.soak),
        BackboneConfig(name="rn50", weights="random", height=64, width=32),
    ],
    ids=["vit_b16", "rn50"],
)
def test_the_published_backbones_are_exported(backbone, tmp_path):
    task = build_task(TrainConfig(device="cpu", method="clip_baseline", backbone=backbone), identities=2).eval()
    done = write_image_encoder(tmp_path / "image.onnx", task, task.encoders()["image"])
    assert done.difference <= 1e-4
    assert done.width == task.backbone.last_width + task.backbone.joint_width
    if backbone.name == "vit_b16":
        (tmp_path / "clip").mkdir()
        assert write_open_clip(tmp_path / "clip", task, backbone).difference <= 1e-4
        assert not (tmp_path / "clip/tokenizer.json").exists()  # open_clip has the tokenizer of this architecture


def test_a_model_that_open_clip_cannot_build_is_named(store, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"open_clip cannot build a ResNet-50 whose stage 4 keeps.*--format onnx"):
        open_clip_shape(BackboneConfig(name="rn50", weights="random"))
    config = TrainConfig(device="cpu", method="clip_baseline", backbone=BackboneConfig(stride=12))
    embedder = Embedder.load(write_model(store, config), device="cpu")
    words = "overlapping patches (train.backbone.stride=12)"
    with pytest.raises(ConfigError) as refused:
        export_model(embedder, store, tmp_path / "out", format="open_clip")
    assert f"open_clip cannot build {words}" in str(refused.value)
    assert "--format onnx" in str(refused.value)
    other = OnnxFile(name="image.onnx", inputs=("images",), width=320, difference=0.0, size=1)
    monkeypatch.setattr("reid.export.export.write_image_encoder", lambda *_: other)
    done = export_model(embedder, store, tmp_path / "out")
    assert done.open_clip is None
    assert f"Without open_clip: open_clip cannot build {words}." in done.notes
    assert done.notes[0] in (tmp_path / "out/README.md").read_text()
