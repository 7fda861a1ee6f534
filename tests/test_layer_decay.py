"""Learning rates by layer, against timm's and against the updates of one step."""

from functools import partial

import jax
import numpy as np
import pytest
from helpers.modules import LinearClassifier
from helpers.networks import randomized, variables_of

from resflax import UserError, create_model
from resflax.nn import unstack_params
from resflax.train import build, default_config
from resflax.train.layer_decay import layer_scales
from resflax.train.learning_rate import pattern_factors, scale_updates
from resflax.weights import from_torch

TINY = {"depths": (1, 3), "widths": (4, 8), "stem_width": 4, "num_classes": 5}


def params_of(net):
    return randomized(variables_of(net, (1, 32, 32, 3))["params"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet50d", "resnetv2_50", "seresnet50"])
def test_scales_match_those_of_timm(name):
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    from timm.optim import param_groups_layer_decay

    net = timm.create_model(name)
    state_dict = dict(net.state_dict())
    for group in param_groups_layer_decay(net, layer_decay=0.75):
        for parameter in group["params"]:
            torch.nn.init.constant_(parameter, group["lr_scale"])
    expected = from_torch(name, state_dict)["params"]
    scales = layer_scales(expected, create_model(name).spec.depths, layer_decay=0.75)
    jax.tree.map(
        lambda s, e: np.testing.assert_allclose(e, np.full_like(e, s), rtol=1e-6), scales, expected
    )


def test_scales_of_stacked_blocks_are_those_of_each_block():
    stacked, unrolled = (
        params_of(create_model("cifar_resnet20", scan=True, **TINY)),
        params_of(create_model("cifar_resnet20", **TINY)),
    )
    scaled = []
    for params in (stacked, unrolled):
        transform = scale_updates(partial(layer_scales, depths=(1, 3), layer_decay=0.5))
        ones = jax.tree.map(np.ones_like, params)
        scaled.append(transform.update(ones, transform.init(params))[0])
    jax.tree.map(np.testing.assert_array_equal, unstack_params(scaled[0]), scaled[1])
    layers = ["stem_conv", "stage1_block1", *(f"stage2_block{i}" for i in (1, 2, 3)), "head"]
    first = [
        np.unique(np.concatenate([x.ravel() for x in jax.tree.leaves(scaled[1][n])]))
        for n in layers
    ]
    assert [x.tolist() for x in first] == [[0.5**5], [0.5**4], [0.5**3], [0.25], [0.5], [1.0]]
    assert jax.tree.leaves(transform.init(stacked)) == []


@pytest.mark.slow
def test_config_scales_the_update_of_each_layer():
    """One step of SGD with momentum: the updates are those without decay times the scales."""
    updates = []
    rates = {"head_learning_rate": 0.2, "learning_rate_factors": (("stage2_block[12]", 0.3),)}
    for keys in ({}, {"layer_decay": 0.5, **rates}):
        config = default_config()
        config.model, config.learning_rate, config.schedule = "cifar_resnet20", 0.1, "constant"
        config.spec.update({"depths": (1, 3), "widths": (4, 8), "stem_width": 4})
        config.update(keys)
        run = build(config)
        state = run.init()
        grads = randomized(state.params)
        with jax.numpy_dtype_promotion("standard"):
            updates.append(run.optimizer.update(grads, state.opt_state, state.params)[0])
    expected = {
        "stem_conv": 0.5**5, "stem_norm": 0.5**5, "stage1_block1": 0.5**4,
        "stage2_block1": 0.3 * 0.5**3, "stage2_block2": 0.3 * 0.5**2, "stage2_block3": 0.5,
        "head": 2.0,
    }  # fmt: skip
    for module, scale in expected.items():
        for a, b in zip(*(jax.tree.leaves(u[module]) for u in updates), strict=True):
            np.testing.assert_allclose(b, a * np.float32(scale), rtol=1e-6)


def test_other_module_with_layer_decay_raises_user_error():
    config = default_config()
    config.layer_decay = 0.5
    with pytest.raises(UserError, match="need the layers of a resflax ResNet"):
        build(config, model=LinearClassifier())


def test_factors_of_stacked_blocks_are_those_of_each_block():
    factors = [("stage2_block3/conv?/kernel", 0.1), ("*/kernel", 3.0), ("head", 2.0)]
    scaled = []
    for scan in (True, False):
        params = params_of(create_model("cifar_resnet20", scan=scan, **TINY))
        transform = scale_updates(partial(pattern_factors, factors=factors))
        scaled.append(transform.update(jax.tree.map(np.ones_like, params), None)[0])
    jax.tree.map(np.testing.assert_array_equal, unstack_params(scaled[0]), scaled[1])
    block = scaled[1]["stage2_block3"]
    values = [block["conv1"]["kernel"], block["norm1"]["scale"], *scaled[1]["head"].values()]
    expected = [0.3, 1.0, 2.0, 6.0]  # the head has a bias and a kernel, in this order
    assert [np.unique(x).tolist() for x in values] == [[np.float32(x)] for x in expected]


def test_factor_without_parameters_raises_user_error():
    config = default_config()
    config.model = "cifar_resnet8"
    config.learning_rate_factors = (("stem_conf", 0.1),)
    with pytest.raises(UserError, match="'stem_conf' matches no .* is trained: did you mean stem_"):
        build(config)
    config.learning_rate_factors, config.freeze = (("head", 0.1),), "head"
    with pytest.raises(
        UserError, match="learning_rate_factors 'head' matches no parameter that is trained"
    ):
        build(config)
