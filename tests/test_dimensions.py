"""Networks of signals and of volumes against those of images, which they extend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.networks import apply, randomized, run, variables_of
from helpers.small_specs import shrink
from helpers.trees import assert_trees_close

from resflax import create_model
from resflax.errors import UserError
from resflax.nn import Spec, stack_params
from resflax.zoo import get_spec

PARTS = {
    "A": {"shortcut": "A", "stem_width": 32},
    "C": {"shortcut": "C"},
    "D_deep": {"shortcut": "D", "stem": "deep"},
    "preact_se": {"preact": True, "attention": "se"},
    "rs_eca": {"stem": "rs", "attention": "eca"},
    "blur": {"antialias": "blur"},
    "average": {"antialias": "average"},
    "group": {"norm": "group"},
    "evonorm": {"norm": "evonorm_s0"},
    "frn": {"norm": "frn_tlu", "stem": "cifar", "stem_width": 32},
    "bit": {"stem": "bit"},
    "dilated_B3": {
        "shortcut": "B3",
        "output_stride": 8,
        "depths": (1, 1, 2),
        "widths": (32, 64, 64),
    },
    "batch_ensemble": {"ensemble": "batch", "members": 2},
    "mimo": {"ensemble": "mimo", "members": 2},
}
VIDEO_BLOCKS = {"basic_spatial": "video", "basic_2plus1d": "video_2plus1d"}


def make(part, dimensions, **kwargs):
    return create_model(
        shrink(get_spec("resnet18"), dimensions=dimensions, **PARTS[part]), **kwargs
    )


def input_of(dimensions):
    shape = (2, *[12, 10, 8][:dimensions], 3)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def widened(variables):
    """Returns variables of one more dimension, whose kernels have zeros around the given ones."""

    def widen(path, x):
        if path[-1].key != "kernel" or x.ndim < 3 or path[-2].key == "eca_conv":
            return x
        size = x.shape[0]
        middle = np.eye(size, dtype=x.dtype)[size // 2]
        return middle.reshape(-1, *[1] * x.ndim) * x

    return jax.tree_util.tree_map_with_path(widen, variables)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("dimensions", [1, 2])
def test_networks_match_those_of_repeated_inputs(part, dimensions):
    """An array that repeats along a new axis has the outputs of the array, one row like another."""
    narrow, wide = make(part, dimensions), make(part, dimensions + 1)
    x = input_of(dimensions)
    variables = randomized(variables_of(narrow, x.shape))
    expected = apply(narrow, variables, x)
    actual = apply(wide, widened(variables), np.repeat(x[:, None], 6, 1))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("dimensions", [1, 3])
def test_features_have_the_sizes_of_their_strides(dimensions):
    model, x = make("D_deep", dimensions, features_only=True), input_of(dimensions)
    maps = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False)[0], x)
    for info, features in zip(model.features, maps, strict=True):
        sizes = [-(-size // info.stride) for size in x.shape[1:-1]]
        assert features.shape == (2, *sizes, info.channels)


@pytest.mark.parametrize("block", VIDEO_BLOCKS)
def test_features_of_clips_have_a_stride_per_axis(block):
    spec = shrink(get_spec("resnet18"), dimensions=3, block=block, stem=VIDEO_BLOCKS[block])
    model, x = create_model(spec, features_only=True), input_of(3)
    maps = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False)[0], x)
    for info, features in zip(model.features, maps, strict=True):
        sizes = [-(-size // s) for size, s in zip(x.shape[1:-1], info.stride, strict=True)]
        assert features.shape == (2, *sizes, info.channels)
    assert model.features[-1].stride == ((1 if block == "basic_spatial" else 2), 4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [1, 3])
def test_scan_and_remat_give_the_same_gradients(dimensions):
    x = input_of(dimensions)
    spec = Spec((1, 2), (8, 8), "basic", "cifar", 8, "D", dimensions=dimensions, num_classes=3)
    plain = create_model(spec, scan=False)
    variables = randomized(variables_of(plain, x.shape))

    def gradients(model, variables):
        def loss(params):
            y, _ = model.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(y))

        return run(jax.grad(loss), variables["params"])

    expected = gradients(plain, variables)
    again = gradients(create_model(spec, scan=False, remat=True), variables)
    scanned = gradients(create_model(spec, scan=True), stack_params(variables))
    for actual in (stack_params(again), scanned):
        assert_trees_close(actual, stack_params(expected), 1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dimensions": 4}, "dimensions is 4: expected an integer from 1 to 3"),
        ({"dimensions": "2"}, "dimensions is '2': expected an integer"),
        ({"stem": "video"}, "stem 'video' has kernels of 3 dimensions, but dimensions is 2"),
        ({"stem": "video_2plus1d"}, "stem 'video_2plus1d' has kernels of 3 dimensions"),
        ({"stem": "video_2plus1d", "dimensions": 1}, "stem 'video_2plus1d' has kernels of 3"),
        ({"dimensions": 1, "block": "basic_spatial"}, "block 'basic_spatial' has kernels of 3"),
        (
            {"dimensions": 3, "block": "basic_2plus1d", "antialias": "blur"},
            "antialias 'blur' pools all axes alike, and block 'basic_2plus1d'",
        ),
    ],
)
def test_invalid_dimensions_are_refused_in_one_line(fields, message):
    with pytest.raises(UserError, match=message) as error:
        Spec(**{"depths": (1,), "widths": (8,), "block": "basic", **fields})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_inputs_of_another_rank_are_refused(dimensions):
    x = np.zeros((1, *[8] * (dimensions % 3 + 1), 3), np.float32)
    with pytest.raises(ValueError, match=f"spec.dimensions is {dimensions}: got shape"):
        make("A", dimensions).init(jax.random.key(0), x, train=False)
