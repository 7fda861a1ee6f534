"""Functions of the user's own: their faults, in ensembles, and batch norms of their own."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.networks import randomized, run, variables_of

from resflax import UserError
from resflax.distributed import make_engine
from resflax.inference import make_predictor
from resflax.nn import ConvRow, ResNet, Spec, split_members
from resflax.nn.batch_norm import BatchNorm
from resflax.nn.functions import import_function
from resflax.nn.gates import Gate
from resflax.nn.stems import Stem, StemConv
from resflax.train import create_state, default_config, make_train_step, recompute_batch_stats
from resflax.train.config_rules import check_config
from resflax.train.freeze import freeze_statistics
from resflax.weights.shapes import has_batch_stats

SMALL = {"depths": (1, 1), "widths": (8, 16), "stem": "cifar", "stem_width": 8, "num_classes": 3}
IMAGES = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)


def small(**fields):
    return ResNet(Spec(**(SMALL | {"block": "basic"} | fields)))


def block(ops, x, features, stride):
    """With layers of the network, and with a module that it does not know."""
    y = ops.norm_act(ops.conv(x, features, 3, stride, name="conv1"), name="first")
    return nn.Dense(features, name="mix")(ops.norm(ops.conv(y, features, 1, name="b"), name="last"))


def attention(ops, x, channels):
    return x * jax.nn.sigmoid(ops.dense(x.mean((1, 2)), x.shape[-1], name="own"))[:, None, None]


def stem(ops, x, features):
    return ops.norm_act(ops.conv(x, features, 3, name="patches"), name="stem_norm")


def project(ops, x, features, stride):
    return ops.conv(x, features, 1, stride, name="W")


def head(ops, x, features):
    return ops.dense(x, features, name="head") / 2


def largest(ops, x):
    return x.max((1, 2))


def linen_norm(ops, x, *, name, zero):
    init = nn.initializers.zeros if zero else nn.initializers.ones
    fields = {"scale_init": init, "axis_name": ops.axis_name, "dtype": ops.dtype, "name": name}
    return nn.BatchNorm(not ops.train, momentum=0.9, **fields)(x)


def norm_with_mode(ops, x, *, name, zero):
    norm = BatchNorm(ops.train, axis_name=ops.axis_name, mode=ops.batch_norm, name=name)
    return jnp.sign(x) * norm(jnp.abs(x))


def odd_norm(ops, x, *, name, zero):
    class Largest(nn.Module):
        @nn.compact
        def __call__(self, x):
            largest = self.variable("batch_stats", "largest", jnp.ones, ())
            if ops.train and not self.is_initializing():
                largest.value = jnp.max(x)
            return x / largest.value

    return Largest(name=name)(x)


@pytest.mark.parametrize(
    "fields",
    [
        {"ensemble": "batch", "block": block, "attention": attention},
        {"ensemble": "batch", "stem": stem, "shortcut": project, "pooling": largest},
        {"ensemble": "mimo", "block": block, "attention": attention, "pooling": largest},
        {"ensemble": "packed", "alpha": 2.0, "activation": jnp.sin, "conv": jax.lax.conv},
        {"ensemble": "packed", "alpha": 2.0, "stem": Stem((StemConv(5),))},
    ],
)
def test_members_with_own_parts_are_those_of_the_ensemble(fields):
    """Each is a single network with the same logits."""
    if fields.get("conv"):
        fields = fields | {"conv": lambda *a, **k: 2 * jax.lax.conv_general_dilated(*a, **k)}
    model = small(members=2, **fields)
    variables = randomized(variables_of(model, IMAGES.shape))
    members, single = split_members(model.spec, variables), ResNet(model.spec.member)

    def both(variables, members):
        alone = [single.apply(member, IMAGES, train=False) for member in members]
        return model.apply(variables, IMAGES, train=False, members=True), jnp.stack(alone)

    together, alone = run(both, variables, members)
    assert np.abs(together[0] - together[1]).max() > 1e-2
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("ensemble", "fields"),
    [
        ("packed", {"block": block}), ("packed", {"stem": stem}), ("packed", {"pooling": largest}),
        ("packed", {"shortcut": project}), ("packed", {"head": head}),
        ("packed", {"norm": linen_norm}), ("batch", {"norm": linen_norm}),
        ("batch", {"head": head}), ("mimo", {"head": head}), ("mimo", {"stem": stem}),
    ],
)  # fmt: skip
def test_part_that_would_mix_members_is_refused(ensemble, fields):
    (field,) = fields
    message = f"^{field} is test_own_parts:.*, and ensemble '{ensemble}' needs a shipped one.*: exp"
    with pytest.raises(UserError, match=message):
        small(ensemble=ensemble, members=2, **fields)


def test_batch_statistics_of_own_parts_are_found():
    assert has_batch_stats(small(norm=linen_norm).spec)
    assert has_batch_stats(small(norm="none", block=block_with_batch_norm).spec)
    assert not has_batch_stats(small(norm=lambda ops, x, *, name, zero: x).spec)


def block_with_batch_norm(ops, x, features, stride):
    return nn.BatchNorm(not ops.train)(ops.conv(x, features, 3, stride, name="conv"))


def config_of(norm, **keys):
    config = default_config()
    config.update({"model": "cifar_resnet8", **keys})
    config.spec.norm = f"test_own_parts:{norm}"
    return config


def test_config_counts_an_own_batch_norm():
    check_config(config_of("linen_norm", precise_bn_batches=4))
    with pytest.raises(UserError, match="ema_decay is 0.9: averaged weights need batch statistics"):
        check_config(config_of("linen_norm", ema_decay=0.9))
    with pytest.raises(UserError, match="precise_bn_batches is 4, but the model has no batch norm"):
        check_config(config_of("identity_norm", precise_bn_batches=4))


def identity_norm(ops, x, *, name, zero):
    return x


def test_precise_batch_norm_of_an_own_norm_is_of_all_examples():
    """The first norm's input does not depend on other norms: its moments follow from the images."""
    model = small(norm=linen_norm, depths=(1,), widths=(8,))
    variables = randomized(variables_of(model, IMAGES.shape))
    found = recompute_batch_stats(model, variables, [IMAGES[:2], IMAGES[2:]])["batch_stats"]
    kernel = variables["params"]["stem_conv"]["kernel"]
    y = jax.lax.conv_general_dilated(
        IMAGES, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(found["stem_norm"]["mean"], y.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["stem_norm"]["var"], y.var((0, 1, 2)), rtol=1e-4)


def test_precise_batch_norm_of_other_statistics_is_refused():
    model = small(norm=odd_norm, depths=(1,), widths=(8,))
    variables = randomized(variables_of(model, IMAGES.shape))
    with pytest.raises(
        UserError, match="cannot compute the batch statistics stage1_block1/norm1/la"
    ):
        recompute_batch_stats(model, variables, [IMAGES])


def test_own_batch_norm_is_frozen_if_it_follows_the_mode():
    model = small(norm=norm_with_mode, depths=(1,), widths=(8,))
    variables = randomized(variables_of(model, IMAGES.shape))
    model, before = freeze_statistics(model, variables, ("stem*",)), variables["batch_stats"]
    _, new = run(lambda v: model.apply(v, IMAGES, train=True, mutable=["batch_stats"]), variables)
    after = new["batch_stats"]
    np.testing.assert_array_equal(after["stem_norm"]["mean"], before["stem_norm"]["mean"])
    first = "stage1_block1"
    assert np.abs(after[first]["norm1"]["mean"] - before[first]["norm1"]["mean"]).max() > 1e-3
    with pytest.raises(
        UserError, match="stem_norm has batch statistics of a part of your own .norm"
    ):
        freeze_statistics(small(norm=linen_norm, depths=(1,), widths=(8,)), variables, ("stem*",))


def local_norm(ops, x, *, name, zero):
    return nn.BatchNorm(not ops.train, momentum=0.9, name=name)(x)


@pytest.mark.parametrize("parallel", ["pmap", "shard_map"])
def test_batch_norm_of_a_part_of_the_batch_is_refused(parallel):
    model = small(norm=local_norm)
    engine, optimizer = make_engine(parallel, jax.devices()[:2]), optax.sgd(0.1)
    step = engine.compile_train(make_train_step(model, optimizer, axis_name=engine.axis_name))
    state = engine.put_state(create_state(model, optimizer, 0, IMAGES.shape[1:]))
    batch = {"image": IMAGES, "label": np.arange(4, dtype=np.int32) % 3}
    message = "BatchNorm 'stage1_block1/norm1' has no axis_name|BatchNorm 'stem_norm' has no axis"
    with pytest.raises(UserError, match=message):
        step(state, engine.shard_batch(batch))


def test_batch_norm_without_axis_trains_on_one_device():
    model, optimizer = small(norm=local_norm), optax.sgd(0.1)
    engine = make_engine("pmap", jax.devices()[:1])
    step = engine.compile_train(make_train_step(model, optimizer, axis_name=engine.axis_name))
    state = engine.put_state(create_state(model, optimizer, 0, IMAGES.shape[1:]))
    batch = {"image": IMAGES, "label": np.arange(4, dtype=np.int32) % 3}
    _, metrics = step(state, engine.shard_batch(batch))
    assert np.isfinite(engine.to_host(metrics)["loss"])


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64])
def test_parts_must_return_floating_point_numbers(dtype):
    model = small(activation=lambda x: jnp.maximum(x, 0).astype(dtype))
    with pytest.raises(
        UserError, match=f"returns {jnp.dtype(dtype)} for x of .*: expected floating"
    ):
        jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES, train=False))


@pytest.mark.parametrize("fields", [{"stem": stem}, {"pooling": largest}, {"head": head}])
def test_own_parts_export_for_any_batch(fields):
    model = small(**fields)
    variables = randomized(variables_of(model, IMAGES.shape))
    n = jax.export.symbolic_shape("n")[0]
    shape = jax.ShapeDtypeStruct((n, *IMAGES.shape[1:]), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: model.apply(variables, x, train=False)))(shape)
    expected = model.apply(variables, IMAGES[:3], train=False)
    np.testing.assert_allclose(exported.call(IMAGES[:3]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_capture_in_bfloat16_returns_outputs_not_kernels(scan):
    """Where a 1x1 convolution and its batch norm are computed as one in training."""
    spec = Spec(**(SMALL | {"block": "bottleneck", "depths": (2, 1)}))
    model = ResNet(spec, dtype=jnp.bfloat16, scan=scan)
    variables = randomized(variables_of(model, IMAGES.shape))
    names = ("stage1_block1/conv3", "stage1_block2/conv3", "stage1_block1/Ws")
    _, captured = model.apply(variables, IMAGES, train=True, capture=names, mutable=["batch_stats"])
    assert {name: x.shape for name, x in captured.items()} == dict.fromkeys(names, (4, 8, 8, 32))
    exact = ResNet(spec, scan=scan).apply(
        variables, IMAGES, train=True, capture=names, mutable=["batch_stats"]
    )[1]
    for name in names:
        scale = float(jnp.max(jnp.abs(exact[name])))
        np.testing.assert_allclose(
            captured[name].astype(jnp.float32), exact[name], atol=0.1 * scale
        )


@dataclass
class Multiply:
    factor: float = 2.0

    def __call__(self, x):
        return self.factor * x


@dataclass
class Sum:
    def __call__(self, h, y, s, keys):
        return y + s


def fail(x):
    raise ValueError("\n")


class WithSetup(nn.Module):
    def setup(self):
        self.dense = nn.Dense(8)

    def __call__(self, x):
        return self.dense(x)


outer = nn.Dense(8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": lambda ops, x, features: ops.dense(x, 2, name="h")},
         r"head .* returns shape \(1, 2\) for x of .*: expected an array of shape \(1, 3\)"),
        ({"head": lambda ops, x, features: (x[0], x)}, r"expected an array of shape \(1, ...\)"),
        ({"activation": fail}, r"fail fails on x of shape .*: ValueError: ; expected \(x\)"),
        ({"activation": nn.PReLU()}, r"made outside: make it .* `lambda x: nn.PReLU\(...\)\(x\)`"),
        ({"attention": lambda ops, x, channels: outer(x)},
         r"make it in the function, `lambda ops, x, channels: nn.Dense\(...\)\(x\)`"),
        ({"attention": jax.jit(attention)}, "ops is not an array: apply jax.jit to the whole"),
        ({"attention": lambda ops, x, channels: jax.jit(lambda o: o.dense(x, 8, name="d"))(ops)},
         "ops is not an array: apply jax.jit to the whole"),
        ({"activation": WithSetup()}, r"made outside: make it .* `lambda x: WithSetup\("),
    ],
)  # fmt: skip
def test_fault_of_a_function_is_one_line(fields, message):
    model = small(**fields, depths=(1,), widths=(16,))
    with pytest.raises(UserError, match=message) as error:
        jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES[:1], train=False))
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gate": Gate(Sum())}, r"gate is Gate\(combine=.*Sum\(\)\): .* values that have a hash"),
        ({"activation": np.poly1d([1, 0])}, "activation is numpy:poly1d.., which has no hash"),
        (
            {"activation": Multiply()},
            r"activation is .*Multiply\(\), which has no hash.*`lambda x: f\(x\)`",
        ),
        ({"block": ConvRow(3)}, r"block is ConvRow\(kernel=3\): .* or a tuple of ConvRow"),
        ({"block": ("basic", ConvRow(3))}, r"block is ConvRow\(kernel=3\): .* a tuple of ConvRow"),
    ],
)
def test_value_that_is_no_part_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        small(**fields)


def test_dropout_in_a_part_names_that_of_the_spec():
    model = small(pooling=lambda ops, x: nn.Dropout(0.5, deterministic=False)(x.mean((1, 2))))
    with pytest.raises(UserError, match="own parts have no random keys, use the spec.s dropout"):
        jax.eval_shape(
            lambda v: model.apply(v, IMAGES, train=False), variables_of(model, IMAGES.shape)
        )


def upsampling(ops, x, features):
    return ops.conv(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2), features, 3, name="stem")


def test_stem_that_upsamples_has_no_feature_maps():
    model = small(stem=upsampling)
    with pytest.raises(UserError, match=r"^stem \S*upsampling returns larger maps than its images"):
        _ = model.spec.features


def test_predictor_of_a_module_is_refused():
    with pytest.raises(UserError, match="^spec is a ResNet: expected a Spec, such as the attribut"):
        make_predictor(small(), {})


def test_import_of_an_unknown_function_names_the_module():
    with pytest.raises(UserError, match="module resflax.nn.heads has no 'averag': did you mean av"):
        import_function("resflax.nn.heads:averag")
    with pytest.raises(UserError, match="linear has no '<locals>': define it at the top of a"):
        import_function("resflax.nn.heads:linear.<locals>.inner")
