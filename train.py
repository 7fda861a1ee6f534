"""Trains a residual network: `python train.py --config=configs/digits.py --workdir=runs/digits`.

Any key of the config can be set: `--config.model=cifar_resnet56 --config.seed=1`. Without a
config the recipe is `configs/digits.py`; without a workdir it is a fresh folder under `runs/`.

Several processes run it together, each with the same command and one more argument:
`--distributed`, where JAX finds the others by itself (SLURM, Open MPI, GKE, TPU pods), else
`--distributed --coordinator=HOST:PORT --num_processes=N --process_id=I`. Process 0 alone writes.
"""

import itertools
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from resflax import create_model
from resflax.data import Dataset
from resflax.errors import UserError
from resflax.nn import ResNet, stack_params
from resflax.train import Progress, RunDir, Trainer, check_config, keep_compiled
from resflax.train.build import dataset_from
from resflax.train.cli import parse, report, usage
from resflax.train.config import spec_overrides
from resflax.train.processes import is_first
from resflax.weights import new_head, open_weights


def build(config: ConfigDict) -> tuple[ResNet, Dataset, Any]:
    """The model, the dataset and the weights to begin with, checked against each other."""
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
        return model, dataset, None
    start = begin(config, model, dataset)
    return model, dataset.normalized_by(config.data.mean, config.data.std), start


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
    logging.set_verbosity(logging.ERROR)
    config, name, workdir, processes = parse(Path(__file__).parent / "configs" / "digits.py")
    check_config(config)
    path = Path(workdir) if workdir else fresh_folder(name)
    processes.join()
    if is_first():
        RunDir.check(path)
    keep_compiled()
    model, dataset, start = build(config)
    trainer = Trainer(model, dataset, config, start)
    run = RunDir.open(path, config) if is_first() else RunDir(path, writes=False)
    if is_first():
        print(trainer.summary(), flush=True)
    results = trainer.fit(run, Progress(trainer.steps, silent=not is_first()))
    accuracy, count = results["test_accuracy"], results["test_examples"]
    skipped = results["skipped_examples"]
    aside = f"; {skipped} skipped, see skipped.txt" if skipped else ""
    if is_first():
        print(f"test accuracy {accuracy:.4f} on {count} examples{aside}; saved in {path}")


if __name__ == "__main__":
    sys.exit(report(main))
