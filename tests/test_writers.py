"""Writers of metrics: what they have of a run, also after a stop; TensorBoard's own reader."""

import csv
import importlib.util
import sys
import types

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.modules import softmax
from helpers.records import read_events, read_records

from resflax import UserError
from resflax.data import batch_indices, load_dataset
from resflax.run.metric_writer import WRITERS, WriterStart, open_writers, scalars_of
from resflax.run.progress import RunProgress
from resflax.train import Trainer, Workdir, build, check_config, default_config, fit, loop
from resflax.train.config import RESUMABLE_KEYS, to_json_dict
from resflax.train.histograms import HistogramSource

DIGITS = load_dataset("digits")


class Linear(nn.Module):
    """Softmax regression with ten classes."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(10, name="head")(x.reshape(len(x), -1))


def make_config(**keys):
    config = default_config()
    config.epochs, config.batch_size, config.log_every_steps = 1, 288, 2
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return config


def start_run(path, config, crash_at=0):
    """Starts or resumes a run of five steps, which can end with an exception after one of them."""
    trainer = Trainer(build(config, model=Linear(), dataset=DIGITS))
    make_step_fn = trainer.make_step_fn

    def make_crashing(first, *args):
        step_fn, count = make_step_fn(first, *args), first

        def run_step(state, steps):
            nonlocal count
            count += 1
            if count == crash_at + 1:
                raise ZeroDivisionError
            return step_fn(state, steps)

        return run_step

    if crash_at:
        trainer.make_step_fn = make_crashing
    values = to_json_dict(config)
    with Workdir.open(path, values, resumable=RESUMABLE_KEYS) as workdir:
        return loop.fit(trainer, workdir, RunProgress(trainer.steps, silent=True))


def expected_scalars(path, split, key):
    return [(r["step"], np.float32(r[key])) for r in read_records(path, split)]


def read_scalars(events, tag):
    return [(event.step, np.float32(event.value)) for event in events.Scalars(tag)]


def read_csv(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with files of TensorBoard and CSV files."""
    path = tmp_path_factory.mktemp("run")
    config = make_config(log_to="tensorboard,csv", log_histograms_every_steps=4)
    start_run(path, config)
    return path


def test_tensorboard_reads_the_scalars_of_all_records(run):
    events = read_events(run)
    assert [r["step"] for r in read_records(run, "train")] == [2, 4, 5]
    for split in ("train", "test"):
        for key in ("loss", "accuracy", "learning_rate", "epoch", "examples_per_second"):
            assert read_scalars(events, f"{split}/{key}") == expected_scalars(run, split, key)


def test_tensorboard_reads_images_of_the_first_batch(run):
    [image] = read_events(run).Images("train/first_batch")
    assert image.step == 0
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert image.width * image.height >= 16 * 8 * 8


def test_tensorboard_reads_histograms_of_all_values(run):
    events = read_events(run)
    for group in ("params", "gradients"):
        for name, count in (("kernel", 640), ("bias", 10)):
            [histogram] = events.Histograms(f"{group}/head/{name}")
            assert histogram.step == 4
            assert histogram.histogram_value.num == count


def test_tensorboard_reads_config_and_evaluations(run):
    tags = read_events(run).Tags()
    assert {"config/text_summary", "evaluations/text_summary"} <= set(tags["tensors"])
    content = read_events(run).SummaryMetadata("_hparams_/session_start_info")
    assert content.plugin_data.plugin_name == "hparams"


def test_csv_has_the_values_of_all_records(run):
    rows, records = read_csv(run / "metrics.csv"), read_records(run)
    assert [(int(r["step"]), r["split"]) for r in rows] == [
        (r["step"], r["split"]) for r in records
    ]
    for row, record in zip(rows, records, strict=True):
        assert {k: float(row[k]) for k in scalars_of(record)} == scalars_of(record)


def test_csv_has_one_table_of_evaluations(run):
    [row] = read_csv(run / "evaluations.csv")
    [record] = read_records(run, "test")
    assert (int(row["step"]), row["split"]) == (5, "test")
    assert float(row["accuracy"]) == record["accuracy"]


def test_resumed_run_writes_no_step_twice(tmp_path):
    """The run ends without warning after step 4; its last checkpoint is that of step 3."""
    config = make_config(log_to=("csv", "tensorboard"), log_every_steps=1, checkpoint_every_steps=3)
    with pytest.raises(ZeroDivisionError):
        start_run(tmp_path, config, crash_at=4)
    assert [r["step"] for r in read_records(tmp_path, "train")] == [1, 2, 3, 4]
    start_run(tmp_path, config)
    records = read_records(tmp_path)
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 5]
    rows = read_csv(tmp_path / "metrics.csv")
    assert [float(r["loss"]) for r in rows] == [r["loss"] for r in records]
    events = read_events(tmp_path)
    assert len([*(tmp_path / "tensorboard").iterdir()]) == 2
    assert read_scalars(events, "train/loss") == expected_scalars(tmp_path, "train", "loss")
    assert len(events.Scalars("test/loss")) == 1
    assert len(events.Images("train/first_batch")) == 1


def test_run_without_checkpoint_starts_its_files_again(tmp_path):
    config = make_config(log_to=("csv", "tensorboard"), log_every_steps=1)
    with pytest.raises(ZeroDivisionError):
        start_run(tmp_path, config, crash_at=2)
    start_run(tmp_path, config)
    assert [int(r["step"]) for r in read_csv(tmp_path / "metrics.csv")] == [1, 2, 3, 4, 5, 5]
    events = read_events(tmp_path)
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    assert len(events.Images("train/first_batch")) == 1


RECORDS = [
    {"step": 1, "split": "train", "loss": 1.0},
    {"step": 2, "split": "train", "loss": 0.5, "members": {"loss": [0.4, 0.6]}},
]


@pytest.mark.parametrize("name", ["csv", "tensorboard"])
def test_writer_added_to_a_resumed_run_has_its_records(name, tmp_path):
    [writer] = open_writers([name], WriterStart(tmp_path, 3, RECORDS))
    writer.write_scalars(3, "train", {"loss": 0.25})
    writer.close()
    if name == "csv":
        rows = read_csv(tmp_path / "metrics.csv")
        assert [float(r["loss"]) for r in rows] == [1.0, 0.5, 0.25]
        assert [r["loss/member1"] for r in rows] == ["", "0.6", ""]
    else:
        values = read_scalars(read_events(tmp_path), "train/loss")
        assert values == [(1, 1.0), (2, 0.5), (3, 0.25)]


def test_tensorboard_rewrites_records_of_the_first_step(tmp_path):
    """An evaluation at the step of the checkpoint is written again, its training record kept."""
    [writer] = open_writers(["tensorboard"], WriterStart(tmp_path))
    writer.write_scalars(1, "train", {"loss": 1.0})
    writer.write_scalars(2, "train", {"loss": 0.5})
    writer.write_scalars(2, "test", {"loss": 9.0})
    writer.close()
    [writer] = open_writers(["tensorboard"], WriterStart(tmp_path, 2, RECORDS))
    writer.write_scalars(2, "test", {"loss": 3.0})
    writer.close()
    events = read_events(tmp_path)
    assert read_scalars(events, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert read_scalars(events, "test/loss") == [(2, 3.0)]


def test_csv_adds_columns_of_later_records(tmp_path):
    [writer] = open_writers(["csv"], WriterStart(tmp_path))
    writer.write_scalars(1, "train", {"loss": 1.0})
    writer.write_scalars(2, "train", {"loss": 0.5, "dropped": 1})
    writer.write_scalars(3, "train", {"loss": 0.25})
    rows = read_csv(tmp_path / "metrics.csv")
    assert [r["dropped"] for r in rows] == ["", "1", ""]
    assert [r["loss"] for r in rows] == ["1.0", "0.5", "0.25"]


@pytest.mark.parametrize("parallel", ["pmap", "mesh"])
def test_histograms_have_the_gradient_of_the_next_batch(parallel):
    """Compares with the closed form of softmax regression, in float64."""
    config = make_config(parallel=parallel, on_nonfinite="skip")
    run = build(config, model=Linear(), dataset=DIGITS)
    state = run.init()
    arrays = HistogramSource(run)(run.engine.put_state(state), 3)
    index = batch_indices(config.seed, 3, config.batch_size, len(DIGITS.train))
    images, labels = DIGITS.train.get_batch(index)
    mean, std = run.dataset.train.mean_std()
    x = ((images / 255 - np.float64(mean)) / np.float64(std)).reshape(len(index), -1)
    params = jax.tree.map(np.float64, jax.device_get(state.params["head"]))
    residual = softmax(x @ params["kernel"] + params["bias"]) - np.eye(10)[labels]
    np.testing.assert_allclose(
        arrays["gradients/head/kernel"], x.T @ residual / len(x), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(arrays["gradients/head/bias"], residual.mean(0), atol=1e-6)
    np.testing.assert_array_equal(arrays["params/head/kernel"], params["kernel"])


def test_histograms_of_an_ensemble_have_all_members():
    config = make_config(ensemble__size=2)
    run = build(config, model=Linear(), dataset=DIGITS)
    arrays = HistogramSource(run)(run.engine.put_state(run.init()), 0)
    assert {name: x.shape for name, x in arrays.items()} == {
        "params/head/kernel": (2, 64, 10),
        "params/head/bias": (2, 10),
    }


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"log_to": "tensorbord"}, "config.log_to is 'tensorbord': expected names among csv, ten"),
        ({"log_to": ("csv", "csv")}, "config.log_to is .*: expected names among .*, each once"),
        (
            {"log_to": "csv", "log_histograms_every_steps": 5},
            "config.log_histograms_every_steps is 5, but config.log_to='csv' has no writer of"
            " histograms: leave it out, or use tensorboard or wandb",
        ),
    ],
)
def test_invalid_writers_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        check_config(make_config(**keys))


@pytest.mark.parametrize("name", [name for name, row in WRITERS.items() if row.package])
def test_missing_package_is_refused_before_the_run(name, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    config = make_config(log_to=name)
    with pytest.raises(UserError, match=rf'which needs \w+: pip install "resflax\[{name}\]"'):
        fit(config, tmp_path / "run", silent=True)
    assert not (tmp_path / "run").exists()


# By name of a parameter; two of which NumPy makes no histogram as they are.
HISTOGRAMS = {
    "params/head": np.zeros(5, np.float32),
    "params/almost_equal": np.array([1, 1.0000001], np.float32),
    "params/not_finite": np.array([np.nan, np.inf, 2], np.float32),
}


class FakeWandbRun:
    """A run of Weights & Biases as its documentation describes it."""

    def __init__(self, id, resume, step):
        assert resume == "allow"
        self.id, self.step, self.rows, self.config = id or "new", step if id else 0, [], {}

    def log(self, values, step):
        self.rows += [(step, key, value) for key, value in values.items()]

    def finish(self):
        self.rows.append("finished")


def test_wandb_writes_numbers_and_continues_a_run(tmp_path, monkeypatch):
    runs, keys = [], ("project", "name", "dir")

    def init(id, resume, **others):
        assert set(others) == set(keys)
        runs.append(FakeWandbRun(id, resume, step=3))
        return runs[-1]

    fake = types.SimpleNamespace(
        init=init,
        Image=np.shape,
        Histogram=lambda np_histogram: np_histogram[0].sum(),
        Table=lambda columns, data: (columns, data),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delitem(sys.modules, "resflax.run.writers.wandb_writer", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: package)
    [writer] = open_writers(["wandb"], WriterStart(tmp_path))
    writer.write_hyperparameters({"seed": 0})
    writer.write_images(0, "first", np.zeros((2, 8, 8, 1), np.uint8))
    writer.write_scalars(2, "train", {"loss": 1.0})
    writer.write_histograms(2, HISTOGRAMS)
    writer.write_table(2, "evaluations", [{"step": 2, "accuracy": 0.5}])
    writer.close()
    assert runs[0].config == {"seed": 0}
    assert runs[0].rows == [
        (0, "first", [(8, 8), (8, 8)]),
        (2, "train/loss", 1.0),
        (2, "params/head", 5),
        (2, "params/almost_equal", 2),
        (2, "params/not_finite", 1),
        (2, "evaluations", (["step", "accuracy"], [[2, 0.5]])),
        "finished",
    ]
    [writer] = open_writers(["wandb"], WriterStart(tmp_path, 2))
    assert runs[1].id == "new"
    for step in (2, 3):
        writer.write_scalars(step, "train", {"loss": 0.5})
    assert runs[1].rows == [(3, "train/loss", 0.5)]


def test_writer_that_cannot_start_is_a_one_line_error(tmp_path, monkeypatch):
    def start_run(**keys):
        raise RuntimeError("no server\nat all")

    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(start_run=start_run))
    monkeypatch.delitem(sys.modules, "resflax.run.writers.mlflow_writer", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: package)
    with pytest.raises(UserError, match="'mlflow', which cannot start: no server$"):
        open_writers(["mlflow"], WriterStart(tmp_path))


def make_fake_mlflow(runs):
    def start_run(run_id, run_name):
        runs.setdefault(run_id or "new", [])
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "new"))

    def log_metrics(values, step, run_id):
        runs[run_id] += [(step, key, value) for key, value in values.items()]

    def history(run_id, key):
        rows = [row for row in runs[run_id] if row[1] == key]
        return [types.SimpleNamespace(step=step) for step, _, _ in rows]

    def get_run(run_id):
        metrics = {key: value for step, key, value in runs[run_id] if step is not None}
        return types.SimpleNamespace(data=types.SimpleNamespace(metrics=metrics))

    return types.SimpleNamespace(
        start_run=start_run,
        log_metrics=log_metrics,
        log_params=lambda values: runs["new"].append((None, "params", values)),
        log_image=lambda image, file: runs["new"].append((None, file, image.shape)),
        log_dict=lambda values, file: runs["new"].append((None, file, values)),
        end_run=lambda: runs["new"].append((None, "end", None)),
        MlflowClient=lambda: types.SimpleNamespace(get_metric_history=history, get_run=get_run),
    )


def test_mlflow_writes_numbers_and_continues_a_run(tmp_path, monkeypatch):
    runs = {}
    monkeypatch.setitem(sys.modules, "mlflow", make_fake_mlflow(runs))
    monkeypatch.delitem(sys.modules, "resflax.run.writers.mlflow_writer", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: package)
    [writer] = open_writers(["mlflow"], WriterStart(tmp_path))
    writer.write_hyperparameters({"seed": 0})
    writer.write_images(0, "first", np.zeros((1, 8, 8, 1), np.uint8))
    writer.write_scalars(2, "train", {"epoch": 1})
    writer.write_table(2, "evaluations", [{"step": 2, "accuracy": 0.5}])
    writer.close()
    assert runs["new"] == [
        (None, "params", {"seed": "0"}),
        (None, "first/0_0.png", (8, 8, 1)),
        (2, "train/epoch", 1.0),
        (None, "evaluations.json", {"columns": ["step", "accuracy"], "data": [[2, 0.5]]}),
        (None, "end", None),
    ]
    [writer] = open_writers(["mlflow"], WriterStart(tmp_path, 2))
    for split, step in (("train", 2), ("test", 2), ("train", 4)):
        writer.write_scalars(step, split, {"epoch": 2})
    assert runs["new"][5:] == [(2, "test/epoch", 2.0), (4, "train/epoch", 2.0)]
