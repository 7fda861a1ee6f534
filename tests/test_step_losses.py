"""The training step with losses, metrics and networks of the user's own."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.modules import LinearClassifier, NormNet, random_batch, softmax

from resflax import UserError, create_model
from resflax.train import create_state, make_engine, make_eval_step, make_train_step
from resflax.train.eval_step import SUMS, make_predict_step
from resflax.train.metrics import METRICS
from resflax.train.precise_bn import make_stats_step

SHAPE, OPTIMIZER = (2, 2, 1), optax.sgd(0.5)


class TwoHeads(nn.Module):
    """Linear heads for a class and for a position, as a dict of outputs."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        x = x.reshape(len(x), -1)
        return {"color": nn.Dense(3, name="color")(x), "place": nn.Dense(2, name="place")(x)}


class Counter(nn.Module):
    """Keeps, besides a linear head, the number of calls in training and the last mean input."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        calls = self.variable("cache", "calls", jnp.zeros, (), jnp.int32)
        mean = self.variable("cache", "mean", jnp.zeros, (), jnp.float32)
        if train:
            calls.value, mean.value = calls.value + 1, jnp.mean(x)
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


def squared_error(outputs, targets):
    return jnp.sum((outputs - targets) ** 2, axis=-1)


def binary_cross_entropy(logits, labels, *, label_smoothing=0.0):
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


def in_top2(logits, labels):
    return jnp.any(jax.lax.top_k(logits, 2)[1] == labels[:, None], axis=-1).astype(jnp.float32)


def two_losses(outputs, targets):
    color = optax.softmax_cross_entropy_with_integer_labels(outputs["color"], targets["color"])
    return color + squared_error(outputs["place"], targets["place"])


def linear_inputs(state, batch, head="head"):
    """Returns the flat inputs and a kernel, in float64."""
    kernel = np.asarray(state.params[head]["kernel"], np.float64)
    return batch["image"].reshape(len(batch["image"]), -1).astype(np.float64), kernel


@pytest.mark.parametrize("count", [1, 3])
def test_step_with_squared_error_equals_the_closed_form(count):
    target = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)
    batch = {"image": random_batch()["image"], "target": target}
    metrics = {"largest_error": lambda y, t: jnp.abs(y - t).max(-1)}
    step = make_train_step(
        LinearClassifier(),
        OPTIMIZER,
        loss_fn=squared_error,
        metrics=metrics,
        grad_accum_steps=count,
    )
    state = create_state(LinearClassifier(), OPTIMIZER, 0, SHAPE)
    new, metrics = jax.jit(step)(state, batch)
    x, kernel = linear_inputs(state, batch)
    error = x @ kernel - target
    expected = kernel - 0.5 * x.T @ (2 * error) / 6
    np.testing.assert_allclose(new.params["head"]["kernel"], expected, rtol=1e-5, atol=1e-6)
    assert set(metrics) == {"loss", "largest_error"}
    np.testing.assert_allclose(metrics["loss"], (error**2).sum(-1).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["largest_error"], abs(error).max(-1).mean(), rtol=1e-5)


def test_step_gives_its_label_smoothing_to_the_loss():
    batch = random_batch()
    state = create_state(LinearClassifier(), OPTIMIZER, 0, SHAPE)
    step = make_train_step(
        LinearClassifier(), OPTIMIZER, loss_fn=binary_cross_entropy, label_smoothing=0.1
    )
    x, kernel = linear_inputs(state, batch)
    target, p = np.eye(3)[batch["label"]] * 0.9 + 0.1 / 3, 1 / (1 + np.exp(-x @ kernel))
    expected = -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum(-1).mean()
    np.testing.assert_allclose(jax.jit(step)(state, batch)[1]["loss"], expected, rtol=1e-5)


def test_metrics_are_added_to_accuracy():
    batch = random_batch(12)
    state = create_state(LinearClassifier(), OPTIMIZER, 0, SHAPE)
    step = make_train_step(LinearClassifier(), OPTIMIZER, metrics=METRICS | {"top2": in_top2})
    results = jax.jit(step)(state, batch)[1]
    x, kernel = linear_inputs(state, batch)
    rank = (np.argsort(-(x @ kernel), -1) == batch["label"][:, None]).argmax(-1)
    assert set(results) == {"loss", "accuracy", "top2"}
    np.testing.assert_allclose(results["accuracy"], (rank == 0).mean(), rtol=1e-6)
    np.testing.assert_allclose(results["top2"], (rank < 2).mean(), rtol=1e-6)
    weight = np.arange(12, dtype=np.float32)
    evaluate = make_eval_step(LinearClassifier(), metrics=SUMS | {"top2": in_top2})
    sums = jax.jit(evaluate)(state, batch | {"weight": weight})
    np.testing.assert_allclose(sums["top2"], weight[rank < 2].sum(), rtol=1e-6)
    np.testing.assert_allclose(sums["correct"], weight[rank == 0].sum(), rtol=1e-6)


@pytest.mark.parametrize("key", ["label", "target"])
def test_network_with_two_heads_equals_the_closed_form(key):
    rng = np.random.default_rng(2)
    place, color = rng.standard_normal((6, 2)).astype(np.float32), rng.integers(0, 3, 6)
    batch = {"image": random_batch()["image"], key: {"color": color, "place": place}}
    state = create_state(TwoHeads(), OPTIMIZER, 0, SHAPE)
    step = make_train_step(TwoHeads(), OPTIMIZER, loss_fn=two_losses, metrics={})
    new, metrics = jax.jit(step)(state, batch)
    x, kernel = linear_inputs(state, batch, "place")
    error = x @ kernel - place
    expected = kernel - 0.5 * x.T @ (2 * error) / 6
    np.testing.assert_allclose(new.params["place"]["kernel"], expected, rtol=1e-5, atol=1e-6)
    p = softmax(x @ np.asarray(state.params["color"]["kernel"], np.float64))
    loss = (error**2).sum(-1) - np.log(p[np.arange(6), color])
    np.testing.assert_allclose(metrics["loss"], loss.mean(), rtol=1e-5)
    batch = {"image": batch["image"], "label": batch[key], "weight": np.ones(6, np.float32)}
    sums = make_eval_step(TwoHeads(), loss_fn=two_losses, metrics={})(state, batch)
    np.testing.assert_allclose(sums["loss"], loss.sum(), rtol=1e-5)


def test_mix_can_add_a_teachers_logits_to_the_targets():
    """Hinton et al. 2015: the cross-entropy of the teacher's probabilities, for the same images."""
    teacher = np.random.default_rng(3).standard_normal((4, 3)).astype(np.float32)

    def teach(keys, images, targets):
        return images, {"soft": targets, "teacher": images.reshape(len(images), -1) @ teacher}

    def distill(logits, targets):
        return optax.softmax_cross_entropy(logits, jax.nn.softmax(targets["teacher"]))

    batch, model = random_batch(), LinearClassifier()
    state = create_state(model, OPTIMIZER, 0, SHAPE)
    step = make_train_step(model, OPTIMIZER, mix=teach, num_classes=3, loss_fn=distill)
    x, kernel = linear_inputs(state, batch)
    expected = -(softmax(x @ teacher) * np.log(softmax(x @ kernel))).sum(-1).mean()
    np.testing.assert_allclose(jax.jit(step)(state, batch)[1]["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["pmap", "shard_map"])
def test_other_collections_are_updated_in_training(count, name):
    """Integers keep their value over devices, floats become the mean of the last micro-batch."""
    batch = random_batch(32)
    state = create_state(Counter(), OPTIMIZER, 0, SHAPE)
    assert set(state.variables) == {"params", "batch_stats", "cache"}
    step = jax.jit(make_train_step(Counter(), OPTIMIZER, grad_accum_steps=count))
    new, _ = step(*[step(state, batch)[0]], batch)
    last = batch["image"].astype(np.float64)[count - 1 :: count].mean()
    assert int(new.collections["cache"]["calls"]) == 2 * count
    np.testing.assert_allclose(new.eval_variables["cache"]["mean"], last, atol=1e-6)
    engine = make_engine(name)
    step = make_train_step(Counter(), OPTIMIZER, grad_accum_steps=count, axis_name=engine.axis_name)
    cache = engine.to_host(
        engine.compile_train(step)(engine.put_state(state), engine.shard_batch(batch))[0]
    ).collections["cache"]
    assert int(cache["calls"]) == count
    np.testing.assert_allclose(cache["mean"], last, atol=1e-6)


class NoAxis(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(3)(x.reshape(len(x), -1))


class NoTrain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.reshape(len(x), -1))


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, x, mask, *, train):
        return nn.Dense(3)(x.reshape(len(x), -1))


class NoKeys(NoAxis):
    needs_rng = True


def two_heads(ops, x, features):
    return ops.dense(x, features, name="head"), ops.dense(x, 1, name="angle")


def tiny(**fields):
    return create_model("cifar_resnet8", **fields)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (NoAxis, {"axis_name": "d"}, "axis_name is 'd', but NoAxis has no field axis_name"),
        (NoTrain, {}, r"NoTrain.__call__ has no argument 'train': expected \(x, \*, train\)"),
        (NoKeys, {}, "NoKeys.__call__ has no argument 'dropout_keys'"),
        (TwoInputs, {}, "TwoInputs.__call__ also requires 'mask'"),
        (lambda: jnp.tanh, {}, "model is a .*: expected a linen module"),
        (TwoHeads, {}, "TwoHeads returns a dict of 2 arrays, and cross_entropy takes one array"),
        (TwoHeads, {"loss_fn": two_losses}, "and the accuracy takes one array of logits"),
        (lambda: tiny(features_only=True), {}, "ResNet returns feature maps"),
        (lambda: tiny(num_classes=0), {}, "ResNet returns pooled features"),
        (lambda: tiny(head=two_heads), {}, "ResNet returns a tuple of 2 arrays, and cross_entropy"),
        (lambda: tiny(head=two_heads), {"loss_fn": two_losses},
         "and the accuracy takes one array of logits: give loss_fn= .*such as metrics={}"),
        (NoAxis, {"metrics": [in_top2]}, "metrics is a list: expected a dict of functions"),
        (NoAxis, {"metrics": {"f": lambda y: y}}, r"metric 'f' is .*\(y\): expected a function"),
        (NoAxis, {"loss_fn": lambda y: y}, r"loss_fn is .*<lambda>\(y\): expected a function of"),
        (NoAxis, {"loss_fn": "bce"}, "loss_fn is 'bce': expected a function"),
        (NoAxis, {"loss_fn": squared_error, "label_smoothing": 0.1}, "label_smoothing is given"),
        (NoAxis, {"metrics": {"loss": in_top2}}, "a metric is called 'loss'"),
        (NoAxis, {"metrics": {"top2": 2}}, "metric 'top2' is 2: expected a function"),
    ],
)  # fmt: skip
def test_step_refuses_what_it_cannot_train(model, options, message):
    with pytest.raises(UserError, match=message):
        make_train_step(model(), OPTIMIZER, **options)


def test_step_refuses_a_model_that_computes_in_float16():
    with pytest.raises(UserError, match="computes in float16, .* use dtype='bfloat16' or 'floa"):
        make_train_step(tiny(dtype="float16"), OPTIMIZER)
    make_eval_step(tiny(dtype="float16"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_fn": lambda y, t: jnp.mean(y)}, r"loss_fn returned shape \(\) and dtype float32"),
        ({"loss_fn": lambda y, t: y}, r"floats of shape \(6,\), one per example"),
        ({"metrics": {"f": lambda y, t: t}}, "metric 'f' returned shape .* and dtype int32"),
        ({"metrics": {"f": lambda y, t: 1.0}}, "metric 'f' returned a float"),
    ],
)
def test_losses_and_metrics_give_one_float_per_example(options, message):
    state = create_state(LinearClassifier(), OPTIMIZER, 0, SHAPE)
    with pytest.raises(UserError, match=message):
        make_train_step(LinearClassifier(), OPTIMIZER, **options)(state, random_batch())


class OnlyInTraining(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        if train:
            self.variable("cache", "calls", jnp.zeros, ())
        return nn.Dense(3)(x.reshape(len(x), -1))


class SownLosses(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        self.sow("losses", "penalty", jnp.sum(x))
        return nn.Dense(3)(x.reshape(len(x), -1))


class LinenDropout(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3)(x.reshape(len(x), -1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (OnlyInTraining, "OnlyInTraining cannot be trained: .*calls"),
        (SownLosses, "training changes the structure or shapes of the collection 'losses'"),
        (LinenDropout, "LinenDropout cannot be trained: .*PRNG"),
        (NoTrain, "NoTrain.__call__ has no argument 'train'"),
    ],
)
def test_state_refuses_modules_whose_variables_training_changes(model, message):
    with pytest.raises(UserError, match=message):
        create_state(model(), OPTIMIZER, 0, SHAPE)


def edited(variables, path, value):
    *parents, last = path.split("/")
    node = variables
    for name in parents:
        node = node[name]
    node.pop(last) if value is None else node.update({last: value})
    return variables


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("batch_stats", None, "2 of 8 missing: batch_stats/stem_norm/mean, batch_stats/stem_nor"),
        ("params", None, "6 of 8 missing: params/head/bias, params/head/kernel, "),
        ("params/head/bias", None, "1 of 8 missing: params/head/bias$"),
        ("params/head/bias", np.ones(3, np.float32), r"bias has shape \(3,\), expected \(10,\)"),
        ("params/other", np.ones(3, np.float32), "1 unexpected: params/other"),
        ("cache", {"calls": np.ones(3)}, "1 unexpected: cache/calls"),
        ("params/head/bias", np.ones(10, np.float16), "bias has dtype float16, .*expected float32"),
    ],
)
def test_state_refuses_variables_that_are_not_the_models(path, value, message):
    variables = NormNet().init(jax.random.key(0), jnp.zeros((1, *SHAPE)), train=False)
    variables = edited(jax.tree.map(np.asarray, variables), path, value)
    with pytest.raises(UserError, match=message):
        create_state(NormNet(), OPTIMIZER, 0, SHAPE, variables)


def test_evaluation_takes_targets_as_training_does():
    """Both report the same loss and metrics for a regression."""
    target = np.random.default_rng(1).standard_normal((8, 3)).astype(np.float32)
    batch = {"image": random_batch(8)["image"], "target": target}
    options = {"loss_fn": squared_error, "metrics": {"largest": lambda y, t: abs(y - t).max(-1)}}
    state = create_state(LinearClassifier(), OPTIMIZER, 0, SHAPE)
    _, means = jax.jit(make_train_step(LinearClassifier(), OPTIMIZER, **options))(state, batch)
    evaluate = jax.jit(make_eval_step(LinearClassifier(), **options))
    sums = evaluate(state, batch | {"weight": np.ones(8, np.float32)})
    assert set(sums) == {"loss", "largest", "count"}
    for name in means:
        np.testing.assert_allclose(sums[name] / 8, means[name], rtol=1e-6)


def test_evaluation_gives_targets_to_the_loss_only():
    batch = random_batch() | {"weight": np.ones(6, np.float32)}
    soft = np.full((6, 3), 1 / 3, np.float32)
    state = create_state(LinearClassifier(), OPTIMIZER, 0, SHAPE)
    sums = make_eval_step(LinearClassifier())(state, batch | {"target": soft})
    x, kernel = linear_inputs(state, batch)
    p = softmax(x @ kernel)
    np.testing.assert_allclose(sums["loss"], -np.log(p).mean(-1).sum(), rtol=1e-5)
    assert float(sums["correct"]) == (p.argmax(-1) == batch["label"]).sum()


MAKERS = {
    "predict": make_predict_step,
    "stats": partial(make_stats_step, normalize=lambda x: x),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("model", [NoTrain, NoKeys, TwoInputs, lambda: jnp.tanh])
def test_all_steps_refuse_modules_they_cannot_call(name, model):
    with pytest.raises(UserError, match=r"has no argument|also requires|expected a linen module"):
        MAKERS[name](model())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_predict_step(TwoHeads()), "TwoHeads returns a dict of 2 arrays, and make_pr"),
        (lambda: make_predict_step(tiny(num_classes=0)), "pooled features.*: use make_eval_step"),
        (
            lambda: make_predict_step(NoAxis(), members=True),
            "members needs a ResNet: NoAxis has",
        ),
        (lambda: make_predict_step(NoAxis(), capture="x"), "capture needs a ResNet: NoAxis has"),
        (lambda: MAKERS["stats"](NoAxis(), axis_name="d"), "NoAxis has no field axis_name"),
    ],
)
def test_other_steps_refuse_what_they_cannot_use(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_statistics_step_needs_images():
    state = create_state(NormNet(), OPTIMIZER, 0, SHAPE)
    with pytest.raises(UserError, match="the batch has no 'image'"):
        MAKERS["stats"](NormNet())(state, {"label": np.arange(3)})
