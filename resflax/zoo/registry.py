"""Models by name."""

import re
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

import jax
import jax.numpy as jnp

from resflax.errors import UserError, unknown
from resflax.nn import ResNet, Spec
from resflax.zoo import cifar, resnet, resnetv2, resnext, senet

SCANNED_DEPTH = 18
DTYPES = ("float32", "bfloat16", "float16", "float64")
FAMILIES = (resnet, resnext, senet, resnetv2, cifar)
SPECS: dict[str, Spec] = {name: spec for family in FAMILIES for name, spec in family.SPECS.items()}


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a shell-style pattern, in natural order.

    The CIFAR families hold any depth of their form beside the ones that are listed.

    >>> list_models("plain*")
    ['plain18', 'plain34']
    """
    return sorted((name for name in SPECS if fnmatch(name, pattern)), key=_natural)


def get_spec(name: str | Spec) -> Spec:
    """The spec of a named model; a spec is its own.

    Raises:
      UserError: if there is none, listing the nearest names.
    """
    if isinstance(name, Spec):
        return name
    spec = (SPECS.get(name) or cifar.parse(name)) if isinstance(name, str) else None
    if spec is None:
        raise unknown("model", name, SPECS)
    return spec


def _float_dtype(dtype: Any) -> Any:
    try:
        name = "None" if dtype is None else jnp.dtype(dtype).name
    except (TypeError, ValueError):
        name = str(dtype)
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    if name == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError("dtype float64 needs 64-bit mode: set JAX_ENABLE_X64=1")
    return jnp.dtype(name)


def _scans(spec: Spec) -> bool:
    """Whether scanning pays by default: where unrolled blocks of small images take long to compile.

    From measurement (docs/performance.md).
    """
    return spec.stem == "cifar" and max(spec.depths) >= SCANNED_DEPTH


def _indices(spec: Spec, chosen: Iterable[int] | None) -> tuple[int, ...]:
    last = len(spec.features) - 1
    if isinstance(chosen, int | str) or not isinstance(chosen, Iterable | None):
        raise UserError(f"out_indices is {chosen!r}: expected numbers from 0 (stem) to {last}")
    indices = tuple(range(last + 1) if chosen is None else chosen)
    if not indices or any(type(i) is not int or not 0 <= i <= last for i in indices):
        raise UserError(f"out_indices is {indices}: expected numbers from 0 (stem) to {last}")
    return indices


def create_model(
    name: str | Spec,
    *,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    scan: bool | None = None,
    remat: bool = False,
    features_only: bool = False,
    out_indices: Iterable[int] | None = None,
    **overrides: Any,
) -> ResNet:
    """A named network as a linen module on NHWC float images.

    `model.apply(variables, x, train=False)` is its logits, `(n, num_classes)`.

    Args:
      name: one of `list_models()`, a CIFAR family and a depth of its form, or a spec.
      dtype: of the computation, a dtype or its name; parameters stay float32.
      axis_name: of the mapped axis over which batch norm averages.
      scan: compile the identical blocks of a stage once, their parameters stacked
        (`resflax.nn.stack_params`); by default from 18 blocks a stage on, for small images.
      remat: in training keep only the blocks' inputs, and compute the rest again.
      features_only: give the maps of the stem and the stages instead of logits; `model.features`
        tells their names, channels and strides.
      out_indices: which of them: 0 is the stem before its pooling, i is stage i; by default all.
        Stages behind the last are not built.
      **overrides: fields of `Spec`, as `num_classes=100`, `shortcut="C"`, `stem="cifar"` or
        `output_stride=8`; `num_classes=0` gives pooled features.

    Raises:
      UserError: on a name, field, value or dtype that is not known.

    >>> create_model("resnet18", num_classes=10, stem="cifar").spec.depths
    (2, 2, 2, 2)
    >>> create_model("resnet50", features_only=True, out_indices=(2, 4)).features[-1]
    Feature(name='stage4', channels=2048, stride=32)
    """
    for key, value in (("scan", scan), ("remat", remat), ("features_only", features_only)):
        if not isinstance(value, bool) and not (key == "scan" and value is None):
            raise UserError(f"{key} is {value!r}: expected True or False")
    spec = get_spec(name).override(**overrides)
    if out_indices is not None and not features_only:
        raise UserError(f"out_indices is {out_indices!r}, but features_only is False")
    if scan and spec.pruned:
        raise UserError(f"scan=True needs blocks that are alike: those of {name!r} are pruned")
    return ResNet(
        spec,
        dtype=_float_dtype(dtype),
        axis_name=axis_name,
        scan=_scans(spec) if scan is None else scan,
        remat=remat,
        out_indices=_indices(spec, out_indices) if features_only else None,
    )
