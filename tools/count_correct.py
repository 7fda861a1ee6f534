"""Counts the test images that a network with imported weights classifies correctly.

The images are those in `PATH/test/CLASS`, all of one size, normalized with ImageNet's mean and
standard deviation.

    python tools/count_correct.py cifar_resnet20 resnet20-12fca82f.th folder:PATH
"""

import argparse
from typing import Any

import jax
import numpy as np

from resflax import create_model
from resflax.data import eval_batches, load_dataset, normalize
from resflax.weights import from_torch, load_file
from resflax.weights.preprocess import IMAGENET_MEAN, IMAGENET_STD


def count_correct(name: str, weights: str, dataset: str) -> tuple[int, int]:
    """Returns the number of correctly classified test images and of all test images."""
    model, variables = create_model(name), from_torch(name, load_file(weights))
    test = load_dataset(dataset).test

    @jax.jit
    def count(variables: Any, batch: Any) -> jax.Array:
        x = normalize(batch["image"], mean=IMAGENET_MEAN, std=IMAGENET_STD)
        logits: Any = model.apply(variables, x, train=False)
        correct = logits.argmax(-1) == batch["label"]
        return (correct * batch["weight"]).sum()

    total = sum(float(count(variables, batch)) for batch in eval_batches(test, batch_size=500))
    return int(np.rint(total)), len(test)


def main() -> None:
    """Prints the count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="NAME", help="model name")
    parser.add_argument("weights", metavar="FILE", help="weights file")
    parser.add_argument("dataset", metavar="DATASET", help="dataset name, such as folder:PATH")
    args = parser.parse_args()
    correct, total = count_correct(args.name, args.weights, args.dataset)
    print(f"{args.name}: {correct} of {total}")


if __name__ == "__main__":
    main()
