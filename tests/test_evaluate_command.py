"""`resflax evaluate`: results, files, processes, and one line for each kind of invalid input."""

import csv
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.commands import run_train
from helpers.image_folders import write_folder
from helpers.processes import free_port, run_all

from resflax import UserError, create_model
from resflax.cli.main import main
from resflax.data import load_dataset, normalize
from resflax.metrics import score_examples
from resflax.weights import load_pretrained, save_file, to_torch


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A short run on the digits."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    model = ("--config.model=cifar_resnet8", "--config.epochs=2", "--config.batch_size=256")
    assert run_train("--config=configs/digits.py", *model, f"--workdir={path}") == 0
    return path


@pytest.fixture(scope="module")
def evaluation(workdir, tmp_path_factory):
    """The workdir evaluated on its own test split, with all files."""
    out = tmp_path_factory.mktemp("evaluation")
    evaluate(workdir, f"--out={out}", f"--predictions={out}/predictions.csv")
    return out


def evaluate(*arguments):
    assert main(["evaluate", *map(str, arguments)]) == 0


def read(out):
    return json.loads((out / "evaluation.json").read_text())


def logits_of(workdir):
    """Returns the logits of `model.apply` on the digits' test split, and the labels."""
    pretrained, test = load_pretrained(workdir), load_dataset("digits").test
    preprocess = pretrained.preprocess
    x = normalize(test.images, mean=preprocess.mean, std=preprocess.std)
    return pretrained.model.apply(pretrained.variables, x, train=False), test.labels


def test_workdir_evaluates_to_the_digits_of_its_results(workdir, evaluation):
    values, results = read(evaluation), json.loads((workdir / "results.json").read_text())
    assert values["accuracy"] == results["test_accuracy"]
    assert values["examples"] == results["test_examples"] == 360
    assert values["correct"] == round(results["test_accuracy"] * 360)
    np.testing.assert_allclose(values["nll"], results["test_loss"], rtol=1e-5)
    assert (values["skipped"], values["excluded"]) == (0, 0)


def test_evaluation_has_an_accuracy_for_each_class(workdir, evaluation):
    values = read(evaluation)
    logits, labels = logits_of(workdir)
    right = np.asarray(logits).argmax(-1) == labels
    expected = [right[labels == i].mean() for i in range(10)]
    np.testing.assert_allclose(values["per_class"], expected)
    assert values["class_examples"] == np.bincount(labels).tolist()
    assert values["classes"] == [str(i) for i in range(10)]
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels, np.asarray(logits).argmax(-1)), 1)
    assert values["confusion"] == expected.tolist()


def test_evaluation_says_what_was_evaluated(workdir, evaluation, capsys):
    values = read(evaluation)
    assert values["dataset"] == "digits"
    assert values["model"] == str(workdir)
    assert "last checkpoint" in values["source"]
    assert values["preprocess"]["size"] == [8, 8]
    evaluate(f"{workdir}@best")
    printed = capsys.readouterr().out
    assert "best checkpoint" in printed
    assert "so the results below are optimistic" in printed


def test_figures_are_written(evaluation):
    for name in ("reliability.png", "confusion.png"):
        assert (evaluation / name).read_bytes().startswith(b"\x89PNG")


def test_predictions_hold_every_example(workdir, evaluation):
    with (evaluation / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    logits, labels = logits_of(workdir)
    scores = score_examples(np.asarray(logits), labels)
    assert [int(row["index"]) for row in rows] == list(range(360))
    assert [int(row["label"]) for row in rows] == labels.tolist()
    assert [int(row["prediction"]) for row in rows] == scores.prediction.tolist()
    assert [row["top5"] for row in rows] == [" ".join(map(str, top)) for top in scores.top]
    for name, expected in (
        ("prediction_probability", scores.confidence),
        ("label_probability", np.exp(scores.label_log_probability)),
    ):
        np.testing.assert_allclose([float(row[name]) for row in rows], expected, rtol=1e-4)


def test_parquet_has_the_columns_of_the_csv(workdir, evaluation, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "predictions.parquet"
    evaluate(workdir, f"--predictions={path}")
    table = parquet.read_table(path).to_pydict()
    with (evaluation / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(table) == list(rows[0])
    assert table["prediction"] == [int(row["prediction"]) for row in rows]
    assert table["top5"] == [[int(i) for i in row["top5"].split()] for row in rows]


@pytest.mark.multiprocess
def test_two_processes_count_every_example_once(workdir, evaluation, tmp_path):
    address = f"--coordinator=127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "resflax", "evaluate", str(workdir), f"--out={tmp_path}"]
    run_all(
        [
            [*command, "--distributed", address, "--num_processes=2", f"--process_id={index}"]
            for index in range(2)
        ],
        devices=2,
    )
    values, expected = read(tmp_path), read(evaluation)
    assert (values["process_count"], values["device_count"]) == (2, 4)
    assert values["per_class"] == expected["per_class"]
    for key in ("accuracy", "nll", "brier", "ece", "adaptive_ece"):
        np.testing.assert_allclose(values[key], expected[key], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_one_device_evaluates_to_the_digits_of_the_results(workdir, evaluation, tmp_path):
    """The other tests run on eight devices."""
    environment = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-m", "resflax", "evaluate", str(workdir), f"--out={tmp_path}"]
    subprocess.run(command, env=environment, check=True)
    values, results = read(tmp_path), json.loads((workdir / "results.json").read_text())
    assert (values["device_count"], read(evaluation)["device_count"]) == (1, 8)
    assert values["accuracy"] == results["test_accuracy"]
    np.testing.assert_allclose(values["nll"], results["test_loss"], rtol=1e-5)


@pytest.mark.slow
def test_run_in_bfloat16_is_evaluated_in_bfloat16(tmp_path):
    workdir = tmp_path / "run"
    flags = ("model=cifar_resnet8", "epochs=1", "batch_size=64", "dtype=bfloat16")
    config = [f"--config.{flag}" for flag in flags]
    assert run_train("--config=configs/digits.py", *config, f"--workdir={workdir}") == 0
    evaluate(workdir, f"--out={tmp_path}")
    values, results = read(tmp_path), json.loads((workdir / "results.json").read_text())
    assert values["dtype"] == "bfloat16"
    # Batch norm is folded into the kernels, which are then rounded to bfloat16.
    np.testing.assert_allclose(values["accuracy"], results["test_accuracy"], atol=0.02)
    np.testing.assert_allclose(values["nll"], results["test_loss"], rtol=0.01)
    evaluate(workdir, "--dtype=float32", f"--out={tmp_path}")
    assert read(tmp_path)["dtype"] == "float32"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with the weights of an untrained network in torch's names."""
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    model = create_model("cifar_resnet8")
    x = np.zeros((1, 32, 32, 3), np.float32)
    variables = jax.jit(lambda: model.init(jax.random.key(0), x, train=False))()
    save_file(path, to_torch("cifar_resnet8", jax.device_get(variables)))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with ten classes of two images of mixed sizes, one of them not an image."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("folder")
    files = {
        f"{i % 10}/{i:02}.png": rng.integers(0, 256, (20 + i, 40 - i, 3), np.uint8)
        for i in range(20)
    }
    write_folder(root, files | {"3/03.png": b"not an image"})
    return root


def test_weights_file_evaluates_on_a_folder(weights, folder, tmp_path, capsys):
    arguments = (weights, "--model=cifar_resnet8", f"--dataset=folder:{folder}")
    evaluate(*arguments, "--on_bad_example=skip", f"--out={tmp_path}", "--crop_pct=0.8")
    values = read(tmp_path)
    assert (values["examples"], values["skipped"]) == (19, 1)
    assert values["preprocess"]["crop_pct"] == 0.8
    assert "03.png" in (tmp_path / "skipped.txt").read_text()
    assert main(["evaluate", *map(str, arguments)]) == 2
    assert "03.png: is not a readable image" in capsys.readouterr().err


def test_file_names_that_are_not_utf8_are_written(weights, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 9, 3), np.uint8)
    write_folder(data, {f"{i}/a.png": image for i in range(10)})
    os.rename(data / "3" / "a.png", os.fsencode(data) + b"/3/caf\xe9.png")
    with open(os.fsencode(data) + b"/4/caf\xe9.png", "wb"):
        pass
    arguments = (weights, "--model=cifar_resnet8", f"--dataset=folder:{data}", f"--out={out}")
    evaluate(*arguments, "--on-bad-example=skip", f"--predictions={out}/predictions.csv")
    assert read(out)["skipped"] == 1
    assert r"4/caf\xe9.png: is empty" in (out / "skipped.txt").read_text()
    assert r"3/caf\xe9.png,3," in (out / "predictions.csv").read_text()
    parquet = pytest.importorskip("pyarrow.parquet")
    evaluate(*arguments, "--on-bad-example=skip", f"--predictions={out}/predictions.parquet")
    paths = parquet.read_table(out / "predictions.parquet")["path"].to_pylist()
    assert paths[3].endswith("3/caf\\xe9.png")


def test_ten_crops_of_the_whole_image_are_refused(workdir, tmp_path, capsys):
    assert main(["evaluate", str(workdir), "--crops=10", f"--out={tmp_path / 'out'}"]) == 2
    message = "--crops=10 with crop_pct 1: .* such as --crop-pct=0.875"
    assert re.search(message, capsys.readouterr().err)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("command", ["evaluate", "probe", "predict", "export", "convert"])
def test_revision_reaches_the_hub(command, tmp_path, monkeypatch, capsys):
    """Other tests read repositories; this one stops at the download."""

    def fetch(repository, revision=None):
        raise UserError(f"asked for {repository} at {revision}")

    monkeypatch.setattr("resflax.weights.places.fetch", fetch)
    image = write_folder(tmp_path, {"a.png": np.zeros((9, 9, 3), np.uint8)})
    out = str(tmp_path / "out.safetensors")
    arguments = {
        "evaluate": ["owner/net", "--dataset=digits"],
        "probe": ["owner/net", "--dataset=digits"],
        "predict": [image.removeprefix("folder:"), "--weights=owner/net"],
        "export": ["owner/net", str(tmp_path / "out")],
        "convert": ["owner/net", out],
    }[command]
    assert main([command, *arguments, "--revision=v1"]) == 2
    assert "asked for owner/net at v1" in capsys.readouterr().err


def test_valid_labels_evaluate_a_subset(weights, folder, tmp_path):
    valid = tmp_path / "valid.txt"
    valid.write_text("7\n1\n2\n")
    arguments = (weights, "--model=cifar_resnet8", f"--dataset=folder:{folder}")
    evaluate(*arguments, "--on-bad-example=skip", f"--valid-labels={valid}", f"--out={tmp_path}")
    values = read(tmp_path)
    assert (values["examples"], values["excluded"], values["skipped"]) == (6, 13, 1)
    assert values["class_examples"] == [2, 2, 2]


def test_real_labels_count_any_correct_label(workdir, evaluation, tmp_path):
    with (evaluation / "predictions.csv").open() as file:
        predictions = [int(row["prediction"]) for row in csv.DictReader(file)]
    # The prediction is right, wrong, or not counted, in turn.
    real = [([p, 9], [(p + 1) % 10], [])[i % 3] for i, p in enumerate(predictions)]
    path = tmp_path / "real.json"
    path.write_text(json.dumps(real))
    evaluate(workdir, f"--real-labels={path}", f"--out={tmp_path}")
    values = read(tmp_path)
    assert (values["real_accuracy"], values["real_examples"]) == (0.5, 240)
    assert values["accuracy"] == read(evaluation)["accuracy"]


@pytest.mark.slow
def test_run_on_files_evaluates_to_the_digits_of_its_results(tmp_path):
    """Mixed sizes, resized and cropped; one file of the test split is not an image."""
    rng = np.random.default_rng(0)
    files = {
        f"{'test' if i % 3 == 0 else 'train'}/{'ab'[i % 2]}/{i:02}.png": rng.integers(
            0, 256, (20 + i, 50 - i, 3), np.uint8
        )
        for i in range(30)
    }
    dataset = write_folder(tmp_path / "images", files | {"test/a/90.png": b"not an image"})
    workdir = tmp_path / "run"
    config = ("model=cifar_resnet8", "epochs=1", "batch_size=8", f"dataset={dataset}")
    data = ("data.image_size=16", "data.on_bad_example=skip", "data.pad_crop=0")
    flags = [f"--config.{key}" for key in (*config, *data)]
    assert run_train("--config=configs/digits.py", *flags, f"--workdir={workdir}") == 0
    evaluate(workdir, f"--out={tmp_path}")
    values, results = read(tmp_path), json.loads((workdir / "results.json").read_text())
    assert values["accuracy"] == results["test_accuracy"]
    assert (values["examples"], values["skipped"]) == (results["test_examples"], 1)
    assert values["classes"] == ["a", "b"]


# Arguments, and a regular expression for the error. {run}, {file} and {folder} are paths.
INVALID = {
    "nothing": ([], "required: WHERE"),
    "missing dataset": (["{file}"], "expected --dataset=NAME"),
    "missing run": (["runs/nope"], "runs/nope does not exist here: expected the workdir"),
    "revision after @": (["timm/resnet50@main"], "for a revision .* use --revision=main"),
    "missing model": (["{file}", "--dataset=digits"], "pass its name"),
    "workdir without a checkpoint": (["{empty}"], "no checkpoint in"),
    "missing step": (["{run}@7"], "has no checkpoint '7'"),
    "unknown dataset": (["{run}", "--dataset=digitz"], "did you mean digits"),
    "unknown split": (["{run}", "--split=val"], "unknown split 'val'"),
    "other classes": (["{run}", "--dataset=folder:{other}"], "other classes than the model.*'cat'"),
    "other number of classes": (["{run}", "--dataset=fake:8x8x1:3:16"], "has 3 classes, the mod"),
    "small images": (["{run}", "--size=1"], "too small for the model"),
    "small scales": (["{run}", "--scales=8,1"], "too small for the model"),
    "unknown size": (["{run}", "--size=big"], "expected N or HEIGHTxWIDTH"),
    "crop_pct 0": (["{run}", "--crop-pct=0"], "crop_pct is 0.0: expected"),
    "channels of the mean": (["{run}", "--mean=0.5,0.5,0.5"], "each of the 1 channels"),
    "std 0": (["{run}", "--std=0"], "and std of 1e-06 or more"),
    "mean that is not a number": (["{run}", "--mean=x"], "expected numbers separated"),
    "five crops": (["{run}", "--crops=5"], "invalid choice"),
    "ten crops and mirrors": (["{run}", "--crops=10", "--tta=flip"], "contain the mirror"),
    "batch size 0": (["{run}", "--batch-size=0"], "--batch-size is 0: expected 1"),
    "negative workers": (["{run}", "--num-workers=-1"], "--num-workers is -1: expected 0"),
    "unknown dtype": (["{run}", "--dtype=int8"], "invalid choice"),
    "float64 without x64": (["{run}", "--dtype=float64"], "JAX_ENABLE_X64=1"),
    "predictions format": (["{run}", "--predictions=p.xlsx"], "expected one of .csv, .parquet"),
    "predictions folder": (["{run}", "--predictions={file}/p.csv"], "is not a directory"),
    "out below a file": (["{run}", "--out={file}/x"], "is not a directory"),
    "missing valid labels": (["{run}", "--valid-labels=/none"], "No such file"),
    "missing ReaL labels": (["{run}", "--real-labels=/none"], "No such file"),
    "labels file of digits": (["{run}", "--labels-file=/none"], "expected a dataset folder:PATH"),
    "process alone": (["{run}", "--num-processes=2"], "need --distributed"),
    "unknown option": (["{run}", "--tta-flip"], "unrecognized arguments"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_input_is_one_line(name, workdir, weights, tmp_path, capsys):
    arguments, message = INVALID[name]
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    (empty / "config.json").write_text((workdir / "config.json").read_text())
    classes = ("cat", "dog", *"0123456789"[2:])
    image = np.zeros((8, 8, 3), np.uint8)
    write_folder(other, {f"test/{label}/1.png": image for label in classes})
    paths = {"run": workdir, "file": weights, "empty": empty, "other": other}
    out = tmp_path / "out"
    words = [argument.format(**paths) for argument in arguments]
    if "--out={file}/x" not in arguments:
        words.append(f"--out={out}")
    assert main(["evaluate", *words]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1, captured.err
    assert captured.err.startswith("error: ")
    assert re.search(message, captured.err), captured.err
    assert "correct" not in captured.out
    assert not out.exists()
