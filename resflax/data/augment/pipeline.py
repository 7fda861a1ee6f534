"""Augmentation pipeline: from settings to a function of a batch of images."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, UInt8

from resflax.data.augment import (
    arrays,
    auto,
    chance,
    crop,
    crop_flip,
    erase,
    jitter,
    rand,
)
from resflax.errors import UserError

Op = Callable[[Array, Array, Array], Array]
Check = Callable[[Any], bool]


class Augment(Protocol):
    """Augments a batch: `(keys, images, parity) -> images` of the same shape and dtype.

    `keys` are `(n,)`, one per example, so that an image does not depend on the rest of the batch.
    `images` are uint8 `(n, h, w, c)`, or arrays of any rank where all transforms have
    `any_array`. `parity`, int32 `(n,)`, is the result of `flip_parity`; only
    the alternating flip needs it.
    """

    def __call__(
        self,
        keys: Key[Array, " n"],
        images: UInt8[Array, "n h w c"],
        parity: Int[Array, " n"] | None = None,
        /,
    ) -> UInt8[Array, "n h w c"]:
        """Raises `ValueError` if `parity` is needed and missing."""
        ...


class Transform(NamedTuple):
    """One setting of `make_augment`.

    Attributes:
      stream: number of its random stream, so that no setting changes the draws of another one.
      expected: the valid values, in words.
      is_valid: returns whether a value is valid.
      make_op: makes `(key, image, parity) -> image` from a value that enables the transform.
      any_array: whether it applies to arrays `(*space, channels)` of any rank and dtype, not only
        to uint8 images.
    """

    stream: int
    expected: str
    is_valid: Check
    make_op: Callable[[Any], Op]
    any_array: bool = False


def _is_number(low: float, high: float, types: Any = (int, float)) -> Check:
    return lambda v: isinstance(v, types) and not isinstance(v, bool) and low <= v <= high


def _are_numbers(*checks: Check) -> Check:
    """Returns a check for a sequence with one valid number per check, or an empty one."""

    def check(value: Any) -> bool:
        if not isinstance(value, tuple | list):
            return False
        if not value:
            return True
        return len(value) == len(checks) and all(map(lambda c, v: c(v), checks, value))

    return check


def _is_one_of(*names: Any) -> Check:
    return lambda value: isinstance(value, type(names[0])) and value in names


def _is_inception_crop(value: Any) -> bool:
    in_range = _are_numbers(*[_is_number(1e-6, 1)] * 2, *[_is_number(1e-3, 1e3)] * 2)
    return in_range(value) and (not value or (value[0] <= value[1] and value[2] <= value[3]))


def _is_policy(value: Any) -> bool:
    if value and isinstance(value, str):
        auto.auto_augment(value)  # whose message names the part that is not valid
    return isinstance(value, str)


def _op(run: Callable[..., Array], **settings: Any) -> Op:
    """Returns an op that ignores `parity`."""
    return lambda key, image, parity: run(key, image, **settings)


# In the order in which they are applied: geometry, then color, then erasing.
TRANSFORMS: dict[str, Transform] = {
    "pad_crop": Transform(
        0,
        "a number of pixels, 0 to disable",
        _is_number(0, 2**15, int),
        lambda value: _op(crop_flip.pad_crop, padding=value),
        any_array=True,
    ),
    "inception_crop": Transform(
        2,
        "smallest and largest share of the area (above 0, up to 1) and ratio of width to height"
        " (above 0), or () to disable",
        _is_inception_crop,
        lambda value: _op(crop.inception_crop, area=value[:2], ratio=value[2:]),
    ),
    "flip": Transform(
        1,
        f"one of {', '.join(crop_flip.FLIPS)}",
        _is_one_of(*crop_flip.FLIPS),
        crop_flip.FLIPS.__getitem__,
    ),
    "rand_augment": Transform(
        3,
        "layers (1 to 100) and magnitude (0 to 30), or () to disable",
        _are_numbers(_is_number(1, 100, int), _is_number(0, 30)),
        lambda value: _op(rand.rand_augment, layers=value[0], magnitude=value[1]),
    ),
    "auto_augment": Transform(
        10,
        f"'' or a policy such as {auto.EXAMPLES}",
        _is_policy,
        lambda value: _op(auto.auto_augment(value)),
    ),
    "color_jitter": Transform(
        4,
        "widths of brightness, contrast, saturation (0 to 1000) and hue (0 to 0.5), or () to"
        " disable",
        _are_numbers(*[_is_number(0, 1000)] * 3, _is_number(0, 0.5)),
        lambda value: _op(jitter.color_jitter, widths=value),
    ),
    "grayscale": Transform(
        11,
        "a probability",
        _is_number(0, 1),
        lambda value: _op(chance.random_grayscale, probability=value),
    ),
    "gaussian_blur": Transform(
        12,
        "a probability",
        _is_number(0, 1),
        lambda value: _op(chance.random_blur, probability=value),
    ),
    "solarize": Transform(
        13,
        "a probability",
        _is_number(0, 1),
        lambda value: _op(chance.random_solarize, probability=value),
    ),
    "random_erasing": Transform(
        5,
        "a probability",
        _is_number(0, 1),
        lambda value: _op(erase.random_erasing, probability=value),
    ),
    "cutout": Transform(
        6,
        "a number of pixels, 0 to disable",
        _is_number(0, 2**15, int),
        lambda value: _op(erase.cutout, size=value),
    ),
    "shift": Transform(
        7,
        "a number of positions, 0 to disable",
        _is_number(0, 2**15, int),
        lambda value: _op(arrays.shift, size=value),
        any_array=True,
    ),
    "noise": Transform(
        8,
        "a share of the standard deviation (0 to 1000)",
        _is_number(0, 1000),
        lambda value: _op(arrays.noise, scale=value),
        any_array=True,
    ),
    "mask": Transform(
        9,
        "a number of positions, 0 to disable",
        _is_number(0, 2**15, int),
        lambda value: _op(arrays.mask, size=value),
        any_array=True,
    ),
}


def check_augment(**settings: Any) -> None:
    """Raises `UserError` if an argument of `make_augment` is invalid."""
    for name, value in settings.items():
        if not TRANSFORMS[name].is_valid(value):
            raise UserError(f"{name} is {value!r}: expected {TRANSFORMS[name].expected}")


def make_augment(
    *,
    pad_crop: int = 0,
    inception_crop: Sequence[float] = (),
    flip: str = "none",
    rand_augment: Sequence[float] = (),
    auto_augment: str = "",
    color_jitter: Sequence[float] = (),
    grayscale: float = 0.0,
    gaussian_blur: float = 0.0,
    solarize: float = 0.0,
    random_erasing: float = 0.0,
    cutout: int = 0,
    shift: int = 0,
    noise: float = 0.0,
    mask: int = 0,
) -> Augment | None:
    """Returns a function that augments a batch, or None if all transforms are disabled.

    The transforms are applied in the order of the arguments.

    Args:
      pad_crop: pixels of padding before a random crop.
      inception_crop: smallest and largest share of the area, and smallest and largest ratio of
        width to height, of a random crop that is resized to the image size, such as
        `(0.08, 1, 0.75, 4 / 3)`.
      flip: horizontal flip: "none", "random", or "alternating" (every other epoch).
      rand_augment: layers and magnitude of RandAugment, such as `(2, 9)`.
      auto_augment: policy by name, such as "rand-m9-mstd0.5-inc1" or "trivial".
      color_jitter: widths of brightness, contrast, saturation and hue, such as
        `(0.4, 0.4, 0.4, 0.1)`.
      grayscale: the probability of a gray image.
      gaussian_blur: the probability of a blur of 0.1 to 2 pixels.
      solarize: the probability of inverting all values of at least 128.
      random_erasing: the probability of random erasing.
      cutout: side of the square that is set to zero, in pixels.
      shift: largest circular shift along each axis, in positions.
      noise: standard deviation of Gaussian noise, as a share of that of each channel.
      mask: size along each axis of a box that is replaced by the mean, in positions.

    Raises:
      UserError: if a value is invalid.

    >>> augment = make_augment(pad_crop=4, flip="random", cutout=8)
    >>> keys = jax.random.split(jax.random.key(0), 16)
    >>> augment(keys, jnp.zeros((16, 32, 32, 3), jnp.uint8)).shape
    (16, 32, 32, 3)
    """
    settings: dict[str, Any] = {
        "pad_crop": pad_crop,
        "inception_crop": inception_crop,
        "flip": flip,
        "rand_augment": rand_augment,
        "auto_augment": auto_augment,
        "color_jitter": color_jitter,
        "grayscale": grayscale,
        "gaussian_blur": gaussian_blur,
        "solarize": solarize,
        "random_erasing": random_erasing,
        "cutout": cutout,
        "shift": shift,
        "noise": noise,
        "mask": mask,
    }
    check_augment(**settings)
    ops = [
        (transform.stream, transform.make_op(settings[name]))
        for name, transform in TRANSFORMS.items()
        if _is_enabled(settings[name])
    ]
    return _augment_batch(ops, needs_parity=flip == "alternating") if ops else None


def _is_enabled(value: Any) -> bool:
    return value != "none" and bool(any(value) if isinstance(value, tuple | list) else value)


def _augment_batch(ops: Sequence[tuple[int, Op]], *, needs_parity: bool) -> Augment:
    def augment_image(key: Array, image: Array, parity: Array) -> Array:
        for stream, op in ops:
            image = op(jax.random.fold_in(key, stream), image, parity)
        return image

    def augment(keys: Array, images: Array, parity: Array | None = None, /) -> Array:
        if parity is None:
            if needs_parity:
                raise ValueError(
                    "the alternating flip needs `parity`: pass flip_parity(seed, index, epoch)"
                    " after the images"
                )
            parity = jnp.zeros(len(images), jnp.int32)
        return jax.vmap(augment_image)(keys, images, parity)

    return augment
