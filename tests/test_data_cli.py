"""`python -m resflax data`: sets made ready, and looked at."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from resflax import UserError
from resflax.cli.data import main
from resflax.cli.show_batch import augment_batch
from resflax.train import default_config

ROOT = Path(__file__).parents[1]
RECIPE = f"--config={ROOT / 'configs' / 'digits.py'}"


def test_show_draws_the_first_examples_of_a_run(tmp_path, capsys):
    out = tmp_path / "digits.png"
    main(["show", RECIPE, "--config.data.cutout=3", "--config.data.mixup=0.2", f"--out={out}"])
    assert capsys.readouterr().out == f"saved {out}\n"
    with Image.open(out) as picture:
        assert min(picture.size) > 300


def test_what_is_shown_is_what_the_step_sees():
    config = default_config()
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    labels, index = np.arange(4), np.arange(4)
    same, targets = augment_batch(config, images, labels, index, 5)
    np.testing.assert_array_equal(same, images)
    np.testing.assert_array_equal(targets, np.eye(5)[:4])
    config.data.cutout = 8
    dark, _ = augment_batch(config, images, labels, index, 5)
    assert (dark == 0).reshape(4, -1).mean(1).min() >= 0.25
    config.data.cutout, config.data.mixup = 0, 1.0
    mixed, targets = augment_batch(config, images, labels, index, 5)
    assert mixed.dtype == np.uint8
    for i in range(4):
        expected = targets[i, i] * images[i] + targets[i, i ^ 1] * images[i ^ 1].astype(float)
        assert np.abs(mixed[i] - expected).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shew"], "unknown command 'shew': expected one of prepare, show"),
        (["show"], "show needs a recipe: --config=FILE"),
        (["show", RECIPE, "--out=x.jpg"], "expected a .png in a folder that is there"),
        (["show", RECIPE, "--out=/none/x.png"], "expected a .png in a folder that is there"),
        (["show", RECIPE, "--config.data.flap=True"], "unknown config key"),
        (["show", RECIPE, "--workdir=x"], "show takes no --workdir"),
        (
            ["show", RECIPE, "--config.data.random_erasing=2.0"],
            "erasing is 2.0: expected a probability",
        ),
        (["prepare", "fashion_mnis"], "unknown dataset 'fashion_mnis': did you mean fashion_mnist"),
        (["prepare", "mnist", "--manual_dir=/none"], "folder /none does not exist"),
        (["prepare"], "the following arguments are required: name"),
    ],
)
def test_what_is_refused_and_how(arguments, message):
    before = sys.argv
    with pytest.raises(UserError, match=message) as e:
        main(arguments)
    assert "\n" not in str(e.value)
    assert sys.argv is before


def test_prepare_without_tensorflow_raises_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match=r"needs TensorFlow .*pip install -e \"\.\[prepare\]\""):
        main(["prepare", "fashion_mnist"])


def test_every_recipe_is_a_config_that_can_be(monkeypatch):
    """What a recipe names exists, and its schedule falls inside the run."""
    import importlib.util

    from resflax import create_model
    from resflax.train import check_config
    from resflax.train.builders import build_schedule

    recipes = sorted((ROOT / "configs").glob("*.py"))
    assert len(recipes) >= 9
    for path in recipes:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config()
        check_config(config)
        create_model(config.model)
        schedule = build_schedule(config, 50_000)
        assert float(schedule(0)) <= config.learning_rate * (1 + 1e-6)
        assert jax.numpy.isfinite(schedule(10**5))
        assert f"--config=configs/{path.name}" in module.__doc__
