"""Trains a residual network: `python train.py --config=configs/digits.py --workdir=runs/digits`.

Any key of the config can be set: `--config.model=cifar_resnet56 --config.seed=1`. Without a
config the recipe is `configs/digits.py`; without a workdir it is a fresh folder under `runs/`.
"""

import itertools
import sys
from datetime import datetime
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from resflax import create_model
from resflax.data import Dataset, load_dataset
from resflax.errors import UserError
from resflax.nn import ResNet
from resflax.train import Progress, RunDir, Trainer, check_config, keep_compiled
from resflax.train.cli import parse, report, usage
from resflax.train.config import spec_overrides


def build(config: ConfigDict) -> tuple[ResNet, Dataset]:
    """The model and the dataset that a config names, checked against each other."""
    model = create_model(
        config.model,
        dtype=config.dtype,
        scan=config.scan,
        remat=config.remat,
        **spec_overrides(config),
    )
    dataset = load_dataset(config.dataset, config.data.dir)
    height, width, _ = dataset.image_shape
    least = model.spec.min_image
    if min(height, width) < least:
        raise UserError(
            f"{config.dataset}'s images of {height}x{width} are too small for {config.model} with"
            f" the {model.spec.stem} stem, which needs {least}x{least}:"
            " try --config.spec.stem=cifar"
        )
    return model.clone(spec=model.spec.override(num_classes=dataset.num_classes)), dataset


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
    config, name, workdir = parse(Path(__file__).parent / "configs" / "digits.py")
    check_config(config)
    path = Path(workdir) if workdir else fresh_folder(name)
    RunDir.check(path)
    keep_compiled()
    trainer = Trainer(*build(config), config)
    run = RunDir.open(path, config)
    print(trainer.summary(), flush=True)
    results = trainer.fit(run, Progress(trainer.steps))
    accuracy, count = results["test_accuracy"], results["test_examples"]
    print(f"test accuracy {accuracy:.4f} on {count} examples; saved in {path}")


if __name__ == "__main__":
    sys.exit(report(main))
