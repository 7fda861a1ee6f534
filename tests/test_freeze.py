"""Frozen parameters: which ones, and that they cost and change nothing."""

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from helpers.modules import NormNet
from helpers.networks import randomized, run, variables_of

from resflax import UserError, create_model
from resflax.kernels import conv_backend
from resflax.nn import BatchNormMode, unstack_params
from resflax.run.checkpoint import restore_latest
from resflax.train import (
    build,
    create_state,
    default_config,
    fit,
    make_engine,
    make_optimizer,
    make_train_step,
)
from resflax.train.freeze import (
    frozen_batch_norms,
    merge_params,
    moving_statistics,
    split_params,
)

TINY = {"depths": (1, 3), "widths": (4, 8), "stem_width": 4, "num_classes": 5}
SHAPE = (8, 8, 3)


def model(**fields):
    return create_model("cifar_resnet20", **{**TINY, **fields})


def frozen_model(patterns, **fields):
    """Returns a network whose batch norms that `patterns` freeze keep their statistics."""
    net = model(**fields)
    norms = frozen_batch_norms(variables_of(net, (1, *SHAPE)), patterns)
    return net.clone(batch_norm=BatchNormMode(frozen=norms))


def params_of(net):
    return randomized(variables_of(net, (1, *SHAPE))["params"])


def names_of(params):
    return {"/".join(path) for path in flatten_dict(params)}


def batch(n=8):
    rng = np.random.default_rng(0)
    return {
        "image": rng.standard_normal((n, *SHAPE)).astype(np.float32),
        "label": rng.integers(0, 5, n).astype(np.int32),
        "index": np.arange(n, dtype=np.int32),
    }


def assert_same_bits(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_equal(np.asarray(x).tobytes(), y.tobytes()), a, b)


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), a, b)


def changed(before, after):
    return jax.tree.map(lambda a, b: bool((a != b).any()), before, after)


PATTERNS = {
    ("stem*",): lambda name: name.startswith("stem"),
    ("stage[12]*",): lambda name: name.startswith("stage"),
    ("stage2_block2",): lambda name: name.startswith("stage2_block2/"),
    ("*/norm1", "head/bias"): lambda name: "/norm1/" in name or name == "head/bias",
    ("stage*_block1/conv1/kernel",): lambda name: name.endswith("_block1/conv1/kernel"),
    ("*scale", "*bias"): lambda name: name.endswith(("scale", "bias")),
}


@pytest.mark.parametrize("patterns", PATTERNS)
def test_pattern_matches_leaves_and_modules(patterns):
    params = params_of(model())
    trainable, frozen = split_params(params, patterns)
    assert names_of(frozen) == {name for name in names_of(params) if PATTERNS[patterns](name)}
    assert names_of(trainable) | names_of(frozen) == names_of(params)
    assert_same_bits(merge_params(trainable, frozen), params)


@pytest.mark.parametrize("patterns", [("stem*",), ("stage2_block[1234]",), ("*/conv1", "head")])
def test_stacked_blocks_are_frozen_by_the_names_of_the_unstacked(patterns):
    stacked, unrolled = params_of(model(scan=True)), params_of(model())
    expected = split_params(unrolled, patterns)
    for found, part in zip(split_params(stacked, patterns), expected, strict=True):
        assert names_of(unstack_params(found)) == names_of(part)


@pytest.mark.parametrize(
    ("fields", "patterns", "message"),
    [
        ({}, ("stm*",), "pattern 'stm\\*' matches no parameter: expected one such as stem_"),
        ({}, ("stem*", "stage3*"), "pattern 'stage3\\*' matches no parameter: did you mean stage2"),
        ({}, ("stage1_block",), "matches no parameter: did you mean stage1_block1"),
        ({}, ("*",), "freeze matches every parameter: leave some to train, such as the head"),
        ({"scan": True}, ("stage2_block2",), "are stacked: use --config.scan=False"),
    ],
)
def test_invalid_pattern_is_one_line(fields, patterns, message):
    with pytest.raises(UserError, match=message) as e:
        split_params(params_of(model(**fields)), patterns)
    assert "\n" not in str(e.value)


def test_batch_norm_is_frozen_with_both_of_its_parameters():
    variables = variables_of(model(), (1, *SHAPE))
    assert frozen_batch_norms(variables, ("stem*", "*block2/norm1", "*block3/norm2/scale")) == (
        "stage2_block2/norm1",
        "stem_norm",
    )


def train_with_all_gradients(net, initial, steps, frozen):
    """Trains with gradients of all parameters, and updates of the frozen ones set to zero."""
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "/".join(part.key for part in path) in names_of(frozen), initial.params
    )
    optimizer = make_optimizer("sgd", 0.1, weight_decay=0.01)
    optimizer = optax.multi_transform({False: optimizer, True: optax.set_to_zero()}, labels)
    state = create_state(net, optimizer, 0, SHAPE, initial.variables)
    step = jax.jit(make_train_step(net, optimizer))
    for _ in range(steps):
        state, _ = step(state, batch())
    return state


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
def test_trainable_parameters_change_as_with_all_gradients(scan):
    patterns = ("stem*", "stage2_block1", "*norm2")
    net, optimizer = (
        frozen_model(patterns, scan=scan),
        make_optimizer("sgd", 0.1, weight_decay=0.01),
    )
    variables = randomized(variables_of(net, (1, *SHAPE)))
    initial = create_state(net, optimizer, 0, SHAPE, variables, freeze=patterns)
    step, state = jax.jit(make_train_step(net, optimizer, freeze=patterns)), initial
    for _ in range(3):
        state, _ = step(state, batch())
    before, after = (split_params(s.params, patterns) for s in (initial, state))
    expected = train_with_all_gradients(net, initial, 3, before[1])
    assert_close(state.params, expected.params)
    assert_close(state.batch_stats, expected.batch_stats)
    assert_same_bits(before[1], after[1])
    assert all(jax.tree.leaves(changed(before[0], after[0])))
    moved = flatten_dict(changed(initial.batch_stats, state.batch_stats))
    norms = {path: "/".join(path[:-1]) for path in moved}
    assert {norms[path] for path in moved if not moved[path]} == set(net.batch_norm.frozen)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "lamb"])
def test_optimizer_has_arrays_for_trainable_parameters_only(name):
    net, optimizer = NormNet(), make_optimizer(name, 0.1, weight_decay=0.01)
    state = create_state(net, optimizer, 0, (2, 2, 1), freeze=("stem*",))
    moments = 2 if name in ("adamw", "lamb") else 1
    arrays = [leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(arrays) == moments * (6 * 10 + 10)


def flops(f, *arguments):
    return jax.jit(f).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"scan": True}, {"remat": True}])
def test_step_that_trains_the_head_costs_one_forward_pass(fields):
    """A full step costs three: the gradients for images and kernels cost one each."""
    patterns, optimizer = ("stem*", "stage*"), make_optimizer("sgd", 0.1)
    net, images = frozen_model(patterns, **fields), batch()["image"]
    with conv_backend("xla"):
        variables = jax.jit(lambda: net.init(jax.random.key(0), images, train=False))()
        forward = flops(lambda v, x: net.apply(v, x, train=False), variables, images)
        state = create_state(net, optimizer, 0, SHAPE, freeze=patterns)
        head_only = flops(make_train_step(net, optimizer, freeze=patterns), state, batch())
        full = flops(
            make_train_step(net, optimizer), create_state(net, optimizer, 0, SHAPE), batch()
        )
    assert head_only < 1.05 * forward
    assert full > 2.7 * forward


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"ema_decay": 0.9},
        {"grad_accum_steps": 2},
        {"on_nonfinite": "skip"},
        {"ema_decay": 0.9, "grad_accum_steps": 2, "on_nonfinite": "stop"},
    ],
)
def test_frozen_parameters_keep_their_bits(options):
    """Signs of zeros too, which adding a zero would lose."""
    optimizer = make_optimizer("adamw", 0.1, weight_decay=0.1, grad_clip=1.0)
    net, ema = NormNet(), "ema_decay" in options
    state = create_state(net, optimizer, 0, (2, 2, 1), ema=ema, freeze=("stem_conv",))
    kernel = state.params["stem_conv"]["kernel"].at[0].set(-0.0)
    variables = {
        "params": {**state.params, "stem_conv": {**state.params["stem_conv"], "kernel": kernel}},
        "batch_stats": state.batch_stats,
    }
    state = create_state(net, optimizer, 0, (2, 2, 1), variables, ema=ema, freeze=("stem_conv",))
    step = jax.jit(make_train_step(net, optimizer, freeze=("stem_conv",), **options))
    images = np.random.default_rng(0).standard_normal((8, 2, 2, 1)).astype(np.float32)
    new, metrics = step(state, {"image": images, "label": np.arange(8, dtype=np.int32)})
    assert_same_bits(new.params["stem_conv"], state.params["stem_conv"])
    assert (new.params["head"]["kernel"] != state.params["head"]["kernel"]).any()
    if ema:
        assert_same_bits(new.ema["stem_conv"], state.params["stem_conv"])
        assert (new.ema["head"]["kernel"] != state.ema["head"]["kernel"]).any()
    assert np.all(metrics.get("finite", True))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fsdp"), [("pmap", 1), ("mesh", 1), ("mesh", 2)])
def test_engines_agree_on_the_result(name, fsdp):
    patterns, optimizer = ("stem*", "stage1*"), make_optimizer("sgd", 0.05)
    net = frozen_model(patterns)
    initial = create_state(net, optimizer, 0, SHAPE, freeze=patterns)
    expected, _ = jax.jit(make_train_step(net, optimizer, freeze=patterns))(initial, batch())
    engine = make_engine(name, jax.devices()[:4], fsdp=fsdp)
    step = make_train_step(net, optimizer, freeze=patterns, axis_name=engine.axis_name)
    state, _ = engine.compile_train(step)(engine.put_state(initial), engine.shard_batch(batch()))
    found = engine.to_host(state)
    assert_same_bits(
        split_params(found.params, patterns)[1], split_params(initial.params, patterns)[1]
    )
    assert_close(found.params, expected.params)


def make_config(**keys):
    config = default_config()
    config.model, config.epochs, config.batch_size = "cifar_resnet8", 1, 240
    config.spec.update({"depths": (1,), "widths": (8,), "stem_width": 8})
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return config


@pytest.mark.slow
def test_resumed_run_keeps_the_frozen_parameters(tmp_path):
    config = make_config(freeze="stem*, *norm1", ema_decay=0.5, precise_bn_batches=1)
    results = fit(config, tmp_path, silent=True)
    config.epochs = 2
    fit(config, tmp_path, silent=True)
    initial = build(config).init()
    template = {"state": initial, "eval_batch_stats": initial.batch_stats}
    saved = restore_latest(tmp_path / "checkpoints", template).tree
    for tree in (saved["state"].params, saved["state"].ema):
        assert_same_bits(*(split_params(p, ("stem*", "*norm1"))[1] for p in (initial.params, tree)))
    for stats in (saved["state"].batch_stats, saved["eval_batch_stats"]):
        assert_same_bits(initial.batch_stats["stem_norm"], stats["stem_norm"])
        assert (stats["stage1_block1"]["norm2"]["mean"] != 0).any()
    frozen = sum(
        leaf.size for leaf in jax.tree.leaves(split_params(initial.params, ("stem*", "*norm1"))[1])
    )
    assert results["parameters"] - results["trainable_parameters"] == frozen > 0
    config.freeze = "stem*"
    with pytest.raises(UserError, match="freeze"):
        fit(config, tmp_path, silent=True)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"freeze": "stm*"}, "freeze pattern 'stm\\*' matches no parameter"),
        ({"freeze": ("head",), "head_learning_rate": 1.0}, "config.freeze includes the head"),
        ({"freeze": "*/bias,head/k*", "head_learning_rate": 0.1}, "config.freeze includes the"),
    ],
)
def test_config_with_invalid_patterns_raises_user_error(keys, message):
    with pytest.raises(UserError, match=message):
        build(make_config(**keys))


def test_module_without_field_cannot_freeze_a_batch_norm():
    with pytest.raises(UserError, match="no field batch_norm"):
        build(make_config(freeze="stem*"), model=NormNet())
    state = build(make_config(freeze="stem_conv"), model=NormNet()).init()
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim) == 12 + 70


@pytest.mark.parametrize("freeze_stats", [True, False])
@pytest.mark.parametrize("scan", [True, False])
def test_step_freezes_statistics_with_scales_and_biases(scan, freeze_stats):
    """Those of norms with a trained scale change in any case."""
    patterns, optimizer = ("stem_norm", "stage2_block[23]/norm1", "*/norm2/bias"), optax.sgd(0.1)
    net = model(scan=scan)
    state = create_state(net, optimizer, 0, SHAPE, freeze=patterns)
    step = make_train_step(net, optimizer, freeze=patterns, freeze_stats=freeze_stats)
    new, _ = run(step, state, batch())
    moved = flatten_dict(changed(state.batch_stats, new.batch_stats))
    unchanged = {"/".join(path[:-1]) for path, has_moved in moved.items() if not has_moved}
    assert unchanged == (
        set(frozen_batch_norms(state.variables, patterns)) if freeze_stats else set()
    )
    assert "stem_norm" in frozen_batch_norms(state.variables, patterns)


def test_step_needs_a_field_to_freeze_statistics():
    options = {"freeze": ("stem*",)}
    state = create_state(NormNet(), optax.sgd(0.1), 0, (2, 2, 1), **options)
    images = {"image": np.ones((4, 2, 2, 1), np.float32), "label": np.zeros(4, np.int32)}
    with pytest.raises(UserError, match="no field batch_norm of type BatchNormMode, which frozen"):
        jax.eval_shape(make_train_step(NormNet(), optax.sgd(0.1), **options), state, images)
    step = make_train_step(NormNet(), optax.sgd(0.1), **options, freeze_stats=False)
    assert jax.eval_shape(step, state, images)


@pytest.mark.parametrize(
    ("patterns", "norms"),
    [
        (("stem*", "stage1*"), []),
        (("stage1*/conv?",), ["stage1_block1/norm1", "stage1_block1/norm2"]),
        (("stem_conv", "stage1*/conv1"), ["stem_norm"]),
    ],
)
def test_moving_statistics_of_frozen_blocks_are_found(patterns, norms):
    shapes = variables_of(model(), (1, *SHAPE))
    mode = BatchNormMode(frozen=frozen_batch_norms(shapes, patterns))
    assert moving_statistics(shapes, patterns, mode) == norms
    assert moving_statistics(shapes, patterns, BatchNormMode("frozen")) == []


def test_run_says_which_frozen_blocks_change_their_statistics():
    config = default_config()
    config.model, config.freeze = "cifar_resnet8", "stem_conv"
    assert build(config).notes == (
        "freeze: the statistics of 1 batch norm in frozen blocks, such as stem_norm, still change:"
        " freeze scales and biases too, or use --config.batch_norm=frozen",
    )
    config.freeze = "stem*"
    assert build(config).notes == ()
