"""If identity is the best map, residual branches can go to zero (He et al. 2015, section 3.1).

Fits stacks of blocks `W2 relu(W1 x)`, each layer with batch norm, plain and residual, of growing
depth, to two targets on vectors: the identity itself, and the identity with a small perturbation.
Both kinds can represent the identity at any depth. Each stack is shown at its best learning rate.
"""

import argparse
from functools import partial
from itertools import product
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from resflax.cli.study import count, numbers
from resflax.nn import Residual, identity, linear_projection
from resflax.nn.batch_norm import BatchNorm
from resflax.nn.scan import scan_module
from resflax.plotting import line_style, mean_and_range, new_figure, save
from resflax.study.folder import Folder
from resflax.study.told import Told

Array = jax.Array

WIDTH, EXAMPLES, PERTURBATION = 16, 256, 0.1
SHORTCUTS = {"plain": None, "residual": linear_projection}
TARGETS = ("identity", "perturbed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Depths, learning rates, steps."""
    parser.add_argument("--depths", type=numbers(int, 1, 1000), default="1,2,4,8", help="blocks")
    parser.add_argument("--seeds", type=count(100), default=3, metavar="N", help="how many")
    parser.add_argument("--steps", type=count(10**6), default=500, help="of Adam, cosine to zero")
    parser.add_argument("--learning_rates", type=numbers(float, 1e-6, 10), default="0.01,0.1")


class Stack(nn.Module):
    """Blocks on vectors `(n, WIDTH)`; without a shortcut a plain stack."""

    depth: int
    kind: str

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps `x` to an array of its shape."""
        norm = partial(BatchNorm, train=train)

        def branch(h: Array) -> Array:
            y = nn.Dense(2 * WIDTH, use_bias=False, name="W1")(h)
            y = nn.Dense(WIDTH, use_bias=False, name="W2")(nn.relu(norm(name="norm1")(y)))
            return norm(name="norm2")(y)

        shortcut: Any = SHORTCUTS[self.kind]
        blocks = scan_module(Residual, self.depth)
        return blocks(branch, shortcut=shortcut, post=identity, name="blocks").step(x)[0]


def data(target: str) -> tuple[Array, Array]:
    """Standard normal vectors and what they are to be mapped to, `(EXAMPLES, WIDTH)` each."""
    key, first, second = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(key, (EXAMPLES, WIDTH))
    if target == "identity":
        return x, x
    w1, w2 = (jax.random.normal(k, (WIDTH, WIDTH)) / WIDTH**0.5 for k in (first, second))
    return x, x + PERTURBATION * jnp.tanh(x @ w1) @ w2


def fit(model: Stack, t: Array, *, rate: Array, seed: Array, steps: int) -> dict[str, Array]:
    """The relative error `E|y - t|^2 / E|t|^2` after training, and the last norms' mean |scale|.

    Pure, so that targets, learning rates and seeds are mapped over; the batch is all examples.
    """
    x, _ = data("identity")
    optimizer = optax.adam(optax.cosine_decay_schedule(1.0, steps))
    variables = model.init(jax.random.key(seed), x, train=False)

    def error(params: Any, stats: Any) -> tuple[Array, Any]:
        y, new = model.apply(
            {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.mean((y - t) ** 2) / jnp.mean(t**2), new["batch_stats"]

    def step(carry: Any, _: Any) -> tuple[Any, Array]:
        params, stats, state = carry
        (value, stats), grads = jax.value_and_grad(error, has_aux=True)(params, stats)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state)
        updates = jax.tree.map(lambda u: rate * u, updates)
        return (optax.apply_updates(params, updates), stats, state), value

    carry = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    (params, stats, _), values = jax.lax.scan(step, carry, None, steps)
    scale = jnp.mean(jnp.abs(params["blocks"]["norm2"]["scale"]))
    return {"error": error(params, stats)[0], "first": values[0], "scale": scale}


def fit_all(model: Stack, rates: list[float], seeds: int, steps: int) -> dict[str, Any]:
    """For each target what `fit` gives at the best of the learning rates, a value a seed."""

    def one(t: Array, rate: Array, seed: Array) -> dict[str, Array]:
        return fit(model, t, rate=rate, seed=seed, steps=steps)

    over_seeds = jax.vmap(one, (None, None, 0))
    over_rates = jax.vmap(over_seeds, (None, 0, None))
    run = jax.jit(jax.vmap(over_rates, (0, None, None)))
    targets = jnp.stack([data(target)[1] for target in TARGETS])
    found = jax.device_get(run(targets, jnp.array(rates), jnp.arange(seeds)))
    result = {}
    for i, target in enumerate(TARGETS):
        # JSON has no infinity: what diverged is very far off.
        values = {key: np.nan_to_num(v[i], nan=1e9, posinf=1e9) for key, v in found.items()}
        best = int(np.argmin(values["error"].mean(1)))
        result[target] = {"learning_rate": rates[best]} | {
            key: v[best].tolist() for key, v in values.items()
        }
    return result


def run(args: argparse.Namespace) -> None:
    """Fits every stack, judges, draws."""
    depths, rates = sorted(args.depths), args.learning_rates
    settings = {"study": "identity"} | {
        key: getattr(args, key) for key in ("depths", "seeds", "steps", "learning_rates")
    }
    folder = Folder.open(args.out, settings)
    told = Told(total=len(SHORTCUTS) * len(depths))
    fits: dict[str, Any] = {}
    for kind, depth in product(SHORTCUTS, depths):
        name = f"{kind}-{depth}"
        kept = folder.has(name)
        make = partial(fit_all, Stack(depth, kind), rates, args.seeds, args.steps)
        for target, values in folder.part(name, make).items():
            fits[f"{target}-{name}"] = values
        told.skip(1) if kept else told.work(1, name)
    told.close()
    text = judge(fits, depths)
    folder.result("identity", {"fits": fits, "text": text})
    draw(folder, fits, depths)
    print(f"{text}\nsaved in {folder.path}: identity.png, identity.json")


def judge(fits: dict[str, Any], depths: list[int]) -> str:
    """A sentence for each target, of the deepest stacks."""
    said = []
    for target in TARGETS:
        deepest = depths[-1]
        plain, residual = (fits[f"{target}-{kind}-{deepest}"] for kind in SHORTCUTS)
        p, r = max(plain["error"]), max(residual["error"])
        wins = max(residual["error"]) < min(plain["error"])
        said.append(
            f"{target}: {deepest} plain blocks ended at an error of {p:.2g}, {deepest} residual"
            f" ones at {r:.2g} (worst of {len(plain['error'])} seeds);"
            + (
                " residual is closer in every seed"
                if wins
                else " residual is NOT closer in every seed"
            )
        )
    return "\n".join(said)


def draw(folder: Folder, fits: dict[str, Any], depths: list[int]) -> None:
    """Error over depth for both targets, and what became of the residual branches."""
    figure, axes = new_figure(3, width=11.0)
    for ax, target in zip(axes, TARGETS, strict=False):
        for i, kind in enumerate(SHORTCUTS):
            rows = [fits[f"{target}-{kind}-{depth}"]["error"] for depth in depths]
            mean_and_range(ax, depths, rows, marker="o", label=kind, **line_style(2 * i))
        ax.set(xlabel="blocks", ylabel="relative squared error", xscale="log", yscale="log")
        ax.set_title(f"target: {target}", fontsize=10)
        ax.legend(frameon=False)
    for i, target in enumerate(TARGETS):
        rows = [fits[f"{target}-residual-{depth}"]["scale"] for depth in depths]
        mean_and_range(axes[2], depths, rows, marker="o", label=target, **line_style(2 * i))
    axes[2].set(xlabel="blocks", ylabel="mean |scale| of the branches' last norm", xscale="log")
    axes[2].set(ylim=(0, None), title="residual branches (1 at the start)")
    axes[2].legend(frameon=False)
    for ax in axes:
        ax.set_xticks(depths, [str(depth) for depth in depths])
        ax.minorticks_off()
    save(
        figure, folder.path / "identity.png", "mean and range over seeds, at the best learning rate"
    )
