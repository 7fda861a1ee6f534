"""DropBlock: the paper's formulas, timm's place in the blocks, and one key per example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.networks import randomized, run, variables_of

from resflax import UserError, create_model
from resflax.nn import ResNet, Spec, stack_params
from resflax.nn.drop import block_keys
from resflax.nn.drop_block import DropBlock, drop_block, dropped_regions, gamma, stage_drop_blocks
from resflax.weights import from_torch

RATE = 0.4
# FRN normalizes each example on its own, so a batch can be split.
TINY = {
    "depths": (1, 1, 3),
    "widths": (4, 4, 8),
    "stem_width": 4,
    "stem": "cifar",
    "block": "basic",
    "norm": "frn_tlu",
    "zero_init": False,
    "num_classes": 3,
}
IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((8, 12, 12, 3)), jnp.float32)


def make_keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def train_logits(net, variables, images, keys):
    return net.apply(variables, images, train=True, dropout_keys=keys, mutable=["batch_stats"])[0]


@pytest.fixture(scope="module")
def net():
    return ResNet(Spec(**TINY, drop_block=RATE))


@pytest.fixture(scope="module")
def variables(net):
    return randomized(variables_of(net, (1, 12, 12, 3)))


@pytest.fixture(scope="module")
def logits(net, variables):
    return np.asarray(run(lambda x, k: train_logits(net, variables, x, k), IMAGES, make_keys(8)))


def opened(dropped, sides):
    """Returns the union of all boxes with these sides that lie within the dropped elements."""
    union = np.zeros_like(dropped)
    for corner in np.ndindex(*[n - k + 1 for n, k in zip(dropped.shape, sides, strict=True)]):
        box = tuple(slice(c, c + k) for c, k in zip(corner, sides, strict=True))
        union[box] |= dropped[box].all()
    return union


@pytest.mark.parametrize(
    ("space", "size"), [((9,), 3), ((8, 6), 3), ((7, 3), 5), ((5, 4, 6), 3), ((6, 6), 2)]
)
def test_dropped_regions_are_boxes_within_the_map(space, size):
    dropped = np.asarray(dropped_regions(make_keys(40), space, 0.3, size))
    assert dropped.shape == (40, *space)
    assert 0 < dropped.mean() < 1
    for example in dropped:
        np.testing.assert_array_equal(opened(example, [min(size, n) for n in space]), example)


@pytest.mark.parametrize(("space", "size", "rate"), [((9, 6), 3, 0.2), ((7, 3), 5, 0.1)])
def test_elements_are_dropped_as_often_as_the_paper_has_it(space, size, rate):
    """With probability 1 - (1 - gamma)^c for an element that c regions can contain."""
    n = 20_000
    (height, width), (kh, kw) = space, [min(size, side) for side in space]
    places = (height - kh + 1) * (width - kw + 1)
    probability = rate / (kh * kw) * height * width / places
    assert np.isclose(gamma(rate, size, space), probability, rtol=1e-15)
    counts = np.zeros(space, int)
    for i, j in np.ndindex(height - kh + 1, width - kw + 1):
        counts[i : i + kh, j : j + kw] += 1
    assert np.isclose((probability * counts).mean(), rate)  # no two regions overlap
    expected = 1 - (1 - probability) ** counts
    found = np.asarray(jax.jit(lambda k: dropped_regions(k, space, rate, size))(make_keys(n)))
    error = np.abs(found.mean(0) - expected)
    assert (error <= 5 * np.sqrt(expected * (1 - expected) / n)).all()


@pytest.mark.slow
def test_drop_block_keeps_the_mean_of_each_example():
    x = jnp.ones((64, 8, 8, 3)) * jnp.arange(1.0, 4.0)
    y = np.asarray(drop_block(make_keys(64), x, 0.4, DropBlock(3, 0.5)))
    dropped = np.asarray(dropped_regions(make_keys(64), (8, 8), 0.2, 3))
    np.testing.assert_array_equal(y == 0, np.broadcast_to(dropped[..., None], y.shape))
    np.testing.assert_allclose(y.mean((1, 2)), np.broadcast_to([1.0, 2.0, 3.0], (64, 3)), rtol=1e-5)


@pytest.mark.slow
def test_all_elements_can_be_dropped():
    y = drop_block(make_keys(200), jnp.ones((200, 3, 3, 1)), 0.9, DropBlock(3, 1.0))
    by_example = np.asarray(y).reshape(200, -1)
    assert {*np.unique(by_example)} == {0.0, 1.0}
    assert (by_example == by_example[:, :1]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "activation"), [("resnet18", "relu"), ("resnet18", "silu"), ("resnetaa50", "silu")]
)
def test_blocks_drop_where_timm_does(name, activation, monkeypatch):
    """Training logits equal timm's, with our masks in place of those that timm draws.

    The factors of a mask commute with ReLU, but not with SiLU.
    """
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    resnet = pytest.importorskip("timm.models.resnet")
    # By default the branches end with zeros, whatever they drop.
    options = {"drop_block_rate": RATE, "zero_init_last": False, "act_layer": activation}
    reference = timm.create_model(name, num_classes=5, **options).train()
    model = create_model(name, num_classes=5, drop_block=RATE, activation=activation)
    variables = from_torch(model.spec, reference.state_dict())
    keys = make_keys(4)
    x = np.random.default_rng(0).standard_normal((4, 160, 160, 3)).astype(np.float32)
    depths = model.spec.depths
    stages = [i for i, depth in enumerate(depths) for _ in range(depth)]
    rows, every_key = stage_drop_blocks(len(depths)), block_keys(keys, len(stages))
    calls = iter([(every_key[j], rows[i]) for j, i in enumerate(stages) if rows[i]])

    def forward(layer, x):
        key, row = next(calls)
        assert (layer.drop_prob, layer.block_size, layer.gamma_scale) == (RATE, *row)
        ones = jnp.ones((len(x), *x.shape[2:], 1))
        factors = np.asarray(drop_block(key, ones, RATE, row)).transpose(0, 3, 1, 2)
        return x * torch.tensor(factors)

    monkeypatch.setattr(resnet.DropBlock2d, "forward", forward)
    with torch.no_grad():
        expected = reference(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    assert next(calls, None) is None
    found = np.asarray(run(lambda x: train_logits(model, variables, x, keys), x))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.slow
def test_dropped_regions_depend_on_the_examples_key_only(net, variables, logits):
    """Single examples under `vmap` and `pmap` are dropped as in one batch."""
    parts = IMAGES.reshape(4, 2, 1, *IMAGES.shape[1:]), make_keys(8).reshape(4, 2, 1)
    found = jax.pmap(jax.vmap(lambda x, k: train_logits(net, variables, x, k)))(*parts)
    np.testing.assert_allclose(found.reshape(8, -1), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_scan_and_remat_drop_the_same_regions(net, variables, logits):
    """In the forward and in the backward pass."""
    keys = make_keys(8)

    def loss(net, variables):
        values = train_logits(net, variables, IMAGES, keys)
        return jnp.sum(values**2), values

    def gradients(net, variables):
        return run(lambda v: jax.grad(lambda v: loss(net, v), has_aux=True)(v), variables)

    found, values = gradients(net.clone(scan=True, remat=True), stack_params(variables))
    np.testing.assert_allclose(values, logits, rtol=1e-4, atol=1e-5)
    expected = stack_params(gradients(net, variables)[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max()),
        found,
        expected,
    )


def test_only_the_last_two_stages_drop_regions(net, variables, logits):
    """Evaluation, the stem and the first stage are those of a network without DropBlock."""
    plain = ResNet(Spec(**TINY))
    found = run(lambda x: net.apply(variables, x, train=False), IMAGES)
    expected = run(lambda x: plain.apply(variables, x, train=False), IMAGES)
    np.testing.assert_array_equal(found, expected)
    assert np.abs(logits - expected).max() > 0.01
    maps = [
        run(lambda x, m=m: train_logits(m, variables, x, make_keys(8)), IMAGES)
        for m in (net.clone(out_indices=(0, 1, 2, 3)), plain.clone(out_indices=(0, 1, 2, 3)))
    ]
    same = [bool((a == b).all()) for a, b in zip(*maps, strict=True)]
    assert same == [True, True, False, False]


@pytest.mark.parametrize("dimensions", [1, 3])
def test_signals_and_volumes_drop_regions(dimensions):
    spec = Spec(**{**TINY, "depths": (1, 1), "widths": (4, 4)}, drop_block=0.5)
    model = ResNet(spec.override(dimensions=dimensions))
    x = jnp.ones((2, *[6] * dimensions, 2))
    variables = randomized(variables_of(model, x.shape))
    evaluated = model.apply(variables, x, train=False)
    dropped = train_logits(model, variables, x, make_keys(2, 1))
    assert np.abs(dropped - evaluated).max() > 1e-3


def block_of_my_own(ops, x, features, stride):
    return ops.conv(x, features, 3, stride, name="conv")


def test_branch_without_place_for_drop_block_raises():
    with pytest.raises(UserError, match="drop_block is 0.1, which drops before the last conv"):
        Spec(**{**TINY, "block": block_of_my_own}, drop_block=0.1)
    first = {**TINY, "block": (block_of_my_own, "basic", "basic")}
    assert Spec(**first, drop_block=0.1).needs_rng


@pytest.mark.parametrize("value", [1.0, -0.1, float("nan"), True, "0.1"])
def test_invalid_rates_of_drop_block_raise(value):
    with pytest.raises(UserError, match=f"drop_block is {value!r}: expected a probability below 1"):
        Spec(**TINY, drop_block=value)
