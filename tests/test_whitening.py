"""First convolutions that whiten the training images: their outputs, and runs with them."""

import jax
import numpy as np
import pytest
from helpers.modules import NormNet

from resflax import UserError
from resflax.data import load_dataset
from resflax.data.augment.pixels import normalize
from resflax.train import Trainer, build, default_config
from resflax.train.whitening import whitening_directions

DIGITS = load_dataset("digits")


def make_trainer(model=None, **keys):
    config = default_config()
    config.model, config.batch_size, config.whiten_stem = "cifar_resnet8", 48, True
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return Trainer(build(config, model=model, dataset=DIGITS))


@pytest.mark.parametrize(
    ("shape", "sizes"), [((9, 3), (4,)), ((7, 8, 2), (3, 2)), ((4, 5, 4, 1), (2, 2, 3))]
)
def test_outputs_of_directions_are_uncorrelated(shape, sizes):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((60, *shape))
    images = images + 2 * np.roll(images, 1, 1)  # neighbors are correlated
    kernel = whitening_directions(images, sizes)
    assert kernel.shape == (*sizes, shape[-1], np.prod(sizes) * shape[-1])
    spatial = "NHWDC"[1 : len(sizes) + 1]
    outputs = jax.lax.conv_general_dilated(
        images.astype(np.float32), kernel.astype(np.float32), (1,) * len(sizes), "VALID",
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"), precision="highest",
    )  # fmt: skip
    rows = np.asarray(outputs, np.float64).reshape(-1, kernel.shape[-1])
    moments = rows.T @ rows / len(rows)
    np.testing.assert_allclose(moments, np.eye(len(moments)), atol=0.02)


def test_run_starts_with_both_signs_of_each_direction():
    trainer = make_trainer()
    kernel = np.asarray(trainer.init().params["stem_conv"]["kernel"])  # (3, 3, 1, 16)
    np.testing.assert_array_equal(kernel[..., :8], -kernel[..., 8:])
    mean, std = DIGITS.train.mean_std()
    images = normalize(jax.numpy.asarray(DIGITS.train.images), mean=mean, std=std)
    patches = np.lib.stride_tricks.sliding_window_view(np.asarray(images), (3, 3), (1, 2))
    rows = patches.reshape(-1, 9) @ kernel[..., :8].reshape(9, 8)
    np.testing.assert_allclose(rows.T @ rows / len(rows), np.eye(8), atol=0.1)  # of 500 images


@pytest.mark.parametrize(
    "keys", [{}, {"ensemble__size": 2}, {"ema_decay": 0.9, "precise_bn_batches": 2}]
)
def test_training_keeps_the_kernel_and_moves_the_rest(keys):
    trainer = make_trainer(**keys)
    engine, step_fn = trainer.engine, trainer.make_step_fn(0)
    before = trainer.init()
    after, _ = step_fn(engine.put_state(trainer.run.with_teacher(before)))
    after = engine.to_host(after)
    for name in ("params", "ema") if before.ema else ("params",):
        old, new = getattr(before, name), getattr(after, name)
        np.testing.assert_array_equal(old["stem_conv"]["kernel"], new["stem_conv"]["kernel"])
        assert not np.array_equal(old["head"]["kernel"], new["head"]["kernel"])


@pytest.mark.parametrize("keys", [{}, {"spec__ensemble": "mimo", "spec__members": 2}])
def test_stems_that_cannot_whiten_are_refused(keys):
    """Dense layers, and the stem of a network that takes several images at once."""
    with pytest.raises(UserError, match="needs a stem of one convolution of 1 channels"):
        make_trainer(None if keys else NormNet(), **keys)
