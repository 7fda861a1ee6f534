"""`curves.png`: readable ticks, whatever the range of the values."""

import pytest

from resflax.run import curves


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """Draws a run's losses and accuracies; returns the figure."""
    figures = []
    save = curves.save
    monkeypatch.setattr(curves, "save", lambda *args: (figures.append(args[0]), save(*args)))

    def draw(losses, accuracies):
        records = [
            {"step": 10 * i, "split": split, "loss": loss, "accuracy": accuracy}
            for i, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
            for split in ("train", "test")
        ]
        curves.draw_curves(records, tmp_path / "curves.png", "a run")
        return figures[-1]

    return draw


def labels(axis):
    """Returns the distinct labels of the ticks within the limits of an axis, as numbers."""
    low, high = axis.get_view_interval()
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    texts = [t.label1.get_text() for t in ticks if low <= t.get_loc() <= high]
    return [float(text.replace("\N{MINUS SIGN}", "-")) for text in texts if text]


@pytest.mark.parametrize(
    ("losses", "accuracies"),
    [
        ([2.3, 0.5, 0.01], [0.1, 0.5, 0.9]),
        ([2.3, 1.9, 1.1], [0.5, 0.5, 0.5]),
        ([0.8, 0.3, 0.13], [0.5, 0.6, 0.7]),
        ([0.6931, 0.6932, 0.69305], [0.999, 0.9991, 0.9992]),
        ([0.69, 0.69, 0.69], [1.0, 1.0, 1.0]),
        ([0.693147180, 0.693147181, 0.693147182], [0.25, 0.25001, 0.25]),
        ([1e-8, 2e-8, 3e-8], [0.99990, 0.99995, 1.0]),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
        ([float("nan"), 1.0, 1.0], [0.5, 0.5, 0.5]),
    ],
)
def test_curves_have_readable_ticks(losses, accuracies, draw):
    for ax in draw(losses, accuracies).axes:
        assert len(set(labels(ax.yaxis))) >= 2
        assert labels(ax.yaxis) == sorted(set(labels(ax.yaxis))) or ax.get_yscale() == "log"
        assert ax.yaxis.get_offset_text().get_text() == ""
        assert len(set(labels(ax.xaxis))) >= 2
