"""The linen module that runs a `Spec`."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from resflax.kernels.materialize import materialize
from resflax.nn.activations import identity
from resflax.nn.batch_norm import GLOBAL_BATCH, BatchNormMode
from resflax.nn.block_inputs import block_inputs
from resflax.nn.blocks import BlockConfig, apply_branch
from resflax.nn.capture import COLLECTION, apply_and_capture
from resflax.nn.drop import dropout
from resflax.nn.drop_block import DropBlock, drop_block, stage_drop_blocks
from resflax.nn.ensembles import log_mean_probability
from resflax.nn.fields import resolve
from resflax.nn.gates import SUM
from resflax.nn.layers import Ops
from resflax.nn.orders import ACT, apply_steps
from resflax.nn.residual import Residual
from resflax.nn.scan import REST, scan_module
from resflax.nn.shuffle import Shuffling
from resflax.nn.spec import Spec
from resflax.nn.stages import FeatureInfo
from resflax.nn.stems import apply_stem

# By number of spatial axes.
INPUT_SHAPES = {
    1: "signals of shape (n, length, channels)",
    2: "images of shape (n, height, width, channels)",
    3: "volumes or clips of shape (n, depth, height, width, channels)",
}


def make_block(
    spec: Spec,
    ops: Ops,
    block: BlockConfig,
    *,
    drop: DropBlock | None,
    name: str,
    module_class: Any,
) -> Any:
    """Returns one block of `spec`: branch, attention and shortcut, in its order.

    `drop` is how its stage drops regions, and `module_class` is `Residual`, or the result of a
    linen transform of it.
    """
    shortcut, attention = resolve("shortcut", spec.shortcut), resolve("attention", spec.attention)
    antialias, gate = resolve("antialias", spec.antialias), resolve("gate", spec.gate)
    order = spec.order_row

    def branch(x: Array, *, keys: Array | None = None) -> Array:
        drop_regions = identity
        if keys is not None and drop is not None:
            drop_regions = partial(drop_block, keys, rate=spec.drop_block, row=drop)
        x = apply_branch(
            ops,
            block,
            x,
            antialias=antialias,
            groups=spec.groups,
            order=order,
            zero_init=spec.zero_init and shortcut.make is not None,
            drop=drop_regions,
        )
        y: Array = attention(ops, x, block.width)
        return y

    def post(x: Array) -> Array:
        if order.post == ACT:
            return materialize(ops.act_of_sum(x))
        return materialize(
            apply_steps(ops, order.post, x, name=f"norm{order.post_norm_number(len(block.rows))}")
        )

    # Elsewhere a norm follows the addition, or has preceded the projection as well (v2).
    norm = "norm" in order.last
    return module_class(
        branch=branch,
        shortcut=shortcut.make(ops, block.geometry, norm=norm) if shortcut.make else None,
        always=shortcut.always,
        pre=partial(apply_steps, ops, order.pre, name="norm1"),
        post=post,
        gate=None if gate is SUM else gate,
        name=name,
    )


class ResNet(nn.Module):
    """Residual network: stem, stages of blocks, global average pooling, linear head.

    Attributes:
      spec: the architecture.
      dtype: compute dtype, also that of the results. Parameters and batch statistics are stored in
        float32, and means and variances computed in it. `jax.default_matmul_precision` applies to
        the convolutions and the head as elsewhere in JAX: on accelerators, where products of
        float32 have fewer bits by default; CPUs compute in float32 in any case.
      axis_name: mapped axis (`pmap`, `shard_map`) over which batch norm averages. None under `jit`,
        which sees the global batch.
      scan: run each stage as its first block and one scanned block for the rest, so that compile
        time does not grow with depth. The outputs are the same; the parameters of the rest are
        stacked (`resflax.nn.scan` converts).
      remat: keep only the blocks' inputs for the backward pass and recompute the rest.
      batch_norm: which statistics the batch norms normalize by in training.
      out_indices: return the feature maps with these indices into `spec.features` (0 is the stem, i
        is stage i) and build no later stage. None for logits.
    """

    spec: Spec
    dtype: Any = jnp.float32
    axis_name: str | None = None
    scan: bool = False
    remat: bool = False
    batch_norm: BatchNormMode = GLOBAL_BATCH
    out_indices: tuple[int, ...] | None = None

    @property
    def features(self) -> tuple[FeatureInfo, ...]:
        """Name, channels and stride of each returned feature map; empty without `out_indices`."""
        return tuple(self.spec.features[i] for i in self.out_indices or ())

    @property
    def needs_rng(self) -> bool:
        """Whether calls with `train=True` need `dropout_keys`."""
        return self.spec.needs_rng

    @nn.nowrap
    def apply(
        self, variables: Any, *args: Any, capture: str | Sequence[str] = (), **kwargs: Any
    ) -> Any:
        """Applies the network as linen does; with `capture`, also returns intermediate outputs.

        Args:
          variables: the variables.
          *args: the inputs.
          capture: names of modules, such as "stage2_block1" or "stage3_block1/conv1", also as
            shell-style patterns ("stage?_block1"; `*` also matches `/`); "stem" and "stage1" and so
            on for the maps of `spec.features`, and "pooled" for the input of the head. The names
            are the same with `scan=True`.
          **kwargs: further arguments of `__call__` and of linen's `apply`.

        Returns:
          The result of linen's `apply`; with `capture`, this and a dict from names to arrays.

        Raises:
          UserError: if a name matches no module.
        """
        apply = partial(super().apply, variables, *args)
        if not capture:
            return apply(**kwargs)
        return apply_and_capture(apply, capture, self.spec.depths, **kwargs)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n *space channels"],
        *,
        train: bool,
        dropout_keys: Key[Array, " n"] | None = None,
        drop_path_rates: Float[Array, " blocks"] | None = None,
        members: bool = False,
    ) -> Any:
        """Computes logits `(n, num_classes)` from images with any number of channels.

        Images have `spec.dimensions` axes between the batch and the channels: signals have one,
        clips and volumes three. With `num_classes=0` the result is the pooled features `(n,
        channels)`. With `out_indices` it is a tuple of maps `(n, height / stride, width / stride,
        channels)`, sizes rounded up. All are in the compute dtype, such as bfloat16 logits: convert
        them to float32 before a softmax, as the losses of `resflax.train` do.

        If the spec has an ensemble, the logits are the logarithms of the members' mean
        probabilities, as float32, and in training those of all members, `(members, n,
        num_classes)`, as the loss is the mean of the members' losses. (With MIMO's batch repetition
        the first axis has the repetitions of each member.) Features are those of all members,
        concatenated along the channels.

        Args:
          x: the images.
          train: whether to use batch statistics, drop path, dropout and DropBlock. Make the
            collection "batch_stats" mutable if True.
          dropout_keys: one key per example, needed for training if `needs_rng`. They replace
            linen's RNG streams, which are shared by the batch: what is dropped from an example
            depends on its key only, however many devices share the batch. Given in evaluation, they
            turn on what drops in training (see `resflax.nn.mc_dropout`).
          drop_path_rates: rates of all blocks, instead of those of `spec.drop_path`, which must be
            more than 0. They may be traced, so that members of an ensemble can have different ones.
          members: return the logits of all members, `(members, n, num_classes)`, in evaluation too;
            for a spec without ensemble `(1, n, num_classes)`.

        Raises:
          ValueError: if `x` has the wrong number of axes, or keys are missing.
        """
        if x.ndim != self.spec.dimensions + 2:
            raise ValueError(
                f"expected {INPUT_SHAPES[self.spec.dimensions]}, as spec.dimensions is"
                f" {self.spec.dimensions}: got shape {x.shape}"
            )
        spec, stem, ensemble = self.spec, resolve("stem", self.spec.stem), self.spec.ensemble_row
        needs_keys = self.needs_rng and (train or dropout_keys is not None)
        keys = self._check_keys(dropout_keys, x.shape[0]) if needs_keys else None
        ops = ensemble.make_ops(
            spec.members,
            train=train,
            dtype=self.dtype,
            axis_name=self.axis_name,
            batch_norm=self.batch_norm,
            norm=resolve("norm", spec.norm),
            norm_momentum=spec.norm_momentum,
            norm_epsilon=spec.norm_epsilon,
            conv=resolve("conv", spec.conv),
            activation=resolve("activation", spec.activation),
            dimensions=spec.dimensions,
        )
        if self.is_mutable_collection(COLLECTION):  # a fused convolution has no output to capture
            ops = dataclasses.replace(ops, fused_conv_norm=None)
        x, keys, split_logits = ensemble.make_inputs(
            jnp.asarray(x, self.dtype), keys, spec.members, self._shuffling(train)
        )
        x = apply_stem(ops, stem, x, spec.stem_channels, order=spec.order_row)
        self.sow(COLLECTION, "stem", x)
        maps, last_stage = [x], max(self.out_indices or (len(spec.depths),))
        if stem.pool and last_stage:
            x = stem.pool(ops, x, resolve("antialias", spec.antialias))
        inputs = block_inputs(spec, keys, drop_path_rates, self.dtype)
        drops = stage_drop_blocks(len(spec.depths))
        for i, blocks in enumerate(spec.stages[:last_stage]):
            x = self._run_stage(ops, blocks, x, inputs[i], drop=drops[i], name=f"stage{i + 1}")
            self.sow(COLLECTION, f"stage{i + 1}", x)
            maps.append(x)
        if self.out_indices is not None:
            return tuple(ensemble.merge_rows(maps[i], spec.members) for i in self.out_indices)
        x = apply_steps(ops, spec.order_row.pre, x, name="head_norm")
        x = resolve("pooling", spec.pooling)(ops, x)
        self.sow(COLLECTION, "pooled", x)
        if keys is not None and spec.dropout:
            x = dropout(keys, x, spec.dropout)
        if not spec.num_classes:
            return ensemble.merge_rows(x, spec.members)
        outputs = ensemble.head_outputs(spec.members, spec.num_classes)
        logits = resolve("head", spec.head)(ops, x, outputs)
        if spec.ensemble == "none" and not members:
            return logits
        logits = split_logits(logits)
        return logits if members or train else log_mean_probability(logits)

    def _shuffling(self, train: bool) -> Shuffling | None:
        spec = self.spec
        if not train:
            return None
        return Shuffling(spec.batch_repetition, spec.input_repetition, self.axis_name)

    def _check_keys(self, keys: Array | None, examples: int) -> Array:
        if keys is None or keys.shape != (examples,):
            given = None if keys is None else f"shape {keys.shape}"
            raise ValueError(
                "training with drop_path, drop_block or dropout needs dropout_keys, one key per"
                " example:"
                f" expected shape ({examples},), got {given}"
            )
        return keys

    def _run_stage(
        self,
        ops: Ops,
        blocks: tuple[BlockConfig, ...],
        x: Float[Array, "n *space channels"],
        inputs: list[Array | None],
        *,
        drop: DropBlock | None,
        name: str,
    ) -> Float[Array, "n *out_space out_channels"]:
        """Runs the first block, which alone can change shapes, and the identical others."""
        module_class: Any = nn.remat(Residual) if self.remat else Residual
        make = partial(make_block, self.spec, ops, drop=drop)

        def select(index: int | slice) -> list[Array | None]:
            return [None if array is None else array[index] for array in inputs]

        x = make(blocks[0], name=f"{name}_block1", module_class=module_class)(x, *select(0))
        if self.scan and len(blocks) > 1:
            # Inside a loop, XLA cannot undo `remat` by sharing with the forward pass.
            inner: Any = nn.remat(Residual, prevent_cse=False) if self.remat else Residual
            scanned = scan_module(inner, len(blocks) - 1)
            rest = make(blocks[1], name=f"{name}_{REST}", module_class=scanned)
            return rest.step(x, *select(slice(1, None)))[0]
        for j, block in enumerate(blocks[1:], start=1):
            x = make(block, name=f"{name}_block{j + 1}", module_class=module_class)(x, *select(j))
        return x
