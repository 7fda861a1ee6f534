"""Mirrors and shifts of test images: the views, evaluation steps and runs with them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from helpers.modules import LinearClassifier
from hypothesis import given, settings
from hypothesis import strategies as st

from resflax import UserError, create_model
from resflax.cli.main import main
from resflax.data.views import TTA, TtaRow, shift
from resflax.data.views import test_time_views as make_views
from resflax.evaluate.views import Views
from resflax.train import (
    build,
    create_state,
    default_config,
    fit,
    make_eval_step,
)
from resflax.train.eval_step import make_predict_step

SHAPE = (4, 4, 1)


@settings(deadline=None)
@given(
    st.integers(3, 9),
    st.integers(3, 9),
    st.integers(-2, 2),
    st.sampled_from([np.uint8, np.float32]),
)
def test_shift_equals_reflection_padding_of_pytorch(height, width, pixels, dtype):
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3)).astype(dtype)
    padded = torch.nn.functional.pad(
        torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2), [2] * 4, mode="reflect"
    )
    start = 2 - pixels
    expected = padded[:, :, start : start + height, start : start + width].permute(0, 2, 3, 1)
    for array in (images, jnp.asarray(images)):
        moved = shift(array, pixels)
        assert type(moved) is type(array)
        assert moved.dtype == dtype
        np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize(("tta", "count"), [("none", 1), ("flip", 2), ("flip_shift", 6)])
def test_views_are_the_image_its_shifts_and_mirrors(tta, count):
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3)).astype(np.uint8)
    views = make_views(images, tta)
    assert len(views) == count
    np.testing.assert_array_equal(views[0], images)
    for first, second in zip(views[::2], views[1::2], strict=False):
        np.testing.assert_array_equal(second, first[:, :, ::-1])
    if tta == "flip_shift":
        np.testing.assert_array_equal(views[2][:, 1:, 1:], images[:, :-1, :-1])
        np.testing.assert_array_equal(views[4][:, :-1, :-1], images[:, 1:, 1:])


def test_unknown_views_are_an_error():
    with pytest.raises(UserError, match="unknown tta 'shift': expected one of none, flip"):
        make_views(np.zeros((1, 4, 4, 1)), "shift")
    with pytest.raises(UserError, match="unknown tta 'shift': expected one of none, flip"):
        make_eval_step(LinearClassifier(), tta="shift")


@pytest.mark.parametrize("tta", ["flip", "flip_shift"])
@pytest.mark.parametrize("shape", [(5, 9, 2), (4, 4, 1, 5, 1)])
def test_views_of_other_arrays_than_images_are_an_error(tta, shape):
    """The first axes of `(n, length, channels)` are not height and width."""
    for array in (np.zeros(shape), jnp.zeros(shape)):
        with pytest.raises(UserError, match=r"tta='flip.*: expected images \(n, height, width,"):
            make_views(array, tta)
        assert make_views(array, "none")[0] is array


def test_rows_of_views_give_their_count_and_description(monkeypatch):
    """Of two shifts without mirrors, which no shipped row has."""
    monkeypatch.setitem(TTA, "shift", TtaRow((0, 2), is_mirrored=False, description="and shifts"))
    images = np.arange(50.0).reshape(2, 5, 5, 1)
    first, second = make_views(images, "shift")
    np.testing.assert_array_equal(first, images)
    np.testing.assert_array_equal(second[:, 2:, 2:], images[:, :-2, :-2])
    assert Views(tta="shift", scales=(5, 6)).count == 4
    assert str(Views(tta="shift")) == "one view, and shifts"


@pytest.mark.parametrize("tta", TTA)
def test_steps_average_probabilities_of_the_views(tta):
    """The closed form is in float64: the softmax of a linear classifier, averaged over views."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((16, 3))
    head = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(3)}
    variables = {"params": {"head": head}}
    state = create_state(LinearClassifier(), optax.sgd(0.1), 0, SHAPE, variables)
    images = rng.standard_normal((6, *SHAPE)).astype(np.float32)
    labels = np.arange(6, dtype=np.int32) % 3
    batch = {"image": images, "label": labels, "weight": np.float32([1, 1, 1, 1, 1, 0])}
    moved = [images]
    if tta == "flip_shift":
        padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
        moved += [padded[:, :4, :4], padded[:, 2:, 2:]]
    views = moved if tta == "none" else [*moved, *(x[:, :, ::-1] for x in moved)]
    logits = np.stack([x.reshape(6, 16).astype(np.float64) @ kernel for x in views])
    p = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).mean(0)
    predict = jax.jit(make_predict_step(LinearClassifier(), tta=tta))
    np.testing.assert_allclose(jax.nn.softmax(predict(state, batch)["logits"]), p, rtol=1e-5)
    sums = jax.jit(make_eval_step(LinearClassifier(), tta=tta))(state, batch)
    loss = -np.log(p[np.arange(5), batch["label"][:5]]).sum()
    np.testing.assert_allclose(sums["loss"], loss, rtol=1e-5)
    assert float(sums["correct"]) == (p.argmax(-1) == batch["label"])[:5].sum()
    assert float(sums["count"]) == 5


def test_capture_with_views_is_an_error():
    with pytest.raises(UserError, match="expected one of them"):
        make_predict_step(create_model("cifar_resnet8"), capture="stage1", tta="flip")


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_evaluate_gives_the_results_of_the_run(size, tmp_path):
    """`resflax evaluate` uses the views of the run, and others on request."""
    config = default_config()
    config.model, config.epochs, config.learning_rate = "cifar_resnet8", 1, 0.01
    config.eval_tta, config.ensemble.size = "flip_shift", size
    results = fit(config, tmp_path / "run", silent=True)
    found = {}
    for name, flags in (("run", []), ("none", ["--tta=none"])):
        main(["evaluate", str(tmp_path / "run"), f"--out={tmp_path / name}", *flags])
        report = json.loads((tmp_path / name / "evaluation.json").read_text())
        found[name] = report["ensemble"] if size > 1 else report
    assert abs(found["run"]["accuracy"] - results["test_accuracy"]) < 1e-9
    assert abs(found["run"]["nll"] - results["test_loss"]) < 1e-5
    assert abs(found["none"]["nll"] - results["test_loss"]) > 2e-5


def test_views_of_arrays_are_an_error(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"x_{split}": rng.standard_normal((20, 32, 1)) for split in ("train", "test")}
    labels = {f"y_{split}": np.arange(20) % 2 for split in ("train", "test")}
    np.savez(tmp_path / "signals.npz", **arrays, **labels)
    config = default_config()
    config.dataset, config.model = f"npz:{tmp_path / 'signals.npz'}", "resnet1d18"
    config.batch_size, config.eval_tta = 16, "flip"
    with pytest.raises(UserError, match="config.eval_tta is 'flip', which is for images"):
        build(config)
