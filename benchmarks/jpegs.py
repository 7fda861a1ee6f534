"""A folder of JPEGs like ImageNet's: their sizes, their bytes, and what decoders find hard in them.

No photographs: noise whose spectrum falls with the frequency, as that of photographs does, with
edges across it. Every file is a function of (seed, its number) alone.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

# Width, height and share, about as in ImageNet's training split: most have a longer side of 500.
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
CLASSES = 10


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Three channels whose amplitude falls as 1 / frequency, of mean 0 and deviation 1."""
    fall = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    fall[0, 0] = np.inf
    white = rng.standard_normal((3, height, width), np.float32)
    image = np.fft.irfft2(np.fft.rfft2(white) / fall, (height, width))
    image /= image.std()
    grey = image[:1]
    return (0.85 * grey + 0.5 * image).transpose(1, 2, 0)  # colours go together in photographs


def picture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """One image, uint8 `(height, width, 3)`: two textures, one behind a curved edge."""
    near, far = _noise(rng, height, width), _noise(rng, height, width)
    edge = _noise(rng, height, width)[..., :1] * 0.3
    slope = np.linspace(-1, 1, width)[None, :, None] * rng.uniform(-1, 1)
    slope = slope + np.linspace(-1, 1, height)[:, None, None] * rng.uniform(-1, 1)
    image = np.where(edge + slope > 0, 36 * near + rng.uniform(60, 200, 3), 24 * far + 120)
    grain = rng.normal(0, rng.uniform(0.5, 4), (height, width, 1))  # of the sensor
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def jpeg(seed: int, number: int) -> bytes:
    """One encoded image; in nine of ten the colours are kept at half the resolution."""
    rng = np.random.default_rng([seed, number])
    shares = np.array([share for *_, share in SIZES])
    width, height, _ = SIZES[rng.choice(len(SIZES), p=shares / shares.sum())]
    out = io.BytesIO()
    subsampling = "4:2:0" if rng.random() < 0.9 else "4:4:4"
    image = Image.fromarray(picture(rng, width, height))
    image.save(out, "jpeg", quality=int(rng.integers(*QUALITY)), subsampling=subsampling)
    return out.getvalue()


def write_folder(root: Path, count: int, seed: int = 0) -> str:
    """Writes `count` images to train on and one of each class to test; the name of the dataset."""
    for number in range(count + min(count, CLASSES)):
        split = "train" if number < count else "test"
        path = root / split / f"{(number % count) % CLASSES}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(seed, number))
    return f"folder:{root}"


def about(root: Path) -> dict[str, float]:
    """How many files a folder has to train on, and the mean of their bytes and of their pixels."""
    files = list((root / "train").glob("*/*.jpg"))
    pixels = []
    for file in files:
        with Image.open(file) as image:
            pixels.append(image.width * image.height)
    sizes = [file.stat().st_size for file in files]
    return {"count": len(files), "bytes": float(np.mean(sizes)), "pixels": float(np.mean(pixels))}
