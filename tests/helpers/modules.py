"""Small linen modules and batches for tests of the training step."""

import flax.linen as nn
import numpy as np

from resflax.nn.batch_norm import BatchNorm


class LinearClassifier(nn.Module):
    """Softmax regression with three classes, whose gradient has a closed form."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


class NormNet(nn.Module):
    """Two dense layers with batch norm between them, for ten classes."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(6, name="stem_conv")(x.reshape(len(x), -1))
        x = BatchNorm(train=train, axis_name=self.axis_name, name="stem_norm")(x)
        return nn.Dense(10, name="head")(nn.relu(x))


def random_batch(n=6, shape=(2, 2, 1), classes=3):
    """Returns a batch of normal images, random labels and the example indices 0 to `n` - 1."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.standard_normal((n, *shape)).astype(np.float32),
        "label": rng.integers(0, classes, n).astype(np.int32),
        "index": np.arange(n, dtype=np.int32),
    }


def weighted_batch(*args):
    """Returns `random_batch(*args)` with weights of 1, which evaluation needs."""
    batch = random_batch(*args)
    return batch | {"weight": np.ones(len(batch["label"]), np.float32)}


def softmax(logits):
    """Returns the softmax over the last axis, in the dtype of `logits`."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
