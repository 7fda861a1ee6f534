"""If identity is the best map, residual branches can go to zero (He et al. 2015, section 3.1).

Fits stacks of blocks `W2 relu(W1 x)`, each layer with batch norm, plain and residual, of growing
depth, to two targets on vectors: the identity itself, and the identity with a small perturbation.
Both kinds can represent the identity at any depth. Each stack is shown at its best learning rate.
"""

import argparse
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from resflax.nn import Residual, identity, linear
from resflax.nn.norm import BatchNorm
from resflax.picture import line_style, new_figure, save
from resflax.study.cli import count, numbers
from resflax.study.folder import Folder
from resflax.study.told import Told

Array = jax.Array

WIDTH, EXAMPLES, PERTURBATION = 16, 512, 0.1
SHORTCUTS = {"plain": None, "residual": linear}
TARGETS = ("identity", "perturbed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Depths, learning rates, steps."""
    parser.add_argument("--depths", type=numbers(int, 1, 1000), default="1,2,4,8,16", help="blocks")
    parser.add_argument("--seeds", type=count(100), default=3, metavar="N", help="how many")
    parser.add_argument("--steps", type=count(10**6), default=500, help="of Adam, cosine to zero")
    parser.add_argument("--learning_rates", type=numbers(float, 1e-6, 10), default="0.001,0.01")


class Stack(nn.Module):
    """Blocks on vectors `(n, WIDTH)`; without a shortcut a plain stack."""

    depth: int
    kind: str

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps `x` to an array of its shape; also sows each block's branch's size, "branch"."""
        norm = partial(BatchNorm, train=train)

        def branch(h: Array) -> Array:
            y = nn.Dense(2 * WIDTH, use_bias=False, name="W1")(h)
            y = nn.Dense(WIDTH, use_bias=False, name="W2")(nn.relu(norm(name="norm1")(y)))
            return norm(name="norm2")(y)

        shortcut: Any = SHORTCUTS[self.kind]
        for i in range(1, self.depth + 1):
            x = Residual(branch, shortcut=shortcut, post=identity, name=f"block{i}")(x)
        return x


def data(seed: int, target: str) -> tuple[Array, Array]:
    """Standard normal vectors and what they are to be mapped to, `(EXAMPLES, WIDTH)` each."""
    key, first, second = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(key, (EXAMPLES, WIDTH))
    if target == "identity":
        return x, x
    w1, w2 = (jax.random.normal(k, (WIDTH, WIDTH)) / WIDTH**0.5 for k in (first, second))
    return x, x + PERTURBATION * jnp.tanh(x @ w1) @ w2


def fit(model: Stack, target: str, *, rate: Array, seed: Array, steps: int) -> dict[str, Array]:
    """The relative error `E|y - t|^2 / E|t|^2` after training, and the last norms' mean |scale|.

    Pure, so that learning rates and seeds are mapped over; the examples are the whole batch.
    """
    x, t = data(0, target)
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
    scales = [jnp.mean(jnp.abs(block["norm2"]["scale"])) for block in params.values()]
    return {"error": error(params, stats)[0], "first": values[0], "scale": jnp.stack(scales).mean()}


def run(args: argparse.Namespace) -> None:
    """Fits every stack, judges, draws."""
    depths, rates = sorted(args.depths), args.learning_rates
    settings = {"study": "identity"} | {
        key: getattr(args, key) for key in ("depths", "seeds", "steps", "learning_rates")
    }
    folder = Folder.open(args.out, settings)
    cells = [(t, k, d) for t in TARGETS for k in SHORTCUTS for d in depths]
    told = Told(total=sum(depth for *_, depth in cells))
    fits: dict[str, Any] = {}
    for target, kind, depth in cells:
        name = f"{target}-{kind}-{depth}"
        kept = folder.has(name)

        def make(target: str = target, kind: str = kind, depth: int = depth) -> Any:
            one = partial(fit, Stack(depth, kind), target, steps=args.steps)
            over = jax.vmap(
                jax.vmap(lambda rate, seed: one(rate=rate, seed=seed), (None, 0)), (0, None)
            )
            found = jax.jit(over)(jnp.array(rates), jnp.arange(args.seeds))
            found = {key: jnp.nan_to_num(v, nan=1e9, posinf=1e9) for key, v in found.items()}
            best = int(jnp.argmin(found["error"].mean(1)))
            return {"learning_rate": rates[best]} | {k: v[best].tolist() for k, v in found.items()}

        fits[name] = folder.part(name, make)
        told.skip(depth) if kept else told.work(depth, name)
    told.close()
    text = judge(fits, depths)
    folder.result("identity", {"settings": settings, "fits": fits, "text": text})
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
            style = line_style(2 * i)
            ax.plot(depths, [sum(r) / len(r) for r in rows], marker="o", label=kind, **style)
            ax.fill_between(
                depths,
                [min(r) for r in rows],
                [max(r) for r in rows],
                alpha=0.2,
                color=style["color"],
            )
        ax.set(xlabel="blocks", ylabel="relative squared error", xscale="log", yscale="log")
        ax.set_title(f"target: {target}", fontsize=10)
        ax.legend(frameon=False)
    for i, target in enumerate(TARGETS):
        rows = [fits[f"{target}-residual-{depth}"]["scale"] for depth in depths]
        axes[2].plot(
            depths, [sum(r) / len(r) for r in rows], marker="o", label=target, **line_style(2 * i)
        )
    axes[2].set(xlabel="blocks", ylabel="mean |scale| of the branches' last norm", xscale="log")
    axes[2].set(ylim=(0, None), title="residual branches (1 at the start)")
    axes[2].legend(frameon=False)
    for ax in axes:
        ax.set_xticks(depths, [str(depth) for depth in depths])
        ax.minorticks_off()
    save(
        figure, folder.path / "identity.png", "mean and range over seeds, at the best learning rate"
    )
