"""`scan` and `remat`: the same function as the unrolled network."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.networks import randomized, run, variables_of
from helpers.trees import assert_trees_close

from resflax import UserError, create_model
from resflax.nn import stack_params, unstack_params
from resflax.nn.attention import ATTENTION
from resflax.train import create_state, make_optimizer, make_train_step, params_sha256

TINY = {"depths": (1, 3, 4), "widths": (4, 8, 8), "stem_width": 4, "num_classes": 5}


def model(**fields):
    return create_model("cifar_resnet20", **{**TINY, **fields})


def init(net):
    return run(lambda key: net.init(key, jnp.zeros((1, 8, 8, 3)), train=False), jax.random.key(0))


def random_variables(net):
    return randomized(variables_of(net, (1, 8, 8, 3)))


def batch(n=6):
    rng = np.random.default_rng(0)
    image = rng.standard_normal((n, 8, 8, 3)).astype(np.float32)
    return {"image": image, "label": rng.integers(0, 5, n).astype(np.int32)}


def loss_and_gradients(net, variables):
    def loss(params):
        logits, updated = net.apply(
            {**variables, "params": params}, batch()["image"], train=True, mutable=["batch_stats"]
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch()["label"]).mean()
        return loss, updated["batch_stats"]

    return run(jax.value_and_grad(loss, has_aux=True), variables["params"])


assert_close = partial(assert_trees_close, floor=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(
    "fields",
    [{}, {"preact": True, "block": "bottleneck"}, {"shortcut": "C"}, {"shortcut": "none"}],
    ids=["v1", "preact bottleneck", "option C", "plain"],
)
def test_scan_and_remat_match_the_unrolled_network(fields, remat):
    fields = {"zero_init": False, **fields}
    unrolled = model(scan=False, **fields)
    variables = random_variables(unrolled)
    (loss, stats), grads = loss_and_gradients(unrolled, variables)
    scanned = model(scan=True, remat=remat, **fields)
    (other, other_stats), other_grads = loss_and_gradients(scanned, stack_params(variables))
    np.testing.assert_allclose(other, loss, rtol=1e-6)
    assert_close(unstack_params(other_grads), grads, 1e-4)
    assert_close(unstack_params(other_stats), stats)


@pytest.mark.slow
def test_remat_keeps_parameter_names_and_gradients():
    variables = random_variables(model(scan=False))
    (loss, _), grads = loss_and_gradients(model(scan=False), variables)
    (other, _), other_grads = loss_and_gradients(model(scan=False, remat=True), variables)
    np.testing.assert_allclose(other, loss, rtol=1e-6)
    assert_close(other_grads, grads, 1e-4)


@pytest.mark.parametrize("remat", [False, True])
def test_captured_intermediates_of_scanned_blocks_are_stacked(remat):
    variables, x = random_variables(model(scan=False)), batch()["image"]
    options = {"train": False, "capture_intermediates": True, "mutable": ["intermediates"]}

    def capture(scan, variables):
        net = model(scan=scan, remat=remat)
        return run(lambda v, x: net.apply(v, x, **options)[1]["intermediates"], variables, x)

    expected, actual = capture(False, variables), capture(True, stack_params(variables))
    assert actual["stage3_rest"]["conv1"]["__call__"][0].shape == (3, 6, 2, 2, 8)
    assert_close(unstack_params(actual), expected)


def test_scanned_blocks_keep_all_collections_and_random_streams(monkeypatch):
    """Blocks sow, count their calls and draw random numbers in an attention of the user's own."""

    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x):
            calls = self.variable("cache", "calls", jnp.zeros, (), jnp.int32)
            if self.is_mutable_collection("cache"):
                calls.value += 1
            self.sow("intermediates", "mean", jnp.mean(x))
            noise = jax.random.normal(self.make_rng("noise"), (), x.dtype)
            self.sow("intermediates", "noise", noise)
            return x

    row = lambda ops, x, *_: Attention(name="attention")(x)  # noqa: E731
    monkeypatch.setitem(ATTENTION, "none", row)
    net, x = model(scan=True, depths=(1, 1, 4)), batch()["image"]
    keys = {"params": jax.random.key(0), "noise": jax.random.key(1)}
    variables = run(lambda x: net.init(keys, x, train=False), x)
    options = {"mutable": ["cache", "intermediates"], "rngs": {"noise": keys["noise"]}}
    _, updated = run(lambda v, x: net.apply(v, x, train=False, **options), variables, x)
    before = variables["cache"]["stage3_rest"]["attention"]["calls"]
    after = updated["cache"]["stage3_rest"]["attention"]["calls"]
    np.testing.assert_array_equal(after, before + 1)
    assert after.shape == (3,)
    sown = updated["intermediates"]["stage3_rest"]["attention"]
    assert sown["mean"][0].shape == (3,)
    assert len(np.unique(sown["noise"][0])) == 3


def test_stack_params_is_lossless_for_train_states():
    net = model(scan=False)
    state = create_state(net, make_optimizer("sgd", 0.1), 0, (8, 8, 3), random_variables(net))
    restored = unstack_params(stack_params(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert params_sha256(restored) == params_sha256(state)
    stacked = stack_params(state)
    assert set(stacked.params) == {
        "stem_conv", "stem_norm", "stage1_block1", "stage2_block1", "stage2_rest",
        "stage3_block1", "stage3_rest", "head",
    }  # fmt: skip
    assert stacked.params["stage3_rest"]["conv1"]["kernel"].shape == (3, 3, 3, 8, 8)


def test_scanned_init_has_the_layout_of_stack_params():
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)  # noqa: E731
    unrolled, scanned = random_variables(model(scan=False)), variables_of(model(scan=True))
    assert shapes(stack_params(unrolled)) == shapes(scanned)


@pytest.mark.slow
def test_scanned_blocks_have_different_initial_values():
    kernel = init(model(scan=True))["params"]["stage3_rest"]["conv1"]["kernel"]
    assert len({np.asarray(k).tobytes() for k in kernel}) == 3


@pytest.mark.slow
def test_traced_step_does_not_grow_with_depth():
    def equations(n):
        net = model(scan=True, depths=(n, n, n))
        optimizer = make_optimizer("sgd", 0.1)
        state = jax.eval_shape(lambda: create_state(net, optimizer, 0, (8, 8, 3)))
        jaxpr = jax.make_jaxpr(make_train_step(net, optimizer))(state, batch())
        return str(jaxpr).count(" = ")

    assert equations(40) == equations(4)


def test_scan_default_depends_on_depth_and_stem():
    assert create_model("cifar_resnet110").scan
    assert create_model("cifar_resnet1202").scan
    assert not create_model("cifar_resnet110", scan=False).scan
    assert not create_model("cifar_resnet56").scan
    assert not create_model("resnet152").scan


@pytest.mark.parametrize("field", ["scan", "remat"])
def test_non_boolean_flags_raise(field):
    with pytest.raises(UserError, match=f"{field} is 'yes': expected True or False"):
        create_model("cifar_resnet20", **{field: "yes"})
