"""A plain Flax linen ResNet in the style of Flax's ImageNet example.

It differs from the example in two ways: strided convolutions pad symmetrically, as in the paper and
in torch, and shortcut option A is supported. It shares no code with resflax.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state
from jaxtyping import Array, Float, Int

from benchmarks.layers import STEMS, per_axis
from benchmarks.peers.jax_model import JaxModel, unflatten
from benchmarks.task import Task
from benchmarks.weights import Weights

BASIC, BOTTLENECK = "basic", "bottleneck"


class Block(nn.Module):
    """A residual block, basic or bottleneck."""

    kind: str
    filters: int
    stride: int
    shortcut: str
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: Float[Array, "n *space c"]) -> Any:
        one, three = ((size,) * (x.ndim - 2) for size in (1, 3))
        if self.kind == BASIC:
            y = self.conv(self.filters, three, self.stride, padding=1)(x)
            y = nn.relu(self.norm()(y))
            y = self.conv(self.filters, three, padding=1)(y)
        else:
            first, second = (1, self.stride) if self.kind == BOTTLENECK else (self.stride, 1)
            y = self.conv(self.filters, one, first)(x)
            y = nn.relu(self.norm()(y))
            y = self.conv(self.filters, three, second, padding=1)(y)
            y = nn.relu(self.norm()(y))
            y = self.conv(self.filters * 4, one)(y)
        y = self.norm()(y)
        if x.shape != y.shape and self.shortcut == "A":
            extra = y.shape[-1] - x.shape[-1]
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
        elif x.shape != y.shape:
            x = self.conv(y.shape[-1], one, self.stride, name="conv_proj")(x)
            x = self.norm(name="norm_proj")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet v1."""

    kind: str
    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...]
    stem_width: int
    stem: str
    shortcut: str
    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "n *space c"], train: bool) -> Any:
        conv = partial(nn.Conv, use_bias=False, padding=0, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        kernel, stride, pools = STEMS[self.stem]
        space = x.ndim - 2
        sizes = per_axis(kernel, space)
        pads = [(size // 2, size // 2) for size in sizes]
        x = conv(self.stem_width, sizes, stride, padding=pads, name="conv_init")(x)
        x = nn.relu(norm(name="bn_init")(x))
        if pools:
            x = nn.max_pool(x, (3,) * space, strides=(2,) * space, padding=((1, 1),) * space)
        for i, (size, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
            for j in range(size):
                stride = 2 if i > 0 and j == 0 else 1
                x = Block(self.kind, width, stride, self.shortcut, conv, norm)(x)
        x = jnp.mean(x, axis=range(1, x.ndim - 1))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x)


class TrainState(train_state.TrainState):
    """Flax's train state with batch statistics, as in Flax's example."""

    batch_stats: Any


def rename(name: str, depths: list[int]) -> str:
    """Converts resflax's path of an array to this network's.

    >>> rename("params/stage2_block1/conv1/kernel", [3, 3, 3])
    'params/Block_3/Conv_0/kernel'
    """
    collection, *path, leaf = name.split("/")
    names = {"stem_conv": "conv_init", "stem_norm": "bn_init", "head": "Dense_0"}
    names |= {"Ws": "conv_proj", "Ws_norm": "norm_proj"}
    for i in range(1, 4):
        names |= {f"conv{i}": f"Conv_{i - 1}", f"norm{i}": f"BatchNorm_{i - 1}"}
    count = 0
    for stage, depth in enumerate(depths, start=1):
        for block in range(1, depth + 1):
            names[f"stage{stage}_block{block}"] = f"Block_{count}"
            count += 1
    return "/".join([collection, *(names[part] for part in path), leaf])


def make_model(task: Task) -> ResNet:
    """Makes the network of a task."""
    spec = task.spec
    return ResNet(
        kind=spec["block"],
        stage_sizes=tuple(spec["depths"]),
        widths=tuple(spec["widths"]),
        stem_width=spec["stem_width"],
        stem=spec["stem"],
        shortcut=spec["shortcut"],
        num_classes=spec["num_classes"],
        dtype=jnp.dtype(task.dtype),
    )


def make_tx(task: Task) -> optax.GradientTransformation:
    """Makes SGD with Nesterov momentum, and weight decay on kernels."""

    def is_kernel(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    return optax.chain(
        optax.add_decayed_weights(task.weight_decay, is_kernel),
        optax.sgd(task.learning_rate, momentum=0.9, nesterov=True),
    )


def train_step(
    state: TrainState, images: Float[Array, "n h w c"], labels: Int[Array, " n"]
) -> tuple[TrainState, Float[Array, ""]]:
    """Takes one training step; returns the new state and the loss before the update."""

    def loss_fn(params: Any) -> tuple[Any, Any]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updates = state.apply_fn(variables, images, train=True, mutable=["batch_stats"])
        logits = logits.astype(jnp.float32)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, updates

    (loss, updates), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=updates["batch_stats"]), loss


def predict(state: TrainState, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
    """Returns the logits with running batch statistics."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return state.apply_fn(variables, images, train=False)


def make(task: Task) -> JaxModel:
    """Makes the plain Flax implementation of a task."""
    model, tx = make_model(task), make_tx(task)

    def make_state(weights: Weights) -> TrainState:
        renamed = {rename(name, task.spec["depths"]): value for name, value in weights.items()}
        tree = jax.tree.map(jnp.asarray, unflatten(renamed))
        return TrainState.create(apply_fn=model.apply, tx=tx, **tree)

    return JaxModel(task, make_state, train_step, predict)
