"""Trains a residual network: `python train.py --config=configs/digits.py --workdir=runs/digits`.

Any key of the config can be set: `--config.model=cifar_resnet56 --config.seed=1`. Without a
config the recipe is `configs/digits.py`; without a workdir it is a fresh folder under `runs/`.

Started again with the same workdir, a run goes on from its last checkpoint; `--resume=never` begins
a new one in a folder beside it. SIGTERM and Ctrl-C end it after the step it is at, saved.

Several processes run it together, each with the same command and one more argument:
`--distributed`, where JAX finds the others by itself (SLURM, Open MPI, GKE, TPU pods), else
`--distributed --coordinator=HOST:PORT --num_processes=N --process_id=I`. Process 0 alone writes.
"""

import itertools
import os
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # The imports take seconds, in which there is nothing to save.
    for _number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(_number, lambda number, _: os._exit(128 + number))

from ml_collections import ConfigDict

from resflax import create_model
from resflax.cli.flags import parse, quiet, report, usage
from resflax.data import Dataset
from resflax.distributed.processes import (
    broadcast_json,
    exit_process,
    is_main_process,
    lost_process_as_user_error,
)
from resflax.errors import UserError
from resflax.nn import ResNet, stack_params
from resflax.run.signals import Interrupt, InterruptedRunError
from resflax.train import Progress, Trainer, Workdir, check_config, enable_compilation_cache
from resflax.train.builders import build_dataset
from resflax.train.config import spec_overrides
from resflax.weights import read_weights, replace_head


def build(config: ConfigDict) -> tuple[ResNet, Dataset, ConfigDict, Any]:
    """Model, dataset, config and weights to begin with, checked against each other."""
    model = create_model(
        config.model,
        dtype=config.dtype,
        scan=config.scan,
        remat=config.remat,
        **spec_overrides(config),
    )
    dataset = build_dataset(config)
    height, width, _ = dataset.image_shape
    minimum = model.spec.min_image_size
    if min(height, width) < minimum:
        raise UserError(
            f"{config.dataset}'s images of {height}x{width} are too small for {config.model} with"
            f" the {model.spec.stem} stem, which needs {minimum}x{minimum}:"
            " try --config.spec.stem=cifar"
        )
    model = model.clone(spec=model.spec.override(num_classes=dataset.num_classes))
    if not config.pretrained:
        return model, dataset, config, None
    start = begin(config, model, dataset)
    return model, dataset.with_normalization(config.data.mean, config.data.std), config, start


def begin(config: ConfigDict, model: ResNet, dataset: Dataset) -> Any:
    """The weights that a config begins with, with a new head if theirs has other classes.

    Where the config does not say how images are normalised, a config beside the weights does.
    """
    card, variables, _ = read_weights(config.pretrained, model.spec)
    if card.channels != dataset.image_shape[2]:
        raise UserError(
            f"{config.pretrained} is for images of {card.channels} channels:"
            f" {dataset.name} has {dataset.image_shape[2]}"
        )
    for key in ("mean", "std"):
        if card.told and not config.data[key]:
            config.data[key] = getattr(card.preprocess, key)
    if card.spec.num_classes != model.spec.num_classes:
        variables = replace_head(variables, model.spec.num_classes, seed=config.seed)
    return stack_params(variables) if model.scan else variables


def fresh_folder(name: str) -> Path:
    """A folder under `runs/` that is not there yet."""
    first = f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}"
    names = itertools.chain([first], (f"{first}-{n}" for n in itertools.count(2)))
    return next(path for path in map(Path, names) if not path.exists())


def main() -> None:
    """Parse, build, fit."""
    if {"-h", "--help", "--helpfull"} & set(sys.argv):
        print(usage(__doc__))
        return
    with Interrupt() as interrupt:
        train(interrupt)
        if interrupt.asked:
            raise InterruptedRunError(interrupt.asked, "the run had come to its end")


def train(interrupt: Interrupt) -> None:
    """A run, from the command line to what it leaves."""
    command = parse(Path(__file__).parent / "configs" / "digits.py")
    check_config(command.config)
    path = Path(command.workdir) if command.workdir else fresh_folder(command.name)
    command.processes.join()
    interrupt.forward = command.processes.distributed
    with lost_process_as_user_error():
        if is_main_process():
            path = Workdir.next_free(path) if command.resume == "never" else path
            Workdir.check(path)
        enable_compilation_cache()
        trainer = Trainer(*build(command.config))
        opened = (
            Workdir.open(path, command.config) if is_main_process() else Workdir(path, writes=False)
        )
        with opened as run:
            results = broadcast_json(run.results())
            if results and is_main_process():
                print("this run has ended before: there is nothing left to do")
            results = results or run_to_the_end(trainer, run, interrupt)
    if is_main_process():
        accuracy, count = results["test_accuracy"], results["test_examples"]
        skipped = results["skipped_examples"]
        aside = f"; {skipped} skipped, see skipped.txt" if skipped else ""
        print(f"test accuracy {accuracy:.4f} on {count} examples{aside}; saved in {path}")


def run_to_the_end(trainer: Trainer, run: Workdir, interrupt: Interrupt) -> dict[str, Any]:
    """Fits, with progress where process 0 talks."""
    if is_main_process():
        print(*run.notes, trainer.summary(), sep="\n", flush=True)
    progress = Progress(trainer.steps, silent=not is_main_process())
    return trainer.fit(run, progress, interrupt)


if __name__ == "__main__":
    quiet()
    exit_process(report(main))
