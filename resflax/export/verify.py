"""Verification of an exported model against `model.apply` on images."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from resflax.data import normalize
from resflax.data.array_files import read_array
from resflax.data.decode import read_image
from resflax.errors import UserError, quantity
from resflax.export.readers import ExportedModel
from resflax.export.trained_model import Exportable, TrainedEnsemble, input_dtype
from resflax.weights.array_preprocess import ArrayPreprocess

MAX_RELATIVE_DIFFERENCE = 1e-4
NOISE_IMAGES = 4


class Verification(NamedTuple):
    """Result of the comparison of one reader with `model.apply`.

    Attributes:
      reader: what loaded the exported model.
      difference: largest difference of the outputs.
      relative: that difference over the largest output.
      images: what was compared, such as "4 noise images".
    """

    reader: str
    difference: float
    relative: float
    images: str

    def __str__(self) -> str:
        return (
            f"verified with {self.reader} on {self.images}: largest difference"
            f" {self.difference:.1e}, {self.relative:.1e} of the largest output"
        )


class SampleImages(NamedTuple):
    """Images or arrays for a comparison, before they are normalized, and a description."""

    pixels: Num[np.ndarray, "n *space c"]
    description: str


def read_sample_images(model: Exportable, paths: Sequence[str] = ()) -> SampleImages:
    """Returns the images in some files, resized and cropped for the model; noise without files.

    For a network of arrays, returns those in .npy files of one example each.

    Raises:
      UserError: if a file is not readable, an array has another shape or dtype, or the model takes
        clips, or images that are neither gray nor RGB.
    """
    if not paths:
        return draw_noise(model, model.input_shape)
    if isinstance(model.preprocess, ArrayPreprocess):
        batches = [model.preprocess.to_batch(read_array(Path(path))[None], path) for path in paths]
        return SampleImages(np.concatenate(batches), quantity(len(paths), "array"))
    if model.config.spec.dimensions != 2:
        raise UserError("--images has files, but the model takes clips: leave it out for noise")
    channels = model.config.channels
    if channels not in (1, 3):
        raise UserError(
            f"--images has files, but the model takes images with {channels} channels: expected a"
            " model for 1 or 3; without --images, noise is used"
        )
    images = [read_image(path, channels) for path in paths]
    pixels = np.stack([model.preprocess.apply(image) for image in images])
    return SampleImages(pixels, quantity(len(paths), "image"))


def draw_noise(model: Exportable, shape: tuple[int, ...]) -> SampleImages:
    """Draws noise of a shape `(*space, channels)`, as the model's examples before normalization."""
    rng, sides = np.random.default_rng(0), "x".join(map(str, shape[:-1]))
    size = "" if shape == model.input_shape else f" of {sides}"
    if input_dtype(model) == "uint8":
        pixels = rng.integers(0, 256, (NOISE_IMAGES, *shape), np.uint8)
        return SampleImages(pixels, f"{NOISE_IMAGES} noise images{size}")
    noise = rng.standard_normal((NOISE_IMAGES, *shape)) * model.preprocess.std
    noise += model.preprocess.mean
    return SampleImages(noise.astype(np.float32), f"{NOISE_IMAGES} noise arrays{size}")


def read_samples(
    model: Exportable, paths: Sequence[str] = (), *, symbolic: bool = False
) -> list[SampleImages]:
    """Returns `read_sample_images`; if sizes are `symbolic`, also noise of a larger, odd size.

    Raises:
      UserError: as `read_sample_images`.
    """
    samples = [read_sample_images(model, paths)]
    if symbolic:
        *space, channels = model.input_shape
        larger = (*(size + size // 8 + 17 for size in space), channels)
        samples.append(draw_noise(model, larger))
    return samples


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Runs JAX on the CPU, if it has one: a GPU rounds float32 products to TF32 by default."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        device = None
    with jax.default_device(device):
        yield


def normalize_pixels(
    model: Exportable, pixels: Num[np.ndarray, "n *space c"]
) -> Float[Array, "n *space c"]:
    """Converts pixels, or other numbers, to the images that the model takes, normalized float32."""
    return normalize(jnp.asarray(pixels), mean=model.preprocess.mean, std=model.preprocess.std)


def expected_outputs(
    model: Exportable, pixels: Num[np.ndarray, "n *space c"], *, uint8: bool = False
) -> Float[np.ndarray, "n classes"]:
    """Returns the logits of `model.apply` for pixels; with `uint8`, the probabilities.

    For an ensemble, returns the mean of the probabilities in both cases.

    Raises:
      UserError: if an output is not finite.
    """
    images = normalize_pixels(model, pixels)
    if isinstance(model, TrainedEnsemble):
        outputs = jax.jit(model.probabilities)(images)
    else:
        logits = jax.jit(model.logits)(images)
        outputs = jax.nn.softmax(logits) if uint8 else logits
    outputs = np.asarray(outputs)
    if not np.isfinite(outputs).all():
        raise UserError("the model's outputs are NaN or infinite: nothing was written")
    return outputs


def verify(
    exported: ExportedModel,
    model: Exportable,
    images: SampleImages,
    expected: Float[np.ndarray, "n classes"],
    *,
    uint8: bool = False,
) -> Verification:
    """Compares outputs, preprocessing and class names of an exported model with the original's.

    Raises:
      UserError: if they differ: outputs by more than 1e-4 of the largest.
    """
    pixels = images.pixels
    batch = pixels if uint8 else np.asarray(normalize_pixels(model, pixels))
    difference = float(np.abs(exported.call(batch) - expected).max())
    relative = difference / max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    result = Verification(exported.reader, difference, relative, images.description)
    if not relative <= MAX_RELATIVE_DIFFERENCE:
        raise UserError(
            f"{exported.reader} computes other outputs from the exported model: largest difference"
            f" {relative:.1e} of the largest output, expected at most"
            f" {MAX_RELATIVE_DIFFERENCE:g}; nothing was written"
        )
    if exported.config is not None and exported.config != model.config:
        raise UserError(
            f"{exported.reader} reads another architecture, preprocessing or class names from the"
            " exported model; nothing was written"
        )
    return result
