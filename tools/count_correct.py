"""How many test images a network with imported weights gets right.

    python tests/count_correct.py cifar_resnet20 resnet20-12fca82f.th folder:PATH

The images are those of `PATH/test/CLASS`, of one size, normalised as for ImageNet.
"""

import sys

import jax
import numpy as np

from resflax import create_model
from resflax.data import eval_batches, load_dataset, normalize
from resflax.weights import from_torch, load
from resflax.weights.preprocess import IMAGENET_MEAN, IMAGENET_STD


def main(name, weights, dataset):
    model, variables = create_model(name), from_torch(name, load(weights))
    test = load_dataset(dataset).test

    @jax.jit
    def right(variables, batch):
        x = normalize(batch["image"], mean=IMAGENET_MEAN, std=IMAGENET_STD)
        found = model.apply(variables, x, train=False).argmax(-1) == batch["label"]
        return (found * batch["weight"]).sum()

    count = sum(float(right(variables, batch)) for batch in eval_batches(test, batch_size=500))
    print(f"{name}: {np.rint(count):.0f} of {len(test)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
