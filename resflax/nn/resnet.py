"""The engine: one loop that runs a spec."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resflax.nn.branches import BRANCHES, run_branch
from resflax.nn.keep import kept
from resflax.nn.ops import Ops, make_ops
from resflax.nn.residual import Residual, identity
from resflax.nn.scan import REST, scanned
from resflax.nn.shortcuts import OPTIONS
from resflax.nn.spec import Spec
from resflax.nn.stems import STEMS

Array = jax.Array


def make_block(
    spec: Spec, ops: Ops, *, width: int, stride: int, name: str, block: Any = Residual
) -> Any:
    """One block of `spec`: its branch, its shortcut, and v1's or v2's order of the two.

    `block` is `Residual` or what a transform of it gave.
    """
    option = OPTIONS[spec.shortcut]
    branch = partial(
        run_branch,
        ops,
        BRANCHES[spec.block],
        width=width,
        stride=stride,
        preact=spec.preact,
        zero_init=spec.zero_init and option.make is not None,
    )
    return block(
        branch=branch,
        # In v2 the shared pre-activation has normalised the projection's input already.
        shortcut=option.make(ops, norm=not spec.preact) if option.make else None,
        always=option.always,
        pre=(lambda x: ops.act(ops.norm(x, name="norm1"))) if spec.preact else identity,
        post=kept if spec.preact else (lambda x: kept(ops.act(x))),
        name=name,
    )


class ResNet(nn.Module):
    """A residual network: stem, stages of blocks, global average, linear head.

    Attributes:
      spec: the architecture.
      dtype: of the computation; parameters, batch statistics and the logits' head stay float32
        where they are stored.
      axis_name: of the mapped axis over which batch norm averages (`pmap`, `shard_map`); None
        under `jit`, where the batch is whole already.
      scan: run each stage as its first block and one scanned block for the rest, so that compiling
        takes no longer for a deeper network. The parameters of the rest are stacked (`scan.py`
        converts); the function is the same.
      remat: keep only the blocks' inputs for the backward pass and compute the rest again.
    """

    spec: Spec
    dtype: Any = jnp.float32
    axis_name: str | None = None
    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps NHWC images `(n, height, width, channels)` to logits `(n, num_classes)`.

        With `num_classes=0` the result is the pooled features `(n, channels)`. Any number of
        channels is taken. With `train=True` make "batch_stats" mutable.

        Raises:
          ValueError: if `x` has not four axes.
        """
        if x.ndim != 4:
            raise ValueError(
                f"expected images of shape (n, height, width, channels): got {x.shape}"
            )
        spec = self.spec
        ops = make_ops(train=train, dtype=self.dtype, axis_name=self.axis_name)
        x = STEMS[spec.stem].run(ops, jnp.asarray(x, self.dtype), spec.stem_width, spec.preact)
        for i, (depth, width) in enumerate(zip(spec.depths, spec.widths, strict=True), start=1):
            stage = partial(make_block, spec, ops, width=width)
            x = self._run_stage(stage, x, f"stage{i}", depth, stride=2 if i > 1 else 1)
        if spec.preact:
            x = ops.act(ops.norm(x, name="head_norm"))
        x = jnp.mean(x, axis=(1, 2))
        if not spec.num_classes:
            return x
        return nn.Dense(spec.num_classes, dtype=self.dtype, name="head")(x)

    def _run_stage(
        self, make: Callable[..., Any], x: Array, name: str, depth: int, *, stride: int
    ) -> Array:
        """The first block, which alone changes shapes, and the identical rest."""
        block: Any = nn.remat(Residual) if self.remat else Residual
        x = make(stride=stride, name=f"{name}_block1", block=block)(x)
        if self.scan and depth > 1:
            # Inside a loop XLA cannot undo `remat` by sharing with the forward pass.
            inner: Any = nn.remat(Residual, prevent_cse=False) if self.remat else Residual
            rest = scanned(inner, depth - 1)
            return make(stride=1, name=f"{name}_{REST}", block=rest).step(x)[0]
        for j in range(2, depth + 1):
            x = make(stride=1, name=f"{name}_block{j}", block=block)(x)
        return x
