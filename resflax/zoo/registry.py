"""Models by name."""

import re
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

import jax
import jax.numpy as jnp

from resflax.errors import UserError, unknown
from resflax.nn import ResNet, Spec
from resflax.zoo import cifar, nfnet, resnet, resnetv2, resnext, senet, signals, video

MIN_SCAN_DEPTH = 18
DTYPES = ("float32", "bfloat16", "float16", "float64")
FAMILIES = (resnet, resnext, senet, resnetv2, nfnet, cifar, signals, video)
# Ends of names that are files: no tags.
FILE_SUFFIXES = ("safetensors", "pth", "pt", "th", "bin", "ckpt", "tar", "pkl", "json", "onnx")
SPECS: dict[str, Spec] = {name: spec for family in FAMILIES for name, spec in family.SPECS.items()}


def _natural_sort_key(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names that match a shell-style pattern, in natural order.

    The CIFAR families also have all other valid depths, which are not listed.

    >>> list_models("plain*")
    ['plain18', 'plain34']
    """
    return sorted((name for name in SPECS if fnmatch(name, pattern)), key=_natural_sort_key)


def get_spec(name: str | Spec) -> Spec:
    """Returns the spec of a named model. A `Spec` is returned unchanged.

    timm's tags of pretrained weights are accepted and ignored: "resnet50.a1_in1k" has the spec of
    "resnet50".

    Raises:
      UserError: if the name is unknown; the message lists similar names.

    >>> get_spec("resnet50.a1_in1k") == get_spec("resnet50")
    True
    """
    if isinstance(name, Spec):
        return name
    base, tag = split_tag(name) if isinstance(name, str) else (name, "")
    if tag.rpartition(".")[2] in FILE_SUFFIXES:
        raise UserError(
            f"unknown model {name!r}: expected the name of an architecture, without"
            f" .{tag}: a file of weights is given to load_pretrained or --config.pretrained"
        )
    spec = (SPECS.get(base) or cifar.parse_name(base)) if isinstance(base, str) else None
    if spec is None:
        raise _unknown_model(name, base)
    return spec


def _unknown_model(name: object, base: object) -> UserError:
    """Returns the error for an unknown name, which may be one of the Hub or spelled otherwise."""
    if not isinstance(name, str):
        return unknown("model", base, SPECS)
    has_owner = "/" in name or ":" in name
    last = re.split("[/:]", name)[-1]
    parts = [last] if last in SPECS else last.split(".")  # also "torchvision.models.resnet50"
    spellings = {_without_separators(known): known for known in SPECS}
    spellings = {k.removeprefix("cifar"): v for k, v in spellings.items()} | spellings
    match = next(filter(None, (spellings.get(_without_separators(part)) for part in parts)), None)
    if match is None:
        return unknown("model", split_tag(last)[0] if has_owner else base, SPECS)
    if not has_owner:
        return UserError(f"unknown model {base!r}: did you mean {match}?")
    return UserError(
        f"unknown model {name!r}: expected the name of an architecture, {match}, without owner and"
        " tag; a repository of weights is given to load_pretrained or --config.pretrained"
    )


def _without_separators(name: str) -> str:
    return re.sub("[-_ ]", "", name.lower())


def split_tag(name: str) -> tuple[str, str]:
    """Splits a model name into its architecture and timm's tag of pretrained weights ("" if none).

    >>> split_tag("resnet50.a1_in1k"), split_tag("resnet50")
    (('resnet50', 'a1_in1k'), ('resnet50', ''))
    """
    architecture, _, tag = name.partition(".")
    return (architecture, tag) if architecture and tag else (name, "")


def _check_dtype(dtype: Any) -> Any:
    try:
        name = "None" if dtype is None else jnp.dtype(dtype).name
    except (TypeError, ValueError):
        name = str(dtype)
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    if name == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError("dtype float64 needs 64-bit mode: set JAX_ENABLE_X64=1")
    return jnp.dtype(name)


def _scans_by_default(spec: Spec) -> bool:
    """Returns whether to scan: unrolled stages of many blocks compile slowly.

    Chosen for small images, whose unrolled blocks take long to compile.
    """
    return spec.stem == "cifar" and max(spec.depths) >= MIN_SCAN_DEPTH


def _check_out_indices(spec: Spec, out_indices: Iterable[int] | None) -> tuple[int, ...]:
    last = len(spec.features) - 1
    if isinstance(out_indices, int | str) or not isinstance(out_indices, Iterable | None):
        raise UserError(
            f"out_indices is {out_indices!r}: expected integers from 0 (stem) to {last}"
        )
    indices = tuple(range(last + 1) if out_indices is None else out_indices)
    if not indices or any(type(i) is not int or not 0 <= i <= last for i in indices):
        raise UserError(f"out_indices is {indices}: expected integers from 0 (stem) to {last}")
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
    """Returns a named network as a linen module for float images in NHWC layout.

    `model.apply(variables, x, train=False)` computes logits, `(n, num_classes)`, in `dtype`. With
    `dimensions=1` or 3, `x` is signals `(n, length, channels)` or clips and volumes `(n, depth,
    height, width, channels)`.

    Args:
      name: one of `list_models()`, also with one of timm's tags; a CIFAR family and any valid
        depth; or a `Spec`.
      dtype: compute dtype, or its name: "float32", "bfloat16", "float64" (with
        JAX_ENABLE_X64=1), or "float16", which is not for training. Parameters stay float32.
      axis_name: mapped axis over which batch norm averages.
      scan: compile the identical blocks of a stage once, with stacked parameters
        (`resflax.nn.stack_params`). By default True for networks for small images with at least 18
        blocks in a stage.
      remat: keep only the blocks' inputs for the backward pass and recompute the rest.
      features_only: return feature maps of stem and stages instead of logits. `model.features` has
        their names, channels and strides.
      out_indices: feature maps to return: 0 is the stem before its pooling, i is stage i. All by
        default. Stages after the last one are not built.
      **overrides: fields of `Spec`, such as `num_classes=100`, `shortcut="C"`, `stem="cifar"` or
        `output_stride=8`. `num_classes=0` returns pooled features.

    Raises:
      UserError: on an unknown name, field or dtype, or an invalid value.

    >>> create_model("resnet18", num_classes=10, stem="cifar").spec.depths
    (2, 2, 2, 2)
    >>> create_model("resnet50", features_only=True, out_indices=(2, 4)).features[-1]
    FeatureInfo(name='stage4', channels=2048, stride=32)
    """
    for key, value in (("scan", scan), ("remat", remat), ("features_only", features_only)):
        if not isinstance(value, bool) and not (key == "scan" and value is None):
            raise UserError(f"{key} is {value!r}: expected True or False")
    spec = get_spec(name).override(**overrides)
    if out_indices is not None and not features_only:
        raise UserError(f"out_indices is {out_indices!r}: use features_only=True with it")
    if scan and spec.pruned:
        raise UserError(
            f"scan is True, but the blocks of {name!r} differ, because they are pruned:"
            " use scan=False"
        )
    return ResNet(
        spec,
        dtype=_check_dtype(dtype),
        axis_name=axis_name,
        scan=_scans_by_default(spec) if scan is None else scan,
        remat=remat,
        out_indices=_check_out_indices(spec, out_indices) if features_only else None,
    )
