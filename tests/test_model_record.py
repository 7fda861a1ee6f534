"""The model record in the metadata of a checkpoint."""

import json

import numpy as np
import pytest
from helpers.image_folders import constant_image, write_folder
from helpers.modules import NormNet

from resflax.data import EvalTransform, load_dataset
from resflax.run.checkpoint import latest_valid_metadata
from resflax.train import build, default_config, fit
from resflax.train.model_record import model_record
from resflax.weights import PretrainedConfig
from resflax.zoo import create_model


def make_config(**keys):
    config = default_config()
    config.model, config.epochs, config.batch_size = "cifar_resnet8", 1, 480
    config.spec.update({"depths": (1,), "widths": (4,), "stem_width": 4})
    config.update_from_flattened_dict(keys)
    return config


def test_run_in_memory_records_its_model():
    dataset = load_dataset("digits")
    record = model_record(build(make_config()).model, dataset)
    assert record.spec.widths == (4,)
    assert record.spec.num_classes == 10
    assert record.channels == 1
    assert record.labels == tuple("0123456789")
    preprocess = record.preprocess
    assert (preprocess.size, preprocess.crop_pct) == ((8, 8), 1.0)
    pixels = dataset.train.images / 255
    np.testing.assert_allclose(preprocess.mean, [pixels.mean()])
    np.testing.assert_allclose(preprocess.std, [pixels.std()])


def test_given_normalization_is_recorded():
    run = build(make_config(**{"data.mean": (0.25,), "data.std": (0.5,)}))
    preprocess = model_record(run.model, run.dataset).preprocess
    assert (preprocess.mean, preprocess.std) == ((0.25,), (0.5,))


def test_streamed_run_records_its_evaluation_transform(tmp_path):
    files = {f"{s}/{c}/0.png": constant_image(90, 9, 12) for s in ("train", "test") for c in "ab"}
    transform = EvalTransform(size=(8, 8), crop_pct=0.9, interpolation="bicubic")
    dataset = load_dataset(write_folder(tmp_path, files), image_size=12, eval_transform=transform)
    record = model_record(create_model("cifar_resnet8", num_classes=2), dataset)
    fields = ("size", "crop_pct", "interpolation", "crop_mode")
    assert [getattr(record.preprocess, key) for key in fields] == [(8, 8), 0.9, "bicubic", "center"]
    assert record.labels == ("a", "b")


def test_other_modules_have_no_record():
    run = build(make_config(), model=NormNet())
    metadata = run.metadata
    assert metadata["model"] is None
    assert metadata["data"]["splits"]["train"]["examples"] == 1437


@pytest.mark.slow
def test_checkpoint_has_the_record_as_json(tmp_path):
    fit(make_config(), tmp_path, silent=True)
    metadata = latest_valid_metadata(tmp_path / "checkpoints")
    record = PretrainedConfig.from_json_dict(metadata["model"])
    assert record == model_record(build(make_config()).model, load_dataset("digits"))
    assert json.loads((tmp_path / "config.json").read_text()) == metadata["config"]
