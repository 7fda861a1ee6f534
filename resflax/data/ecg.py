"""A generated dataset of signals: synthetic electrocardiograms of four rhythms.

The signals are synthetic: sums of Gaussian waves (P, Q, R, S, T) per beat, as in the model of
McSharry et al. 2003 (IEEE Trans. Biomed. Eng. 50.3) but without its differential equation, with
random rates, amplitudes, baseline wander and noise. They are an example of a dataset of signals,
not data for medicine.
"""

import numpy as np
from jaxtyping import Float

from resflax.data.in_memory import InMemorySplit
from resflax.errors import unknown

CLASSES = ("normal", "irregular", "premature", "wide")
LENGTHS = {"train": 2000, "test": 500}
LENGTH, RATE = 256, 64  # samples per signal, and per second
# Center and width in seconds relative to the R peak, and amplitude, of each wave of a beat.
WAVES = {
    "P": (-0.20, 0.025, 0.15),
    "Q": (-0.03, 0.010, -0.12),
    "R": (0.0, 0.012, 1.0),
    "S": (0.03, 0.012, -0.25),
    "T": (0.25, 0.045, 0.30),
}


def make_ecg(split: str) -> InMemorySplit:
    """Generates a split: float32 signals `(n, 256, 1)` of four seconds, and their rhythms.

    Rhythms are "normal"; "irregular", with random intervals and no P waves; "premature", with one
    early beat; and "wide", with QRS complexes of twice the width. Always the same signals.

    Raises:
      UserError: on an unknown split.

    >>> split = make_ecg("test")
    >>> split.images.shape, split.images.dtype, np.bincount(split.labels).tolist()
    ((500, 256, 1), dtype('float32'), [125, 125, 125, 125])
    """
    if split not in LENGTHS:
        raise unknown("split", split, LENGTHS)
    rng = np.random.default_rng([2003, [*LENGTHS].index(split)])
    labels = np.arange(LENGTHS[split], dtype=np.int32) % len(CLASSES)
    signals = np.stack([_signal(rng, CLASSES[label]) for label in labels])
    return InMemorySplit(signals[..., None].astype(np.float32), labels)


def _signal(rng: np.random.Generator, rhythm: str) -> Float[np.ndarray, " 256"]:
    time = np.arange(LENGTH) / RATE
    peaks = _peaks(rng, rhythm)
    widen = rng.uniform(1.7, 2.3) if rhythm == "wide" else rng.uniform(0.9, 1.1)
    scale = dict(zip(WAVES, rng.uniform(0.8, 1.2, len(WAVES)), strict=True))
    signal = np.zeros(LENGTH)
    for peak in peaks:
        for wave, (center, width, amplitude) in WAVES.items():
            if wave == "P" and rhythm == "irregular":
                continue
            factor = widen if wave in "QRS" else 1.0
            distance = (time - peak - center * factor) / (width * factor)
            signal += scale[wave] * amplitude * np.exp(-0.5 * distance**2)
    wander = rng.uniform(0, 0.15) * np.sin(2 * np.pi * (0.3 * time + rng.uniform()))
    return signal + wander + rng.normal(0, 0.08, LENGTH)


def _peaks(rng: np.random.Generator, rhythm: str) -> Float[np.ndarray, " beats"]:
    """Returns the times of the R peaks in seconds, from before the signal to after it."""
    interval = rng.uniform(0.6, 1.1)
    spread = 0.25 if rhythm == "irregular" else 0.02
    intervals = interval * (1 + rng.uniform(-spread, spread, 12) * np.sqrt(3))
    peaks = -rng.uniform(0, interval) + np.cumsum(intervals) - interval
    if rhythm == "premature":
        inside = np.flatnonzero((peaks > 0.8) & (peaks < 3.4))
        peaks[rng.choice(inside)] -= rng.uniform(0.3, 0.4) * interval
    return peaks
