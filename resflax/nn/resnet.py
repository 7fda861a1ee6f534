"""The engine: one loop that runs a spec."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resflax.kernels.materialize import materialize
from resflax.nn.antialias import ANTIALIAS
from resflax.nn.attention import ATTENTION
from resflax.nn.blocks import apply_branch
from resflax.nn.layers import Ops, drop_path, dropout, make_ops
from resflax.nn.plan import Block, FeatureInfo, plan
from resflax.nn.residual import Residual, identity
from resflax.nn.scan import REST, scanned
from resflax.nn.shortcuts import SHORTCUTS
from resflax.nn.spec import Spec
from resflax.nn.stems import STEMS, run_stem

Array = jax.Array


def make_block(spec: Spec, ops: Ops, block: Block, *, name: str, module: Any = Residual) -> Any:
    """One block of `spec`: its branch, its shortcut, and v1's or v2's order of the two.

    `module` is `Residual` or what a transform of it gave.
    """
    option, attend = SHORTCUTS[spec.shortcut], ATTENTION[spec.attention]

    def branch(x: Array) -> Array:
        x = apply_branch(
            ops,
            block.layers,
            x,
            channels=block.channels,
            scale=block.scale,
            antialias=ANTIALIAS[spec.antialias],
            groups=spec.groups,
            preact=spec.preact,
            zero_init=spec.zero_init and option.make is not None,
        )
        return attend(ops, x, block.width)

    # In v2 the shared pre-activation has normalised the projection's input already.
    shortcut = option.make(ops, block.scale, norm=not spec.preact) if option.make else None
    return module(
        branch=branch,
        shortcut=shortcut,
        always=option.always,
        pre=partial(ops.norm_act, name="norm1") if spec.preact else identity,
        post=materialize if spec.preact else (lambda x: materialize(ops.act(x))),
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
      out_indices: give the maps of these `spec.features` (0 is the stem, i is stage i) and build no
        further; None for logits.
    """

    spec: Spec
    dtype: Any = jnp.float32
    axis_name: str | None = None
    scan: bool = False
    remat: bool = False
    out_indices: tuple[int, ...] | None = None

    @property
    def features(self) -> tuple[FeatureInfo, ...]:
        """What each map that the network gives is, where `out_indices` choose maps."""
        return tuple(self.spec.features[i] for i in self.out_indices or ())

    @property
    def needs_rng(self) -> bool:
        """Whether training takes `keys`."""
        return self.spec.drop_path > 0 or self.spec.dropout > 0

    @nn.compact
    def __call__(self, x: Array, *, train: bool, keys: Array | None = None) -> Any:
        """Maps NHWC images `(n, height, width, channels)` to logits `(n, num_classes)`.

        With `num_classes=0` the result is the pooled features `(n, channels)`, with `out_indices`
        a tuple of maps `(n, height / stride, width / stride, channels)`, sizes rounded up. Any
        number of channels is taken. With `train=True` make "batch_stats" mutable.

        A network that `needs_rng` takes `keys` in training, `(n,)`, one an example, and none of linen's
        streams, which are one for the batch: what is dropped from an example is a function of its
        key, however many devices share the batch.

        Raises:
          ValueError: if `x` has not four axes, or not each example a key.
        """
        if x.ndim != 4:
            raise ValueError(
                f"expected images of shape (n, height, width, channels): got {x.shape}"
            )
        spec, stem = self.spec, STEMS[self.spec.stem]
        keys = self._check_keys(keys, len(x)) if train and self.needs_rng else None
        ops = make_ops(
            train=train,
            dtype=self.dtype,
            axis_name=self.axis_name,
            norm=spec.norm,
            conv=spec.conv,
        )
        x = run_stem(ops, stem, jnp.asarray(x, self.dtype), spec.stem_width, preact=spec.preact)
        maps, last = [x], max(self.out_indices or (len(spec.depths),))
        if stem.pool and last:
            x = stem.pool(ops, x, ANTIALIAS[spec.antialias])
        scales = self._scales(keys)
        for i, blocks in enumerate(plan(spec)[:last]):
            x = self._run_stage(ops, blocks, x, scales[i], name=f"stage{i + 1}")
            maps.append(x)
        if self.out_indices is not None:
            return tuple(maps[i] for i in self.out_indices)
        if spec.preact:
            x = ops.norm_act(x, name="head_norm")
        x = jnp.mean(x, axis=(1, 2))
        if keys is not None and spec.dropout:
            x = dropout(keys, x, spec.dropout)
        return ops.dense(x, spec.num_classes, name="head") if spec.num_classes else x

    def _check_keys(self, keys: Array | None, examples: int) -> Array:
        if keys is None or keys.shape != (examples,):
            found = "none" if keys is None else f"keys of shape {keys.shape}"
            raise ValueError(f"dropping takes a key for each of {examples} examples: got {found}")
        return keys

    def _scales(self, keys: Array | None) -> list[Array | None]:
        """For each stage what its blocks' branches are multiplied by, `(blocks, n)`; None for 1."""
        depths, rate = self.spec.depths, self.spec.drop_path
        if keys is None or not rate:
            return [None] * len(depths)
        return [*jnp.split(drop_path(keys, rate, sum(depths)), np.cumsum(depths)[:-1])]

    def _run_stage(
        self, ops: Ops, blocks: list[Block], x: Array, scales: Array | None, *, name: str
    ) -> Array:
        """The first block, which alone changes shapes, and the identical rest."""
        module: Any = nn.remat(Residual) if self.remat else Residual
        make = partial(make_block, self.spec, ops)
        of = [None] * len(blocks) if scales is None else scales
        x = make(blocks[0], name=f"{name}_block1", module=module)(x, of[0])
        if self.scan and len(blocks) > 1:
            # Inside a loop XLA cannot undo `remat` by sharing with the forward pass.
            inner: Any = nn.remat(Residual, prevent_cse=False) if self.remat else Residual
            rest = scanned(inner, len(blocks) - 1)
            scales = None if scales is None else scales[1:]
            return make(blocks[1], name=f"{name}_{REST}", module=rest).step(x, scales)[0]
        for j, block in enumerate(blocks[1:], start=1):
            x = make(block, name=f"{name}_block{j + 1}", module=module)(x, of[j])
        return x
