"""The layers of a network, in order."""

from typing import Any

import jax
import numpy as np


def by_layer(tree: Any) -> list[tuple[str, np.ndarray]]:
    """The leaves by "stage1_block1/norm1", in the order of the layers; projections left out.

    Takes parameters, or what `capture_intermediates` gave (each module's only call).
    """
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/__call__/0"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

    def order(path: str) -> Any:
        digits = "".join(c if c.isdigit() else " " for c in path).split()
        return (not path.startswith("stem"), not path.startswith("stage"), [int(d) for d in digits])

    return [(path, named[path]) for path in sorted(named, key=order) if "Ws" not in path]
