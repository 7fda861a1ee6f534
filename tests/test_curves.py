"""`curves.png`: readable ticks, whatever the range of the values."""

import pytest
from helpers.modules import NormNet

from resflax.data import load_dataset
from resflax.run import curves
from resflax.run.progress import RunProgress
from resflax.train import Trainer, Workdir, build, default_config, loop, recorder
from resflax.train.config import to_json_dict


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


@pytest.mark.parametrize(("seconds", "drawn"), [(0.0, [1, 2, 3, 3]), (1e6, [3])])
def test_curves_grow_while_training_if_time_allows(seconds, drawn, tmp_path, monkeypatch):
    """Drawn after each of three evaluations and at the end, or at the end only."""
    evaluations, titles = [], []

    def draw(records, path, title, members):
        evaluations.append(sum(record["split"] == "test" for record in records))
        titles.append(title)

    monkeypatch.setattr(recorder, "draw_curves", draw)
    monkeypatch.setattr(recorder, "CURVES_SECONDS", seconds)
    monkeypatch.setattr(recorder, "MAX_CURVES_SHARE", 1.0)
    config = default_config()
    config.epochs, config.batch_size = 3, 720
    trainer = Trainer(build(config, model=NormNet(), dataset=load_dataset("digits")))
    monkeypatch.setattr(trainer, "is_eval_step", lambda step: step in (2, 4, 6))
    with Workdir.open(tmp_path, to_json_dict(config)) as workdir:
        loop.fit(trainer, workdir, RunProgress(trainer.steps, silent=True))
    assert trainer.steps == 6
    assert evaluations == drawn
    assert all(" on digits, test accuracy 0." in title for title in titles)
