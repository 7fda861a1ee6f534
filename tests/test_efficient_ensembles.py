"""Efficient ensembles in one network against the single networks that their members are."""

import json
from dataclasses import asdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resflax import create_model
from resflax.errors import UserError
from resflax.export.timm_names import find_timm_model
from resflax.inference import build_graph
from resflax.nn import BatchNormMode, Spec, sample_logits, split_members, stack_params
from resflax.nn.drop import dropout
from resflax.nn.shuffle import Shuffling, make_shuffle
from resflax.train import create_state, make_engine, make_train_step
from resflax.train.losses import cross_entropy
from resflax.train.metrics import correct
from resflax.train.precise_bn import compute_batch_stats
from resflax.weights import to_torch
from resflax.weights.preprocess import default_preprocess
from resflax.weights.pretrained_config import PretrainedConfig
from resflax.zoo.cost import part_costs

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8, 8, 3)), jnp.float32)
LABELS = jnp.arange(8) % 5
KEYS = jax.random.split(jax.random.key(5), 8)
TINY = {"depths": (1, 2), "widths": (8, 16), "block": "basic", "stem": "cifar", "stem_width": 8}
ENSEMBLES = {
    "batch": {"ensemble": "batch", "members": 3},
    "packed": {"ensemble": "packed", "members": 2, "alpha": 2.0},
    "mimo": {"ensemble": "mimo", "members": 3, "batch_repetition": 2, "input_repetition": 0.25},
}
every_ensemble = pytest.mark.parametrize("kind", ENSEMBLES)


def make(**overrides):
    return create_model(Spec(**TINY, num_classes=5), **overrides)


def init(model, seed=0):
    """Returns variables with random values everywhere, batch statistics and biases included."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES[:1], train=False))
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        values = rng.normal(size=leaf.shape) * (0.2 if path[-1].key == "kernel" else 1.0)
        return jnp.asarray(np.abs(values) + 0.5 if path[-1].key == "var" else values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@partial(jax.jit, static_argnums=0)
def train_logits(model, variables, images=IMAGES, keys=KEYS):
    kwargs = {"dropout_keys": keys} if model.needs_rng else {}
    return model.apply(variables, images, train=True, mutable=["batch_stats"], **kwargs)


@partial(jax.jit, static_argnums=(0, 3))
def evaluate(model, variables, images=IMAGES, members=False):
    return model.apply(variables, images, train=False, members=members)


def member_logits(model, variables):
    return evaluate(model, variables, IMAGES, True)


def assert_close(found, expected, tolerance=1e-4):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@every_ensemble
def test_logits_are_logarithms_of_mean_probabilities(kind):
    model = make(**ENSEMBLES[kind])
    variables, members = init(model), ENSEMBLES[kind]["members"]
    found = evaluate(model, variables)
    logits = member_logits(model, variables)
    assert found.shape == (8, 5)
    assert logits.shape == (members, 8, 5)
    exact = np.asarray(logits, np.float64)
    probabilities = np.exp(exact) / np.exp(exact).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(found), probabilities.mean(0), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    ("kind", "overrides", "scan"),
    [
        ("batch", {"preact": True, "attention": "se"}, False),
        ("batch", {"attention": "eca", "norm": "frn_tlu"}, True),
        ("packed", {"shortcut": "A"}, True),
        ("packed", {"preact": True, "block": "bottleneck", "groups": 2}, False),
        ("packed", {"stem": "deep", "norm": "frn_tlu"}, False),
        ("mimo", {"stem": "deep", "attention": "se"}, True),
    ],
)
def test_members_equal_single_networks(kind, overrides, scan):
    model = make(**ENSEMBLES[kind], **overrides)
    variables = init(model)
    if scan:
        model, variables = model.clone(scan=True), stack_params(variables)
    logits = member_logits(model, variables)
    single = create_model(model.spec.member, scan=False)
    parts = split_members(model.spec, variables)
    shapes = jax.eval_shape(lambda: single.init(jax.random.key(0), IMAGES, train=False))
    for member, expected in zip(parts, logits, strict=True):
        assert jax.tree.map(np.shape, member) == jax.tree.map(lambda leaf: leaf.shape, shapes)
        assert_close(evaluate(single, member), expected)


def test_unit_factors_equal_the_single_network():
    single, model = make(), make(**ENSEMBLES["batch"])
    plain = init(single)

    def shared(path, leaf):
        *modules, name = (part.key for part in path)
        if name == "scale" and modules[-1][-2:] in ("_r", "_s"):
            return jnp.ones(leaf.shape)
        if modules[-1] == "head_s":
            modules[-1] = "head"
        value = plain
        for key in (*modules, name):
            value = value[key]
        return jnp.broadcast_to(value, leaf.shape)

    variables = jax.tree_util.tree_map_with_path(shared, init(model))
    expected = evaluate(single, plain)
    for logits in member_logits(model, variables):
        assert_close(logits, expected)
    expected, statistics = train_logits(single, plain)
    logits, updated = train_logits(model, variables)
    for k in range(3):
        assert_close(logits[k], expected)
    stats = statistics["batch_stats"]["stage2_block1"]["norm2"]["var"]
    assert_close(updated["batch_stats"]["stage2_block1"]["norm2"]["var"], jnp.stack([stats] * 3))


def test_packed_training_equals_separate_networks():
    """Batch statistics and gradients of each member are those of its own network."""
    model = make(**ENSEMBLES["packed"])
    single, variables = create_model(model.spec.member), init(model)
    parts = split_members(model.spec, variables)

    def loss(net, params, stats):
        logits, updated = net.apply(
            {"params": params, "batch_stats": stats}, IMAGES, train=True, mutable=["batch_stats"]
        )
        return jnp.mean(cross_entropy(logits, LABELS)), updated["batch_stats"]

    grad = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True), static_argnums=0)
    (value, stats), grads = grad(model, variables["params"], variables["batch_stats"])
    found = split_members(model.spec, {"params": grads, "batch_stats": stats})
    losses = []
    for member, result in zip(parts, found, strict=True):
        (one, stats), grads = grad(single, member["params"], member["batch_stats"])
        losses.append(one)
        expected = {"params": jax.tree.map(lambda leaf: leaf / 2, grads), "batch_stats": stats}
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-3), result, expected)
    np.testing.assert_allclose(value, np.mean(losses), rtol=1e-5)


def test_mimo_with_one_member_equals_the_single_network():
    single, model = make(), make(ensemble="mimo")
    variables = init(single)
    expected = evaluate(single, variables)
    assert_close(member_logits(model, variables)[0], expected, 1e-6)
    assert_close(train_logits(model, variables)[0][0], train_logits(single, variables)[0], 1e-6)


def train_one_step(engine, model):
    """Returns parameters and metrics after a step on eight images."""
    optimizer = optax.sgd(0.1)
    state = create_state(model, optimizer, 3, IMAGES.shape[1:])
    step = make_train_step(model, optimizer, axis_name=engine.axis_name)
    batch = {"image": IMAGES, "label": LABELS, "index": jnp.arange(8, dtype=jnp.int32)}
    batch = jax.tree.map(np.asarray, batch)
    state, metrics = engine.compile_train(step)(engine.put_state(state), engine.shard_batch(batch))
    return engine.to_host((state.params, metrics))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "engine"),
    [("batch", "pmap"), ("mimo", "pmap"), ("mimo", "mesh")],
)
def test_training_does_not_depend_on_the_device_count(kind, engine):
    model = make(**ENSEMBLES[kind], drop_path=0.2, dropout=0.1)
    devices = jax.devices()
    params, metrics = train_one_step(make_engine(engine, devices[:1]), model)
    other, split_metrics = train_one_step(make_engine(engine, devices[:4]), model)
    np.testing.assert_allclose(split_metrics["loss"], metrics["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), other, params)


def test_mimo_logits_belong_to_their_examples():
    """A network that copies its inputs to its heads shows what each logit was computed from."""
    spec = Spec((1,), (6,), "basic", "cifar", 6, num_classes=3, **ENSEMBLES["mimo"])
    model = create_model(spec)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES[:1], train=False))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    params = variables["params"]
    # Channel 2 m of the stem is the first channel of member m's image, then a constant.
    kernel = jnp.zeros((3, 3, 9, 6)).at[1, 1, jnp.arange(3) * 3, jnp.arange(3) * 2].set(1)
    params["stem_conv"]["kernel"] = kernel
    params["stem_norm"] = {"scale": jnp.ones(6), "bias": jnp.zeros(6)}
    variables["batch_stats"]["stem_norm"]["var"] = jnp.ones(6)
    members = jnp.arange(3)
    params["head"]["kernel"] = jnp.zeros((6, 9)).at[members * 2, members * 3].set(1)
    mode = {"mutable": ["batch_stats"], "dropout_keys": KEYS, "train": True}
    images = jnp.broadcast_to(jnp.arange(1.0, 9)[:, None, None, None], (8, 4, 4, 3))
    frozen = model.clone(batch_norm=BatchNormMode("frozen"))
    logits, _ = frozen.apply(variables, images, **mode)
    assert logits.shape == (6, 8, 3)
    expected = np.arange(1.0, 9) / np.sqrt(1 + 1e-5)
    for member in logits:
        np.testing.assert_allclose(member[:, 0], expected, rtol=1e-5)


def test_mimo_shuffles_each_member_and_keeps_a_share():
    shuffling = Shuffling(repetitions=2, same_share=0.25)
    order, position = make_shuffle(jax.random.split(jax.random.key(1), 16), 3, shuffling)
    for row, inverse in zip(order, position, strict=True):
        np.testing.assert_array_equal(np.sort(row), np.arange(32))
        np.testing.assert_array_equal(row[inverse], np.arange(32))
    same = (order == order[0]).all(0)
    assert same[-8:].all()
    assert same[:-8].mean() < 0.3


@every_ensemble
def test_gradient_through_members_matches_finite_differences(kind):
    model = make(**ENSEMBLES[kind]).clone(scan=True, remat=True)
    variables = stack_params(init(model.clone(scan=False)))

    @jax.jit
    def loss(t):
        params = jax.tree.map(lambda leaf: leaf * (1 + t), variables["params"])
        logits, _ = train_logits(model, {**variables, "params": params})
        return jnp.mean(cross_entropy(logits, LABELS))

    slope = jax.grad(loss)(0.0)
    np.testing.assert_allclose(slope, (loss(1e-2) - loss(-1e-2)) / 2e-2, rtol=3e-2)


def test_precise_batch_norm_has_statistics_of_each_member():
    model = make(**ENSEMBLES["batch"])
    variables = init(model)
    found = compute_batch_stats(model, variables, IMAGES)
    single = create_model(model.spec.member)
    for k, member in enumerate(split_members(model.spec, variables)):
        expected = compute_batch_stats(single, member, IMAGES)
        jax.tree.map(lambda a, b, k=k: assert_close(a[k], b, 1e-3), found, expected)


def test_loss_and_accuracy_of_members():
    logits = jnp.log(jnp.array([[[0.9, 0.1], [0.4, 0.6]], [[0.2, 0.8], [0.3, 0.7]]]))
    labels = jnp.array([0, 0])
    expected = [-(np.log(0.9) + np.log(0.2)) / 2, -(np.log(0.4) + np.log(0.3)) / 2]
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-5)
    np.testing.assert_array_equal(correct(logits, labels), [1, 0])


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet18"])
def test_costs_are_those_of_closed_forms(name):
    size = 32 if name.startswith("cifar") else 64

    def total(**overrides):
        parts = part_costs(create_model(name, scan=False, **overrides), (size, size, 3))
        return sum(p.parameters for p in parts), sum(p.multiply_adds for p in parts)

    model = create_model(name, scan=False)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES[:1], train=False))
    kernels = jax.tree_util.tree_leaves_with_path(shapes["params"])
    factors = sum(leaf.shape[-1] + leaf.shape[-2] for path, leaf in kernels if leaf.ndim > 1)
    vectors = sum(leaf.size for path, leaf in kernels if leaf.ndim == 1)
    single, adds = total()
    # Each member has two factors per kernel, and all biases, scales and shifts.
    expected = single + 4 * factors + 3 * vectors, 4 * adds
    assert total(ensemble="batch", members=4) == expected
    # Four networks of half the width.
    half = {"widths": tuple(w // 2 for w in model.spec.widths)}
    parameters, adds = total(**half, stem_width=model.spec.stem_width // 2)
    assert total(ensemble="packed", members=4, alpha=2.0) == (4 * parameters, 4 * adds)
    # Two more images in the first convolution, two more heads.
    single, adds = total()
    stem, head = part_costs(model, (size, size, 3))[0], part_costs(model, (size, size, 3))[-1]
    first = shapes["params"]["stem_conv"]["kernel"]
    stem_adds = stem.multiply_adds
    expected = single + 2 * first.size + 2 * head.parameters, adds + 2 * stem_adds
    assert total(ensemble="mimo", members=3) == (
        expected[0],
        expected[1] + 2 * head.multiply_adds,
    )


@every_ensemble
def test_spec_survives_json(kind):
    spec = Spec(**TINY, **ENSEMBLES[kind])
    config = PretrainedConfig(spec, 3, default_preprocess(spec))
    assert PretrainedConfig.from_json_dict(config.to_json_dict()) == config
    old = json.loads(json.dumps(asdict(Spec(**TINY))))
    for field in ("ensemble", "members", "alpha", "batch_repetition", "input_repetition"):
        del old[field]
    assert Spec(**old) == Spec(**TINY)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ensemble": "deep"}, "unknown ensemble 'deep'"),
        ({"members": 4}, "members is 4, but ensemble is 'none': use members=1 or ensemble="),
        ({"ensemble": "batch", "members": 0}, "members is 0: expected an integer from 1"),
        ({"ensemble": "batch", "alpha": 2.0}, "alpha is 2.0, but ensemble is 'batch': use alpha=1"),
        ({"ensemble": "packed", "members": 3}, "stem_width has 8, times alpha 1 that is 8"),
        ({"ensemble": "packed", "members": 2, "norm": "group"}, "'packed' with attention 'none'"),
        ({"ensemble": "packed", "members": 2, "attention": "se"}, "expected attention='none'"),
        ({"ensemble": "mimo", "input_repetition": 1.5}, "expected a number from 0.0 to 1.0"),
    ],
)
def test_invalid_fields_raise_one_line(fields, message):
    with pytest.raises(UserError, match=message) as error:
        Spec(**TINY, **fields)
    assert "\n" not in str(error.value)


@every_ensemble
def test_formats_of_single_networks_refuse_ensembles(kind):
    model = make(**ENSEMBLES[kind])
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES[:1], train=False))
    for convert in (build_graph, to_torch):
        with pytest.raises(UserError, match=f"spec.ensemble is '{kind}'"):
            convert(model.spec, variables)
    assert find_timm_model(model.spec) is None


def test_dropout_samples_are_those_of_one_network():
    """Without drop path, a sample is the head applied to dropped features."""
    model = make(dropout=0.5)
    variables = init(model)
    features = evaluate(create_model(model.spec.override(num_classes=0)), variables)
    found = sample_logits(model, variables, IMAGES, KEYS, 3)
    head = variables["params"]["head"]
    assert found.shape == (3, 8, 5)
    for s in range(3):
        keys = jax.vmap(lambda k, s=s: jax.random.fold_in(jax.random.fold_in(k, 2003), s))(KEYS)
        expected = dropout(keys, features, 0.5) @ head["kernel"] + head["bias"]
        assert_close(found[s], expected)
    assert not np.allclose(found[0], found[1])
    # Of an example's key and the sample only.
    part = sample_logits(model, variables, IMAGES[3:5], KEYS[3:5], 2)
    assert_close(part, found[:2, 3:5], 1e-5)


def test_dropout_samples_drop_paths_and_need_a_rate():
    model = make(drop_path=0.5)
    variables = init(model)
    found = sample_logits(model, variables, IMAGES, KEYS, 4)
    assert len({np.asarray(sample).tobytes() for sample in found}) == 4
    with pytest.raises(UserError, match="expected spec.dropout, spec.drop_path or"):
        sample_logits(make(), variables, IMAGES, KEYS, 4)
    with pytest.raises(UserError, match="samples is 0: expected an integer >= 1"):
        sample_logits(model, variables, IMAGES, KEYS, 0)
