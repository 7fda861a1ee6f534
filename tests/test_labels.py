"""Labels of one's own loop: wrong shapes and dtypes are refused, wrong values give NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.modules import LinearClassifier

from resflax import UserError
from resflax.data import make_mix
from resflax.train import create_state, cross_entropy, make_eval_step, make_train_step, stack_states
from resflax.train.eval_step import make_predict_step
from resflax.train.metrics import correct

SHAPE, CLASSES, COUNT = (2, 2, 1), 3, 4
OPTIMIZER = optax.sgd(0.1)
LABELS = np.array([0, 1, 2, 1], np.int32)
INVALID = {
    "a column": LABELS[:, None],
    "a row": LABELS[None],
    "a number": np.int32(1),
    "too few": LABELS[:3],
    "floats": LABELS.astype(np.float32),
    "bools": LABELS > 0,
}


def make_batch(label):
    images = np.random.default_rng(0).standard_normal((COUNT, *SHAPE)).astype(np.float32)
    index = np.arange(COUNT, dtype=np.int32)
    return {"image": images, "label": label, "index": index, "weight": np.ones(COUNT, np.float32)}


def make_state(seed=0):
    return create_state(LinearClassifier(), OPTIMIZER, seed, SHAPE)


def steps(**options):
    model = LinearClassifier()
    return {
        "train": make_train_step(model, OPTIMIZER, **options),
        "eval": make_eval_step(model),
        "predict": make_predict_step(model),
    }


@pytest.mark.parametrize("kind", ["train", "eval", "predict"])
@pytest.mark.parametrize("case", INVALID)
def test_labels_of_another_shape_or_dtype_are_refused(case, kind):
    label = INVALID[case]
    with pytest.raises(UserError, match=r"expected integers of shape \(4,\)") as e:
        jax.eval_shape(steps()[kind], make_state(), make_batch(label))
    assert str(e.value).startswith(f"labels have shape {label.shape} and dtype {label.dtype}: ")


@pytest.mark.parametrize("case", INVALID)
def test_cross_entropy_refuses_labels_by_shape_and_dtype(case):
    logits, label = jnp.zeros((COUNT, CLASSES)), INVALID[case]
    with pytest.raises(UserError, match=r"or probabilities, floats of shape \(4, 3\)"):
        jax.jit(cross_entropy)(logits, label)
    with pytest.raises(UserError, match="expected integers"):
        jax.jit(correct)(logits, label)


@pytest.mark.parametrize("targets", [np.ones((4, 2), np.float32), np.ones((4, 3), np.int32)])
def test_probabilities_of_another_shape_or_dtype_are_refused(targets):
    with pytest.raises(UserError, match=r"targets have shape \(4, \d\) and dtype"):
        cross_entropy(jnp.zeros((COUNT, CLASSES)), targets)


def test_weights_of_another_shape_are_refused():
    batch = make_batch(LABELS) | {"weight": np.ones((COUNT, 1), np.float32)}
    with pytest.raises(UserError, match=r"weights have shape \(4, 1\): expected one per example"):
        jax.eval_shape(make_eval_step(LinearClassifier()), make_state(), batch)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64])
def test_labels_out_of_range_give_nan(dtype, smoothing):
    """The others have the closed form, log 10 for equal logits."""
    labels = np.array([0, 9, 10, 255 if dtype is np.uint8 else -1]).astype(dtype)
    losses = jax.jit(cross_entropy, static_argnums=2)(jnp.zeros((4, 10)), labels, smoothing)
    np.testing.assert_allclose(losses, [np.log(10)] * 2 + [np.nan] * 2, rtol=1e-6)


def test_labels_of_8_bits_do_not_wrap_around_the_classes():
    """Class 261 of 300 is 5 modulo 256."""
    logits = jnp.zeros((1, 300)).at[0, 261].set(9.0)
    label = np.array([5], np.uint8)
    expected = np.log(299 + np.exp(9.0))
    np.testing.assert_allclose(cross_entropy(logits, label), [expected], rtol=1e-6)
    assert float(correct(logits, label)[0]) == 0.0


@pytest.mark.parametrize(
    "options", [{}, {"grad_accum_steps": 2}, {"label_smoothing": 0.1}], ids=str
)
@pytest.mark.parametrize("label", [CLASSES, -1])
def test_train_step_with_a_label_out_of_range_has_loss_nan(label, options):
    wrong = np.where(np.arange(COUNT) == 2, label, LABELS)
    step = jax.jit(steps(on_nonfinite="stop", **options)["train"])
    _, metrics = step(make_state(), make_batch(wrong))
    assert np.isnan(metrics["loss"])
    assert not metrics["finite"].all()
    assert np.isfinite(step(make_state(), make_batch(LABELS))[1]["loss"])
    sums = make_eval_step(LinearClassifier())(make_state(), make_batch(wrong))
    assert np.isnan(sums["loss"])


@pytest.mark.slow
def test_mixed_labels_out_of_range_have_loss_nan():
    step = steps(mix=make_mix(mixup=1.0), num_classes=CLASSES)["train"]
    assert np.isnan(step(make_state(), make_batch(LABELS + 1))[1]["loss"])
    assert np.isfinite(step(make_state(), make_batch(LABELS))[1]["loss"])


def test_members_of_an_ensemble_check_their_labels():
    states = stack_states([make_state(0), make_state(1)])
    step = jax.vmap(steps()["train"], in_axes=(0, None))
    _, metrics = step(states, make_batch(np.array([0, 1, 2, CLASSES])))
    assert np.isnan(metrics["loss"]).all()
    with pytest.raises(UserError, match="labels have shape"):
        step(states, make_batch(LABELS[:, None]))


def test_soft_targets_have_the_closed_form():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    loss = cross_entropy(logits, jnp.array([[0.5, 0.5, 0.0]]))
    np.testing.assert_allclose(loss, [0.5 * np.log(2) + 0.5 * np.log(4)], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "key"),
    [(kind, key) for kind in ("train", "eval", "predict") for key in ("image", "label")]
    + [("eval", "weight"), ("predict", "weight"), ("mixup", "index")],
)
def test_array_that_a_batch_lacks_is_named(kind, key):
    batch = make_batch(LABELS)
    step = steps(mix=make_mix(mixup=0.2), num_classes=CLASSES)["train"]
    step = step if kind == "mixup" else steps()[kind]
    without = {name: array for name, array in batch.items() if name != key}
    with pytest.raises(UserError, match=f"the batch has no '{key}', only 'i"):
        jax.eval_shape(step, make_state(), without)
    if key == "label":
        with pytest.raises(UserError, match="'label' is a list: expected an array"):
            jax.eval_shape(step, make_state(), batch | {"label": LABELS.tolist()})
