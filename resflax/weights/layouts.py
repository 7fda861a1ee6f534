"""Naming conventions of torch state dicts for residual networks, as data."""

from typing import NamedTuple

from resflax.nn import Spec
from resflax.nn.fields import resolve
from resflax.nn.scan import parse_block_name

Path = tuple[str, ...]

BATCH_COUNT = "num_batches_tracked"
VIDEO_STEMS = ("video", "video_2plus1d")
# Modules of the first convolution in every layout, and its array in the names of resflax.
STEMS = (
    "conv1",
    "conv1.0",
    "stem.conv",
    "stem.conv1",
    "stem.0",
    "resnet.embedder.embedder.convolution",
    "0",
)
FLAX_STEMS = {"params/stem_conv/kernel", "params/stem_conv1/kernel"}
# Arrays of the head, which have the number of classes, in every layout and in resflax's names.
HEADS = {
    "fc.bias",
    "head.fc.bias",
    "classifier.1.bias",
    "linear.bias",
    "9.bias",
    "params/head/bias",
}


class Layout(NamedTuple):
    """Module names of one state dict convention.

    Attributes:
      outer: torch names of the modules outside blocks, by linen name.
      block: format string for the name of a block; `{stage}` and `{block}` count from 1, `{stage0}`
        and `{block0}` from 0, and `{stage4}` from 4.
      inner: torch names of the modules inside a block, by linen name.
      conv1x1: linen modules whose matrix is stored as the kernel of a 1x1 convolution.
      zero_counts: whether `to_torch` adds `num_batches_tracked = 0` where the variables have no
        batch counts.
    """

    outer: dict[str, str]
    block: str
    inner: dict[str, str]
    conv1x1: tuple[str, ...] = ()
    zero_counts: bool = True

    def module_name(self, modules: Path) -> str | None:
        """Returns the torch name of a linen module, or None if the layout has no name for it."""
        position = parse_block_name(modules[0])
        if position is None or len(modules) != 2:
            return self.outer.get(modules[0]) if len(modules) == 1 else None
        inner = self.inner.get(modules[1])
        return inner and f"{block_name(self.block, *position)}.{inner}"


def block_name(block_format: str, stage: int, block: int) -> str:
    """Returns the name of a block in a layout.

    >>> block_name("stages.{stage0}.blocks.{block0}", 1, 2)
    'stages.0.blocks.1'
    """
    return block_format.format(
        stage=stage, block=block, stage0=stage - 1, block0=block - 1, stage4=stage + 3
    )


ATTENTION = {"se_fc1": "se.fc1", "se_fc2": "se.fc2", "eca_conv": "se.conv"}
GATE = {"gate": "gate"}  # no torch library has gates
DIGITS = range(1, 4)


def is_flax_name(name: str) -> bool:
    """Returns whether an array has a name of resflax (`bridge.flatten`), not one of a layout.

    >>> is_flax_name("params/head/bias"), is_flax_name("fc.bias")
    (True, False)
    """
    return name.startswith(("params/", "batch_stats/"))


def _numbered(linen: str, torch: str) -> dict[str, str]:
    return {f"{linen}{i}": torch.format(i) for i in DIGITS}


def timm_layout(spec: Spec) -> Layout:
    """Returns the names of timm's resnet.py, a superset of torchvision's."""
    stem = {f"stem_conv{i}": f"conv1.{3 * (i - 1)}" for i in DIGITS} | {
        "stem_conv": "conv1",
        "stem_norm": "bn1",
        "stem_norm1": "conv1.1",
        "stem_norm2": "conv1.4",
        "stem_norm3": "bn1",
        "stem_pool": "maxpool.0",
        "stem_pool_norm": "maxpool.1",
    }
    # With shortcut D, entry 0 of the Sequential is the average pooling, which has no parameters.
    first = 1 if spec.shortcut == "D" else 0
    return Layout(
        outer={**stem, "head": "fc"},
        block="layer{stage}.{block0}",
        inner={
            **_numbered("conv", "conv{}"),
            **_numbered("norm", "bn{}"),
            "Ws": f"downsample.{first}",
            "Ws_norm": f"downsample.{first + 1}",
            **ATTENTION,
            **GATE,
        },
        conv1x1=("se_fc1", "se_fc2"),
    )


def timm_v2_layout(spec: Spec) -> Layout:
    """Returns the names of timm's resnetv2.py (pre-activation)."""
    del spec
    return Layout(
        outer={
            **{f"stem_{part}": f"stem.{part}" for part in ("conv", "norm")},
            **_numbered("stem_conv", "stem.conv{}"),
            **_numbered("stem_norm", "stem.norm{}"),
            "head_norm": "norm",
            "head": "head.fc",
        },
        block="stages.{stage0}.blocks.{block0}",
        inner={
            **_numbered("conv", "conv{}"),
            **_numbered("norm", "norm{}"),
            "Ws": "downsample.conv",
            "Ws_norm": "downsample.norm",
            **GATE,
        },
        conv1x1=("head",),
    )


def timm_nf_layout(spec: Spec) -> Layout:
    """Returns the names of timm's nfnet.py (normalizer-free)."""
    del spec
    return Layout(
        outer={
            "stem_conv": "stem.conv",
            **_numbered("stem_conv", "stem.conv{}"),
            "head": "head.fc",
        },
        block="stages.{stage0}.{block0}",
        inner={
            **_numbered("conv", "conv{}"),
            "Ws": "downsample.conv",
            **{name: f"attn_last.{torch[3:]}" for name, torch in ATTENTION.items()},
            **GATE,
        },
        conv1x1=("se_fc1", "se_fc2"),
    )


def huggingface_layout(spec: Spec) -> Layout:
    """Returns the names of `ResNetForImageClassification` in Hugging Face Transformers."""
    del spec
    conv, norm = "layer.{}.convolution", "layer.{}.normalization"
    return Layout(
        outer={
            "stem_conv": "resnet.embedder.embedder.convolution",
            "stem_norm": "resnet.embedder.embedder.normalization",
            "head": "classifier.1",
        },
        block="resnet.encoder.stages.{stage0}.layers.{block0}",
        inner={
            **{f"conv{i}": conv.format(i - 1) for i in DIGITS},
            **{f"norm{i}": norm.format(i - 1) for i in DIGITS},
            "Ws": "shortcut.convolution",
            "Ws_norm": "shortcut.normalization",
        },
    )


def cifar_layout(spec: Spec) -> Layout:
    """Returns the names of akamaster's pytorch_resnet_cifar10, common among CIFAR ResNets."""
    del spec
    return Layout(
        outer={"stem_conv": "conv1", "stem_norm": "bn1", "head": "linear"},
        block="layer{stage}.{block0}",
        inner={
            **_numbered("conv", "conv{}"),
            **_numbered("norm", "bn{}"),
            "Ws": "shortcut.0",
            "Ws_norm": "shortcut.1",
            **GATE,
        },
        zero_counts=False,  # the published checkpoints predate num_batches_tracked
    )


def sequential_layout(spec: Spec) -> Layout:
    """Returns the names of `nn.Sequential(*resnet.children())`, torchvision's or timm's.

    The children are conv1, bn1, relu, maxpool, layer1 to layer4, avgpool and fc: feature extractors
    often have all but the last ones.
    """
    timm = timm_layout(spec)
    children = {"conv1": "0", "bn1": "1", "maxpool": "3", "fc": "9"}
    outer = {linen: name.split(".") for linen, name in timm.outer.items()}
    return timm._replace(
        outer={linen: ".".join([children[n[0]], *n[1:]]) for linen, n in outer.items()},
        block="{stage4}.{block0}",
    )


def video_layout(spec: Spec) -> Layout:
    """Returns the names of torchvision's video networks."""
    if spec.stem == "video_2plus1d":
        # Each 3x3x3 convolution is a Sequential: spatial, norm, activation, temporal.
        convs = [f"conv{i}.0.{part}" for i in (1, 2) for part in (0, 3)]
        norms = [f"conv{i}.{part}" for i in (1, 2) for part in ("0.1", "1")]
    else:
        convs, norms = ([f"conv{i}.{part}" for i in DIGITS] for part in (0, 1))
    stem = {f"stem_conv{i}": f"stem.{3 * (i - 1)}" for i in DIGITS} | {
        f"stem_norm{i}": f"stem.{3 * i - 2}" for i in DIGITS
    }
    return Layout(
        outer={"stem_conv": "stem.0", "stem_norm": "stem.1", **stem, "head": "fc"},
        block="layer{stage}.{block0}",
        inner={
            **{f"conv{i}": name for i, name in enumerate(convs, start=1)},
            **{f"norm{i}": name for i, name in enumerate(norms, start=1)},
            "Ws": "downsample.0",
            "Ws_norm": "downsample.1",
        },
    )


LAYOUTS = {
    "timm": timm_layout,
    "timm_v2": timm_v2_layout,
    "timm_nf": timm_nf_layout,
    "huggingface": huggingface_layout,
    "cifar": cifar_layout,
    "sequential": sequential_layout,
    "torchvision_video": video_layout,
}


def default_layout(spec: Spec) -> str:
    """Returns the name of the layout that `to_torch` uses when none is given."""
    if spec.stem in VIDEO_STEMS:
        return "torchvision_video"
    if resolve("conv", spec.conv).has_gain:
        return "timm_nf"
    if spec.preact:
        return "timm_v2"
    return "cifar" if spec.stem == "cifar" else "timm"
