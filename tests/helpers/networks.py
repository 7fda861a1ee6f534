"""Compiling that takes no time to optimise: for tests of what is computed, not of how fast."""

import jax
import numpy as np


def run(f, *args):
    """`f(*args)` as one compiled program."""
    compiled = jax.jit(f).lower(*args).compile({"xla_backend_optimization_level": 0})
    return compiled(*args)


def apply(model, variables, x):
    """What a network in evaluation makes of images."""
    return run(lambda v, x: model.apply(v, x, train=False), variables, x)


def variables_of(model, shape=(1, 64, 64, 3)):
    """Shapes and dtypes of a network's variables; nothing is computed."""
    image = jax.ShapeDtypeStruct(shape, np.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)


def randomised(tree, seed=0):
    """The same tree with every leaf drawn, near what trained nets hold; no zeros and no ones."""
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        if path[-1].key in ("scale", "var", "v"):
            return rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
        scale = np.sqrt(1.5 / np.prod(x.shape[:-1])) if len(x.shape) > 1 else 0.1
        return (scale * rng.standard_normal(x.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, tree)
