"""Parts that studies share: sweep, analysis, directory, command line."""

import json
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

from resflax.cli import main as resflax_main
from resflax.cli import study as cli
from resflax.data import Dataset, InMemorySplit, batch_indices, normalize
from resflax.errors import UserError
from resflax.plotting import line_style, mean_and_range, new_figure
from resflax.study import degradation
from resflax.study.recipes import make_recipe
from resflax.study.study_dir import MSGPACK, StudyDir
from resflax.study.sweep import train_sweep
from resflax.train import create_state, make_train_step
from resflax.train.builders import build_optimizer, build_schedule
from resflax.zoo import create_model


@pytest.fixture(scope="module")
def small():
    """Two classes of noisy 8x8 images."""
    rng = np.random.default_rng(0)
    labels = (np.arange(48) % 2).astype(np.int32)
    images = rng.integers(0, 99, (48, 8, 8, 1)) + 120 * labels[:, None, None, None]
    split = InMemorySplit(images.astype(np.uint8), labels)
    return Dataset("small", split, split, ("0", "1"))


def make_config(**values):
    config = make_recipe("digits", epochs=2, batch_size=16)
    config.update(values)
    return config


@pytest.mark.slow
def test_sweep_member_equals_a_network_trained_alone(small):
    config = make_config(momentum=0.5)
    model = create_model("cifar_resnet8", num_classes=2)
    states, curves = train_sweep(model, small, config, seeds=[3, 5], rates=[0.05])
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
        for stacked, expected in zip(
            jax.tree.leaves(states.params), jax.tree.leaves(state.params), strict=True
        ):
            np.testing.assert_allclose(stacked[k], expected, rtol=0, atol=1e-4)
        errors = curves["train"][0][k]
        np.testing.assert_allclose(
            errors,
            [100 - 100 * np.mean(accuracy[:3]), 100 - 100 * np.mean(accuracy[3:])],
            atol=1e-4,
        )


@pytest.mark.slow
def test_diverged_member_does_not_affect_others(small):
    model = create_model("cifar_plain8", num_classes=2)
    config = make_config(warmup_epochs=0.0, grad_clip=0.0)
    _, curves = train_sweep(model, small, config, seeds=[0], rates=[0.01, 1e30])
    assert curves["train"][1][0] == [100, 100]
    assert curves["test"][1][0] == [100, 100]
    assert all(np.isfinite(curves["loss"][0][0]))
    assert max(curves["train"][0][0]) < 100


# Analysis.


def make_curves(*finals):
    """Curves of one learning rate, with a seed for each final error."""
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
def test_degradation_verdict_depends_on_all_seeds(plain, residual, expected):
    curves = {
        "cifar_plain20": make_curves(0.0, 0.0),
        "cifar_plain56": make_curves(*plain),
        "cifar_resnet20": make_curves(0.0, 0.1),
        "cifar_resnet56": make_curves(*residual),
    }
    result = degradation.analyze(curves, [20, 56], [0.1])
    assert result["verdict"] == expected
    assert f"plain-56 ended {np.mean(plain):.1f} points" in result["text"]
    assert result["error_increase"]["plain"]["minimum"] == min(plain)
    assert result["error_increase"]["plain"]["maximum"] == max(plain)


def test_networks_are_shown_at_their_best_learning_rate():
    curves = {"train": [[[50.0]], [[2.0]]], "test": [[[1.0]], [[3.0]]], "loss": [[[1.0]], [[0.1]]]}
    names = [f"{prefix}{depth}" for prefix in degradation.KINDS.values() for depth in (20, 56)]
    result = degradation.analyze(dict.fromkeys(names, curves), [20, 56], [0.5, 0.25])
    for network in result["networks"].values():
        assert network["learning_rate"] == 0.25
        assert network["train_error"] == [2.0]
        assert network["test_error"] == [3.0]


@pytest.mark.slow
def test_plain_and_residual_have_equal_parameter_counts():
    for depth in (20, 56):
        counts = []
        for prefix in degradation.KINDS.values():
            model = create_model(f"{prefix}{depth}")
            variables = jax.eval_shape(
                lambda m=model: m.init(jax.random.key(0), np.zeros((1, 8, 8, 1)), train=False)
            )
            counts.append(sum(x.size for x in jax.tree.leaves(variables["params"])))
        assert counts[0] == counts[1]


def test_mean_and_range_draws_mean_line_and_min_to_max_band():
    _, (ax,) = new_figure(1)
    mean_and_range(ax, [1, 2], [(1.0, 2.0, 6.0), (4.0, 4.0, 4.0)], **line_style(0))
    assert ax.lines[0].get_ydata().tolist() == [3.0, 4.0]
    corners = ax.collections[0].get_paths()[0].vertices
    for x, minimum, maximum in ((1, 1.0, 6.0), (2, 4.0, 4.0)):
        y = corners[corners[:, 0] == x, 1]
        assert (y.min(), y.max()) == (minimum, maximum)


# The directory.


def test_study_dir_keeps_parts_and_refuses_other_settings(tmp_path):
    with StudyDir.open(tmp_path / "a", {"depths": (20, 56)}) as study:
        assert study.part("x", lambda: {"v": 1}) == {"v": 1}
    with StudyDir.open(tmp_path / "a", {"depths": [20, 56]}) as study:
        assert study.has_part("x")
        assert study.part("x", lambda: pytest.fail("computed twice")) == {"v": 1}
    with pytest.raises(UserError, match=r"depths \[20, 56\], now \[20\]\): choose another --out"):
        StudyDir.open(tmp_path / "a", {"depths": [20]})
    StudyDir.open(tmp_path / "b", {"config": {"data": {"flip": True}, "epochs": 3}}).close()
    with pytest.raises(UserError, match=r"\(config\.data\.flip True, now False\): choose"):
        StudyDir.open(tmp_path / "b", {"config": {"data": {"flip": False}, "epochs": 3}})


def test_study_dir_is_used_by_one_process_at_a_time(tmp_path):
    with (
        StudyDir.open(tmp_path, {}),
        pytest.raises(UserError, match=r"in use by another process.*--out"),
    ):
        StudyDir.open(tmp_path, {})
    StudyDir.open(tmp_path, {}).close()


def test_interrupted_part_is_computed_again(tmp_path):
    with StudyDir.open(tmp_path, {}) as study:
        with pytest.raises(KeyboardInterrupt):
            study.part("x", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        assert not study.has_part("x")
        assert study.part("x", lambda: 2) == 2


def test_corrupt_part_is_one_error(tmp_path):
    with StudyDir.open(tmp_path, {}) as study:
        study.part("x", lambda: {"v": 1})
        study.part("y", lambda: {"v": np.ones(3)}, MSGPACK)
        for file in (tmp_path / "parts").iterdir():
            file.write_bytes(file.read_bytes()[:-3])
        for name, codec in (("x.json", {}), ("y.msgpack", {"codec": MSGPACK})):
            with pytest.raises(UserError, match=f"{name} is corrupt: delete it"):
                study.part(name.split(".")[0], lambda: pytest.fail("computed twice"), **codec)


def test_unwritable_study_dir_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="workdir .*file cannot be written: choose another --out"):
        StudyDir.open(tmp_path / "file", {})


def test_parts_count_finished_ones_as_skipped(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("resflax.progress.time.monotonic", iter(range(0, 1000, 20)).__next__)
    with StudyDir.open(tmp_path, {}) as study:
        study.part("a", lambda: 1)
        parts = study.parts({"a": lambda: 3, "b": lambda: 2}, {"a": 1.0, "b": 3.0})
    assert parts == {"a": 1, "b": 2}
    assert capsys.readouterr().out == "100%, b, 00:00 left\n"


# The command line.


@pytest.mark.slow
def test_degradation_study_writes_results_and_resumes(tmp_path, capsys):
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
    output = capsys.readouterr().out
    assert "plain-14 ended" in output
    assert "residual-14 ended" in output
    written = (tmp_path / "parts" / "cifar_plain8.json").stat().st_mtime_ns
    (tmp_path / "degradation.json").unlink()
    cli.main(arguments)
    assert json.loads((tmp_path / "degradation.json").read_text()) == result
    assert (tmp_path / "parts" / "cifar_plain8.json").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "unknown study 'nonsense'"),
        (["degradation", "--depths=20"], "expected two or more"),
        (
            ["degradation", "--depths=20,21"],
            "unknown model 'cifar_plain21': the depth must be 6n + 2",
        ),
        (["degradation", "--depths=a"], "not a list A,B,C of distinct numbers from 8"),
        (["degradation", "--seeds=0"], "not an integer from 1"),
        (["degradation", "--dataset=nonsense"], "unknown dataset 'nonsense'"),
        (["dropping", "--runs=a,a"], "--runs has a more than once"),
        (["dropping", "--depth=8"], "expected 14 or more"),
        (["dropping", "--depth=21"], "unknown model 'cifar_resnet21': the depth must be 6n + 2"),
        (["shortcuts", "--depth=21"], "unknown model 'cifar_resnet21': the depth must be 6n + 2"),
        (["responses", "--runs=nowhere"], "nowhere is not the workdir of a run"),
        (["identity", "--learning_rates=0"], "not a list A,B,C of distinct numbers from 1e-06"),
    ],
)
def test_invalid_arguments_are_one_line(arguments, message, tmp_path):
    with pytest.raises(UserError) as error:
        cli.main([*arguments, f"--out={tmp_path / 'new'}"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_command_line_reports_one_line_and_status_2():
    run = partial(subprocess.run, capture_output=True, text=True, check=False)
    done = run([sys.executable, "-m", "resflax", "studdy"])
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown command 'studdy': ")
    assert " study" in done.stderr
    assert done.stderr.count("\n") == 1
    done = run([sys.executable, "-m", "resflax", "study", "degradation", "--help"])
    assert done.returncode == 0
    assert "--depths" in done.stdout


def test_study_help_imports_no_jax():
    code = "import sys; from resflax.cli.main import main; main(['study', '--help']); {}"
    check = "assert not {'jax', 'flax', 'numpy', 'matplotlib'} & {*sys.modules}"
    command = [sys.executable, "-c", code.format(check)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"  {name} " in done.stdout for name in cli.STUDIES)


@pytest.mark.parametrize("name", cli.STUDIES)
def test_study_modules_have_options_and_a_description(name, capsys):
    with pytest.raises(SystemExit) as status:
        cli.main([name, "--help"])
    assert status.value.code == 0
    output = capsys.readouterr().out
    assert f"usage: resflax study {name}" in output
    assert f"workdir; default: runs/{name}" in output


def test_ctrl_c_prints_how_to_resume(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(degradation, "run", lambda args: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(resflax_main, "tune_malloc", lambda: False)
    status = resflax_main.main(["study", "degradation", f"--out={tmp_path}"])
    assert status == 130
    expected = f"stopped: the same command with --out={tmp_path} resumes"
    assert capsys.readouterr().out.strip() == expected
