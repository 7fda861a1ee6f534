"""Fields of a network's spec that have no effect on the network."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from resflax.nn import Spec
from resflax.nn.fields import resolve
from resflax.nn.norms import BATCH
from resflax.train.config import build_model, spec_overrides
from resflax.zoo import get_spec


def _has_strides(spec: Spec) -> bool:
    strides = [block.geometry.stride for stage in spec.stages for block in stage]
    return max(strides) > 1 or resolve("stem", spec.stem).pool is not None


def _stages_differ(spec: Spec, without: Spec) -> bool:
    return spec.stages != without.stages


def _has_shortcuts(spec: Spec, without: Spec) -> bool:
    return resolve("shortcut", spec.shortcut).make is not None


def _has_activations(spec: Spec, without: Spec) -> bool:
    return not spec.preact or not resolve("norm", spec.norm).has_activation


def _has_batch_norm(spec: Spec, without: Spec) -> bool:
    return resolve("norm", spec.norm) is BATCH


# Whether a field of a spec has an effect, given the spec, and the spec without the change; and why
# it has none otherwise.
EFFECTS: dict[str, tuple[Callable[[Spec, Spec], bool], str]] = {
    "base_width": (_stages_differ, "no number of channels changes"),
    "groups": (_stages_differ, "no convolution changes"),
    "output_stride": (_stages_differ, "no feature map has a larger stride"),
    "zero_init": (_has_shortcuts, "it has no shortcuts"),
    "activation": (_has_activations, "its norms have their own"),
    "norm_momentum": (_has_batch_norm, "it has no batch norms"),
    "norm_epsilon": (_has_batch_norm, "it has no batch norms"),
    "antialias": (lambda spec, _: _has_strides(spec), "it has no strides"),
}


def unused_fields(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Yields each field of `config.spec` that does not change the model, and why."""
    if not config.model:
        return
    base, overrides = get_spec(config.model), spec_overrides(config)
    if overrides:
        yield from unused_overrides(base, build_model(config).spec, overrides, config.model)


def unused_overrides(
    base: Spec, spec: Spec, overrides: Mapping[str, Any], name: str
) -> Iterator[tuple[str, str]]:
    """Yields each field that does not change a spec, and why.

    Args:
      base: the spec of the named model.
      spec: the same with other values of fields.
      overrides: these values.
      name: of the model.
    """
    for field, (has_effect, reason) in EFFECTS.items():
        old = getattr(base, field)
        if overrides.get(field, old) == old:
            continue
        if not has_effect(spec, spec.override(**{field: old})):
            yield field, f"{name} does not use it, since {reason}: leave it out"
