"""The command `export`: choice of the format, verification, atomic writes, model card, upload."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers.commands import run_command
from helpers.hub_server import hub_server
from helpers.trained_models import trained_model
from helpers.workdirs import SavedStep, write_workdir
from PIL import Image

from resflax import UserError, load_pretrained
from resflax.cli.export import main, training_command
from resflax.export import FORMATS, ExportOptions, export, formats
from resflax.export.formats import format_of
from resflax.export.model_card import changed_keys
from resflax.export.push import check_repository
from resflax.export.trained_model import RunRecord, TrainedModel, load_trained_model
from resflax.export.verify import read_sample_images
from resflax.train import default_config
from resflax.train.config import to_json_dict

LABELS = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def model():
    return trained_model("cifar_resnet8", channels=1, labels=LABELS, size=(8, 8), num_classes=3)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """An exported folder, to export from."""
    return export(model, tmp_path_factory.mktemp("export") / "net").path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with checkpoints of four steps, of which all but 15 were evaluated."""
    steps = (SavedStep(5, 0.5), SavedStep(10, 0.9), SavedStep(15), SavedStep(20, 0.7))
    path = write_workdir(tmp_path_factory.mktemp("runs") / "x", *steps)
    results = {"test_accuracy": 0.7, "steps": 20, "platform": "cpu"}
    (path / "results.json").write_text(json.dumps(results))
    return path


def test_format_follows_from_the_suffix(tmp_path):
    names = {"a.onnx": "onnx", "a.stablehlo": "stablehlo", "a": "timm", "runs/a": "timm"}
    for name, expected in names.items():
        assert format_of(tmp_path / name) == expected
    assert format_of(tmp_path / "a.bin", "onnx") == "onnx"
    (tmp_path / "v1.5").mkdir()
    assert format_of(tmp_path / "v1.5") == "timm"
    with pytest.raises(UserError, match=r"a.pth: expected a name ending in .onnx or .stablehlo"):
        format_of(tmp_path / "a.pth")
    with pytest.raises(UserError, match="unknown format 'torch': expected one of timm"):
        format_of(tmp_path / "a", "torch")


def test_command_exports_verifies_and_reports(folder, tmp_path, capsys):
    out = tmp_path / "new" / "net.stablehlo"
    main([str(folder), str(out), "--format=stablehlo", "--uint8"])
    source, verified, wrote = capsys.readouterr().out.splitlines()
    assert source == f"exported {folder}; normalization of its config.json"
    assert re.fullmatch(
        r"verified with jax \S+ on 4 noise images: largest difference \S+, (\S+) of the largest"
        " output",
        verified,
    )
    megabytes = re.fullmatch(rf"wrote {re.escape(str(out))} \(stablehlo, (\S+) MB\)", wrote)[1]
    assert float(megabytes) == pytest.approx(files_size(out.parent) / 1e6, abs=0.05)
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name, f"{out.name}.json"]


def files_size(folder):
    """Returns the number of bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def test_images_replace_noise(model, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    for seed, path in enumerate(paths):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    report = export(model, tmp_path / "net", images=paths)
    assert report.verifications[0].images == "2 images"
    with pytest.raises(UserError, match="image not found: none.png"):
        export(model, tmp_path / "other", images=["none.png"])
    with pytest.raises(UserError, match="config.json: is not a readable image"):
        export(model, tmp_path / "other", images=[str(tmp_path / "net" / "config.json")])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("channels", [2, 4])
def test_images_need_a_model_of_gray_or_rgb_images(tmp_path, channels):
    path = tmp_path / "a.png"
    Image.new("RGB", (20, 20)).save(path)
    config = trained_model("cifar_resnet8", channels=1).config._replace(channels=channels)
    with pytest.raises(UserError, match=f"takes images with {channels} channels"):
        read_sample_images(TrainedModel(config, {}, ""), [str(path)])


def test_parents_that_a_failed_export_made_are_removed(model, tmp_path, monkeypatch):
    (tmp_path / "kept").mkdir()
    for error, message in ((UserError("bad"), "bad"), (OSError(28, "full"), "cannot write .*full")):

        def fail(model, path, options, error=error):
            (path / "partial").write_bytes(b"x")
            raise error

        row = FORMATS["timm"]._replace(write=fail)
        monkeypatch.setitem(formats.FORMATS, "timm", row)
        with pytest.raises(UserError, match=message):
            export(model, tmp_path / "kept" / "a" / "b" / "net", format="timm")
        assert [*tmp_path.rglob("*")] == [tmp_path / "kept"]


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ("", {"test_accuracy": 0.7, "steps": 20, "platform": "cpu"}),
        ("@last", {"test_accuracy": 0.7, "steps": 20, "platform": "cpu"}),
        ("@best", {"test_accuracy": 0.9, "steps": 10}),
        ("@5", {"test_accuracy": 0.5, "steps": 5}),
        ("@15", {}),
    ],
)
def test_results_are_those_of_the_exported_checkpoint(run, checkpoint, expected):
    loaded = load_trained_model(f"{run}{checkpoint}")
    assert loaded.run.results == expected


def test_model_card_of_a_checkpoint_has_its_accuracy(run, tmp_path):
    cards = {
        name: (export(load_trained_model(f"{run}@{name}"), tmp_path / name).path / "README.md")
        for name in ("best", "15")
    }
    assert "| accuracy | 0.9 |\n| steps | 10 |" in cards["best"].read_text()
    assert "## Results" not in cards["15"].read_text()


@pytest.mark.parametrize("format", ["timm", "onnx", "stablehlo"])
def test_wrong_outputs_are_detected_and_nothing_is_written(model, tmp_path, format, monkeypatch):
    if format == "onnx":
        pytest.importorskip("onnx")
    out = tmp_path / f"net{FORMATS[format].suffix}"
    out.mkdir() if FORMATS[format].files else out.write_bytes(b"earlier")
    head = model.variables["params"]["head"]
    wrong = {"kernel": head["kernel"] * np.float32(1.01), "bias": head["bias"]}
    params = {**model.variables["params"], "head": wrong}
    other = model._replace(variables={**model.variables, "params": params})
    row = FORMATS[format]
    monkeypatch.setitem(
        formats.FORMATS,
        format,
        row._replace(write=lambda model, path, options: row.write(other, path, options)),
    )
    with pytest.raises(UserError, match="computes other outputs .* nothing was written"):
        export(model, out, format=format)
    assert [*tmp_path.iterdir()] == [out]
    assert [*out.iterdir()] == [] if out.is_dir() else out.read_bytes() == b"earlier"


def test_wrong_class_names_are_detected(model, tmp_path, monkeypatch):
    other = model._replace(config=model.config._replace(labels=("ant", "cat", "bee")))
    row = FORMATS["timm"]
    monkeypatch.setitem(
        formats.FORMATS,
        "timm",
        row._replace(write=lambda model, path, options: row.write(other, path, options)),
    )
    with pytest.raises(UserError, match="reads another architecture, preprocessing or class names"):
        export(model, tmp_path / "net")
    assert [*tmp_path.iterdir()] == []


def test_thousand_classes_without_names_stay_without(tmp_path):
    model = trained_model("cifar_resnet8", num_classes=1000)
    export(model, tmp_path / "net")
    assert load_pretrained(tmp_path / "net").classes == ()


def test_earlier_export_is_replaced(model, tmp_path):
    export(model, tmp_path / "net")
    renamed = model._replace(config=model.config._replace(labels=("x", "y", "z")))
    export(renamed, tmp_path / "net")
    assert load_pretrained(tmp_path / "net").classes == ("x", "y", "z")
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_other_files_are_never_replaced(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for out, format, message in (
        (tmp_path, "timm", r"a folder with other files \(notes.txt\)"),
        (tmp_path / "notes.txt", "timm", "which is a file: expected a folder"),
        (tmp_path, "stablehlo", "which is a folder: expected a file name"),
        (tmp_path / "notes.txt" / "net", "timm", "cannot write"),
    ):
        with pytest.raises(UserError, match=message):
            export(model, out, format=format)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("notes.txt", "mine")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--uint8"], "--uint8 does not apply to --format=timm: it is for onnx, stablehlo"),
        (["--no-fold"], "--no-fold does not apply to --format=timm"),
        (["--opset=17"], "--opset does not apply to --format=timm: it is for onnx"),
        (["--format=stablehlo", "--license=mit"], "--license does not apply to --format=stablehlo"),
        (["--format=stablehlo", "--push=a/b"], "--push uploads a folder"),
        (["--push=net"], "--push is 'net': expected a repository of the Hub, as owner/name"),
        (["--format=pickle"], "unknown format 'pickle'"),
    ],
)
def test_invalid_option_is_one_line(folder, tmp_path, capsys, arguments, message):
    assert run_command("export", folder, tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_missing_package_names_its_extra(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r'pip install "resflax\[onnx\]"'):
        export(model, tmp_path / "net.onnx")
    assert [*tmp_path.iterdir()] == []


def test_model_without_a_head_is_rejected(tmp_path, capsys):
    from resflax.export.torch_folders import write_timm

    write_timm(trained_model("cifar_resnet8", num_classes=0), tmp_path)
    assert run_command("export", tmp_path, tmp_path / "out.stablehlo") == 2
    assert "has no classification head" in capsys.readouterr().err


def test_model_card_describes_the_run(model, tmp_path):
    config = default_config()
    config.dataset, config.epochs, config.data.mean = "folder:pets", 3, (0.5,)
    results = {"test_accuracy": 0.75, "test_examples": 8, "params_sha256": "0" * 64}
    run = RunRecord("runs/pets", to_json_dict(config), results)
    command = training_command(run)
    options = ExportOptions(license="mit", train_command=command)
    export(model._replace(run=run), tmp_path / "pets", options=options)
    card = (tmp_path / "pets" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: resflax\npipeline_tag: image-classification\n")
    for text in (
        "license: mit\n",
        "# pets\n",
        "3 classes",
        "| `epochs` | `3` |",
        "| `data.mean` | `[0.5]` |",
        "| accuracy | 0.75 |",
        "0: ant, 1: bee, 2: cat.",
        "--config.dataset=folder:pets",
        'resflax.load_pretrained("pets")',
        "resflax evaluate pets --dataset=folder:pets",
        "- verified with resflax",
    ):
        assert text in card
    assert "params_sha256" not in card
    unlicensed = export(model, tmp_path / "net").path / "README.md"
    assert "license: unknown" in unlicensed.read_text()


def test_training_command_repeats_the_config():
    from resflax.cli.flags import parse

    config = default_config()
    config.model, config.epochs, config.learning_rate = "resnet10t", 7, 0.025
    config.data.mean, config.data.std = (0.5, 0.25, 0.1), (0.2, 0.2, 0.2)
    config.spec.shortcut, config.spec.widths, config.data.flip = "C", (8, 8, 16, 16), True
    expected = to_json_dict(config)
    command = training_command(RunRecord("runs/a b", expected, {})).replace("\\\n", " ")
    import shlex

    program, name, *flags = shlex.split(command)
    parsed = parse(flags)
    assert (program, name, parsed.workdir) == ("resflax", "train", "runs/a b")
    assert to_json_dict(parsed.config) == expected
    assert changed_keys(to_json_dict(default_config())) == {}


@pytest.mark.parametrize("name", ["", "net", "/net", "owner/", "a/b/c", "./net", "~/net"])
def test_repository_name_needs_an_owner(name):
    with pytest.raises(UserError, match="expected a repository of the Hub, as owner/name"):
        check_repository(name)


def push(folder, out, address, tmp_path):
    """Runs `resflax export FOLDER OUT --push=owner/net` against a server of its own."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_TOKEN": "hf_secret",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": "1",  # the stand-in has the older protocol
    }
    command = [sys.executable, "-m", "resflax", "export", folder, out, "--push=owner/net"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_push_uploads_every_file(folder, tmp_path):
    out = tmp_path / "net"
    with hub_server() as server:
        done = push(folder, out, server.address, tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(f"uploaded to {server.address}/owner/net\n")
        assert "POST /api/repos/create" in server.requests
        assert server.token == "Bearer hf_secret"
        assert server.files == {path.name: path.read_bytes() for path in out.iterdir()}
        assert json.loads(server.files["config.json"])["label_names"] == [*LABELS]


@pytest.mark.slow
def test_failed_push_is_one_line_and_keeps_the_folder(folder, tmp_path):
    out = tmp_path / "net"
    with hub_server() as server:
        server.refuses = True
        refused = push(folder, out, server.address, tmp_path)
    unreachable = push(folder, out, server.address, tmp_path)
    for done in (refused, unreachable):
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: cannot upload {out} to owner/net: ")
        assert done.stderr.count("\n") == 1
    assert "401" in refused.stderr
    assert (out / "model.safetensors").exists()


def test_export_replaces_no_foreign_file(model, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "README.md").write_text("mine\n")
    with pytest.raises(UserError, match=r"other files \(README.md\)"):
        export(model, folder)
    with pytest.raises(UserError, match="expected a new file, or one ending in .onnx"):
        export(model, folder / "README.md", format="onnx")
    assert (folder / "README.md").read_text() == "mine\n"
