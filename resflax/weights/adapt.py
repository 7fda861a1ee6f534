"""Changes to pretrained weights: another head, another order of classes, other image channels."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from resflax.errors import UserError
from resflax.weights.bridge import Variables
from resflax.weights.preprocess import Preprocess

STEM_CONVS = ("stem_conv", "stem_conv1")


def replace_head(variables: Variables, num_classes: int, *, seed: int = 0) -> Variables:
    """Replaces the classification head by a newly initialized one, or adds one if there is none.

    Args:
      variables: variables of a network; not modified.
      num_classes: outputs of the new head; 0 removes the head.
      seed: seed of the initialization.

    Raises:
      UserError: if `num_classes` is not an integer >= 0.

    >>> old = {"params": {"head": {"kernel": np.ones((4, 9)), "bias": np.ones(9)}}}
    >>> replace_head(old, 2)["params"]["head"]["kernel"].shape
    (4, 2)
    """
    if type(num_classes) is not int or num_classes < 0:
        raise UserError(f"num_classes is {num_classes!r}: expected an integer >= 0")
    body = {name: tree for name, tree in variables["params"].items() if name != "head"}
    if not num_classes:
        return {**variables, "params": body}
    example = jnp.zeros((1, _num_features(variables["params"])))
    head = nn.Dense(num_classes).init(jax.random.key(seed), example)["params"]
    head = {name: np.asarray(array) for name, array in head.items()}
    return {**variables, "params": {**body, "head": head}}


def permute_head(variables: Variables, order: Int[np.ndarray, " classes"]) -> Variables:
    """Returns variables whose class `i` is the class `order[i]` of the given ones.

    >>> old = {"params": {"head": {"kernel": np.array([[1, 2, 3]]), "bias": np.array([4, 5, 6])}}}
    >>> permute_head(old, np.array([2, 0, 1]))["params"]["head"]
    {'kernel': array([[3, 1, 2]]), 'bias': array([6, 4, 5])}
    """
    head = {
        name: np.asarray(array)[..., order] for name, array in variables["params"]["head"].items()
    }
    return {**variables, "params": {**variables["params"], "head": head}}


def _num_features(params: dict[str, Any]) -> int:
    """Returns the number of features that the head takes, from the parameters of the network."""
    if "head" in params:
        return int(params["head"]["kernel"].shape[0])
    if "head_norm" in params:
        return int(params["head_norm"]["scale"].shape[0])
    last_stage = max(int(n[5:-7]) for n in params if re.fullmatch(r"stage\d+_block1", n))
    block = params[f"stage{last_stage}_block1"]
    last_conv = max(name for name in block if re.fullmatch(r"conv\d", name))
    return int(block[last_conv]["kernel"].shape[-1])


def convert_channels(variables: Variables, channels: int) -> Variables:
    """Converts the first convolution to images with another number of channels.

    As timm's `adapt_input_conv`. To one channel, the kernel is summed over its input channels, so
    that a gray image gives what its copies in all channels gave. To more, the input channels are
    repeated in turn and scaled by the old number over the new one.

    Args:
      variables: variables of a network; not modified.
      channels: number of image channels, at least 1.

    Raises:
      UserError: if `channels` is not an integer >= 1.

    >>> rgb = {"params": {"stem_conv": {"kernel": np.ones((1, 1, 3, 1), np.float32)}}}
    >>> convert_channels(rgb, 1)["params"]["stem_conv"]["kernel"].item()
    3.0
    """
    if type(channels) is not int or channels < 1:
        raise UserError(f"channels is {channels!r}: expected an integer >= 1")
    params = variables["params"]
    name = next(name for name in STEM_CONVS if name in params)
    kernel = _convert_kernel(np.asarray(params[name]["kernel"]), channels)
    return {**variables, "params": {**params, name: {**params[name], "kernel": kernel}}}


def _convert_kernel(
    kernel: Float[np.ndarray, "*size channels out"], channels: int
) -> Float[np.ndarray, "*size {channels} out"]:
    old = kernel.shape[-2]
    if channels == old:
        return kernel
    if channels == 1:
        return kernel.sum(axis=-2, keepdims=True)
    repeated = kernel[..., np.arange(channels) % old, :]
    return (repeated * (old / channels)).astype(kernel.dtype)


def convert_moments(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Converts per-channel means or standard deviations to another number of channels.

    To one channel, they are averaged, as in the moments that timm's gray models use (0.449 and
    0.226). To more, they are repeated in turn, as the kernel's channels are.

    >>> [round(value, 3) for value in convert_moments((0.485, 0.456, 0.406), 1)]
    [0.449]
    >>> convert_moments((0.5,), 3)
    (0.5, 0.5, 0.5)
    """
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[i % len(values)] for i in range(channels))


def convert_preprocess(preprocess: Preprocess, channels: int) -> Preprocess:
    """Converts the mean and standard deviation of a preprocessing by `convert_moments`."""
    if preprocess.channels == channels:
        return preprocess
    mean, std = (convert_moments(v, channels) for v in (preprocess.mean, preprocess.std))
    return replace(preprocess, mean=mean, std=std)
