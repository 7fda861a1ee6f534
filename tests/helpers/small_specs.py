"""Small networks that together have every part of the networks of the zoo."""

from dataclasses import fields

from resflax import list_models
from resflax.nn import Spec
from resflax.zoo import get_spec

# Fields of networks of images with one block, whose channels group norm can divide.
ONE_BLOCK = {"depths": (1,), "widths": (32,), "stem_width": 32}
# Fields that change the size of a network but none of its operations.
SIZES = ("depths", "widths", "stem_width", "base_width", "groups", "pruned", "num_classes")


def shrink(spec, **overrides):
    """Returns the spec with two stages of two narrow blocks each."""
    block = spec.block if isinstance(spec.block, str) else spec.block[:2]
    small = {"stem_width": 32 if spec.stem == "cifar" else 64, "widths": (32, 64)}
    groups = {"groups": 4, "base_width": 32} if spec.groups > 1 else {"base_width": 64}
    small |= {"depths": (2, 2), "block": block, "num_classes": 10, "pruned": None, **groups}
    return spec.override(**(small | overrides))


def zoo_specs():
    """Returns a shrunk spec for each combination of parts of networks of images in the zoo."""
    distinct = {}
    for name in list_models():
        spec = get_spec(name)
        if spec.dimensions != 2:
            continue
        key = tuple(getattr(spec, f.name) for f in fields(Spec) if f.name not in SIZES)
        distinct.setdefault((*key, spec.groups > 1), name)
    return {name: shrink(get_spec(name)) for name in distinct.values()}


_DILATED = {"depths": (1, 1, 2), "widths": (32, 64, 64), "output_stride": 8}
# Parts and combinations that no network of the zoo has.
EXTRA_SPECS = {
    "blur": shrink(get_spec("resnet18"), antialias="blur"),
    "dilated_D": shrink(get_spec("resnet50d")).override(**_DILATED),
    "dilated_B3": shrink(get_spec("senet154")).override(**_DILATED),
    "dilated_blur": shrink(get_spec("resnet50"), antialias="blur").override(**_DILATED),
    "dilated_average": shrink(get_spec("seresnetaa50d")).override(**_DILATED),
    "plain_preact": shrink(get_spec("cifar_preact_resnet8"), shortcut="none"),
    "v1_group": shrink(get_spec("resnet18"), norm="group"),
    "v1_group_plain": shrink(get_spec("cifar_resnet8"), norm="group", shortcut="none"),
    "v1_evonorm": shrink(get_spec("resnet18"), norm="evonorm_s0"),
    "v1_frn": shrink(get_spec("resnet18"), norm="frn_tlu", attention="eca"),
    "preact_se_A": shrink(get_spec("resnetv2_18"), attention="se", shortcut="A", stem_width=32),
    "option_C": shrink(get_spec("cifar_resnet8"), shortcut="C"),
    "pruned": shrink(get_spec("ecaresnet50d")).override(
        pruned=(((9, 7, 19), (12, 10, 19)), ((30, 21, 50), (17, 19, 50)))
    ),
}  # fmt: skip
