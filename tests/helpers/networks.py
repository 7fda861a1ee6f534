"""Networks compiled without optimization, for tests of values rather than speed."""

import jax
import numpy as np


def run(f, *args):
    """Compiles `f` without optimization and returns `f(*args)`."""
    compiled = jax.jit(f).lower(*args).compile({"xla_backend_optimization_level": 0})
    return compiled(*args)


def apply(model, variables, x):
    """Returns the outputs of a network in evaluation mode."""
    return run(lambda v, x: model.apply(v, x, train=False), variables, x)


def variables_of(model, shape=(1, 64, 64, 3)):
    """Returns shapes and dtypes of a network's variables, without computing them."""
    image = jax.ShapeDtypeStruct(shape, np.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)


def randomized(tree, seed=0):
    """Returns the tree with random leaves of plausible scale, so no term is hidden by a 0 or 1."""
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        if path[-1].key in ("scale", "var", "v"):
            return rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
        scale = np.sqrt(1.5 / np.prod(x.shape[:-1])) if len(x.shape) > 1 else 0.1
        return (scale * rng.standard_normal(x.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, tree)
