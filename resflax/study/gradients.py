"""Gradient norm of each layer at initialization, plain and residual.

For each convolution, the norm of the loss's gradient for the kernel over the norm of the kernel, on
one batch in training mode, from the stem to the last layer; mean over seeds.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from resflax.data import Dataset
from resflax.plotting import line_style, new_figure, save
from resflax.study.arguments import (
    add_data_arguments,
    add_seeds_argument,
    number_list,
    open_dataset,
    positive_int,
)
from resflax.study.nets import leaves_by_layer
from resflax.study.study_dir import StudyDir
from resflax.train import cross_entropy
from resflax.train.builders import build_normalizer
from resflax.zoo import create_model

KINDS = ("plain", "resnet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the study's options."""
    parser.add_argument(
        "--depths",
        type=number_list(int, 8, 20_000),
        default="20,56",
        help="depths of the form 6n+2; default: 20,56",
    )
    parser.add_argument("--batch_size", type=positive_int(10**6), default=128, help="default: 128")
    add_data_arguments(parser)
    add_seeds_argument(parser, 3)


def run(args: argparse.Namespace) -> None:
    """Measures the gradients, draws the figure.

    Raises:
      UserError: on an invalid depth or dataset, or if the directory cannot be used.
    """
    args.depths.sort()
    names = [f"cifar_{kind}{depth}" for kind in KINDS for depth in args.depths]
    cost = {name: float(sum(create_model(name).spec.depths)) for name in names}
    dataset = open_dataset(args)
    settings = {key: getattr(args, key) for key in ("dataset", "seeds", "batch_size", "depths")}
    with StudyDir.open(args.out, {"study": "gradients"} | settings) as study:
        compute: dict[str, Any] = {
            name: partial(relative_gradients, name, dataset, args.seeds, args.batch_size)
            for name in names
        }
        norms = study.parts(compute, cost)
        text = "\n".join(describe(name, list(layers.values())) for name, layers in norms.items())
        study.write_result("gradients", {"norms": norms, "text": text})
        draw(study, norms)
    print(f"{text}\nsaved in {study.path}: gradients.png, gradients.json")


def describe(name: str, norms: list[float]) -> str:
    """Describes the relative gradients of a network's first and last layer.

    >>> describe("a", [3.0, 2.0, 1.5])
    'a: relative gradient of the first layer 3, of the last layer 1.5, ratio 2'
    """
    return (
        f"{name}: relative gradient of the first layer {norms[0]:.3g}, of the last layer"
        f" {norms[-1]:.3g}, ratio {norms[0] / norms[-1]:.3g}"
    )


def relative_gradients(
    name: str, dataset: Dataset, seeds: int, batch_size: int
) -> dict[str, float]:
    """Returns |gradient| / |kernel| of every 3x3 convolution by its path, mean over seeds."""
    model = create_model(name, scan=False, zero_init=False, num_classes=dataset.num_classes)
    x = build_normalizer(dataset.train)(jnp.asarray(dataset.train.images[:batch_size]))
    labels = jnp.asarray(dataset.train.labels[:batch_size])

    @jax.jit
    def ratios(seed: jax.Array) -> Any:
        variables = model.init(jax.random.key(seed), x[:1], train=False)

        def loss(params: Any) -> jax.Array:
            logits, _ = model.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.mean(cross_entropy(logits, labels))

        params = variables["params"]
        grads = jax.grad(loss)(params)
        norm = jnp.linalg.norm
        return jax.tree.map(lambda g, w: norm(g.ravel()) / norm(w.ravel()), grads, params)

    means: dict[str, float] = {}
    for seed in range(seeds):
        tree = jax.device_get(ratios(jnp.asarray(seed, jnp.uint32)))
        for path, value in leaves_by_layer(tree):
            if "conv" in path:
                means[path] = means.get(path, 0.0) + float(value) / seeds
    return means


def draw(study: StudyDir, norms: dict[str, dict[str, float]]) -> None:
    """Draws the relative gradient over depth, on a log scale."""
    figure, (ax,) = new_figure(1, width=6.5, height=3.8)
    for i, (name, layers) in enumerate(norms.items()):
        values = list(layers.values())
        depth = [100 * k / (len(values) - 1) for k in range(len(values))]
        ax.plot(depth, values, label=name.removeprefix("cifar_"), **line_style(i))
    ax.set(xlabel="depth of the layer (% of the network)", yscale="log")
    ax.set_ylabel("|gradient| / |kernel| at initialization")
    ax.legend(frameon=False, fontsize=8)
    save(figure, study.path / "gradients.png")
