"""A trained network as a function from uint8 images to logits, on the devices of one process."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from resflax.distributed import make_engine
from resflax.inference import make_ensemble_predictor, make_predictor
from resflax.nn import Spec


def full_batch_size(requested: int, examples: int) -> int:
    """Returns the next multiple of the number of devices of all processes."""
    devices = jax.device_count()
    return -(-min(requested, examples) // devices) * devices


class Classifier:
    """Computes logits of batches on all local devices; each process has its own images.

    Args:
      spec: the architecture.
      variables: its variables, stacked or not.
      mean: per-channel mean of pixel values from 0 to 1, which is subtracted.
      std: per-channel standard deviation, which the difference is divided by.
      dtype: dtype of convolutions and feature maps.
      outputs: "logits", or "features" for the pooled features instead.
    """

    def __init__(
        self,
        spec: Spec,
        variables: Any,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        dtype: str = "float32",
        outputs: str = "logits",
    ) -> None:
        self.devices = jax.local_devices()
        self._predictor = make_predictor(
            spec, variables, dtype=dtype, mean=mean, std=std, outputs=outputs
        )
        if len(self.devices) > 1:
            self._engine = make_engine("mesh", self.devices)
            self._arrays = self._engine.replicate(self._predictor.arrays)
            self._apply = self._engine.compile_eval(self._predictor.apply)

    def describe_backend(self) -> str:
        """Returns one line that names what computes the logits."""
        if len(self.devices) > 1:
            return f"inference: JAX on {len(self.devices)} devices"
        return self._predictor.describe_backend()

    def __call__(self, images: UInt8[np.ndarray, "n h w c"]) -> Float[Array, "padded classes"]:
        """Returns the logits of a batch, possibly before they are computed.

        If the devices cannot share the batch evenly, images of zeros are added at its end.
        """
        if len(self.devices) == 1:
            return self._predictor(images)
        return self._apply(self._arrays, self._engine.shard_batch(pad_rows(images, self.devices)))


class EnsembleClassifier:
    """Computes the logits of the members of an ensemble; see `Classifier`.

    Args:
      members: architecture and variables of each member.
      mean: see `Classifier`.
      std: see `Classifier`.
      dtype: see `Classifier`.
    """

    def __init__(
        self,
        members: Sequence[tuple[Spec, Any]],
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        dtype: str = "float32",
    ) -> None:
        self.devices = jax.local_devices()
        self._predictor = make_ensemble_predictor(members, dtype=dtype, mean=mean, std=std)
        if len(self.devices) > 1:
            self._engine = make_engine("mesh", self.devices)
            self._arrays = self._engine.replicate(self._predictor.arrays)
            self._apply = self._engine.compile_eval(self._predictor.apply_members)

    def describe_backend(self) -> str:
        """Returns one line that names what computes the logits."""
        if len(self.devices) > 1:
            return f"inference: JAX on {len(self.devices)} devices"
        if self._predictor.size == 1:
            return self._predictor.predictors[0].describe_backend()
        return self._predictor.describe_backend()

    def members(
        self, images: UInt8[np.ndarray, "n h w c"]
    ) -> Float[Array, "members padded classes"]:
        """Returns the logits of each member, possibly before they are computed.

        If the devices cannot share the batch evenly, images of zeros are added at its end.
        """
        if len(self.devices) == 1:
            return self._predictor.members(images)
        return self._apply(self._arrays, self._engine.shard_batch(pad_rows(images, self.devices)))


def pad_rows(images: UInt8[np.ndarray, "n h w c"], devices: Sequence[Any]) -> np.ndarray:
    """Returns the images and, at their end, zeros, so that the devices can share them evenly."""
    return np.pad(images, [(0, -len(images) % len(devices)), *[(0, 0)] * 3])
