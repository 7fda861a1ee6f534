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
from resflax.data import Dataset
from resflax.errors import UserError
from resflax.nn import ResNet, stack_params
from resflax.train import Progress, RunDir, Trainer, check_config, keep_compiled
from resflax.train.build import dataset_from
from resflax.train.cli import parse, quiet, report, usage
from resflax.train.config import spec_overrides
from resflax.train.interrupt import Interrupt, InterruptedRunError
from resflax.train.processes import from_first, is_first, leave, others_told
from resflax.weights import new_head, open_weights


def build(config: ConfigDict) -> tuple[ResNet, Dataset, ConfigDict, Any]:
    """Model, dataset, config and weights to begin with, checked against each other."""
    model = create_model(
        config.model,
        dtype=config.dtype,
        scan=config.scan,
        remat=config.remat,
        **spec_overrides(config),
    )
    dataset = dataset_from(config)
    height, width, _ = dataset.image_shape
    least = model.spec.min_image
    if min(height, width) < least:
        raise UserError(
            f"{config.dataset}'s images of {height}x{width} are too small for {config.model} with"
            f" the {model.spec.stem} stem, which needs {least}x{least}:"
            " try --config.spec.stem=cifar"
        )
    model = model.clone(spec=model.spec.override(num_classes=dataset.num_classes))
    if not config.pretrained:
        return model, dataset, config, None
    start = begin(config, model, dataset)
    return model, dataset.normalized_by(config.data.mean, config.data.std), config, start


def begin(config: ConfigDict, model: ResNet, dataset: Dataset) -> Any:
    """The weights that a config begins with, with a new head if theirs has other classes.

    Where the config does not say how images are normalised, a config beside the weights does.
    """
    card, variables, _ = open_weights(config.pretrained, model.spec)
    if card.channels != dataset.image_shape[2]:
        raise UserError(
            f"{config.pretrained} is for images of {card.channels} channels:"
            f" {dataset.name} has {dataset.image_shape[2]}"
        )
    for key in ("mean", "std"):
        if card.told and not config.data[key]:
            config.data[key] = getattr(card.preprocess, key)
    if card.spec.num_classes != model.spec.num_classes:
        variables = new_head(variables, model.spec.num_classes, seed=config.seed)
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
    with others_told():
        if is_first():
            path = RunDir.beside(path) if command.resume == "never" else path
            RunDir.check(path)
        keep_compiled()
        trainer = Trainer(*build(command.config))
        opened = RunDir.open(path, command.config) if is_first() else RunDir(path, writes=False)
        with opened as run:
            results = from_first(run.results())
            if results and is_first():
                print("this run has ended before: there is nothing left to do")
            results = results or run_to_the_end(trainer, run, interrupt)
    if is_first():
        accuracy, count = results["test_accuracy"], results["test_examples"]
        skipped = results["skipped_examples"]
        aside = f"; {skipped} skipped, see skipped.txt" if skipped else ""
        print(f"test accuracy {accuracy:.4f} on {count} examples{aside}; saved in {path}")


def run_to_the_end(trainer: Trainer, run: RunDir, interrupt: Interrupt) -> dict[str, Any]:
    """Fits, with progress where process 0 talks."""
    if is_first():
        print(*run.notes, trainer.summary(), sep="\n", flush=True)
    progress = Progress(trainer.steps, silent=not is_first())
    return trainer.fit(run, progress, interrupt)


if __name__ == "__main__":
    quiet()
    leave(report(main))
