"""The commands `resflax data prepare` and `resflax data show`; the recipes in `configs/`."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.image_folders import write_folder
from PIL import Image

from resflax import UserError, create_model
from resflax.cli import show_batch
from resflax.cli.data import main
from resflax.data import load_dataset, train_batches
from resflax.train import check_config, default_config
from resflax.train.builders import build_schedule
from resflax.train.config import build_augment, build_splits
from resflax.train.first_batch import augment_batch, first_images, first_rows
from resflax.train.state import TrainState
from resflax.train.step_inputs import example_keys, make_prepare_batch

ROOT = Path(__file__).parents[1]
RECIPE = f"--config={ROOT / 'configs' / 'digits.py'}"


@pytest.mark.slow
def test_show_draws_the_first_training_examples(tmp_path, capsys):
    out = tmp_path / "digits.png"
    main(["show", RECIPE, "--config.data.cutout=3", "--config.data.mixup=0.2", f"--out={out}"])
    assert capsys.readouterr().out == f"saved {out}\n"
    with Image.open(out) as image:
        assert min(image.size) > 300


def test_show_draws_decoded_images_above_cropped_ones(tmp_path, monkeypatch):
    """Landscape and portrait images of class "dog" and "cat", which are squashed to squares."""
    images = {"cat": np.full((20, 40, 3), 50, np.uint8), "dog": np.full((30, 10, 3), 90, np.uint8)}
    files = {
        f"{split}/{name}/{i}.png": image
        for split in ("train", "test")
        for name, image in images.items()
        for i in range(3)
    }
    drawn = []
    monkeypatch.setattr(show_batch, "draw_grid", lambda cells, *rest: drawn.append((cells, rest)))
    config = default_config()
    config.dataset = write_folder(tmp_path, files)
    config.data.image_size, config.data.train_crop = 16, "squash"
    show_batch.show_batch(config, tmp_path / "x.png")
    [(cells, (columns, *_))] = drawn
    assert (len(cells), columns) == (32, 8)
    for first in (0, 16):
        for before, after in zip(cells[first : first + 8], cells[first + 8 :], strict=False):
            pixels, name = before
            assert pixels.tolist() == images[name].tolist()
            assert after[0].tolist() == np.full((16, 16, 3), pixels[0, 0]).tolist()
            assert after[1] == ""


@pytest.mark.slow
def test_augment_batch_equals_the_input_of_the_step():
    config = default_config()
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    labels = index = np.arange(4, dtype=np.int32)
    batch = {"image": images, "label": labels, "index": index}
    same, targets = augment_batch(config, batch, 5)
    np.testing.assert_array_equal(same, images)
    np.testing.assert_array_equal(targets, np.eye(5)[:4])
    config.data.cutout = 8
    erased, _ = augment_batch(config, batch, 5)
    assert (erased == 0).reshape(4, -1).mean(1).min() >= 0.25
    config.data.cutout, config.data.mixup = 0, 1.0
    mixed, targets = augment_batch(config, batch, 5)
    assert mixed.dtype == np.uint8
    for i in range(4):
        expected = targets[i, i] * images[i] + targets[i, i ^ 1] * images[i ^ 1].astype(float)
        assert np.abs(mixed[i] - expected).max() <= 1


def test_images_of_copies_are_the_second_ones_of_the_step():
    config, digits = default_config(), load_dataset("digits")
    config.data.pad_crop, config.data.cutout, config.data.aug_splits = 2, 4, 3
    config.batch_size = 8
    batch = first_rows(config, digits, slice(None))
    keys = example_keys(jnp.uint32(config.seed), jnp.int32(0), jnp.asarray(batch["index"]))
    copies = np.asarray(build_splits(config)(keys, jnp.asarray(batch["image"])))
    shown = first_images(config, digits, 8)
    np.testing.assert_array_equal(shown, copies[:, 1])
    assert (shown != copies[:, 0]).any()


def repeating_config(dataset):
    config = default_config()
    config.dataset, config.seed, config.batch_size, config.data.repeats = dataset, 3, 48, 4
    return config


def test_first_images_with_repeats_are_those_of_the_step():
    """Copies of an example have crops of their own, as in the batch that the step gets."""
    config, digits = repeating_config("digits"), load_dataset("digits")
    config.data.pad_crop = 2
    [batch] = train_batches(digits.train, seed=3, batch_size=48, start=0, stop=1, repeats=4)
    prepare = make_prepare_batch(build_augment(config), lambda x: x, None, 10, needs_rng=False)
    state = TrainState(jnp.int32(0), jnp.uint32(3), {}, {}, {})
    expected = np.asarray(prepare(state, jax.tree.map(jnp.asarray, batch)).image)
    np.testing.assert_array_equal(first_images(config, digits, 16), expected[:16])
    np.testing.assert_array_equal(first_images(config, digits, 100), expected)
    assert len(np.unique(batch["index"])) == 12
    assert len(np.unique(expected, axis=0)) > 40


def test_show_draws_copies_of_repeated_examples(tmp_path, monkeypatch):
    """Each of four random images has four Inception crops, above which it is drawn as it is."""
    rng = np.random.default_rng(0)
    files = {
        f"{split}/{name}/{i}.png": rng.integers(0, 256, (40, 40, 3), np.uint8)
        for split in ("train", "test")
        for name in ("cat", "dog")
        for i in range(10)
    }
    drawn = []
    monkeypatch.setattr(show_batch, "draw_grid", lambda cells, *rest: drawn.append(cells))
    config = repeating_config(write_folder(tmp_path, files))
    config.data.image_size = 16
    show_batch.show_batch(config, tmp_path / "x.png")
    [cells] = drawn
    before, after = (
        [pixels.tobytes() for pixels, _ in cells[i : i + 8] + cells[i + 16 : i + 24]]
        for i in (0, 8)
    )
    assert before == before[:4] * 4
    assert (len({*before}), len({*after})) == (4, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shew"], "unknown command 'shew': expected one of prepare, show"),
        (["show", RECIPE, "--out=x.jpg"], "expected a .png file in an existing directory"),
        (["show", RECIPE, "--out=/none/x.png"], "expected a .png file in an existing directory"),
        (["show", RECIPE, "--config.data.flap=True"], "unknown config key"),
        (["show", RECIPE, "--workdir=x"], "show takes no --workdir"),
        (
            ["show", RECIPE, "--config.data.random_erasing=2.0"],
            "random_erasing is 2.0: expected a probability",
        ),
        (["prepare", "fashion_mnis"], "unknown dataset 'fashion_mnis': did you mean fashion_mnist"),
        (["prepare", "mnist", "--manual_dir=/none"], "folder /none does not exist"),
        (["prepare"], "the following arguments are required: name"),
    ],
)
def test_invalid_arguments_are_one_line(arguments, message):
    argv = sys.argv
    with pytest.raises(UserError, match=message) as e:
        main(arguments)
    assert "\n" not in str(e.value)
    assert sys.argv is argv


def test_preparing_without_tensorflow_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match=r"needs TensorFlow .*pip install \"resflax\[prepare\]\""):
        main(["prepare", "fashion_mnist"])


RECIPES = sorted((ROOT / "configs").glob("*.py"))
ARGUMENTS = {"cifar10_resnet": ["20", "32", "44", "56", "110"]}


def test_recipes_are_found():
    assert len(RECIPES) >= 7


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid_configs(path):
    """Their names exist, and the schedule reaches at most the configured peak."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert f"--config=configs/{path.name}" in module.__doc__
    for arguments in [[], *([argument] for argument in ARGUMENTS.get(path.stem, []))]:
        config = module.get_config(*arguments)
        # Those of fine-tuning must be given.
        config.dataset = config.dataset or "folder:D"
        config.pretrained = "" if config.model else "runs/x"
        check_config(config)
        create_model(config.model or "resnet18")
        schedule = build_schedule(config, 50_000)
        assert float(schedule(0)) <= config.learning_rate * (1 + 1e-6)
        assert jax.numpy.isfinite(schedule(10**5))


def test_show_on_a_full_disk_is_one_line(monkeypatch, tmp_path):
    def fail(config, out):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("resflax.cli.data.show_batch", fail)
    message = f"{tmp_path}/a.png cannot be written: No space left on device: free disk space"
    with pytest.raises(UserError, match=message):
        main(["show", "--config=configs/digits.py", f"--out={tmp_path}/a.png"])
