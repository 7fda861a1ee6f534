"""Sizes of images and batches that change during a run."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.counting_step import collect_batches, counting_step
from helpers.image_folders import write_folder
from helpers.records import read_reproducible
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resflax import UserError
from resflax.data import StreamingSplit, batch_indices, load_dataset
from resflax.data.phases import make_phases
from resflax.nn.batch_norm import BatchNorm
from resflax.run.signals import Interrupt, InterruptedRunError
from resflax.train import Trainer, Workdir, build, check_config, default_config, loop, make_engine
from resflax.train.builders import build_schedule
from resflax.train.config import RESUMABLE_KEYS, to_json_dict
from resflax.train.image_sizes import resize_images
from resflax.train.input_pipeline import make_device_step_fn, make_host_step_fn
from resflax.train.programs import run_programs

DIGITS = load_dataset("digits")
DIGITS = dataclasses.replace(
    DIGITS,
    train=dataclasses.replace(
        DIGITS.train, images=DIGITS.train.images[:160], labels=DIGITS.train.labels[:160]
    ),
)
SIZES = ((0.5, 12), (1.25, 9, 8))  # 8 pixels in steps 0 to 4, 12 to step 12, 9 to step 27


class PooledNet(nn.Module):
    """One convolution with batch norm, and a head on its mean: for images of any size."""

    axis_name: str | None = None
    traced: ClassVar = []  # shapes of the images that training was traced with

    @nn.compact
    def __call__(self, x, *, train):
        if train:
            self.traced.append(x.shape)
        x = nn.Conv(4, (3, 3), name="stem_conv")(x)
        x = BatchNorm(train=train, axis_name=self.axis_name, name="stem_norm")(x)
        return nn.Dense(10, name="head")(nn.relu(x).mean((1, 2)))


def make_config(**keys):
    config = default_config()
    config.epochs, config.batch_size, config.log_every_steps = 2, 16, 7
    config.data.size_schedule = SIZES
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return config


def make_trainer(devices=1, dataset=DIGITS, **keys):
    config = make_config(**keys)
    run = build(config, model=PooledNet(), dataset=dataset, devices=jax.devices()[:devices])
    return Trainer(run)


def fit(trainer, path, stop_at=0):
    interrupt, make_step_fn = Interrupt(), trainer.make_step_fn

    def make_stopping_step_fn(start):
        step_fn, step = make_step_fn(start), start

        def run_step(state, count):
            nonlocal step
            step += count
            interrupt.received = 15 * (step == stop_at)
            return step_fn(state, count)

        return run_step

    trainer.make_step_fn = make_stopping_step_fn
    config = to_json_dict(trainer.config)
    with Workdir.open(path, config, resumable=RESUMABLE_KEYS) as workdir:
        return loop.fit(trainer, workdir, interrupt=interrupt)


rows = st.tuples(st.sampled_from([0, 0.3, 1, 1.5, 2, 4]), st.integers(8, 32), st.integers(0, 20))


@given(
    st.lists(rows, max_size=3, unique_by=lambda row: row[0]).map(sorted),
    st.sampled_from([0.5, 1, 3]),
    st.integers(1, 20),
    st.integers(20, 50),
)
def test_steps_have_the_sizes_of_their_first_example(schedule, epochs, batch_size, examples):
    phases = make_phases(schedule, epochs=epochs, examples=examples, batch_size=batch_size)
    seen = 0
    for step in range(phases.steps):
        assert phases.examples_before(step) == seen < epochs * examples
        begun = [row for row in schedule if row[0] * examples <= seen]
        _, size, batch = begun[-1] if begun else (0, 0, 0)
        phase = phases.of_step(step)
        assert (phase.image_size, phase.batch_size) == (size, batch or batch_size)
        seen += phase.batch_size
    assert phases.examples_before(phases.steps) == seen >= epochs * examples


def test_every_epoch_has_each_example_once_whatever_its_batches():
    phases = make_phases([(0.5, 16, 3), (1.5, 32, 5)], epochs=2, examples=20, batch_size=4)
    order = [
        batch_indices(7, step, phase.batch_size, 20, offset=phase.offset)
        for phase in phases
        for step in range(phase.start, phase.stop)
    ]
    for epoch in range(2):
        examples = np.concatenate(order)[20 * epoch : 20 * epoch + 20]
        np.testing.assert_array_equal(examples, batch_indices(7, epoch, 20, 20))


@pytest.mark.parametrize(
    ("scaling", "factor"), [("none", 1.0), ("linear", 0.5), ("sqrt", 0.5**0.5)]
)
def test_learning_rate_follows_the_share_of_examples(scaling, factor):
    config = make_config(
        learning_rate_scaling=scaling, base_batch_size=16, learning_rate=0.3, warmup_epochs=0.2
    )
    schedule = build_schedule(config, 160)
    phases = make_phases(SIZES, epochs=2, examples=160, batch_size=16)
    for step in range(2, phases.steps):
        progress = (phases.examples_before(step) - 32) / (320 - 32)
        expected = 0.15 * (1 + np.cos(np.pi * min(progress, 1.0)))
        expected *= factor if step >= 13 else 1.0
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [16, 23, 48])
def test_images_are_resized_as_by_pillow(size):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    resized = np.asarray(resize_images(jax.numpy.asarray(images), size))
    for image, result in zip(images, resized, strict=True):
        expected = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(expected).astype(int) - result).max() <= 1


@pytest.mark.parametrize("parallel", ["pmap", "mesh"])
@pytest.mark.parametrize("start", [0, 4, 13])
def test_host_and_devices_give_the_same_batches(parallel, start):
    config, engine = make_config(), make_engine(parallel, jax.devices()[:4])
    phases = make_phases(SIZES, epochs=2, examples=160, batch_size=16)
    shapes = {0: (16, 8), 1: (16, 12), 2: (8, 9)}
    delivered = [
        collect_batches(
            engine,
            make(engine, counting_step, DIGITS.train, config, start, phases.steps, phases=phases),
            start,
            phases.steps - start,
        )
        for make in (make_host_step_fn, make_device_step_fn)
    ]
    for step, batch in enumerate(delivered[0], start):
        rows, side = shapes[phases.index(phases.of_step(step))]
        assert batch["image"].shape == (rows, side, side, 1)
    jax.tree.map(np.testing.assert_array_equal, *delivered)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.default_rng(0)
    files = {
        f"{split}/{label}/{i}.png": rng.integers(0, 256, (20, 24, 3), np.uint8)
        for split in ("train", "test")
        for label in "ab"
        for i in range(20)
    }
    return write_folder(tmp_path_factory.mktemp("folder"), files)


def make_streaming_config(folder, **keys):
    return make_config(
        dataset=folder, batch_size=8, data__image_size=16, data__eval_size=20, seed=3,
        data__size_schedule=((0.5, 20), (1, 24, 4)), **keys,
    )  # fmt: skip


def test_streamed_images_are_read_at_the_size_of_their_step(folder):
    config = make_streaming_config(folder)
    run = build(config, model=PooledNet(), devices=jax.devices()[:1])
    train = run.dataset.train
    assert isinstance(train, StreamingSplit)
    step_fn = make_host_step_fn(
        run.engine, counting_step, train, config, 0, run.steps, phases=run.phases
    )
    batches = collect_batches(run.engine, step_fn, 0, run.steps)
    sides = [batch["image"].shape[:2] for batch in batches]
    assert sides == [(8, 16)] * 3 + [(8, 20)] * 2 + [(4, 24)] * 10
    for step in (0, 4, 5):
        split = dataclasses.replace(train, size=sides[step][1])
        image, _, _ = split.example(int(batches[step]["index"][1]), step)
        np.testing.assert_array_equal(batches[step]["image"][1], image)


def check_stopped_runs(tmp_path, make, stops, steps):
    """Checks that a run stopped after some steps equals one that was not."""
    expected = fit(make(), tmp_path / "expected")
    for stop in stops:
        with pytest.raises(InterruptedRunError, match=f"stopped after step {stop}"):
            fit(make(), tmp_path / "run", stop)
    results = fit(make(), tmp_path / "run")
    assert results["params_sha256"] == expected["params_sha256"]
    assert results["steps"] == steps
    assert read_reproducible(tmp_path / "run") == read_reproducible(tmp_path / "expected")


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["pmap", "mesh"])
def test_stopped_runs_resume_to_the_same_bits(tmp_path, parallel):
    """Stops in the middle of each size, and at both changes."""
    keys = {"parallel": parallel, "data__flip": True}
    check_stopped_runs(tmp_path, lambda: make_trainer(4, **keys), (3, 5, 8, 13, 20), 27)


@pytest.mark.slow
def test_stopped_streamed_runs_resume_to_the_same_bits(tmp_path, folder):
    workers = iter([2, 0, 1, 0])  # which change nothing

    def make():
        config = make_streaming_config(folder, data__num_workers=next(workers))
        return Trainer(build(config, model=PooledNet(), devices=jax.devices()[:2]))

    check_stopped_runs(tmp_path, make, (2, 5), 15)


def records(trainer):
    engine, step_fn, losses = trainer.engine, trainer.make_step_fn(0), []
    state = engine.put_state(trainer.init())
    for _ in range(trainer.steps):
        state, metrics = step_fn(state)
        losses.append(float(np.mean(engine.to_host(metrics["loss"]))))
    return losses


def test_losses_do_not_depend_on_devices_or_engine():
    one = records(make_trainer(1))
    for devices, parallel in ((8, "pmap"), (8, "mesh"), (2, "shard_map")):
        many = records(make_trainer(devices, parallel=parallel))
        np.testing.assert_allclose(many, one, rtol=1e-4)


def test_step_is_compiled_once_for_each_size():
    trainer = make_trainer()
    PooledNet.traced.clear()
    records(trainer)
    # The first one is of the initialization.
    assert PooledNet.traced[1:] == [(16, 8, 8, 1), (16, 12, 12, 1), (8, 9, 9, 1)]


def test_calls_of_several_steps_end_where_sizes_change(tmp_path):
    trainer, counts = make_trainer(steps_per_call=100), []
    make_step_fn = trainer.make_step_fn

    def make_counting_step_fn(start):
        step_fn = make_step_fn(start)
        return lambda state, count: (counts.append(count), step_fn(state, count))[1]

    trainer.make_step_fn = make_counting_step_fn
    many = fit(trainer, tmp_path / "many")
    # The first call of each size compiles; the run evaluates after step 10.
    assert counts == [1, 4, 1, 4, 3, 1, 13]
    one = fit(make_trainer(), tmp_path / "one")
    assert many["params_sha256"] == one["params_sha256"]


def test_epochs_of_records_count_examples(tmp_path):
    fit(make_trainer(), tmp_path)
    records = read_reproducible(tmp_path)
    epochs = {r["step"]: r["epoch"] for r in records if r["split"] == "train"}
    assert epochs == {7: 0.7, 10: 1.0, 14: 1.35, 21: 1.7, 27: 2.0}
    assert [r["step"] for r in records if r["split"] == "test"] == [10, 27]


@pytest.mark.parametrize(
    ("max_steps", "line"),
    [
        (0, "16 of 8x8 in steps 1 to 5, 16 of 12x12 in steps 6 to 13, 8 of 9x9 in steps 14 to 27"),
        (9, "16 of 8x8 in steps 1 to 5, 16 of 12x12 in steps 6 to 9"),
        (5, None),
    ],
)
def test_note_describes_the_steps_of_the_run(max_steps, line):
    trainer = make_trainer(max_steps=max_steps)
    notes = [note for note in trainer.run.notes if note.startswith("training images: ")]
    assert notes == ([f"training images: {line}"] if line else [])


def test_method_of_members_counts_copies_and_sizes(monkeypatch):
    """For the micro-batch of most pixels: three copies of 32 / 2 images of 16x16."""
    seen = []

    def choose(platform, pixels, *, dtype):
        seen.append(pixels)
        return "map"

    monkeypatch.setattr("resflax.train.run_builder.choose_method", choose)
    make_trainer(
        ensemble__size=2, grad_accum_steps=2, data__aug_splits=3, data__cutout=2,
        data__size_schedule=((0.5, 16, 32), (1, 20)),
    )  # fmt: skip
    assert seen == [3 * 16 * 16 * 16]


def test_plans_are_of_the_step_with_most_pixels():
    trainer = make_trainer(data__placement="host")
    program = next(run_programs(trainer.run))
    assert program.arguments[1]["image"].shape == (1, 16, 8, 8, 1)
    assert program.examples == 16
    program.lower()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"data.image_size": 16, "dataset": "folder:D", "data.size_schedule": ((0, 24),)},
            "above 0",
        ),
        ({"schedule": "cosine_cycles", "schedule_cycles": 2}, "without batch sizes"),
        ({"batch_norm": "ghost", "ghost_batch_size": 4}, "without them"),
        ({"data.repeats": 10}, "and those of data.size_schedule"),
        ({"epochs": 0, "pretrained": "runs/x"}, "only evaluates"),
    ],
)
def test_combinations_that_cannot_work_are_refused(keys, message):
    config = make_config()
    config.update_from_flattened_dict(keys)
    with pytest.raises(UserError, match=message) as e:
        check_config(config)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ((1, 12, 12),),
            r"^row \(1, 12, 12\) of config.data.size_schedule: batch_size 12 is not a multiple of",
        ),
        (
            ((1, 12, 200),),
            r"^row \(1, 12, 200\) of config.data.size_schedule: batch_size 200 is larger",
        ),
        (((1, 12), (1.5, 9, 8), (2, 12, 20)), r"^row \(2, 12, 20\) of .*: batch_size 20 is not"),
    ],
)
def test_batch_sizes_that_do_not_fit_are_refused(rows, message):
    with pytest.raises(UserError, match=message):
        make_trainer(8, data__size_schedule=rows)


def test_sizes_too_small_for_the_network_are_refused():
    config = make_config(
        dataset="fake:64x64x3:4:32", model="resnet18", data__size_schedule=((1, 8),)
    )
    with pytest.raises(
        UserError, match=r"^row \(1, 8\) of .* images are 8x8, too small for resnet18"
    ):
        build(config)


def test_padding_larger_than_a_size_names_its_row():
    message = r"^row \(1, 9\) of config.data.size_schedule: .*pad_crop is 10: .* side, 9$"
    dataset = load_dataset("fake:16x16x1:4:32")
    with pytest.raises(UserError, match=message):
        make_trainer(dataset=dataset, data__pad_crop=10, data__size_schedule=((1, 9),))
