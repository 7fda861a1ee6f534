"""How much gradient reaches each layer at initialisation, plain against residual.

The norm of the loss's gradient for each convolution's kernel, over the norm of the kernel, on one
batch in training mode, from the stem to the last layer; mean over seeds.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from resflax.cli.study import count, numbers
from resflax.data import Dataset, load_dataset, normalize
from resflax.plotting import line_style, new_figure, save
from resflax.study.folder import Folder
from resflax.study.layers import by_layer
from resflax.study.told import Told
from resflax.train import cross_entropy
from resflax.zoo import create_model

KINDS = ("plain", "resnet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Depths, the batch and the seeds."""
    parser.add_argument("--depths", type=numbers(int, 8, 20_000), default="20,56")
    parser.add_argument("--dataset", default="digits", help="of TensorFlow Datasets")
    parser.add_argument("--data_dir", default="", help="where prepared sets lie")
    parser.add_argument("--seeds", type=count(100), default=3, metavar="N", help="how many")
    parser.add_argument("--batch_size", type=count(10**6), default=128)


def run(args: argparse.Namespace) -> None:
    """Measures and draws."""
    args.depths.sort()
    names = [f"cifar_{kind}{depth}" for kind in KINDS for depth in args.depths]
    work = {name: sum(create_model(name).spec.depths) for name in names}
    dataset = load_dataset(args.dataset, args.data_dir)
    settings = {key: getattr(args, key) for key in ("dataset", "seeds", "batch_size", "depths")}
    folder = Folder.open(args.out, {"study": "gradients"} | settings)
    told = Told(total=sum(work.values()))
    found: dict[str, Any] = {}
    for name in names:
        kept = folder.has(name)
        measure = partial(norms, name, dataset, args.seeds, args.batch_size)
        found[name] = folder.part(name, measure)
        told.skip(work[name]) if kept else told.work(work[name], name)
    told.close()
    text = "\n".join(
        f"{name}: first layer's relative gradient {row[0]:.3g}, last layer's {row[-1]:.3g},"
        f" ratio {row[0] / row[-1]:.3g}"
        for name, row in ((n, list(layers.values())) for n, layers in found.items())
    )
    folder.result("gradients", {"norms": found, "text": text})
    draw(folder, found)
    print(f"{text}\nsaved in {folder.path}: gradients.png, gradients.json")


def norms(name: str, dataset: Dataset, seeds: int, batch_size: int) -> dict[str, float]:
    """|gradient| / |kernel| of every 3x3 convolution by its path, mean over seeds."""
    model = create_model(name, scan=False, zero_init=False, num_classes=dataset.num_classes)
    mean, std = dataset.train.mean_std()
    x = normalize(jnp.asarray(dataset.train.images[:batch_size]), mean=mean, std=std)
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

    total: dict[str, float] = {}
    for seed in range(seeds):
        tree = jax.device_get(ratios(jnp.asarray(seed, jnp.uint32)))
        for path, value in by_layer(tree):
            if "conv" in path:
                total[path] = total.get(path, 0.0) + float(value) / seeds
    return total


def draw(folder: Folder, found: dict[str, dict[str, float]]) -> None:
    """Relative gradient over depth, log scale."""
    figure, (ax,) = new_figure(1, width=6.5, height=3.8)
    for i, (name, layers) in enumerate(found.items()):
        row = list(layers.values())
        at = [100 * k / (len(row) - 1) for k in range(len(row))]
        ax.plot(at, row, label=name.removeprefix("cifar_"), **line_style(i))
    ax.set(xlabel="depth of the layer (% of the network)", yscale="log")
    ax.set_ylabel("|gradient| / |kernel| at initialisation")
    ax.legend(frameon=False, fontsize=8)
    save(figure, folder.path / "gradients.png")
