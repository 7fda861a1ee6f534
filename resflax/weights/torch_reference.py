"""Independent PyTorch implementation of the networks, to check the JAX models against.

A functional forward pass for evaluation, without modules or gradients. It shares only the spec's
list of blocks with the JAX implementation.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from resflax.errors import UserError
from resflax.nn import BlockConfig, BlockGeometry, Spec
from resflax.weights.bridge import Variables, to_torch
from resflax.weights.layouts import TORCH_LEAVES, array_specs, default_layout
from resflax.weights.shapes import variable_shapes


def torch_logits(
    spec: Spec, variables: Variables, images: Float[np.ndarray, "n h w c"]
) -> Float[np.ndarray, "n classes"]:
    """Returns the float32 logits that PyTorch computes for a batch of images.

    Args:
      spec: the architecture.
      variables: its variables, stacked or not.
      images: preprocessed images, channels last.

    Raises:
      UserError: if PyTorch is not installed.
    """
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
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
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

    def __call__(self, x: Any) -> Any:
        """Maps images `(n, channels, height, width)` to logits."""
        x = self.pool(self.stem(x))
        variance = 1.0  # of the input of a block, in a normalizer-free network
        for i, stage in enumerate(self.spec.stages, start=1):
            for j, block in enumerate(stage, start=1):
                x = self.block(f"stage{i}_block{j}", block, x, variance)
                if self.spec.gate == "normalizer_free":
                    variance = (1.0 if j == 1 else variance) + 0.2**2
        if self.spec.preact:
            x = self.norm("head_norm", x, act=True)
        x = x.mean((2, 3))
        return self.dense("head", x) if self.spec.num_classes else x

    def stem(self, x: Any) -> Any:
        """Applies the stem's convolutions: one of 7x7 or 3x3, or three of 3x3."""
        if "stem_conv.weight" in self.tensors:
            stride = 1 if self.spec.stem == "cifar" else 2
            x = self.conv("stem_conv", x, stride=stride)
            return x if self.spec.preact else self.norm("stem_norm", x, act=True)
        for i, stride in ((1, 2), (2, 1), (3, 1)):
            x = self.conv(f"stem_conv{i}", x, stride=stride)
            if i < 3 or not self.spec.preact:
                x = self.norm(f"stem_norm{i}", x, act=True)
        return x

    def pool(self, x: Any) -> Any:
        """Applies the stem's pooling, if it has one."""
        if self.spec.stem == "cifar":
            return x
        if self.spec.stem == "rs":
            return self.norm("stem_pool_norm", self.conv("stem_pool", x, stride=2), act=True)
        if self.spec.stem == "bit":
            return self.f.max_pool2d(self.f.pad(x, (1, 1, 1, 1)), 3, 2)
        if self.spec.antialias == "average":
            return self.f.avg_pool2d(x, 2)
        if self.spec.antialias == "blur":
            return self.blur(self.f.max_pool2d(x, 3, 1, 1), 2)
        return self.f.max_pool2d(x, 3, 2, 1)

    def block(self, name: str, block: BlockConfig, x: Any, variance: float) -> Any:
        """Applies one residual block: branch, attention, shortcut."""
        spec, geometry = self.spec, block.geometry
        h = self.norm(f"{name}.norm1", x, act=True) if spec.preact else x
        h = h / variance**0.5
        y, last, dilation = h, len(block.rows), geometry.in_dilation
        for i, row in enumerate(block.rows, start=1):
            if spec.preact and i > 1:
                y = self.norm(f"{name}.norm{i}", y, act=True)
            filtered = row.strided and geometry.strides_or_dilates and spec.antialias != "none"
            stride = geometry.stride if row.strided and not filtered else 1
            groups = spec.groups if row.grouped else 1
            y = self.conv(f"{name}.conv{i}", y, stride=stride, dilation=dilation, groups=groups)
            dilation = geometry.dilation if row.strided else dilation
            if not spec.preact:
                y = self.norm(f"{name}.norm{i}", y, act=i < last)
            y = self.down(y, geometry.stride) if filtered else y
        y = self.attend(name, y)
        if spec.shortcut != "none":
            y = self.gate(name, h, y, self.shortcut(name, geometry, h, x))
        return y if spec.preact else self.f.relu(y)

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
        if kind == "conv":
            return self.f.conv2d(s, weight[:, :, None, None]) + y
        if weight.dim() < 2:  # learned factors
            return s + weight.reshape(1, -1, 1, 1) * y
        stride = round(h.shape[2] / y.shape[2])
        bias = self.tensors[f"{name}.gate.bias"]
        g = self.f.conv2d(h, weight[:, :, None, None], bias, stride).sigmoid()
        return (1 - g) * s + (g * y if kind.startswith("exclusive") else y)

    def shortcut(self, name: str, geometry: BlockGeometry, h: Any, x: Any) -> Any:
        """Returns the shortcut of `x`; projections take the activated input `h`."""
        spec = self.spec
        if f"{name}.Ws.weight" not in self.tensors:
            if spec.shortcut != "A" or not geometry.stride > 1:
                return x
            padding = h.shape[1] // 2
            return self.f.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, padding, padding))
        if spec.shortcut == "D" and geometry.stride > 1:
            h = self.f.avg_pool2d(h, 2, 2, ceil_mode=True, count_include_pad=False)
        elif spec.shortcut == "D" and geometry.dilation > 1:
            h = self.f.avg_pool2d(self.f.pad(h, (0, 1, 0, 1)), 2, 1)
        stride = 1 if spec.shortcut == "D" else geometry.stride
        y = self.conv(f"{name}.Ws", h, stride=stride, dilation=geometry.in_dilation)
        return y if spec.preact else self.norm(f"{name}.Ws_norm", y, act=False)

    def down(self, x: Any, stride: int) -> Any:
        """Applies the anti-aliasing filter with the given stride."""
        if self.spec.antialias == "blur":
            return self.blur(x, stride)
        return self.f.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False) if (
            stride > 1
        ) else x  # fmt: skip

    def blur(self, x: Any, stride: int) -> Any:
        """Applies the filter (1, 2, 1) / 4 along both axes, with reflect padding."""
        taps = self.torch.tensor([0.25, 0.5, 0.25])
        kernel = self.torch.outer(taps, taps).repeat(x.shape[1], 1, 1, 1)
        padded = self.f.pad(x, (1, 1, 1, 1), mode="reflect")
        return self.f.conv2d(padded, kernel, stride=stride, groups=x.shape[1])

    def attend(self, name: str, x: Any) -> Any:
        """Applies squeeze-and-excitation or ECA, if the block has either."""
        if f"{name}.eca_conv.weight" in self.tensors:
            kernel = self.tensors[f"{name}.eca_conv.weight"]
            pooled = x.mean((2, 3))[:, None]
            gate = self.f.conv1d(pooled, kernel, padding=kernel.shape[-1] // 2)[:, 0]
        elif f"{name}.se_fc1.weight" in self.tensors:
            gate = self.dense(f"{name}.se_fc1", x.mean((2, 3)))
            gate = self.dense(f"{name}.se_fc2", self.f.relu(gate))
        else:
            return x
        return x * gate.sigmoid()[:, :, None, None]

    def dense(self, name: str, x: Any) -> Any:
        """Applies a linear layer, whose weight may be stored as a 1x1 convolution kernel."""
        weight = self.tensors[f"{name}.weight"]
        return self.f.linear(x, weight.reshape(weight.shape[:2]), self.tensors[f"{name}.bias"])

    def conv(self, name: str, x: Any, *, stride: int, dilation: int = 1, groups: int = 1) -> Any:
        """Applies a convolution with symmetric padding and, if set, weight standardization."""
        weight = self.tensors[f"{name}.weight"]
        if self.spec.conv == "standardized":
            filters = weight.reshape(weight.shape[0], -1)
            filters = filters - filters.mean(1, keepdim=True)
            filters = filters / (filters.square().mean(1, keepdim=True) + 1e-8).sqrt()
            weight = filters.reshape(weight.shape)
        padding = weight.shape[-1] // 2 * dilation
        return self.f.conv2d(x, weight, None, stride, padding, dilation, groups)

    def norm(self, name: str, x: Any, *, act: bool) -> Any:
        """Applies the spec's norm, followed by its activation if `act`."""

        def get(leaf: str) -> Any:
            return self.tensors.get(f"{name}.{leaf}")

        weight, bias, kind = get("weight"), get("bias"), self.spec.norm
        per_channel = (1, -1, 1, 1)
        if kind == "batch":
            x = self.f.batch_norm(x, get("running_mean"), get("running_var"), weight, bias)
        elif kind == "group":
            x = self.f.group_norm(x, 32, weight, bias)
        elif kind == "evonorm_s0":
            if act:
                grouped = x.reshape(x.shape[0], 32, -1)
                std = (grouped.var(2, unbiased=False) + 1e-5).sqrt()
                std = std.repeat_interleave(x.shape[1] // 32, 1)[:, :, None, None]
                x = x * (x * get("v").reshape(per_channel)).sigmoid() / std
            return x * weight.reshape(per_channel) + bias.reshape(per_channel)
        else:
            x = x / (x.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
            x = x * weight.reshape(per_channel) + bias.reshape(per_channel)
            return self.torch.maximum(x, get("tau").reshape(per_channel)) if act else x
        return self.f.relu(x) if act else x
