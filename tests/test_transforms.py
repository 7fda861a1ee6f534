"""Tools of JAX over whole steps: checks of numbers, types and ranks, transfers, symbolic export."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.modules import NormNet, weighted_batch
from helpers.networks import randomized, variables_of
from helpers.small_specs import EXTRA_SPECS, ONE_BLOCK, shrink
from jax import export
from jax.experimental import checkify

from resflax import create_model
from resflax.data import load_dataset, make_augment, normalize
from resflax.data.augment.mix import make_mix
from resflax.kernels import conv_backend, conv_general_dilated
from resflax.nn import ResNet
from resflax.train import (
    Trainer,
    Workdir,
    build,
    create_state,
    default_config,
    loop,
    make_eval_step,
    make_optimizer,
    make_train_step,
)
from resflax.train.config import to_json_dict
from resflax.zoo import get_spec

SHAPE = (8, 8, 3)
FAMILIES = {
    "basic": ("cifar_resnet8", {}),
    "preact": ("cifar_preact_resnet8", {}),
    "bottleneck_se": ("seresnet50", {}),
    "group": ("resnet18", {"norm": "group"}),
    "evonorm": ("resnet18", {"norm": "evonorm_s0"}),
    "filter_response": ("resnet18", {"norm": "frn_tlu", "attention": "eca"}),
    "standardized": ("resnetv2_50x1_bit", {}),
    "bfloat16": ("resnet50d", {"dtype": "bfloat16"}),
    "dropout": ("cifar_resnet8", {"drop_path": 0.2, "drop_block": 0.2, "dropout": 0.2}),
    "batch_ensemble": ("cifar_resnet8", {"ensemble": "batch", "members": 2}),
    "packed": ("cifar_resnet8", {"ensemble": "packed", "members": 2}),
    "normalizer_free": ("nf_resnet26", {}),
    "gate": ("cifar_resnet8", {"gate": "exclusive"}),
    "random_gate": ("cifar_resnet8", {"gate": "dropout"}),
    "order": ("cifar_resnet8", {"order": "norm_after_add"}),
    "signals": ("resnet1d50", {}),
    "clips": ("r2plus1d_18", {}),
}


def make_model(name):
    base, fields = FAMILIES[name]
    return create_model(base, num_classes=3, **ONE_BLOCK, **fields)


def make_step(name):
    """Returns a function of a batch: creates a state, takes a training step and evaluates."""
    model = make_model(name)
    optimizer = make_optimizer("sgd", 0.1, weight_decay=1e-4, grad_clip=1.0)
    train = make_train_step(model, optimizer, ema_decay=0.9, on_nonfinite="skip")
    evaluate = make_eval_step(model)

    def run(batch):
        state = create_state(model, optimizer, 0, batch["image"].shape[1:], ema=True)
        new, metrics = train(state, batch)
        return state, new, metrics, evaluate(new, batch)

    return run


def make_batch(name):
    dimensions = make_model(name).spec.dimensions
    return weighted_batch(4, (8,) * dimensions + (3,))


CHECKS = {
    "ranks": partial(jax.numpy_rank_promotion, "raise"),
    "leaks": jax.checking_leaks,
    "64 bits": partial(jax.enable_x64, True),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", FAMILIES)
def test_steps_trace_under_strict_checks(name, check):
    """The suite runs with strict dtype promotion; in 64 bits the state keeps its dtypes."""
    with CHECKS[check]():
        old, new, metrics, sums = jax.eval_shape(make_step(name), make_batch(name))
    types = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (old, new)]
    assert types[0] == types[1]
    assert {x.dtype for x in jax.tree.leaves((metrics["loss"], sums))} == {np.dtype("float32")}


AUGMENTS = {
    "crop": {"pad_crop": 2, "flip": "random"},
    "inception_crop": {"inception_crop": (0.08, 1, 0.75, 4 / 3)},
    "rand_augment": {"rand_augment": (2, 9)},
    "color": {"color_jitter": (0.4, 0.4, 0.4, 0.1)},
    "rand-m7": {"auto_augment": "rand-m7-mstd0.5-inc1"},
    "rand-t3aw": {"auto_augment": "rand-t3aw"},
    "trivial": {"auto_augment": "trivial", "grayscale": 0.2, "gaussian_blur": 0.2},
    "autoaugment": {"auto_augment": "autoaugment", "solarize": 0.2},
    "augmix": {"auto_augment": "augmix-w2"},
    "3a": {"auto_augment": "3a"},
    "erase": {"random_erasing": 0.5, "cutout": 2},
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", AUGMENTS)
def test_augmentation_traces_under_strict_checks(name, check):
    mode = "elem" if name == "erase" else "pair"
    augment = make_augment(**AUGMENTS[name])
    mix = make_mix(mixup=0.2, cutmix=1.0, mode=mode, probability=0.5, switch_probability=0.3)

    def run(seed, images, targets):
        keys = jax.random.split(jax.random.key(seed), 4)
        images = normalize(augment(keys, images), mean=(0.5,) * 3, std=(0.2,) * 3)
        return mix(keys, images, targets)

    shapes = [
        jax.ShapeDtypeStruct((), np.uint32),
        jax.ShapeDtypeStruct((4, *SHAPE), np.uint8),
        jax.ShapeDtypeStruct((4, 3), np.float32),
    ]
    with CHECKS[check]():
        images, targets = jax.eval_shape(run, *shapes)
    assert images.dtype == targets.dtype == np.float32


def conv(x, w):
    layout, padding = ("NHWC", "HWIO", "NHWC"), ((1, 1), (1, 1))
    return conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=layout)


@pytest.mark.parametrize("name", ["xla", "cpu", "onednn"])
def test_debugging_tools_run_convolutions(name):
    x, w = jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 8))
    expected = jax.lax.conv(x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1), (1, 1), "SAME")
    with conv_backend(name):
        for tool in (jax.disable_jit(), jax.debug_nans(True), jax.debug_infs(True)):
            with tool:
                np.testing.assert_allclose(conv(x, w), expected.transpose(0, 2, 3, 1))
        with jax.debug_nans(True), pytest.raises(FloatingPointError):
            jax.block_until_ready(conv(x * jnp.inf, w * 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["basic", "group"])
@pytest.mark.parametrize("tool", [jax.disable_jit, jax.debug_nans, jax.debug_infs])
def test_debugging_tools_run_a_whole_step(name, tool):
    step = jax.jit(make_step(name))
    expected = step(make_batch(name))
    if name != "group" or tool is not jax.debug_infs:  # max pooling pads with minus infinity
        step = make_step(name)
    with tool(True):
        result = step(make_batch(name))
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def checked_step():
    errors = checkify.user_checks | checkify.index_checks | checkify.float_checks
    return jax.jit(checkify.checkify(make_step("basic"), errors=errors))


@pytest.mark.slow
def test_checkify_finds_only_nans_of_a_step():
    step, batch = checked_step(), make_batch("basic")
    error, _ = step(batch)
    error.throw()
    batch["image"][0, 0, 0, 0] = np.nan
    assert "nan generated" in step(batch)[0].get()


# Networks with every kind of stride, pooling and shortcut, and in every number of dimensions.
SYMBOLIC = {
    "A": shrink(get_spec("cifar_resnet8")),
    "D": shrink(get_spec("resnet50d")),
    "signals": shrink(get_spec("resnet1d18")),
    "clips": shrink(get_spec("r3d_18")),
    **{name: EXTRA_SPECS[name] for name in ("blur", "preact_se_A", "option_C", "dilated_B3")},
}


@pytest.mark.parametrize("name", SYMBOLIC)
def test_export_takes_symbolic_sizes(name):
    model = ResNet(SYMBOLIC[name])
    dimensions = model.spec.dimensions
    shapes = variables_of(model, (1, *[32] * dimensions, 3))
    variables = randomized(shapes)
    apply = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
    sizes = ["d", "h", "w"][-dimensions:]
    constraints = [f"{size} >= 16" for size in sizes]
    n, *space = export.symbolic_shape(", ".join(["n", *sizes]), constraints=constraints)
    images = jax.ShapeDtypeStruct((n, *space, 3), np.float32)
    exported = export.export(apply)(shapes, images)
    shape = (2, *[17, 33, 46][-dimensions:], 3)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    with conv_backend("xla"):
        expected = apply(variables, x)
    np.testing.assert_allclose(exported.call(variables, x), expected, rtol=1e-3, atol=1e-3)


RUNS = {
    "pmap": {"parallel": "pmap"},
    "mesh": {"parallel": "mesh", "mesh.fsdp": 2, "data.placement": "host"},
    "shard_map": {"parallel": "shard_map", "precise_bn_batches": 2},
    "ensemble": {"ensemble.size": 2},
}


@pytest.mark.parametrize("name", RUNS)
def test_fit_makes_explicit_transfers_only(tmp_path, name):
    """Training, evaluation, precise BN and checkpoints."""
    config = default_config()
    config.epochs, config.batch_size, config.checkpoint_every_steps = 1, 256, 2
    config.update_from_flattened_dict(RUNS[name])
    trainer = Trainer(build(config, model=NormNet(), dataset=load_dataset("digits")))
    with jax.transfer_guard("disallow"), Workdir.open(tmp_path, to_json_dict(config)) as workdir:
        results = loop.fit(trainer, workdir)
    assert results["steps"] == trainer.steps


TOOLS = {
    "disable_jit": jax.disable_jit,
    "debug_nans": partial(jax.debug_nans, True),
    "leaks": jax.checking_leaks,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOOLS)
def test_fit_runs_under_debugging_tools(tmp_path, name):
    """A whole run has the losses that it has without them, to rounding."""

    def run(workdir):
        config = default_config()
        config.epochs, config.batch_size, config.parallel = 1, 512, "mesh"
        dataset, devices = load_dataset("digits"), jax.devices()[:1]
        trainer = Trainer(build(config, model=NormNet(), dataset=dataset, devices=devices))
        with Workdir.open(workdir, to_json_dict(config)) as opened:
            return loop.fit(trainer, opened)

    expected = run(tmp_path / "plain")
    with TOOLS[name]():
        results = run(tmp_path / name)
    assert results["steps"] == expected["steps"]
    np.testing.assert_allclose(results["test_loss"], expected["test_loss"], rtol=1e-4)
