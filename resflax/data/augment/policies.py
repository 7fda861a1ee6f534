"""AutoAugment's policies as tables, and DeiT III's three augmentations.

Cubuk et al. 2018 (arXiv:1805.09501), tables 7 (CIFAR-10), 8 (SVHN) and 9 (ImageNet). A line is a
sub-policy, two operations that are applied in order: name, probability, and magnitude of 0 to 9.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8

from resflax.data.augment.levels import AUTOAUGMENT, arguments
from resflax.data.augment.ops import apply_op

IMAGENET = """
    posterize 0.4 8, rotate 0.6 9
    solarize 0.6 5, autocontrast 0.6 0
    equalize 0.8 0, equalize 0.6 0
    posterize 0.6 7, posterize 0.6 6
    equalize 0.4 0, solarize 0.2 4
    equalize 0.4 0, rotate 0.8 8
    solarize 0.6 3, equalize 0.6 0
    posterize 0.8 5, equalize 1.0 0
    rotate 0.2 3, solarize 0.6 8
    equalize 0.6 0, posterize 0.4 6
    rotate 0.8 8, color 0.4 0
    rotate 0.4 9, equalize 0.6 0
    equalize 0.0 0, equalize 0.8 0
    invert 0.6 0, equalize 1.0 0
    color 0.6 4, contrast 1.0 8
    rotate 0.8 8, color 1.0 2
    color 0.8 8, solarize 0.8 7
    sharpness 0.4 7, invert 0.6 0
    shear_x 0.6 5, equalize 1.0 0
    color 0.4 0, equalize 0.6 0
    equalize 0.4 0, solarize 0.2 4
    solarize 0.6 5, autocontrast 0.6 0
    invert 0.6 0, equalize 1.0 0
    color 0.6 4, contrast 1.0 8
    equalize 0.8 0, equalize 0.6 0
"""
CIFAR10 = """
    invert 0.1 0, contrast 0.2 6
    rotate 0.7 2, translate_x 0.3 9
    sharpness 0.8 1, sharpness 0.9 3
    shear_y 0.5 8, translate_y 0.7 9
    autocontrast 0.5 0, equalize 0.9 0
    shear_y 0.2 7, posterize 0.3 7
    color 0.4 3, brightness 0.6 7
    sharpness 0.3 9, brightness 0.7 9
    equalize 0.6 0, equalize 0.5 0
    contrast 0.6 7, sharpness 0.6 5
    color 0.7 7, translate_x 0.5 8
    equalize 0.3 0, autocontrast 0.4 0
    translate_y 0.4 3, sharpness 0.2 6
    brightness 0.9 6, color 0.2 8
    solarize 0.5 2, invert 0.0 0
    equalize 0.2 0, autocontrast 0.6 0
    equalize 0.2 0, equalize 0.6 0
    color 0.9 9, equalize 0.6 0
    autocontrast 0.8 0, solarize 0.2 8
    brightness 0.1 3, color 0.7 0
    solarize 0.4 5, autocontrast 0.9 0
    translate_y 0.9 9, translate_y 0.7 9
    autocontrast 0.9 0, solarize 0.8 3
    equalize 0.8 0, invert 0.1 0
    translate_y 0.7 9, autocontrast 0.9 0
"""
SVHN = """
    shear_x 0.9 4, invert 0.2 0
    shear_y 0.9 8, invert 0.7 0
    equalize 0.6 0, solarize 0.6 6
    invert 0.9 0, equalize 0.6 0
    equalize 0.6 0, rotate 0.9 3
    shear_x 0.9 4, autocontrast 0.8 0
    shear_y 0.9 8, invert 0.4 0
    shear_y 0.9 5, solarize 0.2 6
    invert 0.9 0, autocontrast 0.8 0
    equalize 0.6 0, rotate 0.9 3
    shear_x 0.9 4, solarize 0.3 3
    shear_y 0.8 8, invert 0.7 0
    equalize 0.9 0, translate_y 0.6 6
    invert 0.9 0, equalize 0.6 0
    contrast 0.3 3, rotate 0.8 4
    invert 0.8 0, translate_y 0.0 2
    shear_y 0.7 6, solarize 0.4 8
    invert 0.6 0, rotate 0.8 4
    shear_y 0.3 7, translate_x 0.9 3
    shear_x 0.1 6, invert 0.6 0
    solarize 0.7 2, translate_y 0.6 7
    shear_y 0.8 4, invert 0.8 0
    shear_x 0.7 9, translate_y 0.8 3
    shear_y 0.8 5, autocontrast 0.7 0
    shear_x 0.7 2, invert 0.1 0
"""


class Step(NamedTuple):
    """An operation of a sub-policy: a row of the levels, its probability and its magnitude."""

    op: str
    probability: float
    magnitude: int


def parse_policy(text: str) -> tuple[tuple[Step, ...], ...]:
    """Returns the sub-policies of a table.

    >>> [list(map(tuple, row)) for row in parse_policy("rotate 0.7 2, invert 0.1 0")]
    [[('rotate', 0.7, 2), ('invert', 0.1, 0)]]
    """
    lines = [line.split(",") for line in text.strip().splitlines()]
    return tuple(tuple(_step(*step.split()) for step in line) for line in lines)


def _step(op: str, probability: str, magnitude: str) -> Step:
    return Step(op, float(probability), int(magnitude))


POLICIES: dict[str, tuple[tuple[Step, ...], ...]] = {
    "autoaugment": parse_policy(IMAGENET),
    "autoaugment-cifar10": parse_policy(CIFAR10),
    "autoaugment-svhn": parse_policy(SVHN),
}


def apply_sub_policy(
    key: Key[Array, ""], image: UInt8[Array, "h w c"], *, policy: tuple[tuple[Step, ...], ...]
) -> UInt8[Array, "h w c"]:
    """Applies one sub-policy, drawn with equal probability, to one image.

    Its operations are applied in order, each with its probability, and in a random direction.
    AutoAugment (Cubuk et al. 2018, arXiv:1805.09501), section 3.
    """
    names = [row.op for row in AUTOAUGMENT]
    steps = [[(names.index(s.op), s.magnitude) for s in row] for row in policy]
    table = jnp.asarray(np.array(steps, np.int32))
    probability = jnp.asarray([[step.probability for step in row] for row in policy], jnp.float32)
    row_key, *keys = jax.random.split(key, 1 + table.shape[1])
    row = jax.random.randint(row_key, (), 0, len(policy), jnp.int32)

    def step(x: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        key, (op, magnitude), probability = inputs
        u = jax.random.uniform(key, (2,), jnp.float32)
        sign = jnp.where(u[1] < 0.5, -1.0, 1.0)
        levels = arguments(AUTOAUGMENT, np.arange(10), 9, sign, x.shape)
        changed = apply_op(x, op, levels[magnitude, op], names)
        return jnp.where(u[0] < probability, changed, x), None

    return jax.lax.scan(step, image, (jnp.stack(keys), table[row], probability[row]))[0]


def three_augment(key: Key[Array, ""], image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """Makes one image gray, solarizes or blurs it, each with probability 1/3.

    Solarization has a threshold of 128; the standard deviation of the blur is uniform from 0.1 to 2
    pixels. Touvron et al. 2022 (DeiT III, arXiv:2204.07118), section 3.2.
    """
    op_key, std_key = jax.random.split(key)
    op = jax.random.randint(op_key, (), 0, 3, jnp.int32)
    std = jax.random.uniform(std_key, (), jnp.float32, 0.1, 2.0)
    argument = jnp.stack([jnp.float32(128), jnp.float32(0), std])[op]
    return apply_op(image, op, argument, ("solarize", "color", "blur"))
