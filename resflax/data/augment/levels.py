"""Arguments of the operations of a policy as functions of the magnitude, as tables."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

INFINITY = float("inf")


class Level(NamedTuple):
    """Argument of an operation: `start` plus or minus a change that grows with the magnitude.

    Attributes:
      op: row of `ops.COLOR_OPS` or `affine.WARPS`.
      start: argument at magnitude 0.
      end: argument at the full magnitude, before rounding and limits.
      signed: whether the change is added or subtracted, each with probability 1/2.
      rounding: of the change: "none", "round" (half to even), or "trunc" (towards 0).
      low: smallest argument.
      high: largest argument.
      is_share: whether the change is a share of the image's width (an op that ends with "x") or
        height.
    """

    op: str
    start: float = 0.0
    end: float = 0.0
    signed: bool = False
    rounding: str = "none"
    low: float = -INFINITY
    high: float = INFINITY
    is_share: bool = False


def _changes(
    levels: Sequence[Level], magnitude: Any, full: float, shape: tuple[int, ...]
) -> np.ndarray | Array:
    """Returns the change of each row, `(*magnitude.shape, rows)`, float32.

    Magnitudes that are known are divided in float64: a number on the edge of two integers must not
    be truncated to the other one.
    """
    is_traced = isinstance(magnitude, jax.Array)
    xp: Any = jnp if is_traced else np
    sides = [shape[1 if x.op.endswith("x") else 0] if x.is_share else 1 for x in levels]
    spans = np.array([(x.end - x.start) * side for x, side in zip(levels, sides, strict=True)])
    if is_traced:
        spans = spans.astype(np.float32)
    change = xp.expand_dims(xp.asarray(magnitude), -1) * spans / full
    rounded = {"none": change, "round": xp.round(change), "trunc": xp.trunc(change)}
    columns = [rounded[row.rounding][..., k] for k, row in enumerate(levels)]
    return xp.stack(columns, -1).astype(np.float32)


def arguments(
    levels: Sequence[Level],
    magnitude: float | np.ndarray | Float[Array, ""],
    full: float,
    sign: Float[Array, ""] | float,
    shape: tuple[int, ...],
) -> Float[Array, "*magnitudes rows"]:
    """Returns the argument of each row of a table.

    Args:
      levels: the table.
      magnitude: a number, an array of them, or a traced float32 scalar.
      full: the magnitude at which arguments are `end`.
      sign: 1 or -1.
      shape: of the image, `(h, w, ...)`.

    >>> table = (Level("rotate", 0, 0.5, signed=True), Level("posterize", 8, 4, rounding="round"))
    >>> arguments(table, 9, 10, -1.0, (8, 8)).tolist()
    [-0.44999998807907104, 4.0]
    """
    start, low, high = (
        jnp.asarray([getattr(row, name) for row in levels], jnp.float32)
        for name in ("start", "low", "high")
    )
    is_signed = jnp.asarray([row.signed for row in levels])
    signs = jnp.where(is_signed, jnp.asarray(sign, jnp.float32), jnp.float32(1))
    changes = jnp.asarray(_changes(levels, magnitude, full, shape))
    lead = (1,) * (changes.ndim - 1)
    signs, start, low, high = (x.reshape(*lead, -1) for x in (signs, start, low, high))
    return jnp.clip(start + signs * changes, low, high)


def _enhance(end: float) -> tuple[Level, ...]:
    """Returns the blends from an unchanged image, in both directions."""
    names = ("color", "contrast", "brightness", "sharpness")
    return tuple(Level(name, 1, 1 + end, signed=True, low=0.1) for name in names)


def _warps(rotation: float, shear: float, shift: float, **settings: Any) -> tuple[Level, ...]:
    """Returns the warps, all signed."""
    return (
        Level("rotate", 0, np.radians(rotation), signed=True),
        Level("shear_x", 0, shear, signed=True),
        Level("shear_y", 0, shear, signed=True),
        Level("translate_x", 0, shift, signed=True, **settings),
        Level("translate_y", 0, shift, signed=True, **settings),
    )


# RandAugment's fourteen (Cubuk et al. 2019, arXiv:1909.13719, section 3), 10 being AutoAugment's
# largest change (Cubuk et al. 2018, arXiv:1805.09501, table 6), whose translation is 150 pixels of
# ImageNet's 331. A larger magnitude always changes more, as in torchvision; in the paper's code it
# changes less for solarize and posterize.
PAPER = (
    Level("identity"),
    Level("autocontrast"),
    Level("equalize"),
    Level("solarize", 256, 0, rounding="round", low=0),
    Level("color", 1, 1.9, signed=True, low=0.1),
    Level("posterize", 8, 4, rounding="round", low=1),
    *_enhance(0.9)[1:],
    *_warps(30, 0.3, 150 / 331, is_share=True),
)
# timm's fifteen with `-inc1`, by its names `PosterizeIncreasing` and so on.
_TIMM_SAME = (
    Level("autocontrast"),
    Level("equalize"),
    Level("invert"),
    Level("solarize_add", 0, 110, rounding="trunc", high=128),
    *_warps(30, 0.3, 0.45, is_share=True),
)
TIMM_INCREASING = (
    *_TIMM_SAME,
    Level("posterize", 4, 0, rounding="trunc", low=0),
    Level("solarize", 256, 0, rounding="trunc", low=0),
    *_enhance(0.9),
)
# timm's without `-inc1`: a larger magnitude posterizes and solarizes less, and colors are blended
# from 0.1 to 1.9, which changes least in the middle.
TIMM = (
    *_TIMM_SAME,
    Level("posterize", 0, 4, rounding="trunc", high=8),
    Level("solarize", 0, 256, rounding="trunc", high=256),
    *(Level(row.op, 0.1, 1.9) for row in _enhance(0.9)),
)
# timm's `-t3a`; "color" is its `Desaturate`.
THREE = (
    Level("solarize", 256, 0, rounding="trunc", low=0),
    Level("color", 0.5, 0, low=0),
    Level("blur", 0.1, 2, high=2),
)
# timm's for AugMix, whose translation is 0.3 of the image; the paper's are those without blends.
AUGMIX = (
    Level("autocontrast"),
    Level("equalize"),
    *_warps(30, 0.3, 0.3, is_share=True),
    *TIMM_INCREASING[9:],
)
# AutoAugment's with 10 magnitudes of 0 to 9, as in torchvision.
AUTOAUGMENT = (
    Level("autocontrast"),
    Level("equalize"),
    Level("invert"),
    Level("solarize", 255, 0, rounding="trunc"),
    Level("posterize", 8, 4, rounding="round"),
    *(row._replace(low=-INFINITY) for row in _enhance(0.9)),
    *_warps(30, 0.3, 150 / 331, is_share=True, rounding="trunc"),
)
# TrivialAugment's wide space with 31 magnitudes of 0 to 30 (Mueller and Hutter 2021,
# arXiv:2103.10158, table 6), as in torchvision: a translation of up to 32 pixels.
TRIVIAL = (
    Level("identity"),
    Level("autocontrast"),
    Level("equalize"),
    Level("solarize", 255, 0, rounding="trunc"),
    Level("posterize", 8, 2, rounding="round"),
    *(row._replace(low=-INFINITY) for row in _enhance(0.99)),
    *_warps(135, 0.99, 32, rounding="trunc"),
)
# timm's choices of operations with their weights, as text: `-tweights`, `-t3a` and `-t3aw`.
_BY_NAME = {row.op: row for row in TIMM_INCREASING}
_GEOMETRY = "rotate 3 shear_x 2 shear_y 2"
_WEIGHTS = (
    f"{_GEOMETRY} translate_x 1 translate_y 1 color 0.25 sharpness 0.25 autocontrast 0.25"
    " solarize 0.05 solarize_add 0.05 contrast 0.05 brightness 0.05 equalize 0.05 posterize 0.05"
    " invert 0.05"
)
_WEIGHTS_3AW = (
    f"{_GEOMETRY} posterize 1 autocontrast 1 color 1 sharpness 1 contrast 1 brightness 1"
    " equalize 1 invert 1"
)


def _weighted(text: str) -> dict[Level, float]:
    """Returns rows of `TIMM_INCREASING` with their weights."""
    words = text.split()
    return {_BY_NAME[name]: float(w) for name, w in zip(words[::2], words[1::2], strict=True)}


CHOICES: dict[str, dict[Level, float]] = {
    "weights": _weighted(_WEIGHTS),
    "3a": dict.fromkeys(THREE, 1.0),
    "3aw": dict.fromkeys(THREE, 6.0) | _weighted(_WEIGHTS_3AW),
}
