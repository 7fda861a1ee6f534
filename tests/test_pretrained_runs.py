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
from resflax.data import Dataset, EvalTransform, load_dataset
from resflax.data.imagenet import synsets
from resflax.nn import ResNet
from resflax.run.signals import Interrupt, InterruptedRunError
from resflax.train import Trainer, build, default_config, fit
from resflax.train.pretrained import fit_to_dataset
from resflax.train.results import MEASURED
from resflax.train.run import Run
from resflax.weights import Preprocess, PretrainedConfig, save_file, to_torch
from resflax.weights.imagenet import imagenet_classes
from resflax.weights.readers import Weights

TINY = {"depths": (1,), "widths": (4,), "stem_width": 4}


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
    return {key: value for key, value in results.items() if key not in MEASURED}


@pytest.mark.slow
def test_zero_epochs_of_a_workdir_give_its_accuracy(digits_run, tmp_path, capsys):
    workdir, expected = digits_run
    config = make_config(workdir, model="", epochs=0)
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
        make_config(workdir, model="", epochs=1, **dict.fromkeys(f"spec__{key}" for key in TINY)),
        tmp_path / "run",
        silent=True,
    )
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


def test_head_follows_the_order_of_the_dataset(digits_run):
    digits = load_dataset("digits")
    order = np.array([3, 1, 0, 2, 9, 8, 7, 6, 5, 4])
    renamed = dataclasses.replace(digits, classes=tuple(digits.classes[i] for i in order))
    same, permuted = (
        build(make_config(digits_run[0]), dataset=dataset) for dataset in (digits, renamed)
    )
    assert "classes in the order of the dataset; head kept" in permuted.notes[0]
    old, new = (run.init().params["head"] for run in (same, permuted))
    np.testing.assert_array_equal(new["kernel"], old["kernel"][:, order])
    np.testing.assert_array_equal(new["bias"], old["bias"][order])


@pytest.mark.parametrize("order", [range(1000), range(999, -1, -1)], ids=["sorted", "reversed"])
def test_head_for_imagenet_fits_its_synsets(order):
    """Also with names as Transformers has them, "tench, Tinca tinca", and not torchvision's."""
    labels = tuple(f"{name}, {i}" for i, name in enumerate(imagenet_classes()))
    spec = create_model("cifar_resnet8", num_classes=1000, **TINY).spec
    variables = tiny_variables(num_classes=1000)
    preprocess = Preprocess(size=(8, 8), mean=(0.3,), std=(0.2,))
    weights = Weights(PretrainedConfig(spec, 1, preprocess, labels), variables, "w", True, {}, "w")
    classes = tuple(synsets()[i] for i in order)
    dataset = dataclasses.replace(load_dataset("digits"), classes=classes)
    fitted = fit_to_dataset(weights, make_config("w", epochs=0), dataset)
    assert "head kept" in fitted.source
    kernel = variables["params"]["head"]["kernel"]
    np.testing.assert_array_equal(fitted.variables["params"]["head"]["kernel"], kernel[:, order])


def test_reset_head_changes_the_head_only(tmp_path):
    path, variables = write_weights(tmp_path / "w.safetensors")
    params = build(make_config(path, reset_head=True)).init().params
    old = variables["params"]
    assert params.keys() == old.keys()
    assert (params["head"]["kernel"] != old["head"]["kernel"]).all()
    assert (params["head"]["bias"] == 0).all()
    for module in old.keys() - {"head"}:
        jax.tree.map(np.testing.assert_array_equal, params[module], old[module])


@pytest.mark.parametrize(
    ("num_classes", "message"),
    [(7, "has 7 classes and digits 10 classes"), (0, "has no classification head and digits 10")],
)
def test_zero_epochs_with_a_new_head_are_one_line(num_classes, message, tmp_path):
    path, _ = write_weights(tmp_path / "w.safetensors", num_classes=num_classes)
    with pytest.raises(UserError, match=f"config.epochs is 0.*{message}.*to train a new") as e:
        fit(make_config(path, epochs=0), tmp_path / "run", silent=True)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()


def test_zero_epochs_with_other_names_say_which(digits_run):
    renamed = dataclasses.replace(load_dataset("digits"), classes=tuple("01234567x9"))
    with pytest.raises(UserError, match=r"'x' only in the dataset; '8' only in the model"):
        build(make_config(digits_run[0], epochs=0), dataset=renamed)
    with pytest.raises(UserError, match=r"config.epochs is 0.*with config.reset_head=True"):
        build(make_config(digits_run[0], epochs=0, reset_head=True))


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
    message = (
        r"run have changed: 1 example removed from class 'a' of the train split; .*: restore them"
    )
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
    traced = []
    forward = ResNet.__call__

    def recorded(self, x, *, train):
        traced.append(train)
        return forward(self, x, train=train)

    monkeypatch.setattr(ResNet, "__call__", recorded)
    results = fit(make_config(digits_run[0], epochs=0), tmp_path / "run", silent=True)
    assert (results["steps"], results["test_examples"]) == (0, 360)
    assert traced
    assert not any(traced)


@pytest.mark.slow
def test_file_that_disappears_in_training_is_skipped(tmp_path):
    """Also at the first checkpoint, which has the sizes of the files, and after a resume."""
    folder = write_image_folder(tmp_path / "images", count=8)
    (tmp_path / "images" / "train" / "a" / "link.png").symlink_to(tmp_path / "gone.png")
    config = make_config(
        dataset=folder, batch_size=8, data__image_size=8, data__on_bad_example="skip"
    )
    with pytest.raises(InterruptedRunError):
        fit(config, tmp_path / "run", interrupt=StopAtOnce(), silent=True)
    assert fit(config, tmp_path / "run", silent=True)["skipped_examples"] == 1


@pytest.mark.slow
def test_fingerprint_is_taken_before_training(tmp_path, monkeypatch):
    times = []
    fingerprint, make_step_fn = Dataset.fingerprint, Trainer.make_step_fn
    monkeypatch.setattr(
        Dataset, "fingerprint", lambda self: times.append("data") or fingerprint(self)
    )
    monkeypatch.setattr(
        Trainer, "make_step_fn", lambda *args: times.append("train") or make_step_fn(*args)
    )
    fit(make_config(), tmp_path / "run", silent=True)
    assert times == ["data", "train"]


@pytest.mark.slow
def test_checkpoint_without_a_fingerprint_is_resumed(tmp_path, capsys, monkeypatch):
    config, metadata = make_config(), Run.metadata.func

    def without_data(self):
        return {key: value for key, value in metadata(self).items() if key != "data"}

    with monkeypatch.context() as patch:
        patch.setattr(Run, "metadata", property(without_data))
        with pytest.raises(InterruptedRunError):
            fit(config, tmp_path / "run", interrupt=StopAtOnce(), silent=True)
    assert fit(config, tmp_path / "run")["steps"] == 3
    assert "does not record its data: resuming without comparing" in capsys.readouterr().out
