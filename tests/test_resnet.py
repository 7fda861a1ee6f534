"""`ResNet` against an independent implementation in NumPy and float64."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.networks import apply, randomized, run, variables_of

from resflax import create_model
from resflax.nn import ResNet, Spec

TINY = {"depths": (1, 2), "widths": (4, 8), "stem_width": 4, "stem": "cifar", "num_classes": 5}


def init(model, shape):
    return run(lambda key: model.init(key, jnp.zeros(shape), train=False), jax.random.key(0))


class Reference:
    """ResNet in NumPy and float64, sharing no code with the library."""

    strides = {"basic": (2, 1), "bottleneck": (1, 2, 1), "bottleneck_v1": (2, 1, 1)}  # noqa: RUF012

    def __init__(self, spec, variables):
        self.spec = spec
        self.p, self.s = variables["params"], variables["batch_stats"]

    def conv(self, x, w, stride):
        w = np.asarray(w, np.float64)
        k = w.shape[0]
        x = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))
        return np.einsum("nhwcij,ijco->nhwo", windows[:, ::stride, ::stride], w)

    def norm(self, x, p, s):
        p, s = ({k: np.asarray(v, np.float64) for k, v in d.items()} for d in (p, s))
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    def block(self, name, x, width, stride):
        p, s, spec = self.p[name], self.s[name], self.spec
        relu = lambda x: np.maximum(x, 0)  # noqa: E731
        n = len(self.strides[spec.block])
        h = relu(self.norm(x, p["norm1"], s["norm1"])) if spec.preact else x
        y = h
        for i in range(1, n + 1):
            is_strided = self.strides[spec.block][i - 1] == 2
            if spec.preact and i > 1:
                y = relu(self.norm(y, p[f"norm{i}"], s[f"norm{i}"]))
            y = self.conv(y, p[f"conv{i}"]["kernel"], stride if is_strided else 1)
            if not spec.preact:
                y = self.norm(y, p[f"norm{i}"], s[f"norm{i}"])
                y = relu(y) if i < n else y
        shapes_differ = x.shape != y.shape
        if spec.shortcut == "none":
            shortcut = 0
        elif spec.shortcut == "A" and shapes_differ:
            extra = y.shape[-1] - h.shape[-1]
            pad = (extra // 2, extra - extra // 2)
            shortcut = np.pad(h[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), pad))
        elif spec.shortcut == "C" or (spec.shortcut == "B" and shapes_differ):
            shortcut = self.conv(h, p["Ws"]["kernel"], stride)
            shortcut = shortcut if spec.preact else self.norm(shortcut, p["Ws_norm"], s["Ws_norm"])
        else:
            shortcut = x
        return y + shortcut if spec.preact else relu(y + shortcut)

    def __call__(self, x):
        spec, p, s = self.spec, self.p, self.s
        imagenet = spec.stem == "imagenet"
        x = self.conv(np.asarray(x, np.float64), p["stem_conv"]["kernel"], 2 if imagenet else 1)
        if not spec.preact:
            x = np.maximum(self.norm(x, p["stem_norm"], s["stem_norm"]), 0)
        if imagenet:
            x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
            x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max(
                (-1, -2)
            )
        for i, (depth, width) in enumerate(zip(spec.depths, spec.widths, strict=True), start=1):
            for j in range(1, depth + 1):
                x = self.block(f"stage{i}_block{j}", x, width, 2 if i > 1 and j == 1 else 1)
        if spec.preact:
            x = np.maximum(self.norm(x, p["head_norm"], s["head_norm"]), 0)
        return x.mean((1, 2)) @ p["head"]["kernel"] + p["head"]["bias"]


VARIANTS = list(
    itertools.product(
        ("basic", "bottleneck", "bottleneck_v1"), ("A", "B", "C", "none"), (False, True)
    )
)


@pytest.mark.slow
@pytest.mark.parametrize(("block", "shortcut", "preact"), VARIANTS)
def test_variants_are_the_numpy_reference(block, shortcut, preact):
    stem = "imagenet" if shortcut == "B" else "cifar"
    spec = Spec(**{**TINY, "stem": stem}, block=block, shortcut=shortcut, preact=preact)
    model = ResNet(spec)
    x = np.random.default_rng(2).standard_normal((2, 11, 14, 3)).astype(np.float32)
    variables = randomized(jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False)))
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)
    expected = Reference(spec, variables)(x)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def conv_strides(spec, size=8):
    """Returns (kernel, stride) of each convolution in the second stage's first block, as traced."""
    model = ResNet(spec)
    x = jnp.zeros((1, size, size, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    jaxpr = jax.make_jaxpr(lambda v: model.apply(v, x, train=False))(variables)
    convs = [e.params["params"] for e in jaxpr.eqns if e.primitive.name == "resflax_conv"]
    return [(p.kernel_size[0], p.strides[0]) for p in convs][-4:]


@pytest.mark.slow
def test_bottleneck_strides_first_1x1_in_v1_and_3x3_in_v15():
    fields = {**TINY, "depths": (1, 1)}
    assert conv_strides(Spec(**fields, block="bottleneck_v1")) == [(1, 2), (3, 1), (1, 1), (1, 2)]
    assert conv_strides(Spec(**fields, block="bottleneck")) == [(1, 1), (3, 2), (1, 1), (1, 2)]


@pytest.mark.slow
def test_kernels_are_initialized_he_normal_fan_out():
    model = create_model("resnet18", stem="cifar")
    params = init(model, (1, 8, 8, 3))["params"]
    kernel = np.asarray(params["stage4_block2"]["conv2"]["kernel"], np.float64)
    n = kernel.size
    variance = 2 / (3 * 3 * 512)
    # Mean and variance of n normal samples are within five standard deviations.
    assert abs(kernel.mean()) < 5 * np.sqrt(variance / n)
    assert abs(kernel.var() / variance - 1) < 5 * np.sqrt(2 / n)
    # Normal, not truncated at two standard deviations.
    assert np.abs(kernel).max() > 4 * np.sqrt(variance)


def block_outputs(model, variables, x):
    """Returns the output of every block by name."""
    forward = partial(model.apply, train=False, capture_intermediates=True, mutable="intermediates")
    _, state = run(forward, variables, x)
    return {
        name: out["__call__"][0]
        for name, out in state["intermediates"].items()
        if isinstance(out, dict)
    }


@pytest.mark.slow
@pytest.mark.parametrize("preact", [False, True])
def test_zero_init_makes_blocks_their_shortcut_bit_for_bit(preact):
    model = ResNet(Spec(**TINY, block="bottleneck", shortcut="A", zero_init=True, preact=preact))
    out = block_outputs(
        model, init(model, (1, 8, 8, 3)), jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    )
    before, after = (np.asarray(out[f"stage2_block{j}"]) for j in (1, 2))
    assert np.abs(before).max() > 0
    assert before.tobytes() == after.tobytes()


@pytest.mark.slow
def test_zero_init_is_ignored_without_shortcuts():
    model = ResNet(Spec(**TINY, block="basic", shortcut="none", zero_init=True))
    scales = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(init(model, (1, 8, 8, 3))["params"])
        if path[-1].key == "scale"
    ]
    assert len(scales) == 7
    assert all((scale == 1).all() for scale in scales)


@pytest.mark.slow
def test_preact_identity_path_is_unchanged():
    model = ResNet(Spec(**TINY, block="basic", preact=True, shortcut="A"))
    variables = init(model, (1, 8, 8, 3))
    variables = jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.zeros_like(p) if "conv2" in str(path) else p, variables
    )
    out = block_outputs(model, variables, jax.random.normal(jax.random.key(1), (2, 8, 8, 3)))
    assert (np.asarray(out["stem_conv"]) < 0).any()
    np.testing.assert_array_equal(out["stem_conv"], out["stage1_block1"])
    np.testing.assert_array_equal(out["stage2_block1"], out["stage2_block2"])


@pytest.mark.slow
def test_training_uses_and_records_batch_statistics():
    model = ResNet(Spec(**TINY, block="basic"))
    variables = init(model, (1, 8, 8, 3))
    x = np.random.default_rng(0).standard_normal((16, 8, 8, 3)).astype(np.float32)
    train = partial(model.apply, train=True, mutable=["batch_stats"])
    logits, updated = run(train, variables, x)
    assert not np.allclose(logits, apply(model, variables, x))
    conv = Reference(model.spec, variables).conv(
        x.astype(np.float64), variables["params"]["stem_conv"]["kernel"], 1
    )
    stats = updated["batch_stats"]["stem_norm"]
    np.testing.assert_allclose(stats["mean"], 0.1 * conv.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * conv.var((0, 1, 2)), rtol=1e-4)


@pytest.mark.slow
def test_bfloat16_network_stores_float32_variables():
    model = create_model("cifar_resnet20", dtype="bfloat16")
    shapes = variables_of(model, (1, 8, 8, 1))
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {np.dtype("float32")}
    variables = randomized(shapes)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    logits = apply(model, variables, x)
    assert logits.dtype == jnp.bfloat16
    exact = apply(create_model("cifar_resnet20"), variables, x)
    np.testing.assert_allclose(logits.astype(jnp.float32), exact, atol=0.1 * np.abs(exact).max())


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (2, 28, 28, 1), (1, 32, 32, 3), (1, 7, 9, 2)])
def test_image_shape_is_taken_from_the_input(shape):
    model = create_model("cifar_resnet20", num_classes=7)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape), train=False))
    out = jax.eval_shape(lambda v: model.apply(v, jnp.zeros(shape), train=False), variables)
    assert out.shape == (shape[0], 7)
    assert variables["params"]["stem_conv"]["kernel"].shape == (3, 3, shape[-1], 16)


@pytest.mark.slow
def test_zero_classes_return_pooled_features():
    model = create_model("cifar_resnet20", num_classes=0)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    )
    out = jax.eval_shape(lambda v: model.apply(v, jnp.zeros((3, 8, 8, 3)), train=False), variables)
    assert out.shape == (3, 64)
    assert "head" not in variables["params"]


def test_image_without_batch_axis_raises():
    with pytest.raises(ValueError, match=r"\(n, height, width, channels\)"):
        create_model("resnet18").init(jax.random.key(0), jnp.zeros((32, 32, 3)), train=False)


def test_train_argument_has_no_default():
    with pytest.raises(TypeError, match="train"):
        create_model("resnet18").init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
