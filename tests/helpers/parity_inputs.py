"""Deterministic weights and images, shared by the parity tests and the scripts in tools/."""

import hashlib
from collections.abc import Mapping

import numpy as np

NUM_CLASSES = 10


def draw_array(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws an array seeded by its state dict name, with values like those of trained networks."""
    seed = hashlib.sha256(key.encode()).digest()[:8]
    rng = np.random.default_rng(int.from_bytes(seed, "little"))
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_mean"):
        array = 0.1 * rng.standard_normal(shape)
    elif key.endswith("running_var"):
        array = rng.uniform(0.5, 1.5, shape)
    elif len(shape) > 1:
        array = rng.standard_normal(shape) * np.sqrt(1.5 / np.prod(shape[1:]))
    elif key.endswith("bias"):
        array = 0.1 * rng.standard_normal(shape)
    else:
        array = rng.uniform(0.4, 0.9, shape)
    return array.astype(np.float32)


def draw_images(size: tuple[int, ...]) -> np.ndarray:
    """Draws a batch of one noise image or clip, `(1, 3, *size)`."""
    return np.random.default_rng(2015).standard_normal((1, 3, *size)).astype(np.float32)


def shapes_digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Returns the SHA-256 of names and shapes; their order does not matter."""
    lines = sorted(f"{key} {'x'.join(map(str, shape))}" for key, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
