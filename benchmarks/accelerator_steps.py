"""The steps of tools/accelerator.sh: what runs, for how long, with which sizes.

The times are those of an H100, where XLA takes 90 s to choose the kernels of ResNet-50's training
step by measurement, once for each of the two networks in JAX.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
# Of a run on a GPU. With `--minutes`, the limits of parts and steps grow in proportion.
MINUTES = 12.0


@dataclass(frozen=True)
class Step:
    """A process to run.

    Attributes:
      name: name of the step and of its log.
      command: arguments of Python.
      limit: seconds after which it is ended, in a run of `MINUTES`.
      results: JSON file that it writes, in the folder that it runs in.
      keys: those of its results to keep; all of them if empty.
      env: environment variables.
      requires: package that must be installed; "" for none.
    """

    name: str
    command: Sequence[str]
    limit: float
    results: str = ""
    keys: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    requires: str = ""


class Part(NamedTuple):
    """Groups of steps; the steps of a group run at the same time.

    Attributes:
      seconds: its part of the time; what it leaves is for the following parts.
      groups: the steps.
    """

    seconds: float
    groups: list[list[Step]]


@dataclass(frozen=True)
class Sizes:
    """Sizes and settings that differ between a run and a dry run."""

    network: str
    members: str
    counts: str
    device: str
    seconds: float
    train: tuple[str, ...]
    recipe: tuple[str, ...]


GPU = Sizes(
    network="resnet50@224:256",
    members="cifar_resnet20@32:128",
    counts="1,4,16",
    device="gpu",
    seconds=1.0,
    train=("--config.epochs=5",),
    recipe=("--config.epochs=12", "--config.decay_epochs=(6.0,9.0)"),
)
DRY_RUN = Sizes(
    network="cifar_resnet8@8:8",
    members="cifar_resnet8@8:8",
    counts="2",
    device="cpu",
    seconds=0.05,
    train=("--config.model=cifar_resnet8", "--config.epochs=1", "--config.batch_size=256"),
    recipe=("--config.model=cifar_resnet8", "--config.epochs=1", "--config.decay_epochs=(0.5,)"),
)
RESULTS = ("params_sha256", "test_accuracy", "wall_seconds")
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# Runs of the digits with the same config and seed, twice each.
DIGITS = {
    "pmap": ("pmap", ""),
    "mesh": ("mesh", ""),
    "deterministic": ("pmap", DETERMINISTIC),
    "deterministic, not autotuned": ("pmap", f"{DETERMINISTIC} --xla_gpu_autotune_level=0"),
}
NETWORKS = {"resflax": "jax", "torch.compile": "torch", "flax": "flax", "torch": "torch"}


def training_runs(sizes: Sizes, data: str) -> Part:
    """Returns runs that are not timed and share the GPU, then what needs one of them.

    The digits twice by each row of `DIGITS`, and three seeds as one program on the images in
    `data`; then the logits of a run next to PyTorch's.
    """
    runs = [
        Step(
            f"digits {name} {i}",
            [
                *(str(ROOT / "train.py"), f"--workdir=digits {name} {i}"),
                *(f"--config.parallel={engine}", *sizes.train),
            ],
            limit=140,
            results=f"digits {name} {i}/results.json",
            keys=RESULTS,
            # Not the program, and with it the kernels, that another run has compiled.
            env={"XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        )
        for name, (engine, flags) in DIGITS.items()
        for i in (1, 2)
    ]
    convert = ["-m", "resflax", "convert", "digits pmap 1"]
    verified = [
        Step(
            f"convert --verify, {precision}",
            [*convert, f"{precision}.safetensors", "--verify"],
            limit=45,
            env={"JAX_DEFAULT_MATMUL_PRECISION": precision},
            requires="torch",
        )
        for precision in ("default", "highest")
    ]
    first, images = seeds(sizes, data)
    return Part(170, [first, [*runs, *images], verified])


def seeds(sizes: Sizes, data: str) -> tuple[list[Step], list[Step]]:
    """Returns what unpacks the images, and a run of three seeds as one program."""
    if not data and sizes is not DRY_RUN:  # a dry run without images uses the digits
        return [], []
    dataset, unpack = f"folder:{data}" if data else "digits", []
    if data and Path(data).is_file():
        dataset = "folder:data"
        unpack = [Step("unpack", ["-m", "tarfile", "-e", data, "data"], limit=60)]
    recipe = f"--config={ROOT / 'configs' / 'cifar10_resnet.py'}:20"
    options = (f"--config.dataset={dataset}", "--config.ensemble.size=3", *sizes.recipe)
    command = [str(ROOT / "train.py"), recipe, "--workdir=seeds", *options]
    return unpack, [Step("three seeds", command, limit=140, results="seeds/results.json")]


def _measure(name: str, sizes: Sizes, *command: str, limit: float, **fields: Any) -> Step:
    file = f"{name}.json"
    options = (f"--device={sizes.device}", f"--seconds={sizes.seconds}", f"--json={file}")
    arguments = ["-m", "benchmarks.one_process", *command, *options]
    return Step(name, arguments, limit=limit, results=file, **fields)


def network(sizes: Sizes) -> Part:
    """Returns training and inference of ResNet-50, next to the rates of the card."""
    steps = [_measure("card", sizes, "card", "--dtype=bfloat16", limit=45)]
    for name, package in NETWORKS.items():
        task = (f"--model={sizes.network}", "--dtype=bfloat16")
        steps.append(_measure(name, sizes, "network", name, *task, limit=150, requires=package))
    return Part(400, [[step] for step in steps])


def ensembles(sizes: Sizes) -> Part:
    """Returns the training step of several members, by how they are computed."""
    groups = [
        [
            _measure(
                f"members, {convolution}",
                sizes,
                *("members", methods, f"--model={sizes.members}", f"--members={sizes.counts}"),
                limit=100,
                env={"RESFLAX_MEMBER_CONV": convolution},
            )
        ]
        for convolution, methods in (("loop", "separate,vmap,map"), ("grouped", "vmap"))
    ]
    return Part(150, groups)


def make_parts(sizes: Sizes, data: str) -> dict[str, Part]:
    """Returns the parts by name, in the order in which they run."""
    return {
        "runs": training_runs(sizes, data),
        "resnet50": network(sizes),
        "ensembles": ensembles(sizes),
    }
