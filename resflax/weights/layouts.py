"""How others name the arrays of a residual network: layouts, tables from our names to theirs."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from flax import traverse_util

from resflax.nn import Spec
from resflax.nn.scan import parse_block_name

Path = tuple[str, ...]

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "v": "v",  # EvoNorm-S0's
    "tau": "tau",  # the filter response norm's
}
COUNT = "num_batches_tracked"


class Layout(NamedTuple):
    """A row of naming.

    Attributes:
      outer: the names of the modules outside blocks.
      block: of a block's own place; it may say stage and block, counted from 1, and stage0 and
        block0, counted from 0.
      inner: the names of the modules of a block, behind that place.
      pointwise: modules whose kernel this layout keeps as a 1x1 convolution's.
      counts: whether counts of batches are written where nothing was counted.
    """

    outer: dict[str, str]
    block: str
    inner: dict[str, str]
    pointwise: tuple[str, ...] = ()
    counts: bool = True

    def place(self, modules: Path) -> str | None:
        """The name of a module, or None if this layout has none for it."""
        where = parse_block_name(modules[0])
        if where is None:
            return self.outer.get(modules[0])
        inner = self.inner.get(modules[1])
        stage, block = where
        place = self.block.format(stage=stage, block=block, stage0=stage - 1, block0=block - 1)
        return inner and f"{place}.{inner}"


class ArraySpec(NamedTuple):
    """One array: where it is in our variables, its name in a layout, and its shape there.

    Attributes:
      path: collection, modules, leaf.
      key: its name.
      shape: in torch's order of axes.
    """

    path: Path
    key: str
    shape: tuple[int, ...]


def _numbered(ours: str, theirs: str, numbers: Iterator[int] | range) -> dict[str, str]:
    return {f"{ours}{i}": theirs.format(i) for i in numbers}


SE = {"se_fc1": "se.fc1", "se_fc2": "se.fc2", "eca_conv": "se.conv"}
DIGITS = range(1, 4)


def timm(spec: Spec) -> Layout:
    """Torchvision's names, and timm's for what torchvision has not."""
    stem = {f"stem_conv{i}": f"conv1.{3 * (i - 1)}" for i in DIGITS} | {
        "stem_conv": "conv1",
        "stem_norm": "bn1",
        "stem_norm1": "conv1.1",
        "stem_norm2": "conv1.4",
        "stem_norm3": "bn1",
        "stem_pool": "maxpool.0",
        "stem_pool_norm": "maxpool.1",
    }
    first = 1 if spec.shortcut == "D" else 0  # behind the pooling, which owns nothing
    return Layout(
        outer={**stem, "head": "fc"},
        block="layer{stage}.{block0}",
        inner={
            **_numbered("conv", "conv{}", DIGITS),
            **_numbered("norm", "bn{}", DIGITS),
            "Ws": f"downsample.{first}",
            "Ws_norm": f"downsample.{first + 1}",
            **SE,
        },
        pointwise=("se_fc1", "se_fc2"),
    )


def timm_v2(spec: Spec) -> Layout:
    """Timm's names for pre-activation nets."""
    del spec
    return Layout(
        outer={
            **{f"stem_{part}": f"stem.{part}" for part in ("conv", "norm")},
            **_numbered("stem_conv", "stem.conv{}", DIGITS),
            **_numbered("stem_norm", "stem.norm{}", DIGITS),
            "head_norm": "norm",
            "head": "head.fc",
        },
        block="stages.{stage0}.blocks.{block0}",
        inner={
            **_numbered("conv", "conv{}", DIGITS),
            **_numbered("norm", "norm{}", DIGITS),
            "Ws": "downsample.conv",
            "Ws_norm": "downsample.norm",
        },
        pointwise=("head",),
    )


def huggingface(spec: Spec) -> Layout:
    """Hugging Face's `ResNetForImageClassification`."""
    del spec
    convolution, norm = "layer.{}.convolution", "layer.{}.normalization"
    return Layout(
        outer={
            "stem_conv": "resnet.embedder.embedder.convolution",
            "stem_norm": "resnet.embedder.embedder.normalization",
            "head": "classifier.1",
        },
        block="resnet.encoder.stages.{stage0}.layers.{block0}",
        inner={
            **{f"conv{i}": convolution.format(i - 1) for i in DIGITS},
            **{f"norm{i}": norm.format(i - 1) for i in DIGITS},
            "Ws": "shortcut.convolution",
            "Ws_norm": "shortcut.normalization",
        },
    )


def cifar(spec: Spec) -> Layout:
    """That of akamaster's pytorch_resnet_cifar10, and of most nets for CIFAR since."""
    del spec
    return Layout(
        outer={"stem_conv": "conv1", "stem_norm": "bn1", "head": "linear"},
        block="layer{stage}.{block0}",
        inner={
            **_numbered("conv", "conv{}", DIGITS),
            **_numbered("norm", "bn{}", DIGITS),
            "Ws": "shortcut.0",
            "Ws_norm": "shortcut.1",
        },
        counts=False,  # the published nets are older than these
    )


LAYOUTS = {"timm": timm, "timm_v2": timm_v2, "huggingface": huggingface, "cifar": cifar}


def default_layout(spec: Spec) -> str:
    """The layout that a network is given back in, if none is asked for."""
    if spec.preact:
        return "timm_v2"
    return "cifar" if spec.stem == "cifar" else "timm"


def slots(layout: str, spec: Spec, variables: Any) -> list[ArraySpec] | None:
    """Every array of `variables` in a layout; None if that has no name for some of them.

    `variables` may hold shapes only.
    """
    table = LAYOUTS[layout](spec)
    found = []
    for path, array in traverse_util.flatten_dict(variables).items():
        _, *modules, leaf = path
        place = table.place(tuple(modules))
        if place is None:
            return None
        shape = (*array.shape[:-3:-1], *array.shape[:-2]) if leaf == "kernel" else array.shape
        if leaf == "kernel" and modules[-1] in table.pointwise:
            shape = (*shape, 1, 1)
        found.append(ArraySpec(path, f"{place}.{LEAVES[leaf]}", shape))
    return found
