"""`resflax plan`: topologies, chips, datasets without data, programs, the largest batch."""

import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers.commands import run_command
from helpers.image_folders import constant_image, write_folder

from resflax import UserError
from resflax.cli.plan import main as plan_command
from resflax.distributed.placement import sort_devices
from resflax.plan import planner
from resflax.plan.chips import CHIPS, find_chip
from resflax.plan.compiled import CompiledStep, Memory, needed_memory
from resflax.plan.datasets import Facts, parse_facts, planned_dataset
from resflax.plan.gpu_target import target_config
from resflax.plan.planner import LargestBatch, Planner
from resflax.plan.report import describe_plan, plan_to_json
from resflax.plan.topologies import check_compiler, parse_topology, topology_devices
from resflax.runtime import TOPOLOGY_ENVIRONMENT
from resflax.train import build, default_config
from resflax.train.input_pipeline import make_device_step_fn, train_iterator
from resflax.train.programs import run_programs

RECIPE = str(Path(__file__).parents[1] / "configs" / "imagenet_resnet50.py")
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
KEYS = {
    *("topology", "devices", "fits", "memory_bytes", "flops_per_example", "bytes_per_example"),
    *("collectives", "images_per_second_bound"),
}


def tiny_config(**changes):
    """Returns the config of a network with one narrow block, on the digits."""
    config = default_config()
    config.update_from_flattened_dict(
        {
            "dataset": "digits",
            "model": "cifar_resnet8",
            "spec.depths": (1,),
            "spec.widths": (8,),
            "spec.stem_width": 8,
            "batch_size": 16,
            **changes,
        }
    )
    return config


@pytest.fixture
def devices(monkeypatch):
    """Four CPU devices in place of those of any topology."""
    monkeypatch.setattr(planner, "topology_devices", lambda topology: jax.devices()[:4])
    return jax.devices()[:4]


@pytest.fixture
def topology_environment(monkeypatch):
    """The environment of the command, which the tests of other files must not have."""
    for name, value in TOPOLOGY_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def test_chips_have_plausible_peak_rates():
    for chip in CHIPS.values():
        # Operations for each byte: from an A100's 153 to a v6e's 560.
        knee = chip.device_flops("bfloat16") / chip.device_bandwidth
        assert 140 < knee < 600, chip.name
        assert chip.device_flops("float16") == chip.device_flops("bfloat16")
        assert chip.device_flops("float32") <= chip.device_flops("bfloat16")
        assert 15 * 2**30 < chip.device_memory < 200e9
        assert "http" in chip.source or "data sheet" in chip.source
    # Two devices share a chip of TPU7x.
    assert find_chip("tpu7x").device_memory == 96 * 2**30


def test_target_config_is_complete_and_that_of_the_card():
    text = target_config(CHIPS["a100"])
    assert "core_count: 108\n" in text
    assert "memory_bandwidth: 2039000000000\n" in text
    assert "cuda_compute_capability { major: 8 minor: 0 }" in text
    assert len(text.splitlines()) > 20


@pytest.mark.parametrize(
    ("name", "slices", "dimensions", "count"),
    [
        ("v5e:4x4", 1, (4, 4), 16),
        ("v5e:16x16", 2, (16, 16), 512),
        ("v4:2x2x4", 1, (2, 2, 4), 16),
        ("tpu7x:2x2x1", 1, (2, 2, 1), 8),
        ("h100", 1, (1, 1), 1),
        ("a100:4", 1, (1, 4), 4),
        ("h200:2x8", 1, (2, 8), 16),
        (" H100:8", 1, (1, 8), 8),
        ("v4:2x2", 1, (2, 2, 1), 4),
    ],
)
def test_topologies_have_the_devices_of_their_name(name, slices, dimensions, count):
    topology = parse_topology(name, slices)
    assert (topology.dimensions, topology.device_count) == (dimensions, count)


# From the tables of sizes in Google Cloud's pages on each TPU.
@pytest.mark.parametrize(
    ("rented", "topology"),
    [
        ("v4-8", "v4:2x2x1"),
        ("v4-32", "v4:2x2x4"),
        ("v4-64", "v4:2x4x4"),
        ("v4-512", "v4:4x8x8"),
        ("v5p-128", "v5p:4x4x4"),
        ("v5p-4096", "v5p:8x16x16"),
        ("v5litepod-1", "v5e:1x1"),
        ("v5litepod-8", "v5e:2x4"),
        ("v5e-256", "v5e:16x16"),
        ("v6e-128", "v6e:8x16"),
    ],
)
def test_rented_names_are_those_of_google_cloud(rented, topology):
    assert parse_topology(rented) == parse_topology(topology)
    assert parse_topology(rented).name == topology


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [
        ("", 1, "--topology is missing: expected for example v4-32, v4:2x2x4"),
        ("v4-12", 1, "--topology=v4-12 names no slice of v4: expected one of v4-8, v4-16"),
        ("v6e-512", 1, "expected one of v6e-1, v6e-4, .*, or the chips in each direction"),
        ("tpu7x-8", 1, "names no slice of tpu7x: expected the chips in each direction"),
        ("v5e:3x5", 1, "--topology=v5e:3x5: hosts have 2x2 chips: expected even numbers"),
        ("v5e:2x2x2", 1, "has 3 directions: chips of v5e are connected in 2, such as v5e:4x4"),
        ("v9:4x4", 1, "unknown accelerator 'v9': expected one of v4, v5e"),
        ("v5e", 1, "unknown topology 'v5e': expected for example"),
        ("v5e:4x0", 1, "unknown topology 'v5e:4x0'"),
        ("v5e:32x32", 1, "has 1024 chips: a slice of v5e has at most 256; --num_slices=N"),
        ("v5e:4x4", 0, "--num_slices is 0: expected 1 or more"),
        ("h100:16", 1, "has 16 GPUs in a host: expected at most 8; h100:HOSTSx8"),
        ("h100:8", 2, "--num_slices=2 is for TPUs: several hosts of h100 are --topology=h100:2x8"),
    ],
)
def test_invalid_topologies_are_errors(name, slices, message):
    with pytest.raises(UserError, match=message):
        parse_topology(name, slices)


@pytest.mark.parametrize(("topology", "extra"), [("v5e:4x4", "tpu-plan"), ("h100", "gpu-plan")])
def test_missing_compiler_is_an_error_with_the_extra(monkeypatch, capsys, topology, extra):
    monkeypatch.setattr("resflax.cli.plan.compile_for_topologies", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run_command("plan", f"--config={RECIPE}", f"--topology={topology}") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f'pip install "resflax[{extra}]"' in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--json=no/such/folder.json"], "the folder no/such does not exist"),
        (["--topology=v5e:4x4", "--data=224x224"], "--data is '224x224': expected HEIGHTx"),
        (["--topology=v5e:4x4", "--config.batchsize=3"], "config.batch_size"),
        (["--json=/dev/null"], "--json=/dev/null: is a device: expected the name of a file"),
        (
            ["--topolgy=v5e:4x4"],
            "unknown flag '--topolgy=v5e:4x4': did you mean --topology=v5e:4x4?",
        ),
        (["--data=99999x9x3:10:50"], "expected at most 4096 pixels a side, 4096 channels"),
        (["--data=9x9x3:999999999:50"], "and 1000000 classes"),
        (["--data="], "--data is '': expected HEIGHTx"),
    ],
)
def test_invalid_flags_are_errors_of_one_line(monkeypatch, capsys, flags, message):
    monkeypatch.setattr("resflax.cli.plan.compile_for_topologies", lambda: None)
    monkeypatch.setattr("resflax.plan.topologies.check_compiler", lambda platform: None)
    assert run_command("plan", *flags) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def stop(topology):
    raise UserError("built")


@pytest.mark.parametrize(
    ("dataset", "data", "facts"),
    [
        ("cifar10", (), "50000 training images of 32x32 pixels in 10 classes"),
        ("imagenette", (), "9469 training images of several or large sizes in 10 classes"),
        ("tiny", ("--data=64x64x3:200:9000",), "9000 training images of 64x64 pixels in 200"),
        ("folder:/no/such", ("--data=500x400x3:7:90",), "90 training images of several or large"),
    ],
)
def test_recipe_without_config_needs_no_data(monkeypatch, capsys, dataset, data, facts):
    monkeypatch.setattr("resflax.cli.plan.compile_for_topologies", lambda: None)
    monkeypatch.setattr("resflax.plan.topologies.check_compiler", lambda platform: None)
    monkeypatch.setattr(planner, "topology_devices", stop)
    with pytest.raises(UserError, match="built"):
        plan_command([f"--config.dataset={dataset}", *data, "--topology=v5e:4x4"])
    assert f"no --config: recipe for {facts}" in capsys.readouterr().out


def test_images_that_do_not_fit_a_device_are_an_error(devices):
    config = tiny_config(**{"data.placement": "device"})
    facts = Facts((64, 64, 3), 10, 10_000_000, 100)
    with pytest.raises(UserError, match=r"take 122\.9 GB on each device, which has 17\.2 GB: use"):
        Planner(config, parse_topology("v5e:2x2"), facts)


def test_devices_of_a_slice_are_neighbors():
    devices = [SimpleNamespace(slice_index=s, process_index=2 * s + p, id=i)
               for i in range(2) for p in range(2) for s in range(2)]  # fmt: skip
    order = sort_devices(reversed(devices))
    assert [d.slice_index for d in order] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [d.process_index for d in order] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [d.id for d in order] == [0, 1] * 4


def test_known_dataset_needs_no_data():
    config = default_config()
    config.update_from_flattened_dict({"dataset": "imagenet2012", "data.image_size": 224})
    dataset = planned_dataset(config)
    assert (len(dataset.train), len(dataset.test)) == (1_281_167, 50_000)
    assert (dataset.image_shape, dataset.num_classes) == ((224, 224, 3), 1000)
    config.data.image_size = 0
    with pytest.raises(UserError, match="have several sizes: expected a size in pixels"):
        planned_dataset(config)


def test_unknown_dataset_is_described_by_the_user():
    config = default_config()
    config.dataset = "folder:no_such_folder"
    with pytest.raises(UserError, match="or plan without it: --data=HEIGHTxWIDTH"):
        planned_dataset(config)
    dataset = planned_dataset(config, given=parse_facts("40x30x1:7:1000"))
    assert (dataset.image_shape, dataset.num_classes) == ((40, 30, 1), 7)
    assert dataset.train.images.nbytes == 40 * 30 * 1000


def test_dataset_on_disk_is_opened_without_reading_it(tmp_path):
    files = {f"{split}/{c}/{i}.png": constant_image(i, 12, 10)
             for split in ("train", "test") for c in "ab" for i in range(3)}  # fmt: skip
    config = default_config()
    config.dataset = write_folder(tmp_path, files)
    dataset = planned_dataset(config)
    assert (dataset.image_shape, dataset.num_classes, len(dataset.train)) == ((12, 10, 3), 2, 6)


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel": "pmap"},
        {"parallel": "shard_map"},
        {"parallel": "mesh", "mesh.fsdp": 2, "data.alternating_flip": True},
        {"ensemble.size": 2},
        {"ensemble.size": 2, "ensemble.share_order": True},
    ],
)
@pytest.mark.parametrize("placement", ["host", "device"])
def test_programs_have_the_arguments_of_the_run(placement, changes):
    """Shapes, dtypes and shardings equal those of the arrays that the run's steps get."""
    config = tiny_config(**{"data.placement": placement, **changes})
    run = build(config, devices=jax.devices()[:4])
    program = next(run_programs(run))
    state, data = program.arguments

    def kind(x):
        return x.shape, x.dtype, x.sharding

    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), run.abstract_state())
    assert jax.tree.map(kind, state) == jax.tree.map(kind, run.engine.put_state(zeros))
    train = run.dataset.train
    if placement == "host":
        real = next(train_iterator(run.engine, train, config, 0, 1))
    else:
        calls = []
        run.engine.compile_train_on_device_data = lambda step: lambda *args: calls.append(args)
        make_device_step_fn(run.engine, run.train_step, train, config, 0, run.steps)(state)
        real = calls[0][1]
    assert jax.tree.map(kind, data) == jax.tree.map(kind, real)


@pytest.mark.slow
def test_plan_of_cpu_devices_has_all_keys(devices):
    config = tiny_config(**{"precise_bn_batches": 2, "data.placement": "host"})
    plan = Planner(config, parse_topology("v5e:2x2")).plan()
    values = json.loads(json.dumps(plan_to_json(plan)))
    assert values.keys() >= KEYS
    assert (values["devices"], values["fits"], values["topology"]) == (4, True, "v5e:2x2")
    assert list(values["steps"]) == ["train", "precise BN", "evaluation"]
    # The gradient of all parameters in float32, and a little for batch norm, loss and accuracy.
    state = plan.run.abstract_state()
    gradient = 4 * sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
    assert gradient < values["collectives"]["all-reduce"]["bytes"] < 2 * gradient
    rates = [
        values["peak_flops"] / values["flops_per_example"],
        values["peak_bytes_per_second"] / values["bytes_per_example"],
    ]
    assert values["images_per_second_bound"] == pytest.approx(4 * min(rates))
    text = describe_plan(plan)
    assert "4 devices" in text
    assert "precise BN" in text


def fake_compiler(bytes_per_image, available=16_000):
    """Returns `compile_step` for a chip with so much memory."""

    def compile_step(name, lowered, examples, chip, devices):
        total = int(bytes_per_image(examples))
        memory = Memory(total, available)
        return CompiledStep(name, examples, memory, total <= available, 1.0)

    return compile_step


@pytest.mark.parametrize(
    ("bytes_per_image", "largest"),
    [
        (lambda n: 1000 * n, LargestBatch(16, True)),
        (lambda n: 1000 * n + 10 * n * n, LargestBatch(8, True)),
        (lambda n: 17_000, LargestBatch(7, False)),
    ],
)
def test_largest_batch_is_found_by_compiling(devices, monkeypatch, bytes_per_image, largest):
    monkeypatch.setattr(planner, "compile_step", fake_compiler(bytes_per_image))
    monkeypatch.setattr(Planner, "_fixed_bytes", lambda self: 0)
    lines = []
    config = tiny_config(**{"batch_size": 4 * 64, "data.placement": "host"})
    plan = Planner(config, parse_topology("v5e:2x2")).plan(lines.append, only=("train",))
    assert (plan.fits, plan.largest_batch) == (False, largest)
    assert "does not fit" in describe_plan(plan)
    assert plan_to_json(plan)["images_per_second_bound"] is None


def test_errors_of_the_compiler_say_the_needed_memory():
    chip = CHIPS["v5e"]
    used = needed_memory("Ran out of memory. Used 35.5G of 15.75G hbm. Exceeded by 19.7G.", chip)
    assert (used.total, used.available) == (int(35.5 * 2**30), int(15.75 * 2**30))
    other = needed_memory("RESOURCE_EXHAUSTED: something else", chip)
    assert other.total == other.available


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
def test_small_net_compiles_for_four_tpus(topology_environment):
    check_compiler("tpu")
    topology = parse_topology("v5e:2x2")
    assert [d.device_kind for d in topology_devices(topology)] == ["TPU v5 lite"] * 4
    plan = Planner(tiny_config(), topology).plan(only=("train",))
    assert plan.fits
    assert plan.steps["train"].collectives.keys() == {"all-reduce"}
    assert plan.steps["train"].flops > 0
