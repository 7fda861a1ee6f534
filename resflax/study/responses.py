"""Standard deviation of layer responses, plain and residual (He et al. 2015, Figure 7).

The standard deviation of each 3x3 layer's response: after batch norm, before the non-linearity and
the addition, in the order of the layers and sorted. Claims to check: residual responses are smaller
than plain ones, and those of deeper residual networks are smaller still. The networks are trained
here, loaded from runs of `resflax train`, or imported.

The size of a response is the learned scale of its norm, which only weight decay reduces where it is
not needed. The paper decays all parameters for 64,000 steps; a short training needs a stronger
decay.
"""

import argparse
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from resflax.data import Dataset, eval_batches
from resflax.nn import ResNet
from resflax.nn.batch_norm import BatchNorm
from resflax.plotting import line_style, new_figure, save
from resflax.study.arguments import number_list
from resflax.study.nets import add_net_arguments, leaves_by_layer, open_nets
from resflax.study.recipes import make_recipe
from resflax.study.study_dir import StudyDir
from resflax.train.builders import build_normalizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the study's options."""
    parser.add_argument(
        "--depths",
        type=number_list(int, 8, 20_000),
        default="20,56",
        help="depths of the form 6n+2; default: 20,56",
    )
    parser.add_argument(
        "--weight_decay", type=float, default=5e-3, help="on all parameters; default: 0.005"
    )
    add_net_arguments(parser, rate="0.05")
    parser.set_defaults(epochs=40)


def run(args: argparse.Namespace) -> None:
    """Trains or loads the networks, measures them, draws the figure.

    Raises:
      UserError: if a network cannot be built or loaded, or the directory cannot be used.
    """
    depths = sorted(args.depths)
    config = make_recipe(args.dataset, args.epochs, args.batch_size)
    config.weight_decay = args.weight_decay
    config.decay_mask = "all" if args.weight_decay else "kernels"
    settings = {"study": "responses", "depths": depths}
    names = [f"cifar_{kind}{depth}" for kind in ("plain", "resnet") for depth in depths]
    with open_nets(args, names, config, settings) as (study, nets):
        deviations = {
            net.label: study.part(
                f"deviations-{i}",
                partial(response_deviations, net.model, net.variables, net.dataset),
            )
            for i, net in enumerate(nets)
        }
        lines = [
            f"{label}: mean response {np.mean(list(layers.values())):.3f} over {len(layers)} layers"
            for label, layers in deviations.items()
        ]
        if not args.runs and not args.weights:
            lines.append(check_claims(deviations, depths))
        text = "\n".join(lines)
        study.write_result("responses", {"deviations": deviations, "text": text})
        draw(study, deviations)
    print(f"{text}\nsaved in {study.path}: responses.png, responses.json")


def check_claims(deviations: dict[str, dict[str, float]], depths: list[int]) -> str:
    """Checks the paper's two claims on the means over layers, and describes the result."""
    mean = {name: float(np.mean(list(layers.values()))) for name, layers in deviations.items()}
    smaller = all(mean[f"cifar_resnet{d}"] < mean[f"cifar_plain{d}"] for d in depths)
    residual = [mean[f"cifar_resnet{d}"] for d in depths]
    decreasing = all(deeper < shallower for shallower, deeper in pairwise(residual))
    return (
        f"residual responses are {'' if smaller else 'NOT '}smaller than plain ones;"
        f" those of deeper residual networks are {'' if decreasing else 'NOT '}smaller still"
    )


def response_deviations(model: ResNet, variables: Any, dataset: Dataset) -> dict[str, float]:
    """Returns the standard deviation of every norm's output over the training split, by its path.

    In evaluation mode, over examples and all axes, in the order of the layers. Norms of projection
    shortcuts (Ws) are left out.
    """
    normalizer = build_normalizer(dataset.train)

    @jax.jit
    def batch_sums(variables: Any, batch: Any) -> Any:
        """Returns count, sum and sum of squares of every norm's output."""
        _, state = model.apply(
            variables,
            normalizer(batch["image"]),
            train=False,
            capture_intermediates=lambda module, _: isinstance(module, BatchNorm),
            mutable=["intermediates"],
        )
        weight = batch["weight"][:, None, None, None]

        def sums(y: jax.Array) -> jax.Array:
            count = batch["weight"].sum() * y[0].size
            return jnp.stack([count, (weight * y).sum(), (weight * y**2).sum()])

        # Without the feature maps that the network itself records there.
        captured = flatten_dict(state["intermediates"]).items()
        return {
            "/".join(path[:-1]): sums(calls[0])
            for path, calls in captured
            if path[-1] == "__call__"
        }

    total = None
    for batch in eval_batches(dataset.train, batch_size=256):
        part = jax.tree.map(lambda s: np.asarray(s, np.float64), batch_sums(variables, batch))
        total = part if total is None else jax.tree.map(np.add, total, part)
    deviations = {}
    for path, (count, first, second) in leaves_by_layer(total):
        deviations[path] = float(np.sqrt(max(second / count - (first / count) ** 2, 0)))
    return deviations


def draw(study: StudyDir, deviations: dict[str, dict[str, float]]) -> None:
    """Draws the paper's Figure 7: in the order of the layers, and sorted."""
    figure, axes = new_figure(2, height=4.0)
    for i, (name, layers) in enumerate(deviations.items()):
        values = list(layers.values())
        for ax, row in zip(axes, (values, sorted(values, reverse=True)), strict=True):
            label = name.removeprefix("cifar_")
            ax.plot(range(1, len(row) + 1), row, linewidth=1.4, label=label, **line_style(i))
    axes[0].set(xlabel="layer", title="in order")
    axes[1].set(xlabel="rank", title="sorted")
    for ax in axes:
        ax.set(ylabel="standard deviation of the response", ylim=(0, None))
    axes[1].legend(frameon=False, fontsize=8)
    save(figure, study.path / "responses.png")
