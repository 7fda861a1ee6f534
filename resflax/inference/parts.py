"""Emits the parts of a network that a spec names: poolings, filters, attention, shortcuts.

Each table has a function per row that the library ships; `resflax.inference.whole` says what
becomes of other rows.
"""

from collections.abc import Callable
from typing import Any

from resflax.inference.layers import GraphBuilder
from resflax.nn import BlockGeometry
from resflax.nn.stems import conv_pool, default_pool, zero_padded_pool


def _default_pool(builder: GraphBuilder, x: str) -> str:
    return STEM_FILTERS[builder.spec.antialias](builder, x)


def _conv_pool(builder: GraphBuilder, x: str) -> str:
    shape = (3, builder.spec.stem_width)
    return builder.conv(x, "stem_pool", shape, norm="stem_pool_norm", act=True, stride=2)


def _max_pool(builder: GraphBuilder, x: str, *, stride: int = 2, zeros: bool = False) -> str:
    return builder.emit(
        "max_pool", "stem_max_pool", x, window=3, stride=stride, padding=1, zero_padding=zeros
    )


# The pooling of each row of `STEMS`.
STEM_POOLS: dict[Callable[..., Any], Callable[[GraphBuilder, str], str]] = {
    default_pool: _default_pool,
    conv_pool: _conv_pool,
    zero_padded_pool: lambda builder, x: _max_pool(builder, x, zeros=True),
}
# `AntiAlias.pool` and `AntiAlias.downsample` of each row of `ANTIALIAS`.
STEM_FILTERS: dict[str, Callable[[GraphBuilder, str], str]] = {
    "none": _max_pool,
    "blur": lambda builder, x: builder.emit(
        "blur", "stem_blur", _max_pool(builder, x, stride=1), stride=2
    ),
    "average": lambda builder, x: builder.emit("avg_pool", "stem_pool", x, stride=2, same=False),
}
BLOCK_FILTERS: dict[str, Callable[[GraphBuilder, str, str, int], str] | None] = {
    "none": None,
    "blur": lambda builder, x, name, stride: builder.emit("blur", name, x, stride=stride),
    "average": lambda builder, x, name, stride: (
        builder.emit("avg_pool", name, x, stride=stride, same=False) if stride > 1 else x
    ),
}


def _squeeze_excite(builder: GraphBuilder, name: str, x: str) -> str:
    h = builder.emit("mean", f"{name}/se_mean", x)
    h = builder.dense(h, f"{name}/se_fc1", activation="relu")
    return builder.gate(x, builder.dense(h, f"{name}/se_fc2", activation="sigmoid"), name)


def _efficient_channel(builder: GraphBuilder, name: str, x: str) -> str:
    h = builder.emit("mean", f"{name}/eca_mean", x)
    return builder.gate(x, builder.channel_conv(h, f"{name}/eca_conv", "sigmoid"), name)


ATTENTIONS: dict[str, Callable[[GraphBuilder, str, str], str]] = {
    "none": lambda builder, name, x: x,
    "se": _squeeze_excite,
    "se_rs": _squeeze_excite,
    "eca": _efficient_channel,
}


def _zero_pad(
    builder: GraphBuilder, name: str, geometry: BlockGeometry, h: str, channels: int, out: int
) -> str:
    before = (out - channels) // 2
    return builder.emit(
        "zero_pad",
        f"{name}/zero_pad",
        h,
        stride=geometry.stride,
        before=before,
        after=out - channels - before,
    )


def _project(
    builder: GraphBuilder, name: str, h: str, features: int, *, kernel: int = 1, **geometry: int
) -> str:
    norm = f"{name}/Ws_norm" if "norm" in builder.spec.order_row.last else None
    return builder.conv(h, f"{name}/Ws", (kernel, features), norm=norm, act=False, **geometry)


def _projection(
    builder: GraphBuilder, name: str, geometry: BlockGeometry, h: str, channels: int, out: int
) -> str:
    return _project(builder, name, h, out, stride=geometry.stride)


def _projection_3x3(
    builder: GraphBuilder, name: str, geometry: BlockGeometry, h: str, channels: int, out: int
) -> str:
    kernel = 3 if geometry.stride > 1 or geometry.dilation > 1 else 1
    shape = {"stride": geometry.stride, "dilation": geometry.in_dilation}
    return _project(builder, name, h, out, kernel=kernel, **shape)


def _pooled_projection(
    builder: GraphBuilder, name: str, geometry: BlockGeometry, h: str, channels: int, out: int
) -> str:
    if geometry.stride > 1 or geometry.dilation > 1:
        same = geometry.stride == 1
        h = builder.emit("avg_pool", f"{name}/Ws_pool", h, stride=geometry.stride, same=same)
    return _project(builder, name, h, out)


# `ShortcutRow.make` of each row of `SHORTCUTS` that has one.
SHORTCUT_NODES: dict[str, Callable[..., str]] = {
    "A": _zero_pad,
    "B": _projection,
    "B3": _projection_3x3,
    "C": _projection,
    "D": _pooled_projection,
}
