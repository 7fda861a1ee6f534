"""The studies' common parts: members, folder, verdict, and the command line."""

import json
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

from resflax.cli import study as cli
from resflax.data import Dataset, InMemorySplit, batch_indices, normalize
from resflax.errors import UserError
from resflax.plotting import line_style, mean_and_range, new_figure
from resflax.study import degradation
from resflax.study.folder import Folder
from resflax.study.recipes import recipe
from resflax.study.sweep import train_members
from resflax.train import create_state, make_train_step
from resflax.train.builders import build_optimizer, build_schedule
from resflax.zoo import create_model


@pytest.fixture(scope="module")
def small():
    """Two kinds of noisy 8x8 images."""
    rng = np.random.default_rng(0)
    labels = (np.arange(48) % 2).astype(np.int32)
    images = rng.integers(0, 99, (48, 8, 8, 1)) + 120 * labels[:, None, None, None]
    split = InMemorySplit(images.astype(np.uint8), labels)
    return Dataset("small", split, split, ("0", "1"))


def settings(**values):
    config = recipe("digits", epochs=2, batch_size=16)
    config.update(values)
    return config


def test_a_member_is_what_its_seed_and_learning_rate_train_alone(small):
    config = settings(momentum=0.5)
    model = create_model("cifar_resnet8", num_classes=2)
    states, curves = train_members(model, small, config, seeds=[3, 5], rates=[0.05])
    mean, std = small.train.mean_std()
    config.learning_rate = 0.05
    optimizer = build_optimizer(config, build_schedule(config, 48))
    step = jax.jit(
        make_train_step(model, optimizer, normalize=partial(normalize, mean=mean, std=std))
    )
    for k, seed in enumerate([3, 5]):
        state, accuracy = create_state(model, optimizer, seed, (8, 8, 1)), []
        for s in range(6):
            index = batch_indices(seed, s, 16, 48)
            batch = {"image": small.train.images[index], "label": small.train.labels[index]}
            state, metrics = step(state, batch)
            accuracy.append(float(metrics["accuracy"]))
        for found, expected in zip(
            jax.tree.leaves(states.params), jax.tree.leaves(state.params), strict=True
        ):
            np.testing.assert_allclose(found[k], expected, rtol=0, atol=1e-4)
        errors = curves["train"][0][k]
        np.testing.assert_allclose(
            errors,
            [100 - 100 * np.mean(accuracy[:3]), 100 - 100 * np.mean(accuracy[3:])],
            atol=1e-4,
        )


def test_a_member_that_diverges_errs_always_and_leaves_the_others_alone(small):
    model = create_model("cifar_plain8", num_classes=2)
    config = settings(warmup_epochs=0.0, grad_clip_norm=0.0)
    _, curves = train_members(model, small, config, seeds=[0], rates=[0.01, 1e30])
    assert curves["train"][1][0] == [100, 100]
    assert curves["test"][1][0] == [100, 100]
    assert all(np.isfinite(curves["loss"][0][0]))
    assert max(curves["train"][0][0]) < 100


# The verdict.


def curve(*finals):
    """One learning rate; a seed for each final error."""
    return {key: [[[90.0, final] for final in finals]] for key in ("train", "test", "loss")}


@pytest.mark.parametrize(
    ("plain", "residual", "expected"),
    [
        ((5.0, 6.0), (0.0, 0.0), "present"),
        ((0.1, 0.0), (0.0, 0.0), "absent"),
        ((0.9, 0.9), (0.0, 0.0), "absent"),  # less than a point
        ((9.0, 0.0), (0.0, 0.0), "absent"),  # not in every seed
        ((5.0, 6.0), (4.0, 5.0), "in both"),
    ],
)
def test_the_verdict_follows_from_the_curves_of_all_seeds(plain, residual, expected):
    curves = {
        "cifar_plain20": curve(0.0, 0.0),
        "cifar_plain56": curve(*plain),
        "cifar_resnet20": curve(0.0, 0.1),
        "cifar_resnet56": curve(*residual),
    }
    found = degradation.judge(curves, [20, 56], [0.1])
    assert found["verdict"] == expected
    rise = np.mean(plain)
    assert f"plain-56 ended {abs(rise):.1f} points" in found["text"]


def test_every_network_is_shown_at_its_best_learning_rate():
    both = {"train": [[[50.0]], [[2.0]]], "test": [[[1.0]], [[3.0]]], "loss": [[[1.0]], [[0.1]]]}
    names = [f"{prefix}{depth}" for prefix in degradation.KINDS.values() for depth in (20, 56)]
    found = degradation.judge(dict.fromkeys(names, both), [20, 56], [0.5, 0.25])
    for network in found["networks"].values():
        assert network["learning_rate"] == 0.25
        assert network["train_error"] == [2.0]
        assert network["test_error"] == [3.0]


def test_plain_and_residual_have_equal_parameters():
    for depth in (20, 56):
        counts = []
        for prefix in degradation.KINDS.values():
            model = create_model(f"{prefix}{depth}")
            variables = jax.eval_shape(
                lambda m=model: m.init(jax.random.key(0), np.zeros((1, 8, 8, 1)), train=False)
            )
            counts.append(sum(x.size for x in jax.tree.leaves(variables["params"])))
        assert counts[0] == counts[1]


def test_a_band_reaches_from_the_least_seed_to_the_greatest():
    _, (ax,) = new_figure(1)
    mean_and_range(ax, [1, 2], [(1.0, 2.0, 6.0), (4.0, 4.0, 4.0)], **line_style(0))
    assert ax.lines[0].get_ydata().tolist() == [3.0, 4.0]
    corners = ax.collections[0].get_paths()[0].vertices
    for x, minimum, maximum in ((1, 1.0, 6.0), (2, 4.0, 4.0)):
        y = corners[corners[:, 0] == x, 1]
        assert (y.min(), y.max()) == (minimum, maximum)


# The folder.


def test_a_folder_keeps_parts_and_refuses_other_settings(tmp_path):
    folder = Folder.open(tmp_path / "a", {"depths": (20, 56)})
    assert folder.part("x", lambda: {"v": 1}) == {"v": 1}
    again = Folder.open(tmp_path / "a", {"depths": [20, 56]})
    assert again.has("x")
    assert again.part("x", lambda: pytest.fail("made twice")) == {"v": 1}
    with pytest.raises(UserError, match=r"depths = \[20, 56\], not \[20\]: choose another --out"):
        Folder.open(tmp_path / "a", {"depths": [20]})
    Folder.open(tmp_path / "b", {"config": {"data": {"flip": True}, "epochs": 3}})
    with pytest.raises(UserError, match=r"with config\.data\.flip = True, not False: choose"):
        Folder.open(tmp_path / "b", {"config": {"data": {"flip": False}, "epochs": 3}})


def test_a_part_that_was_stopped_is_made_again(tmp_path):
    folder = Folder.open(tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        folder.part("x", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert not folder.has("x")
    assert folder.part("x", lambda: 2) == 2


def test_a_place_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        Folder.open(tmp_path / "file", {})


# The command line.


def test_degradation_draws_judges_and_goes_on(tmp_path, capsys):
    arguments = [
        "degradation",
        f"--out={tmp_path}",
        "--depths=14,8",
        "--epochs=1",
        "--seeds=2",
        "--learning_rates=0.05,0.1",
        "--batch_size=256",
    ]
    cli.main(arguments)
    result = json.loads((tmp_path / "degradation.json").read_text())
    assert result["verdict"] in ("present", "absent", "in both")
    assert set(result["curves"]) == {
        "cifar_plain8",
        "cifar_plain14",
        "cifar_resnet8",
        "cifar_resnet14",
    }
    for values in result["curves"].values():
        assert np.shape(values["train"]) == np.shape(values["test"]) == (2, 2, 1)
    for picture in ("degradation.png", "degradation_rates.png"):
        with Image.open(tmp_path / picture) as image:
            assert image.size[0] > 800
    said = capsys.readouterr().out
    assert "plain-14 ended" in said
    assert "residual-14 ended" in said
    kept = (tmp_path / "parts" / "cifar_plain8.json").stat().st_mtime_ns
    (tmp_path / "degradation.json").unlink()
    cli.main(arguments)
    assert json.loads((tmp_path / "degradation.json").read_text()) == result
    assert (tmp_path / "parts" / "cifar_plain8.json").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["degradation", "--depths=20"], "expected two or more"),
        (["degradation", "--depths=20,21"], "no 'cifar_plain21'"),
        (["degradation", "--depths=a"], "not a list of numbers from 8"),
        (["degradation", "--seeds=0"], "not a whole number from 1"),
        (["degradation", "--dataset=nonsense"], "unknown dataset 'nonsense'"),
        (["dropping", "--runs=a,a"], "--runs names a more than once"),
        (["dropping", "--depth=8"], "expected 14 or more"),
        (["shortcuts", "--depth=21"], "no 'cifar_resnet21'"),
        (["responses", "--runs=nowhere"], "nowhere is not the folder of a run"),
        (["identity", "--learning_rates=0"], "not a list of numbers"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, said, tmp_path):
    with pytest.raises(UserError) as found:
        cli.main([*arguments, f"--out={tmp_path / 'new'}"])
    assert said in str(found.value)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "new").exists()


def test_the_front_reports_one_line_and_status_2():
    run = partial(subprocess.run, capture_output=True, text=True, check=False)
    done = run([sys.executable, "-m", "resflax", "studdy"])
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown command 'studdy': ")
    assert " study" in done.stderr
    assert done.stderr.count("\n") == 1
    done = run([sys.executable, "-m", "resflax", "study", "degradation", "--help"])
    assert done.returncode == 0
    assert "--depths" in done.stdout
