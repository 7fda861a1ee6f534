"""Fitting the identity: residual branches can go to zero (He et al. 2015, section 3.1).

Fits stacks of blocks `W2 relu(W1 x)`, each layer with batch norm, plain and residual, of increasing
depth, to two targets on vectors: the identity, and the identity with a small perturbation. Both
kinds can represent the identity at any depth. Each stack is shown at its best learning rate.
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
from jaxtyping import Array, Float, UInt32

from resflax.nn import Residual, identity, linear_projection
from resflax.nn.batch_norm import BatchNorm
from resflax.nn.scan import scan_module
from resflax.plotting import line_style, mean_and_range, new_figure, save
from resflax.study.arguments import add_seeds_argument, number_list, positive_int
from resflax.study.study_dir import StudyDir

WIDTH, EXAMPLES, PERTURBATION = 16, 256, 0.1
SHORTCUTS = {"plain": None, "residual": linear_projection}
TARGETS = ("identity", "perturbed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the study's options."""
    parser.add_argument(
        "--depths",
        type=number_list(int, 1, 1000),
        default="1,2,4,8",
        help="numbers of blocks; default: 1,2,4,8",
    )
    add_seeds_argument(parser, 3)
    parser.add_argument(
        "--steps",
        type=positive_int(10**6),
        default=500,
        help="number of steps of Adam, with cosine decay to zero; default: 500",
    )
    parser.add_argument(
        "--learning_rates",
        type=number_list(float, 1e-6, 10),
        default="0.01,0.1",
        metavar="A,B",
        help="learning rates; each stack is shown at its best one; default: 0.01,0.1",
    )


class Stack(nn.Module):
    """Stack of residual or plain blocks on vectors.

    Attributes:
      depth: number of blocks.
      kind: key of `SHORTCUTS`.
    """

    depth: int
    kind: str

    @nn.compact
    def __call__(self, x: Float[Array, "n width"], *, train: bool) -> Float[Array, "n width"]:
        """Applies the blocks."""
        norm = partial(BatchNorm, train=train)

        def branch(h: Array) -> Array:
            y = nn.Dense(2 * WIDTH, use_bias=False, name="W1")(h)
            y = nn.Dense(WIDTH, use_bias=False, name="W2")(nn.relu(norm(name="norm1")(y)))
            return norm(name="norm2")(y)

        shortcut: Any = SHORTCUTS[self.kind]
        blocks = scan_module(Residual, self.depth)
        return blocks(branch, shortcut=shortcut, post=identity, name="blocks").step(x)[0]


def make_data(target: str) -> tuple[Float[Array, "n width"], Float[Array, "n width"]]:
    """Returns `EXAMPLES` standard normal vectors and their targets."""
    key, first, second = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(key, (EXAMPLES, WIDTH))
    if target == "identity":
        return x, x
    w1, w2 = (jax.random.normal(k, (WIDTH, WIDTH)) / WIDTH**0.5 for k in (first, second))
    return x, x + PERTURBATION * jnp.tanh(x @ w1) @ w2


def fit(
    model: Stack,
    target: Float[Array, "n width"],
    *,
    rate: Float[Array, ""],
    seed: UInt32[Array, ""],
    steps: int,
) -> dict[str, Float[Array, ""]]:
    """Fits a stack with Adam on all examples; pure, to be mapped over targets, rates and seeds.

    Returns:
      "error", `E|y - target|^2 / E|target|^2` after training; "first", the same at the first step;
      "scale", the mean |scale| of the branches' last norm after training.
    """
    x, _ = make_data("identity")
    optimizer = optax.adam(optax.cosine_decay_schedule(1.0, steps))
    variables = model.init(jax.random.key(seed), x, train=False)

    def error(params: Any, stats: Any) -> tuple[Array, Any]:
        y, updated = model.apply(
            {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.mean((y - target) ** 2) / jnp.mean(target**2), updated["batch_stats"]

    def step(carry: Any, _: Any) -> tuple[Any, Array]:
        params, stats, state = carry
        (value, stats), grads = jax.value_and_grad(error, has_aux=True)(params, stats)
        # optax's schedules mix ints and floats, which strict dtype promotion rejects.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state)
        updates = jax.tree.map(lambda u: rate * u, updates)
        return (optax.apply_updates(params, updates), stats, state), value

    carry = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    (params, stats, _), values = jax.lax.scan(step, carry, None, steps)
    scale = jnp.mean(jnp.abs(params["blocks"]["norm2"]["scale"]))
    return {"error": error(params, stats)[0], "first": values[0], "scale": scale}


def fit_all(model: Stack, rates: list[float], seeds: int, steps: int) -> dict[str, Any]:
    """Returns, for each target, the results of `fit` at the best learning rate, one per seed."""

    def fit_one(target: Array, rate: Array, seed: Array) -> dict[str, Array]:
        return fit(model, target, rate=rate, seed=seed, steps=steps)

    over_seeds = jax.vmap(fit_one, (None, None, 0))
    over_rates = jax.vmap(over_seeds, (None, 0, None))
    over_targets = jax.jit(jax.vmap(over_rates, (0, None, None)))
    targets = jnp.stack([make_data(target)[1] for target in TARGETS])
    fits = jax.device_get(over_targets(targets, jnp.array(rates), jnp.arange(seeds)))
    result = {}
    for i, target in enumerate(TARGETS):
        # JSON has no infinity: diverged values become very large.
        values = {key: np.nan_to_num(v[i], nan=1e9, posinf=1e9) for key, v in fits.items()}
        best = int(np.argmin(values["error"].mean(1)))
        result[target] = {"learning_rate": rates[best]} | {
            key: v[best].tolist() for key, v in values.items()
        }
    return result


def run(args: argparse.Namespace) -> None:
    """Fits every stack, compares them, draws the figure.

    Raises:
      UserError: if the directory cannot be used.
    """
    depths, rates = sorted(args.depths), args.learning_rates
    settings = {"study": "identity"} | {
        key: getattr(args, key) for key in ("depths", "seeds", "steps", "learning_rates")
    }
    with StudyDir.open(args.out, settings) as study:
        compute: dict[str, Any] = {
            f"{kind}-{depth}": partial(fit_all, Stack(depth, kind), rates, args.seeds, args.steps)
            for kind, depth in product(SHORTCUTS, depths)
        }
        parts = study.parts(compute, dict.fromkeys(compute, 1.0))
        fits = {
            f"{target}-{name}": values
            for name, part in parts.items()
            for target, values in part.items()
        }
        text = "\n".join(describe(target, fits, depths[-1]) for target in TARGETS)
        study.write_result("identity", {"fits": fits, "text": text})
        draw(study, fits, depths)
    print(f"{text}\nsaved in {study.path}: identity.png, identity.json")


def describe(target: str, fits: dict[str, Any], depth: int) -> str:
    """Compares the plain and the residual stack of a depth on one target."""
    plain, residual = (fits[f"{target}-{kind}-{depth}"]["error"] for kind in SHORTCUTS)
    closer = "closer" if max(residual) < min(plain) else "NOT closer"
    return (
        f"{target}: {depth} plain blocks ended at an error of {max(plain):.2g}, {depth} residual"
        f" ones at {max(residual):.2g} (worst of {len(plain)} seeds); residual is {closer} in every"
        " seed"
    )


def draw(study: StudyDir, fits: dict[str, Any], depths: list[int]) -> None:
    """Draws the error over depth for both targets, and the scale of the residual branches."""
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
    axes[2].set(ylim=(0, None), title="residual branches (1 at initialization)")
    axes[2].legend(frameon=False)
    for ax in axes:
        ax.set_xticks(depths, [str(depth) for depth in depths])
        ax.minorticks_off()
    title = "mean and range over seeds, at the best learning rate"
    save(figure, study.path / "identity.png", title)
