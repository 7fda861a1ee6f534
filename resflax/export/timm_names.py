"""timm's name and constructor arguments for a spec, and the name of a spec in the zoo."""

from dataclasses import replace
from typing import Any, NamedTuple

from resflax.nn import Spec
from resflax.nn.drop import RATES
from resflax.nn.fields import resolve
from resflax.zoo import get_spec
from resflax.zoo.cifar import FAMILIES
from resflax.zoo.nfnet import NORMALIZER_FREE
from resflax.zoo.registry import SPECS

# Networks that timm does not have: CIFAR stems, plain networks and the paper's bottlenecks.
NOT_IN_TIMM = ("cifar_", "wrn", "plain")
# Fields that do not change the network in evaluation mode.
TRAINING_FIELDS: dict[str, Any] = {
    "zero_init": True,
    **dict.fromkeys(RATES, 0.0),
    "norm_momentum": 0.9,
}
STEM_TYPES = {"imagenet": "", "deep": "deep", "tiered": "deep_tiered", "rs": "deep"}
STEM_TYPES_V2 = {"imagenet": "", "deep": "deep", "tiered": "tiered", "bit": "fixed"}
DOWNSAMPLE_KERNELS = {"B": 1, "B3": 3, "D": 1}


class TimmModel(NamedTuple):
    """A model of timm: its name, and arguments of its constructor that differ from the name's."""

    name: str
    arguments: dict[str, Any]


def find_timm_model(spec: Spec) -> TimmModel | None:
    """Returns the model of timm with this architecture, or None if timm cannot build it.

    Of several, the one with the fewest arguments. Fields that affect training only and the number
    of classes are ignored.

    >>> from resflax import get_spec
    >>> find_timm_model(get_spec("resnet50"))
    TimmModel(name='resnet50', arguments={})
    >>> find_timm_model(get_spec("resnet18").override(depths=(1, 1, 1, 1)))
    TimmModel(name='resnet18', arguments={'layers': [1, 1, 1, 1]})
    """
    spec = inference_spec(spec)
    if spec.own_parts or not _is_supported(spec):
        return None
    candidates = []
    for name, base in SPECS.items():
        if name.startswith(NOT_IN_TIMM) or name.endswith("_v1"):
            continue
        base = inference_spec(base)
        if spec == base:
            return TimmModel(name, {})
        if _fixed(spec) == _fixed(base) and spec.pruned is None:
            old = _arguments(base)
            changed = {key: value for key, value in _arguments(spec).items() if value != old[key]}
            candidates.append(TimmModel(name, changed))
    return min(candidates, key=lambda model: len(model.arguments), default=None)


def zoo_name(spec: Spec) -> str | None:
    """Returns the name of a spec, whatever its number of classes; None if it has no name.

    >>> zoo_name(get_spec("cifar_resnet26").override(num_classes=3))
    'cifar_resnet26'
    """
    spec = inference_spec(spec)
    layers = sum(len(block.rows) for stage in spec.stages for block in stage)
    names = [
        *SPECS,
        *(
            f"{prefix}{layers + 2}"
            for prefix, family in FAMILIES.items()
            if family.spec(layers + 2)
        ),
    ]
    if layers % 6 == 0 and spec.widths[0] % 16 == 0:
        names.append(f"wrn{layers + 4}_{spec.widths[0] // 16}")
    return next((name for name in names if inference_spec(get_spec(name)) == spec), None)


def inference_spec(spec: Spec) -> Spec:
    """Returns the spec without what is irrelevant to the features of a trained network."""
    return replace(spec, num_classes=0, **TRAINING_FIELDS)


def _is_supported(spec: Spec) -> bool:
    """Returns whether timm's constructors take the stem, shortcut and widths."""
    if spec.ensemble != "none" or spec.order != "auto" or spec.dimensions != 2:
        return False
    if resolve("conv", spec.conv).has_gain:
        base = NORMALIZER_FREE | {"block": "bottleneck", "stem": "imagenet", "base_width": 64}
        multiples = not any(width % 8 for width in (*spec.widths, spec.stem_width))
        return multiples and all(getattr(spec, key) == value for key, value in base.items())
    if spec.gate != "none":
        return False
    if spec.stem not in (STEM_TYPES_V2 if spec.preact else STEM_TYPES):
        return False
    if spec.shortcut not in DOWNSAMPLE_KERNELS or "bottleneck_v1" in spec.block_values:
        return False
    if spec.preact:
        # timm rounds widths to multiples of 8, and its bottlenecks project where shapes agree too.
        rounds = any(width % 8 for width in (*spec.widths, spec.stem_width))
        return not rounds and (spec.block == "basic" or spec.stem_width != 4 * spec.widths[0])
    if len(spec.depths) != 4 or ("basic" in spec.block_values and spec.base_width != 64):
        return False
    return spec.stem_width == 64 if spec.stem == "imagenet" else spec.stem_width % 8 == 0


def _fixed(spec: Spec) -> tuple[Any, ...]:
    """Returns the fields for which timm's constructors take no JSON value."""
    fixed: tuple[Any, ...] = (
        spec.preact,
        spec.block,
        spec.norm,
        spec.norm_epsilon,
        spec.conv,
        spec.antialias,
        spec.activation,
        spec.head,
        spec.dimensions,
    )
    if spec.preact:
        fixed += (spec.groups, spec.base_width)
    conv = resolve("conv", spec.conv)
    if (
        conv.epsilon is not None and not conv.has_gain
    ):  # timm's functions for BiT take none of these
        fixed += (spec.depths, spec.widths, spec.stem_width)
    return (*fixed, spec.attention)


def _arguments(spec: Spec) -> dict[str, Any]:
    """Returns arguments of the constructor of timm's `ResNet`, `ResNetV2` or `NormFreeNet`."""
    if resolve("conv", spec.conv).has_gain:
        return {
            "depths": list(spec.depths),
            "channels": [4 * width for width in spec.widths],
            "stem_chs": spec.stem_width,
            "output_stride": spec.output_stride,
            "global_pool": spec.pooling,
        }
    shared = {
        "layers": list(spec.depths),
        "output_stride": spec.output_stride,
        "global_pool": spec.pooling,
        "avg_down": spec.shortcut == "D",
    }
    if spec.preact:
        expansion = 1 if spec.block == "basic" else 4
        return {
            **shared,
            "channels": [expansion * width for width in spec.widths],
            "stem_chs": spec.stem_width,
            "stem_type": STEM_TYPES_V2[spec.stem],
        }
    return {
        **shared,
        "channels": list(spec.widths),
        "cardinality": spec.groups,
        "base_width": spec.base_width,
        "stem_width": 64 if spec.stem == "imagenet" else spec.stem_width // 2,
        "stem_type": STEM_TYPES[spec.stem],
        "replace_stem_pool": spec.stem == "rs",
        "down_kernel_size": DOWNSAMPLE_KERNELS[spec.shortcut],
    }
