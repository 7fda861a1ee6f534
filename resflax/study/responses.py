"""How large the layers' responses are, plain against residual (He et al. 2015, Figure 7).

The standard deviation of each 3x3 layer's response: after batch norm, before the non-linearity and
the addition, in original order and sorted. Claims to check: residual responses are smaller, and a
deeper residual network's are smaller still. Of networks trained here, or of runs of `train.py`.

A response's size is the norm's learned scale, which only weight decay makes smaller where it is not
needed. The paper decays all parameters for 64,000 steps; a short training needs a stronger decay.
"""

import argparse
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import numpy as np

from resflax.cli.study import numbers
from resflax.data import Dataset, eval_batches, normalize
from resflax.nn.batch_norm import BatchNorm
from resflax.plotting import line_style, new_figure, save
from resflax.study.folder import Folder
from resflax.study.layers import by_layer
from resflax.study.nets import add_nets, open_nets
from resflax.study.recipes import recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Depths to train, or runs to look into."""
    parser.add_argument("--depths", type=numbers(int, 8, 20_000), default="20,56")
    parser.add_argument("--weight_decay", type=float, default=5e-3, help="of all parameters")
    add_nets(parser, rate="0.05")
    parser.set_defaults(epochs=40)


def run(args: argparse.Namespace) -> None:
    """Trains or loads the networks, measures, draws."""
    depths = sorted(args.depths)
    config = recipe(args.dataset, args.epochs, args.batch_size)
    config.weight_decay, config.decay_mask = args.weight_decay, "all"
    settings = {"study": "responses", "depths": depths}
    names = [f"cifar_{kind}{depth}" for kind in ("plain", "resnet") for depth in depths]
    folder, nets = open_nets(args, names, config, settings)
    found: dict[str, Any] = {}
    for name, (net, dataset) in nets.items():
        found[name] = folder.part(f"deviations-{len(found)}", partial(deviations, *net, dataset))
    text = "\n".join(
        f"{name}: mean response {np.mean(list(layers.values())):.3f} over {len(layers)} layers"
        for name, layers in found.items()
    )
    if not args.runs and not args.weights:
        text += "\n" + judge(found, depths)
    folder.result("responses", {"deviations": found, "text": text})
    draw(folder, found)
    print(f"{text}\nsaved in {folder.path}: responses.png, responses.json")


def judge(found: dict[str, dict[str, float]], depths: list[int]) -> str:
    """Whether the paper's two claims hold for the mean over layers."""
    mean = {name: float(np.mean(list(layers.values()))) for name, layers in found.items()}
    smaller = all(mean[f"cifar_resnet{d}"] < mean[f"cifar_plain{d}"] for d in depths)
    residual = [mean[f"cifar_resnet{d}"] for d in depths]
    deeper = all(b < a for a, b in pairwise(residual))
    return (
        f"residual responses are {'' if smaller else 'NOT '}smaller than plain ones;"
        f" deeper residual networks' are {'' if deeper else 'NOT '}smaller still"
    )


def deviations(model: Any, variables: Any, dataset: Dataset) -> dict[str, float]:
    """The standard deviation of every norm's output over the training split, by its path.

    Evaluation mode; over examples, pixels and channels; norms of projections (Ws) left out. In the
    order of the layers.
    """
    mean, std = dataset.train.mean_std()

    @jax.jit
    def sums(variables: Any, batch: Any) -> Any:
        _, state = model.apply(
            variables,
            normalize(batch["image"], mean=mean, std=std),
            train=False,
            capture_intermediates=lambda module, _: isinstance(module, BatchNorm),
            mutable=["intermediates"],
        )
        weight = batch["weight"][:, None, None, None]

        def moments(y: jax.Array) -> jax.Array:
            count = batch["weight"].sum() * y[0].size
            return jax.numpy.stack([count, (weight * y).sum(), (weight * y**2).sum()])

        return jax.tree.map(moments, state["intermediates"])

    total = None
    for batch in eval_batches(dataset.train, batch_size=256):
        part = jax.tree.map(lambda s: np.asarray(s, np.float64), sums(variables, batch))
        total = part if total is None else jax.tree.map(np.add, total, part)
    result = {}
    for path, (count, first, second) in by_layer(total):
        result[path] = float(np.sqrt(max(second / count - (first / count) ** 2, 0)))
    return result


def draw(folder: Folder, found: dict[str, dict[str, float]]) -> None:
    """The paper's Figure 7: original order, and sorted from large to small."""
    figure, axes = new_figure(2, height=4.0)
    for i, (name, layers) in enumerate(found.items()):
        values = list(layers.values())
        for ax, row in zip(axes, (values, sorted(values, reverse=True)), strict=True):
            label = name.removeprefix("cifar_")
            ax.plot(range(1, len(row) + 1), row, linewidth=1.4, label=label, **line_style(i))
    axes[0].set(xlabel="layer", title="in order")
    axes[1].set(xlabel="rank", title="sorted")
    for ax in axes:
        ax.set(ylabel="standard deviation of the response", ylim=(0, None))
    axes[1].legend(frameon=False, fontsize=8)
    save(figure, folder.path / "responses.png")
