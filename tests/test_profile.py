"""What a run says of its resources: a profile of steps, memory, the time it waits for data."""

import gzip
import json
import time
from concurrent.futures import Future
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers.modules import NormNet
from helpers.records import read_records

from resflax import UserError
from resflax.data import load_dataset
from resflax.run.memory import memory_use
from resflax.run.profiler import StepProfiler
from resflax.run.progress import RunProgress
from resflax.run.trainer_state import TrainerState
from resflax.train import Trainer, Workdir, build, default_config, loop
from resflax.train import data_wait as data_wait_module
from resflax.train.config import to_json_dict
from resflax.train.data_wait import DataWait, WaitMeter, describe_wait
from resflax.train.launch import _summary

DIGITS = load_dataset("digits")


def make_config(**keys):
    config = default_config()
    config.epochs, config.batch_size, config.log_every_steps = 1, 288, 2
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The results and the directory of a run of five steps with a profile of two."""
    path = tmp_path_factory.mktemp("run")
    config = make_config(profile_steps=(2, 3), data__placement="host")
    trainer = Trainer(build(config, model=NormNet(), dataset=DIGITS))
    with Workdir.open(path, to_json_dict(config)) as workdir:
        return loop.fit(trainer, workdir, RunProgress(trainer.steps, silent=True)), path


def test_profile_has_the_steps_of_the_config(run):
    [trace] = (run[1] / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert steps == ["2", "3"]
    assert [*(run[1] / "profile").rglob("*.xplane.pb")]


def test_profiler_returns_the_seconds_of_start_and_stop(tmp_path, monkeypatch):
    stop_trace = jax.profiler.stop_trace
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: (stop_trace(), time.sleep(0.2)))
    profiler, x = StepProfiler((1, 2), tmp_path), jnp.zeros(3)
    assert profiler.before(2, x) == profiler.after(1, x) == 0
    assert profiler.before(1, x) > 0
    assert profiler.after(1, x) == 0
    assert profiler.after(2, x) > 0.2


def test_profile_beyond_the_last_step_is_refused():
    with pytest.raises(UserError, match=r"config.profile_steps is \(4, 6\): expected steps up to"):
        build(make_config(profile_steps=(4, 6)), model=NormNet(), dataset=DIGITS)


def test_profiler_ends_its_trace_with_an_exception(tmp_path):
    def crash(profiler):
        with profiler:
            profiler.before(1, jnp.zeros(3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash(StepProfiler((1, 9), tmp_path / "a"))
    with StepProfiler((1, 1), tmp_path / "b") as profiler:  # JAX allows one trace at a time
        profiler.before(1, jnp.zeros(3))
        profiler.after(1, jnp.zeros(3))
        assert [*(tmp_path / "b").rglob("*.xplane.pb")]


def test_records_have_memory_and_waiting_time(run):
    results, path = run
    train = read_records(path, "train")
    for record in train:
        assert 0 <= record["data_wait"] <= 1
        assert 10 < record["host_memory_mib"] < 10**6
    assert 0 <= results["data_wait"] <= 1
    assert "data_wait" not in read_records(path, "test")[0]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_memory_is_the_resident_memory_of_the_process():
    used = memory_use()["host_memory_mib"]
    status = Path("/proc/self/status").read_text()
    [kib] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
    assert used == pytest.approx(kib / 1024, rel=0.05)


def test_memory_of_devices_is_that_of_the_fullest(monkeypatch):
    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak} if self.peak else None

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(2**20), Device(3 * 2**20), Device(0)])
    assert memory_use()["device_memory_mib"] == 3.0


class Clock:
    """A clock that batches and steps move on, instead of the time."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(data_wait_module.time, "monotonic", lambda: self.now)


def run_steps(wait, clock, arrivals, step_seconds):
    """Runs steps whose batches arrive at some times; the host waits for nothing else."""
    free_at = 0.0  # when the device has no work left

    def batches():
        for arrival in arrivals:
            clock.now = max(clock.now, arrival)
            yield arrival

    iterator = batches()
    for _ in arrivals:
        wait.next(iterator)
        free_at = max(free_at, clock.now) + step_seconds
        wait._end_of_step = EndOfStep(free_at, clock)


class EndOfStep(Future):
    """The end of a step on a simulated device."""

    def __init__(self, end, clock):
        super().__init__()
        self.end, self.clock = end, clock

    def done(self):
        return self.clock.now >= self.end

    def exception(self):
        return None

    def result(self):
        return self.end


@pytest.mark.parametrize(
    ("arrivals", "step_seconds", "waited"),
    [
        ([0, 10, 20, 30], 4.0, 18.0),  # each batch comes 6 seconds after the step before it ends
        ([0, 1, 2, 3], 4.0, 0.0),  # the device is always busy, though the host waits
        ([0, 0, 0, 30], 4.0, 18.0),  # three batches ahead are 12 seconds of work
    ],
)
def test_wait_counts_only_time_without_work(arrivals, step_seconds, waited, monkeypatch):
    wait = DataWait()
    run_steps(wait, Clock(monkeypatch), arrivals, step_seconds)
    assert wait.seconds == waited


def test_wait_observes_the_end_of_steps():
    wait = DataWait()
    wait.dispatched({"loss": jnp.ones(3) * 2})
    deadline = time.monotonic() + 60
    while not wait._end_of_step.done():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert wait._end_of_step.result() <= time.monotonic()
    assert wait.next(iter(["batch"])) == "batch"
    assert wait.seconds >= 0


def test_wait_for_new_workers_is_not_counted():
    def slow():
        time.sleep(0.05)
        yield "batch"

    for is_ignored in (False, True):
        wait = DataWait()
        wait.dispatched({"loss": jnp.ones(3)})
        wait._end_of_step.result()
        if is_ignored:
            wait.ignore_next()
        wait.next(slow())
        assert (wait.seconds == 0) == is_ignored


def test_wait_meter_goes_on_after_a_resume():
    wait = DataWait()
    wait.seconds = 5.0  # of an earlier call of the same trainer
    meter = WaitMeter(wait, TrainerState(train_seconds=100.0, data_wait_seconds=30.0))
    assert meter.lap(100.0) == 0.0
    wait.seconds += 10.0
    assert meter.lap(140.0) == 0.25
    assert meter.lap(150.0) == 0.0
    assert (meter.seconds, meter.share(160.0)) == (40.0, 0.25)


def test_warning_names_what_helps():
    config = make_config()
    assert "use config.data.placement=device" in describe_wait(0.5, config, is_streamed=False)
    streamed = describe_wait(0.125, config, is_streamed=True)
    assert streamed.startswith("the devices waited for data in 12 % of the training time: raise")
    assert "config.data.num_workers, 0 (threads), up to" in streamed


@pytest.mark.parametrize(("share", "warns"), [(0.2, True), (0.05, False)])
def test_run_warns_once_of_waiting(share, warns, tmp_path, monkeypatch, capsys):
    config = make_config(epochs=2, data__placement="host")
    trainer = Trainer(build(config, model=NormNet(), dataset=DIGITS))
    monkeypatch.setattr("resflax.train.recorder.MIN_SECONDS", 0.0)
    monkeypatch.setattr(WaitMeter, "share", lambda self, seconds: share)
    with Workdir.open(tmp_path, to_json_dict(config)) as workdir:
        results = loop.fit(trainer, workdir)
    assert capsys.readouterr().out.count("warning: the devices waited for data in 20 %") == warns
    assert results["data_wait"] == share
    assert f"; waited for data in {100 * share:.0f} % of the training time; saved" in _summary(
        results, tmp_path
    )
