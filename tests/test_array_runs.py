"""Runs on arrays, and the commands that use them."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.arrays import ARRAYS, X, save_arrays
from helpers.modules import softmax
from helpers.networks import apply
from helpers.pages import DOCS, python_blocks
from helpers.weight_files import write_timm_folder
from helpers.workdirs import SavedStep, write_workdir
from PIL import Image

from resflax import UserError, load_ensemble, load_pretrained
from resflax.cli.main import main
from resflax.data.ecg import CLASSES, make_ecg
from resflax.weights import Preprocess, PretrainedConfig
from resflax.zoo import get_spec


def test_ecg_is_balanced_and_the_same_each_time():
    train, test = make_ecg("train"), make_ecg("test")
    assert np.bincount(train.labels).tolist() == [500] * len(CLASSES)
    np.testing.assert_array_equal(test.images, make_ecg("test").images)
    assert not np.array_equal(train.images[: len(test)], test.images)


SMALL = [
    "--config.model=resnet1d18",
    "--config.spec.depths=(1,)",
    "--config.spec.widths=(8,)",
    "--config.spec.stem_width=8",
    "--config.epochs=2",
    "--config.batch_size=8",
]


@pytest.fixture(scope="module")
def run_on_arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    name = save_arrays(folder / "a.npz", **ARRAYS)
    main(["train", *SMALL, f"--config.dataset={name}", "--config.data.shift=2",
          f"--workdir={folder / 'run'}"])  # fmt: skip
    return folder


def test_runs_on_arrays_are_evaluated(run_on_arrays):
    out = run_on_arrays / "out"
    main(["evaluate", str(run_on_arrays / "run"), "--calibrate=none", f"--out={out}"])
    accuracy = json.loads((out / "evaluation.json").read_text())["accuracy"]
    results = json.loads((run_on_arrays / "run" / "results.json").read_text())
    assert accuracy == pytest.approx(results["test_accuracy"])


def test_python_code_of_dimensions_page_runs(run_on_arrays, capsys):
    np.save(run_on_arrays / "one.npy", X[0])
    page = (DOCS / "dimensions.md").read_text()
    networks, prediction = python_blocks(page)
    exec(networks, {})
    assert capsys.readouterr().out.strip() in page
    for name in ("runs/ecg", "one.npy"):
        assert name in prediction
        prediction = prediction.replace(
            name, str(run_on_arrays / Path(name.replace("ecg", "run")).name)
        )
    exec(prediction, {})
    assert capsys.readouterr().out.strip() in {"0", "1", "2"}


def test_preprocess_of_a_run_normalizes_arrays(run_on_arrays):
    np.save(run_on_arrays / "one.npy", X[0])
    weights = load_pretrained(run_on_arrays / "run")
    expected = (X[0] - X.mean((0, 1))) / X.std((0, 1))
    np.testing.assert_allclose(weights.preprocess(X[0]), expected, atol=1e-5)
    np.testing.assert_allclose(weights.preprocess(run_on_arrays / "one.npy"), expected, atol=1e-5)
    with pytest.raises(UserError, match="the array has .* expected float32 and"):
        weights.preprocess(X[0, :9])


def outputs_of(weights, arrays):
    """Returns the outputs that `model.apply` gives for arrays, in float64."""
    x = np.stack([weights.preprocess(array) for array in arrays])
    return np.asarray(apply(weights.model, weights.variables, x), np.float64)


def test_predict_reads_arrays(run_on_arrays, tmp_path):
    run = str(run_on_arrays / "run")
    (tmp_path / "x").mkdir()
    np.save(tmp_path / "x" / "a.npy", X[0])
    np.save(tmp_path / "x" / "b.npy", X[1:6])
    files = [f"--out={tmp_path / 'out.jsonl'}", f"--features={tmp_path / 'features.npz'}"]
    assert main(["predict", str(tmp_path / "x"), f"--weights={run}", *files, "--batch-size=4"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    b = tmp_path / "x" / "b.npy"
    assert [row["path"] for row in rows] == [
        str(tmp_path / "x" / "a.npy"), *(f"{b}[{i}]" for i in range(5))
    ]  # fmt: skip
    weights = load_pretrained(run)
    expected = softmax(outputs_of(weights, X[:6]))
    for row, probabilities in zip(rows, expected, strict=True):
        found = {p["label"]: p["probability"] for p in row["predictions"]}
        np.testing.assert_allclose([found[i] for i in range(3)], probabilities, atol=1e-6)
    head = weights.variables["params"]["head"]
    features = np.load(tmp_path / "features.npz")["features"]
    logits = features @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, outputs_of(weights, X[:6]), atol=1e-5)


def test_ensembles_of_runs_on_arrays(run_on_arrays, tmp_path):
    wheres = [f"{run_on_arrays / 'run'}@{which}" for which in ("2", "last")]
    members = [load_pretrained(where) for where in wheres]
    ensemble = load_ensemble(wheres)
    x = np.stack([ensemble.preprocess(array) for array in X])
    assert ensemble.normalize(x).shape == (2, *x.shape)
    np.save(tmp_path / "x.npy", X)
    out = tmp_path / "out.jsonl"
    flags = [f"--weights={where}" for where in wheres]
    assert main(["predict", str(tmp_path / "x.npy"), *flags, f"--out={out}"]) == 0
    expected = np.mean([softmax(outputs_of(member, X)) for member in members], 0)
    rows = [json.loads(line)["predictions"] for line in out.read_text().splitlines()]
    for row, probabilities in zip(rows, expected, strict=True):
        np.testing.assert_allclose(
            [p["probability"] for p in row], sorted(probabilities)[::-1], atol=1e-6
        )


def test_stablehlo_has_networks_of_arrays(run_on_arrays, tmp_path, capsys):
    run, weights = str(run_on_arrays / "run"), load_pretrained(run_on_arrays / "run")
    np.save(tmp_path / "one.npy", X[0])
    for flags, lengths in (
        ([f"--images={tmp_path / 'one.npy'}"], [20]),
        (["--symbolic"], [20, 57]),
    ):
        path = tmp_path / "net.stablehlo"
        assert main(["export", run, str(path), *flags]) == 0
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
        for length in lengths:
            x = np.random.default_rng(0).standard_normal((3, length, 2)).astype(np.float32)
            expected = apply(weights.model, weights.variables, x)
            np.testing.assert_allclose(exported.call(x), expected, atol=1e-5)
    description = json.loads((tmp_path / "net.stablehlo.json").read_text())["input"]
    assert description["shape"] == ["n", "length", 2]
    assert description["constraints"] == ["length >= 3"]
    out = capsys.readouterr().out
    assert "on 1 array: " in out
    assert "on 4 noise arrays of 39: " in out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["predict", "photo.png"], "photo.png is an image, but "),
        (["predict", "one.npy", "photo.png"], "photo.png is not an array, as other files are"),
        (["predict", "one.npy", "--sheet=sheet.png"], "--sheet is for images, and one.npy is"),
        (
            ["predict", "short.npy"],
            "short.npy has the dtype float32 and the shape (19, 2): expected",
        ),
        (["predict", "nan.npy"], "nan.npy has NaN or infinite values"),
        (["predict", "*.npz"], "no file matches *.npz: expected a glob such as 'signals/"),
        (["export", "RUN", "net.onnx"], "--format=onnx takes uint8 images, and the network takes"),
        (["export", "RUN", "folder"], "--format=timm takes uint8 images, and the network takes"),
        (["export", "RUN", "net.stablehlo", "--uint8"], "--uint8 is for networks of uint8 values"),
        (["export", "RUN", "n.stablehlo", "--images=short.npy"], "short.npy has the dtype float32"),
        (["evaluate", "RUN", "--tta=flip"], "RUN"),
        (["evaluate", "RUN", "--corruptions"], "RUN"),
        (["data", "show", "--config.dataset=DATA"], "data show draws uint8 images, and npz:"),
        (["study", "activation", "--dataset=DATA"], "arrays of shape (20, 2): expected images"),
        (["average", "RUN@2", "RUN", "--out=average"], "resflax average takes uint8 images"),
    ],
)
def test_commands_that_do_not_fit_arrays_are_refused(
    run_on_arrays, tmp_path, monkeypatch, capsys, command, message
):
    monkeypatch.chdir(tmp_path)
    np.save("one.npy", X[0])
    np.save("short.npy", X[:, 1:])
    np.save("nan.npy", np.where(np.arange(20)[:, None] == 3, np.nan, X[0]))
    Image.new("RGB", (8, 8)).save("photo.png")
    run = str(run_on_arrays / "run")
    data = f"npz:{run_on_arrays / 'a.npz'}"
    command = [argument.replace("RUN", run).replace("DATA", data) for argument in command]
    weights = [f"--weights={run}"] if command[0] == "predict" else []
    assert main([*command, *weights]) == 2
    error = capsys.readouterr().err.strip()
    assert message.replace("RUN", run) in error
    assert "\n" not in error


def test_networks_of_images_refuse_arrays_and_clips(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("one.npy", X[0])
    Image.new("RGB", (8, 8)).save("photo.png")
    write_timm_folder(tmp_path / "images", classes=3)
    spec = get_spec("r3d_18").override(depths=(1,), widths=(8,), stem_width=8)
    config = PretrainedConfig(spec, 3, Preprocess(size=(8, 8), crop_pct=1.0))
    write_workdir(tmp_path / "clips", SavedStep(1), config=config)
    for where, path, message in (
        ("images", "one.npy", "one.npy is an array, but images takes images"),
        ("clips", "photo.png", "resflax predict takes images, and the network has dimensions 3"),
    ):
        assert main(["predict", path, f"--weights={where}"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.data.flip"], "config.data.flip is True, which is for uint8 images"),
        (["--config.data.cutout=3"], "config.data.cutout is 3, which is for uint8 images"),
        (["--config.spec.dimensions=2"], "use --config.spec.dimensions=1, or data with images"),
        (["--config.data.pad_crop=21"], "expected at most"),
        (["--config.data.image_size=32"], "has its own image size"),
        (["--config.data.noise=-1.0"], "noise is -1.0: expected a share"),
    ],
)
def test_settings_that_do_not_fit_arrays_are_refused(tmp_path, capsys, flags, message):
    name = save_arrays(tmp_path / "a.npz", **ARRAYS)
    arguments = [*SMALL, f"--config.dataset={name}", *flags, f"--workdir={tmp_path / 'r'}"]
    assert main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
