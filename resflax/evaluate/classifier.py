"""Trained networks as functions from uint8 images to logits, on the devices of one process."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from resflax.data import normalize
from resflax.distributed import make_engine
from resflax.inference import make_ensemble_predictor, make_predictor
from resflax.nn import Spec, sample_logits
from resflax.weights import Weights
from resflax.zoo import create_model


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


class MemberClassifier(Protocol):
    """Computes the logits of several members."""

    def describe_backend(self) -> str:
        """Returns one line that names what computes the logits."""
        ...

    def members(
        self, images: UInt8[np.ndarray, "n h w c"], indices: Int[np.ndarray, " n"]
    ) -> Float[Array, "members padded classes"]:
        """Returns the logits of each member, possibly before they are computed.

        If the devices cannot share the batch evenly, images of zeros are added at its end.

        Args:
          images: a batch.
          indices: their indices in the split.
        """
        ...


class EnsembleClassifier:
    """Computes the logits of the members of an ensemble; see `Classifier`.

    Args:
      members: architecture and variables of each member.
      mean: see `Classifier`; of each member.
      std: likewise.
      dtype: see `Classifier`.
      test_pool: height and width of the training images, for test-time pooling of larger ones.
    """

    def __init__(
        self,
        members: Sequence[tuple[Spec, Any]],
        *,
        mean: Sequence[tuple[float, ...]],
        std: Sequence[tuple[float, ...]],
        dtype: str = "float32",
        test_pool: tuple[int, int] | None = None,
    ) -> None:
        self.devices = jax.local_devices()
        self._predictor = make_ensemble_predictor(
            members, dtype=dtype, mean=mean, std=std, test_pool=test_pool
        )
        if len(self.devices) > 1:
            self._engine = make_engine("mesh", self.devices)
            self._arrays = self._engine.replicate(self._predictor.arrays)
            self._apply = self._engine.compile_eval(self._predictor.apply_members)

    @classmethod
    def from_weights(
        cls,
        networks: Sequence[Weights],
        *,
        dtype: str = "float32",
        test_pool: tuple[int, int] | None = None,
    ) -> "EnsembleClassifier":
        """Makes the classifier of networks with the normalization of each one."""
        return cls(
            [(network.config.spec, network.variables) for network in networks],
            mean=[network.config.preprocess.mean for network in networks],
            std=[network.config.preprocess.std for network in networks],
            dtype=dtype,
            test_pool=test_pool,
        )

    def describe_backend(self) -> str:
        """Returns one line that names what computes the logits."""
        if len(self.devices) > 1:
            return f"inference: JAX on {len(self.devices)} devices"
        if self._predictor.size == 1:
            return self._predictor.predictors[0].describe_backend()
        return self._predictor.describe_backend()

    def members(
        self, images: UInt8[np.ndarray, "n h w c"], indices: Int[np.ndarray, " n"]
    ) -> Float[Array, "members padded classes"]:
        """Returns the logits of each member, see `MemberClassifier`; the indices have no effect."""
        del indices
        if len(self.devices) == 1:
            return self._predictor.members(images)
        return self._apply(self._arrays, self._engine.shard_batch(pad_rows(images, self.devices)))


class DropoutClassifier:
    """Computes the logits of samples of a network with dropout (MC dropout), as those of members.

    What sample s of an example drops depends on (`seed`, index of the example, s) only, not on the
    batch, on the number of devices or on `samples`: its key is `fold_in(key(seed), index)`, see
    `resflax.nn.sample_logits`.

    Args:
      spec: the architecture, with dropout, drop path or DropBlock.
      variables: its variables, not stacked.
      samples: number of samples.
      mean: see `Classifier`.
      std: see `Classifier`.
      dtype: see `Classifier`.
      seed: seed of the samples.

    Raises:
      UserError: as `sample_logits`.
    """

    def __init__(
        self,
        spec: Spec,
        variables: Any,
        *,
        samples: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        dtype: str = "float32",
        seed: int = 0,
    ) -> None:
        self.devices = jax.local_devices()
        self._spec, self._samples = spec, samples
        model = create_model(spec, scan=False, dtype=dtype)

        def apply(variables: Any, batch: tuple[Array, Array]) -> Array:
            images, indices = batch
            keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(indices)
            x = normalize(images, mean=mean, std=std)
            return sample_logits(model, variables, x, keys, samples).astype(jnp.float32)

        self._engine = make_engine("mesh", self.devices) if len(self.devices) > 1 else None
        if self._engine:
            self._variables = self._engine.replicate(variables)
            self._apply = self._engine.compile_eval(apply)
        else:
            self._variables, self._apply = jax.tree.map(jnp.asarray, variables), jax.jit(apply)

    def describe_backend(self) -> str:
        """Returns one line that names what computes the logits."""
        devices = f" on {len(self.devices)} devices" if len(self.devices) > 1 else ""
        return f"inference: JAX{devices}, {self._samples} samples of dropout"

    def members(
        self, images: UInt8[np.ndarray, "n h w c"], indices: Int[np.ndarray, " n"]
    ) -> Float[Array, "samples padded classes"]:
        """Returns the logits of each sample, see `MemberClassifier`."""
        rows = self._rows_at_once(len(images))
        images = _pad(images, -len(images) % rows)
        indices = _pad(indices.astype(np.int32), len(images) - len(indices))
        parts = []
        for i in range(0, len(images), rows):
            batch: Any = (images[i : i + rows], indices[i : i + rows])
            batch = self._engine.shard_batch(batch) if self._engine else batch
            parts.append(self._apply(self._variables, batch))
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, 1)

    def _rows_at_once(self, count: int) -> int:
        """Returns how many of `count` images to classify at once.

        With drop path or DropBlock every sample computes feature maps of its own: fewer images at
        once, so that all samples together need the memory of about one batch. Dropout acts on
        pooled features.
        """
        has_own_maps = self._spec.drop_path or self._spec.drop_block
        rows = -(-count // self._samples) if has_own_maps else count
        return rows + -rows % len(self.devices)


def _pad(array: np.ndarray, count: int) -> np.ndarray:
    """Returns an array with `count` further rows of zeros."""
    return np.pad(array, [(0, count), *[(0, 0)] * (array.ndim - 1)])


def pad_rows(images: UInt8[np.ndarray, "n h w c"], devices: Sequence[Any]) -> np.ndarray:
    """Returns the images and, at their end, zeros, so that the devices can share them evenly."""
    return _pad(images, -len(images) % len(devices))
