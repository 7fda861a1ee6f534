"""Synthetic JPEG datasets with the image sizes and file sizes of ImageNet.

The images are noise with a 1/f amplitude spectrum, as photographs have, with a curved edge across
it. Every file depends only on (seed, index).
"""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

# Width, height and share, roughly as in ImageNet's train split: the longer side is mostly 500.
SIZES = (
    (500, 375, 0.46),
    (500, 333, 0.16),
    (375, 500, 0.13),
    (333, 500, 0.06),
    (500, 500, 0.05),
    (400, 300, 0.05),
    (240, 180, 0.04),
    (640, 480, 0.03),
    (1024, 768, 0.01),
    (1600, 1200, 0.01),
)
QUALITY = (78, 96)
NUM_CLASSES = 10


def _noise(rng: np.random.Generator, height: int, width: int) -> Float[np.ndarray, "h w 3"]:
    """Returns noise of amplitude 1/frequency with mean 0 and, before mixing, deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    white = rng.standard_normal((3, height, width), np.float32)
    image = np.fft.irfft2(np.fft.rfft2(white) / frequency, (height, width))
    image /= image.std()
    gray = image[:1]
    return (0.85 * gray + 0.5 * image).transpose(1, 2, 0)  # channels correlate in photographs


def random_image(rng: np.random.Generator, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an image of two textures separated by a curved edge, with sensor noise."""
    foreground, background = _noise(rng, height, width), _noise(rng, height, width)
    edge = _noise(rng, height, width)[..., :1] * 0.3
    slope = np.linspace(-1, 1, width)[None, :, None] * rng.uniform(-1, 1)
    slope = slope + np.linspace(-1, 1, height)[:, None, None] * rng.uniform(-1, 1)
    image = np.where(
        edge + slope > 0, 36 * foreground + rng.uniform(60, 200, 3), 24 * background + 120
    )
    grain = rng.normal(0, rng.uniform(0.5, 4), (height, width, 1))
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def jpeg(seed: int, index: int) -> bytes:
    """Returns one encoded image. Nine of ten have chroma at half resolution (4:2:0)."""
    rng = np.random.default_rng([seed, index])
    shares = np.array([share for *_, share in SIZES])
    width, height, _ = SIZES[rng.choice(len(SIZES), p=shares / shares.sum())]
    out = io.BytesIO()
    subsampling = "4:2:0" if rng.random() < 0.9 else "4:4:4"
    image = Image.fromarray(random_image(rng, width, height))
    image.save(out, "jpeg", quality=int(rng.integers(*QUALITY)), subsampling=subsampling)
    return out.getvalue()


def write_dataset(root: Path, count: int, seed: int = 0) -> str:
    """Writes `count` train images and one test image per class; returns the dataset's name."""
    for index in range(count + min(count, NUM_CLASSES)):
        split = "train" if index < count else "test"
        path = root / split / f"{(index % count) % NUM_CLASSES}" / f"{index:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(seed, index))
    return f"folder:{root}"


def dataset_stats(root: Path) -> dict[str, float]:
    """Returns the number of train files and their mean size in bytes and in pixels."""
    files = list((root / "train").glob("*/*.jpg"))
    pixels = []
    for file in files:
        with Image.open(file) as image:
            pixels.append(image.width * image.height)
    sizes = [file.stat().st_size for file in files]
    return {"count": len(files), "bytes": float(np.mean(sizes)), "pixels": float(np.mean(pixels))}
