"""Runs that start from pretrained weights: what is loaded, evaluated, and needed to resume."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from helpers.image_folders import write_folder
from helpers.networks import randomized, variables_of

from resflax import UserError, create_model
from resflax.data import EvalTransform, load_dataset
from resflax.run.signals import Interrupt, InterruptedRunError
from resflax.train import build, default_config, fit
from resflax.train.pretrained import same_classes
from resflax.weights import save_file, to_torch
from resflax.weights.imagenet import imagenet_classes

TINY = {"depths": (1,), "widths": (4,), "stem_width": 4}
TIMES = ("wall_seconds", "examples_per_second")


def make_config(pretrained="", **keys):
    """A config for `cifar_resnet8` with one block, on the digits, for 3 steps."""
    config = default_config()
    config.model, config.epochs, config.batch_size = "cifar_resnet8", 1, 480
    config.spec.update(TINY)
    config.pretrained = str(pretrained)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return config


def tiny_variables(channels=1, num_classes=10):
    model = create_model("cifar_resnet8", num_classes=num_classes, scan=False, **TINY)
    return randomized(variables_of(model, (1, 8, 8, channels)))


def write_weights(path, channels=1, num_classes=10):
    """Writes random weights of the tiny network as a file with torch's names."""
    variables = tiny_variables(channels, num_classes)
    save_file(path, to_torch("cifar_resnet8", variables, **TINY))
    return path, variables


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """The workdir of a run on the digits, and its results."""
    path = tmp_path_factory.mktemp("digits") / "run"
    return path, fit(make_config(epochs=2), path, silent=True)


def write_image_folder(root, classes=("a", "b"), count=4, size=(20, 30)):
    rng = np.random.default_rng(0)
    return write_folder(
        root,
        {
            f"{split}/{name}/{i}.png": rng.integers(0, 255, (*size, 3), np.uint8)
            for split in ("train", "test")
            for name in classes
            for i in range(count)
        },
    )


def without_times(results):
    return {key: value for key, value in results.items() if key not in TIMES}


@pytest.mark.slow
def test_zero_epochs_of_a_workdir_give_its_accuracy(digits_run, tmp_path, capsys):
    workdir, expected = digits_run
    config = make_config(workdir, model="", epochs=0, warmup_epochs=0.5)
    config.spec.update(dict.fromkeys(TINY))
    results = fit(config, tmp_path / "run")
    assert results["steps"] == 0
    for key in ("test_accuracy", "test_loss", "params_sha256", "parameters"):
        assert results[key] == expected[key]
    out = capsys.readouterr().out
    assert f"{workdir}" in out
    assert "head kept" in out
    assert "mean 0.3056, std 0.3761" in out
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["0"]
    continued = fit(
        make_config(workdir, model="", epochs=1, warmup_epochs=0.5, **dict.fromkeys(
            f"spec__{key}" for key in TINY)),
        tmp_path / "run", silent=True,
    )  # fmt: skip
    assert continued["steps"] == 3


def test_weights_that_say_their_model_name_the_run(digits_run):
    run = build(make_config(digits_run[0], model="", **dict.fromkeys(f"spec__{k}" for k in TINY)))
    assert run.name == str(digits_run[0])
    assert run.model.spec.widths == (4,)
    assert "head kept" in run.notes[0]


def test_overrides_may_not_change_the_parameters(digits_run):
    free = dict.fromkeys(f"spec__{key}" for key in TINY)
    run = build(make_config(digits_run[0], model="", **free, spec__drop_path=0.1))
    assert run.model.spec.drop_path == 0.1
    with pytest.raises(UserError, match=r"does not fit config.spec.shortcut='C': expected") as e:
        build(make_config(digits_run[0], model="", **free, spec__shortcut="C"))
    assert "\n" not in str(e.value)


def test_bare_file_is_normalized_as_in_prediction(tmp_path):
    """By the mean and std of ImageNet, converted to one channel, not by those of the digits."""
    path, _ = write_weights(tmp_path / "w.safetensors")
    mean, std = build(make_config(path)).dataset.train.mean_std()
    np.testing.assert_allclose(mean, [0.449], atol=1e-3)
    np.testing.assert_allclose(std, [0.226], atol=1e-3)
    own = build(make_config(path, data__mean=(0.1,), data__std=(0.2,)))
    assert own.dataset.train.mean_std() == ((0.1,), (0.2,))
    assert "mean 0.1, std 0.2" in own.notes[1]


def test_weights_of_color_images_start_a_run_on_gray_ones(tmp_path):
    path, variables = write_weights(tmp_path / "w.safetensors", channels=3)
    run = build(make_config(path))
    kernel = run.init().params["stem_conv"]["kernel"]
    expected = variables["params"]["stem_conv"]["kernel"].sum(2, keepdims=True)
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)
    assert "3 to 1 image channels" in run.notes[0]


@pytest.mark.parametrize(("num_classes", "is_kept"), [(10, True), (7, False), (0, False)])
def test_head_is_replaced_for_other_classes(num_classes, is_kept, tmp_path):
    path, variables = write_weights(tmp_path / "w.safetensors", num_classes=num_classes)
    run = build(make_config(path))
    params = run.init().params
    assert params["head"]["kernel"].shape == (4, 10)
    np.testing.assert_array_equal(
        params["stem_conv"]["kernel"], variables["params"]["stem_conv"]["kernel"]
    )
    assert ("head kept" in run.notes[0]) == is_kept
    assert ("new head for 10 classes" in run.notes[0]) != is_kept
    if is_kept:
        kernel = variables["params"]["head"]["kernel"]
        np.testing.assert_array_equal(params["head"]["kernel"], kernel)


def test_head_for_other_class_names_is_replaced(digits_run):
    digits = load_dataset("digits")
    renamed = dataclasses.replace(digits, classes=tuple("abcdefghij"))
    same, new = (
        build(make_config(digits_run[0]), dataset=dataset) for dataset in (digits, renamed)
    )
    assert "head kept" in same.notes[0]
    assert "new head for 10 classes, since theirs have other names" in new.notes[0]
    kernels = [run.init().params["head"]["kernel"] for run in (same, new)]
    assert not np.allclose(*kernels)


def test_synsets_are_the_classes_of_imagenet():
    synsets = tuple(f"n{i:08}" for i in range(1000))
    assert same_classes(imagenet_classes(), synsets)
    assert not same_classes(imagenet_classes(), synsets[:-1])
    assert not same_classes(tuple(map(str, range(1000))), synsets)


def test_evaluation_follows_the_pretrained_model(tmp_path):
    """Also with images of the pretrained model's size in training."""
    folder = write_image_folder(tmp_path / "images")
    path, _ = write_weights(tmp_path / "w.safetensors", channels=3)

    def transforms(**keys):
        config = make_config(path, dataset=folder, batch_size=8, data__image_size=-1)
        config.update_from_flattened_dict(keys)
        dataset = build(config).dataset
        return dataset.train.size, dataset.test.transform

    size, transform = transforms()
    assert size == 32
    assert transform == EvalTransform(size=(32, 32), crop_pct=1.0, interpolation="bicubic")
    keys = {"data.eval_size": 24, "data.crop_pct": 0.9, "data.interpolation": "nearest"}
    _, transform = transforms(**keys)
    assert transform == EvalTransform(size=(24, 24), crop_pct=0.9, interpolation="nearest")
    size, transform = transforms(**{"data.image_size": 16})
    assert (size, transform.size) == (16, (32, 32))


def test_evaluation_follows_image_size_without_weights(tmp_path):
    folder = write_image_folder(tmp_path)
    config = make_config(dataset=folder, batch_size=8, data__image_size=16)
    assert build(config).dataset.test.transform == EvalTransform(size=(16, 16))
    config.data.crop_pct = 1.0
    assert build(config).dataset.test.transform == EvalTransform(size=(16, 16), crop_pct=1.0)


@pytest.mark.parametrize(
    ("key", "value"), [("eval_size", 16), ("crop_pct", 0.9), ("interpolation", "nearest")]
)
def test_evaluation_key_without_effect_is_one_line(key, value):
    with pytest.raises(UserError, match=f"config.data.{key} is {value!r}, but the images") as e:
        build(make_config(**{f"data__{key}": value}))
    assert "\n" not in str(e.value)


class StopAtOnce(Interrupt):
    """SIGTERM after the first step."""

    received = 15


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "workdir"])
def test_run_resumes_without_its_pretrained_weights(kind, digits_run, tmp_path):
    """Bit for bit, with precise batch norm; the finished run needs neither weights nor data."""
    source = tmp_path / "source"
    if kind == "file":
        source = write_weights(tmp_path / "source.safetensors", channels=3)[0]
    else:
        shutil.copytree(digits_run[0], source)
    config = make_config(source, precise_bn_batches=2)
    expected = fit(config, tmp_path / "uninterrupted", silent=True)
    with pytest.raises(InterruptedRunError):
        fit(config, tmp_path / "run", interrupt=StopAtOnce(), silent=True)
    source.rename(tmp_path / "elsewhere")
    results = fit(config, tmp_path / "run", silent=True)
    assert without_times(results) == without_times(expected)
    with pytest.raises(UserError, match=str(source)):
        fit(config, tmp_path / "new", silent=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_resumed_streamed_run_keeps_its_preprocessing(tmp_path):
    folder = write_image_folder(tmp_path / "images")
    path, _ = write_weights(tmp_path / "w.safetensors", channels=3)
    config = make_config(path, dataset=folder, batch_size=8, epochs=2, data__image_size=-1)
    expected = fit(config, tmp_path / "uninterrupted", silent=True)
    with pytest.raises(InterruptedRunError):
        fit(config, tmp_path / "run", interrupt=StopAtOnce(), silent=True)
    path.unlink()
    assert without_times(fit(config, tmp_path / "run", silent=True)) == without_times(expected)


@pytest.mark.slow
def test_changed_data_are_refused_unless_the_run_is_finished(tmp_path):
    folder = write_image_folder(tmp_path / "images", count=8)
    config = make_config(dataset=folder, batch_size=8, data__image_size=8)
    with pytest.raises(InterruptedRunError):
        fit(config, tmp_path / "run", interrupt=StopAtOnce(), silent=True)
    files = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    moved = tmp_path / "images" / "train" / "a" / "0.png"
    moved.rename(tmp_path / "0.png")
    message = r"run have changed: 1 example removed from class 'a' of the train split: restore them"
    with pytest.raises(UserError, match=message) as e:
        fit(config, tmp_path / "run", silent=True)
    assert "\n" not in str(e.value)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == files
    (tmp_path / "0.png").rename(moved)
    results = fit(config, tmp_path / "run", silent=True)
    shutil.rmtree(tmp_path / "images")
    assert fit(config, tmp_path / "run", silent=True) == results


def test_config_file_keeps_the_keys_as_given(tmp_path):
    path, _ = write_weights(tmp_path / "w.safetensors")
    config = make_config(path, epochs=0)
    fit(config, tmp_path / "run", silent=True)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["data"]["mean"] == []
    assert saved["pretrained"] == str(path)


def test_zero_epochs_compile_no_training_step(digits_run, tmp_path, monkeypatch):
    from resflax.train import Trainer

    def make_step_fn(self, start):
        raise AssertionError("a training step was made")

    monkeypatch.setattr(Trainer, "make_step_fn", make_step_fn)
    results = fit(make_config(digits_run[0], epochs=0), tmp_path, silent=True)
    assert (results["steps"], results["test_examples"]) == (0, 360)
    assert jax.tree.leaves(results)
