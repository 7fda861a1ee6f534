"""One road for all that changes a single image: settings to a function of a batch."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from resflax.data.augment import crop, erase, jitter, rand
from resflax.data.augment import crop_flip as place
from resflax.errors import UserError

Array = jax.Array
Op = Callable[[Array, Array, Array], Array]
Check = Callable[[Any], bool]


class Augment(Protocol):
    """A batch changed, `(keys, images, flip_parity) -> images` of the same shape and dtype.

    `keys` are `(n,)`, one an example: what happens to an image does not depend on its neighbours.
    `images` are uint8 `(n, h, w, c)`. `flip_parity`, int32 `(n,)`, are what `flip_parity` gives; only the
    alternating flip needs them.
    """

    def __call__(self, keys: Array, images: Array, flip_parity: Array | None = None, /) -> Array:
        """Raises `ValueError` if turns are needed and there are none."""
        ...


class Row(NamedTuple):
    """A setting of `make_augment`.

    Attributes:
      stream: the number of its random numbers: no setting changes what another one draws.
      expected: what values it may have, in words.
      is_right: whether a value is one of them.
      make: from a value that is not "nothing" to `(key, image, turn) -> image`.
    """

    stream: int
    expected: str
    is_right: Check
    make: Callable[[Any], Op]


def _number(low: float, high: float, kinds: Any = (int, float)) -> Check:
    return lambda v: isinstance(v, kinds) and not isinstance(v, bool) and low <= v <= high


def _numbers(*checks: Check) -> Check:
    """Whether there are so many numbers, each right, or none at all."""

    def check(value: Any) -> bool:
        if not isinstance(value, tuple | list):
            return False
        if not value:
            return True
        return len(value) == len(checks) and all(map(lambda c, v: c(v), checks, value))

    return check


def _one_of(*names: Any) -> Check:
    return lambda value: isinstance(value, type(names[0])) and value in names


def _op(run: Callable[..., Array], **settings: Any) -> Op:
    """An op that needs no turn."""
    return lambda key, image, turn: run(key, image, **settings)


# In the order in which they act: places first, then colours, then what is taken away.
TRANSFORMS: dict[str, Row] = {
    "pad_crop": Row(
        0,
        "a number of pixels, 0 for none",
        _number(0, 2**15, int),
        lambda value: _op(place.pad_crop, padding=value),
    ),
    "inception_crop": Row(
        2, "True or False", _one_of(True, False), lambda value: _op(crop.inception_crop)
    ),
    "flip": Row(
        1, f"one of {', '.join(place.FLIPS)}", _one_of(*place.FLIPS), place.FLIPS.__getitem__
    ),
    "rand_augment": Row(
        3,
        "layers (1 to 100) and magnitude (0 to 30), or () for none",
        _numbers(_number(1, 100, int), _number(0, 30)),
        lambda value: _op(rand.rand_augment, layers=value[0], magnitude=value[1]),
    ),
    "color_jitter": Row(
        4,
        "widths of brightness, contrast, saturation (0 to 1000) and hue (0 to 0.5), or () for none",
        _numbers(*[_number(0, 1000)] * 3, _number(0, 0.5)),
        lambda value: _op(jitter.color_jitter, widths=value),
    ),
    "random_erasing": Row(
        5,
        "a probability",
        _number(0, 1),
        lambda value: _op(erase.random_erasing, probability=value),
    ),
    "cutout": Row(
        6,
        "a number of pixels, 0 for none",
        _number(0, 2**15, int),
        lambda value: _op(erase.cutout, size=value),
    ),
}


def _is_nothing(value: Any) -> bool:
    return value == "none" or not (any(value) if isinstance(value, tuple | list) else value)


def make_augment(
    *,
    pad_crop: int = 0,
    inception_crop: bool = False,
    flip: str | bool = "none",
    rand_augment: Sequence[float] = (),
    color_jitter: Sequence[float] = (),
    random_erasing: float = 0.0,
    cutout: int = 0,
    padding: int = 0,
    mirror: bool = False,
) -> Augment | None:
    """What is done to each image of a batch, in the order of the settings; None for nothing.

    Args:
      pad_crop: pixels of padding before a random crop.
      inception_crop: crop a random 8% to 100% and stretch it to the image's size.
      flip: mirror "none", at "random" (or True) or "alternating": in every other epoch.
      rand_augment: layers and magnitude of RandAugment, as `(2, 9)`.
      color_jitter: widths of brightness, contrast, saturation and hue, as `(0.4, 0.4, 0.4, 0.1)`.
      random_erasing: the probability of random erasing.
      cutout: the side of the square that is blacked out, in pixels.
      padding: another name of `pad_crop`.
      mirror: another name of `flip="random"`.

    Raises:
      UserError: on a value that cannot be.

    >>> augment = make_augment(pad_crop=4, flip="random", cutout=8)
    >>> keys = jax.random.split(jax.random.key(0), 16)
    >>> augment(keys, jnp.zeros((16, 32, 32, 3), jnp.uint8)).shape
    (16, 32, 32, 3)
    """
    named = {True: "random", False: "none"}
    settings = {
        "pad_crop": pad_crop or padding,
        "inception_crop": inception_crop,
        "flip": named[flip] if isinstance(flip, bool) else flip,
        "rand_augment": rand_augment,
        "color_jitter": color_jitter,
        "random_erasing": random_erasing,
        "cutout": cutout,
    }
    if mirror:
        settings["flip"] = "random"
    for name, value in settings.items():
        if not TRANSFORMS[name].is_right(value):
            raise UserError(f"{name} is {value!r}: expected {TRANSFORMS[name].expected}")
    ops = [
        (row.stream, row.make(settings[name]))
        for name, row in TRANSFORMS.items()
        if not _is_nothing(settings[name])
    ]
    return _over_batch(ops, needs_turns=settings["flip"] == "alternating") if ops else None


def _over_batch(ops: Sequence[tuple[int, Op]], *, needs_turns: bool) -> Augment:
    def one(key: Array, image: Array, turn: Array) -> Array:
        for stream, op in ops:
            image = op(jax.random.fold_in(key, stream), image, turn)
        return image

    def augment(keys: Array, images: Array, flip_parity: Array | None = None, /) -> Array:
        if flip_parity is None:
            if needs_turns:
                raise ValueError(
                    "the alternating flip goes by the epoch: expected `turns` behind the images"
                )
            flip_parity = jnp.zeros(len(images), jnp.int32)
        return jax.vmap(one)(keys, images, flip_parity)

    return augment
