"""Independent PyTorch implementation of the networks, to check the JAX models against.

A functional forward pass for evaluation, without modules or gradients. It shares only the spec's
list of blocks with the JAX implementation.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from resflax.errors import UserError
from resflax.nn import BlockConfig, BlockGeometry, Spec
from resflax.nn.fields import check_named, resolve
from resflax.nn.layers import Sizes
from resflax.nn.scaled_conv import gamma_of
from resflax.weights.array_specs import TORCH_LEAVES, array_specs
from resflax.weights.bridge import Variables, to_torch
from resflax.weights.layouts import VIDEO_STEMS, default_layout
from resflax.weights.shapes import variable_shapes


def torch_logits(
    spec: Spec, variables: Variables, images: Float[np.ndarray, "n *space c"]
) -> Float[np.ndarray, "n classes"]:
    """Returns the float32 logits that PyTorch computes for a batch of images.

    Args:
      spec: the architecture.
      variables: its variables, stacked or not.
      images: preprocessed images, channels last.

    Raises:
      UserError: if PyTorch is not installed, or the network has parts that this file does not.
    """
    check_named(spec.own_parts, "PyTorch has no such part")
    try:
        import torch
    except ImportError as e:
        raise UserError('this comparison needs PyTorch: pip install "resflax[torch]"') from e
    # Linen module names with torch's leaf names and axis order: independent of the layout.
    layout = default_layout(spec)
    state_dict = to_torch(spec, variables, layout=layout)
    tensors = {
        ".".join((*s.path[1:-1], TORCH_LEAVES[s.path[-1]])): torch.from_numpy(
            state_dict[s.key].astype(np.float32)
        )
        for s in array_specs(layout, spec, variable_shapes(spec, images.shape[-1])) or ()
    }
    with torch.no_grad():
        x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
        return TorchResNet(spec, tensors)(x).numpy()


class TorchResNet:
    """A network in evaluation mode, as calls of `torch.nn.functional`.

    Attributes:
      spec: the architecture.
      tensors: parameters and batch statistics, named "MODULES.LEAF" with linen module names.
    """

    def __init__(self, spec: Spec, tensors: dict[str, Any]) -> None:
        import torch

        self.spec, self.tensors, self.torch, self.f = spec, tensors, torch, torch.nn.functional
        self.dimensions = spec.dimensions
        self.space = tuple(range(2, 2 + self.dimensions))

    def run(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Calls the function for the spec's number of spatial axes, such as `conv2d`."""
        return getattr(self.f, f"{name}{self.dimensions}d")(*args, **kwargs)

    def pad_space(self, x: Any, before: int, after: int, **kwargs: Any) -> Any:
        """Pads each spatial axis."""
        return self.f.pad(x, (before, after) * self.dimensions, **kwargs)

    def __call__(self, x: Any) -> Any:
        """Maps images `(n, channels, *space)` to logits."""
        x = self.pool(self.stem(x))
        variance = 1.0  # of the input of a block, in a normalizer-free network
        for i, stage in enumerate(self.spec.stages, start=1):
            for j, block in enumerate(stage, start=1):
                x = self.block(f"stage{i}_block{j}", block, x, variance)
                if self.spec.gate == "normalizer_free":
                    variance = (1.0 if j == 1 else variance) + 0.2**2
        x = self.before("head_norm", x)
        mean, largest = x.mean(self.space), x.amax(self.space)
        pooled = {
            "avg": mean,
            "max": largest,
            "avgmax": (mean + largest) / 2,
            "catavgmax": self.torch.cat([mean, largest], 1),
        }
        x = pooled[str(self.spec.pooling)]
        return self.dense("head", x) if self.spec.num_classes else x

    def act(self, x: Any) -> Any:
        """Applies the spec's activation."""
        name = str(self.spec.activation)
        if name in ("identity", "tanh"):
            return x if name == "identity" else x.tanh()
        if name == "gelu_tanh":
            return self.f.gelu(x, approximate="tanh")
        return getattr(self.f, {"hard_swish": "hardswish"}.get(name, name))(x)

    def stem(self, x: Any) -> Any:
        """Applies the stem's convolutions: one of 7x7 or 3x3, or several."""
        last = next((i for i in (3, 2) if f"stem_conv{i}.weight" in self.tensors), 1)
        for i in range(1, last + 1):
            number = i if last > 1 else ""
            stride = 1 if self.spec.stem == "cifar" or i > 1 else 2
            strides = (1, 2, 2) if self.spec.stem in VIDEO_STEMS and i == 1 else stride
            x = self.conv(f"stem_conv{number}", x, stride=strides)
            if i < last:
                x = self.norm(f"stem_norm{number}", x, act=True)
        return self.after_stem(f"stem_norm{last if last > 1 else ''}", x)

    def after_stem(self, name: str, x: Any) -> Any:
        """Applies what follows the stem's last convolution: the first block may begin with it."""
        if self.spec.preact:
            return x
        return self.norm(name, x, act=self.spec.order != "act_only_preact")

    def before(self, name: str, x: Any) -> Any:
        """Applies a norm and an activation, or only the latter, in pre-activation networks."""
        if self.spec.preact:
            return self.norm(name, x, act=True)
        return self.act(x) if self.spec.order == "act_only_preact" else x

    def pool(self, x: Any) -> Any:
        """Applies the stem's pooling, if it has one."""
        if self.spec.stem == "cifar" or self.spec.stem in VIDEO_STEMS:
            return x
        if self.spec.stem == "rs":
            return self.norm("stem_pool_norm", self.conv("stem_pool", x, stride=2), act=True)
        if self.spec.stem == "bit":
            return self.run("max_pool", self.pad_space(x, 1, 1), 3, 2)
        if self.spec.antialias == "average":
            return self.run("avg_pool", x, 2)
        if self.spec.antialias == "blur":
            return self.blur(self.run("max_pool", x, 3, 1, 1), 2)
        return self.run("max_pool", x, 3, 2, 1)

    def block(self, name: str, block: BlockConfig, x: Any, variance: float) -> Any:
        """Applies one residual block: branch, attention, shortcut."""
        spec, geometry = self.spec, block.geometry
        h = self.before(f"{name}.norm1", x)
        h = h / variance**0.5
        y, last, dilation = h, len(block.rows), geometry.in_dilation
        for i, row in enumerate(block.rows, start=1):
            if spec.preact and i > 1:
                y = self.norm(f"{name}.norm{i}", y, act=True)
            filtered = row.strided and geometry.strides_or_dilates and spec.antialias != "none"
            stride = 1 if filtered else row.strides(geometry.stride)
            groups = spec.groups if row.grouped else 1
            y = self.conv(f"{name}.conv{i}", y, stride=stride, dilation=dilation, groups=groups)
            dilation = geometry.dilation if row.strided else dilation
            if i < last or spec.order != "norm_after_add":
                act = i < last or spec.order == "act_before_add"
                y = y if spec.preact else self.norm(f"{name}.norm{i}", y, act=act)
            y = self.down(y, geometry.stride) if filtered else y
        y = self.attend(name, y)
        if spec.shortcut != "none":
            strides = block.strides(self.dimensions)
            y = self.gate(name, h, y, self.shortcut(name, geometry, strides, h, x))
        if spec.order == "norm_after_add":
            return self.norm(f"{name}.norm{last}", y, act=True)
        return y if spec.preact or spec.order != "auto" else self.act(y)

    def gate(self, name: str, h: Any, y: Any, s: Any) -> Any:
        """Combines the branch `y` of a block and its shortcut `s`."""
        kind = self.spec.gate
        if kind == "normalizer_free":
            return s + 0.2 * y
        if kind in ("none", "dropout", "drop_path"):
            return s + y
        if kind in ("scaled", "scaled_shortcut"):
            return 0.5 * s + (0.5 * y if kind == "scaled" else y)
        weight = self.tensors[f"{name}.gate.weight"]
        ones = [1] * self.dimensions
        if kind == "conv":
            return self.run("conv", s, weight.reshape(*weight.shape, *ones)) + y
        if weight.dim() < 2:  # learned factors
            return s + weight.reshape(1, -1, *ones) * y
        strides = [round(a / b) for a, b in zip(h.shape[2:], y.shape[2:], strict=True)]
        bias = self.tensors[f"{name}.gate.bias"]
        g = self.run("conv", h, weight.reshape(*weight.shape, *ones), bias, strides).sigmoid()
        return (1 - g) * s + (g * y if kind.startswith("exclusive") else y)

    def shortcut(
        self, name: str, geometry: BlockGeometry, strides: tuple[int, ...], h: Any, x: Any
    ) -> Any:
        """Returns the shortcut of `x`; projections take the activated input `h`."""
        spec = self.spec
        if f"{name}.Ws.weight" not in self.tensors:
            if spec.shortcut != "A" or not geometry.stride > 1:
                return x
            padding = h.shape[1] // 2
            h = h[:, :, *(slice(None, None, stride) for stride in strides)]
            return self.f.pad(h, (*[0, 0] * self.dimensions, padding, padding))
        if spec.shortcut == "D" and geometry.stride > 1:
            h = self.run("avg_pool", h, strides, strides, ceil_mode=True, count_include_pad=False)
        elif spec.shortcut == "D" and geometry.dilation > 1:
            h = self.run("avg_pool", self.pad_space(h, 0, 1), 2, 1)
        stride = 1 if spec.shortcut == "D" else strides
        y = self.conv(f"{name}.Ws", h, stride=stride, dilation=geometry.in_dilation)
        if spec.preact or spec.order == "norm_after_add":
            return y
        return self.norm(f"{name}.Ws_norm", y, act=False)

    def down(self, x: Any, stride: int) -> Any:
        """Applies the anti-aliasing filter with the given stride."""
        if self.spec.antialias == "blur":
            return self.blur(x, stride)
        if stride == 1:
            return x
        return self.run("avg_pool", x, 2, 2, ceil_mode=True, count_include_pad=False)

    def blur(self, x: Any, stride: int) -> Any:
        """Applies the filter (1, 2, 1) / 4 along all spatial axes, with reflect padding."""
        taps = kernel = self.torch.tensor([0.25, 0.5, 0.25])
        for _ in self.space[1:]:
            kernel = kernel[..., None] * taps
        kernel = kernel.repeat(x.shape[1], 1, *[1] * self.dimensions)
        padded = self.pad_space(x, 1, 1, mode="reflect")
        return self.run("conv", padded, kernel, stride=stride, groups=x.shape[1])

    def attend(self, name: str, x: Any) -> Any:
        """Applies squeeze-and-excitation or ECA, if the block has either."""
        if f"{name}.eca_conv.weight" in self.tensors:
            kernel = self.tensors[f"{name}.eca_conv.weight"]
            pooled = x.mean(self.space)[:, None]
            gate = self.f.conv1d(pooled, kernel, padding=kernel.shape[-1] // 2)[:, 0]
        elif f"{name}.se_fc1.weight" in self.tensors:
            gate = self.dense(f"{name}.se_fc1", x.mean(self.space))
            gate = self.dense(f"{name}.se_fc2", self.f.relu(gate))
        else:
            return x
        return x * gate.sigmoid().reshape(*gate.shape, *[1] * self.dimensions)

    def dense(self, name: str, x: Any) -> Any:
        """Applies a linear layer, whose weight may be stored as a 1x1 convolution kernel."""
        weight = self.tensors[f"{name}.weight"]
        return self.f.linear(x, weight.reshape(weight.shape[:2]), self.tensors[f"{name}.bias"])

    def conv(self, name: str, x: Any, *, stride: Sizes, dilation: int = 1, groups: int = 1) -> Any:
        """Applies a convolution with symmetric padding and, if set, weight standardization."""
        weight, bias = self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
        kind = resolve("conv", self.spec.conv)
        if kind.epsilon is not None:
            filters = weight.reshape(weight.shape[0], -1)
            filters = filters - filters.mean(1, keepdim=True)
            filters = filters / (filters.square().mean(1, keepdim=True) + kind.epsilon).sqrt()
            if kind.has_gain:
                gamma = gamma_of(resolve("activation", self.spec.activation))
                scale = gamma / filters.shape[1] ** 0.5
                filters = filters * self.tensors[f"{name}.gain"].reshape(-1, 1) * scale
            weight = filters.reshape(weight.shape)
        padding = [size // 2 * dilation for size in weight.shape[2:]]
        return self.run("conv", x, weight, bias, stride, padding, dilation, groups)

    def norm(self, name: str, x: Any, *, act: bool) -> Any:
        """Applies the spec's norm, followed by its activation if `act`."""

        def get(leaf: str) -> Any:
            return self.tensors.get(f"{name}.{leaf}")

        weight, bias, kind = get("weight"), get("bias"), self.spec.norm
        per_channel = (1, -1, *[1] * self.dimensions)
        if kind == "batch":
            x = self.f.batch_norm(
                x, get("running_mean"), get("running_var"), weight, bias, eps=self.spec.norm_epsilon
            )
        elif kind == "group":
            x = self.f.group_norm(x, 32, weight, bias)
        elif kind == "evonorm_s0":
            if act:
                grouped = x.reshape(x.shape[0], 32, -1)
                std = (grouped.var(2, unbiased=False) + 1e-5).sqrt()
                std = std.repeat_interleave(x.shape[1] // 32, 1)
                std = std.reshape(*std.shape, *[1] * self.dimensions)
                x = x * (x * get("v").reshape(per_channel)).sigmoid() / std
            return x * weight.reshape(per_channel) + bias.reshape(per_channel)
        elif kind == "frn_tlu":
            x = x / (x.square().mean(self.space, keepdim=True) + 1e-5).sqrt()
            x = x * weight.reshape(per_channel) + bias.reshape(per_channel)
            return self.torch.maximum(x, get("tau").reshape(per_channel)) if act else x
        return self.act(x) if act else x
