"""A model from training to use: evaluate, predict, export, reload, with equal predictions."""

import csv
import json

import jax
import numpy as np
import pytest
from helpers.commands import run_command, run_train
from PIL import Image

from resflax import load_pretrained
from resflax.data import load_dataset

IMAGES = 60


def read_predictions(path):
    """Returns label and probability of the most probable class by file name."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["rank"] == "1"]
    return {
        row["path"].rpartition("/")[2]: (int(row["label"]), float(row["probability"]))
        for row in rows
    }


@pytest.mark.slow
def test_digits_run_gives_equal_predictions_in_every_format(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    epochs = ("--config.epochs=5", "--config.model=cifar_resnet8")
    assert run_train("--workdir=run", *epochs) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())

    assert run_command("evaluate", "run", "--out=evaluation") == 0
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert evaluation["examples"] == results["test_examples"] == 360
    assert evaluation["accuracy"] == pytest.approx(results["test_accuracy"], abs=1e-9)

    test = load_dataset("digits").test
    pixels, classes = test.images[:IMAGES], test.labels[:IMAGES]
    assert pixels.dtype == np.uint8
    (tmp_path / "images").mkdir()
    names = [f"{i:02}.png" for i in range(IMAGES)]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image[..., 0]).save(tmp_path / "images" / name)
    assert run_command("predict", "images", "--weights=run", "--out=run.csv") == 0
    expected = read_predictions(tmp_path / "run.csv")
    assert sorted(expected) == names
    labels = np.array([expected[name][0] for name in names])
    assert np.mean(labels == classes) > 0.5

    for out in ("net", "net.onnx", "net.stablehlo"):
        assert run_command("export", "run", out, "--images", "images/00.png") == 0
    for out in ("raw.onnx", "raw.stablehlo"):
        assert run_command("export", "run", out, "--uint8") == 0

    assert run_command("predict", "images", "--weights=net", "--out=net.csv") == 0
    reloaded = read_predictions(tmp_path / "net.csv")
    for name in names:
        assert reloaded[name] == (expected[name][0], pytest.approx(expected[name][1], abs=1e-5))
    assert run_command("evaluate", "net", "--dataset=digits", "--out=again") == 0
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert again["accuracy"] == evaluation["accuracy"]
    assert again["nll"] == pytest.approx(evaluation["nll"], rel=1e-5)

    loaded = load_pretrained("net")
    assert loaded.classes == tuple(map(str, range(10)))
    assert loaded.preprocess == load_pretrained("run").preprocess
    images = np.stack([loaded.preprocess(tmp_path / "images" / name) for name in names])
    logits = {"net": loaded.model.apply(loaded.variables, images, train=False)}
    nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    (logits["onnx"],) = onnxruntime.InferenceSession("net.onnx").run(["logits"], {"image": nchw})
    logits["stablehlo"] = read_stablehlo(tmp_path / "net.stablehlo").call(images)
    probabilities = {name: jax.nn.softmax(np.asarray(value)) for name, value in logits.items()}
    session = onnxruntime.InferenceSession("raw.onnx")
    (probabilities["raw onnx"],) = session.run(["probabilities"], {"image": pixels})
    probabilities["raw stablehlo"] = read_stablehlo(tmp_path / "raw.stablehlo").call(pixels)
    for name, values in probabilities.items():
        values = np.asarray(values)
        np.testing.assert_array_equal(values.argmax(1), labels, err_msg=name)
        top = [expected[image][1] for image in names]
        np.testing.assert_allclose(values.max(1), top, atol=1e-5, err_msg=name)


def read_stablehlo(path):
    return jax.export.deserialize(bytearray(path.read_bytes()))
