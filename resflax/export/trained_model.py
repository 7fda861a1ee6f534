"""A trained model and what is known about its training, as all formats take it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, ArrayLike, Float

from resflax.errors import UserError
from resflax.nn import Spec
from resflax.weights import Preprocess, PretrainedConfig, adapt_weights, read_weights
from resflax.weights.bridge import Variables
from resflax.weights.class_names import class_names
from resflax.weights.workdirs import split_checkpoint
from resflax.zoo import create_model


class RunRecord(NamedTuple):
    """Records of the run whose checkpoint is exported.

    Attributes:
      workdir: the directory, as the user named it.
      config: `config.json`; {} if it cannot be read.
      results: `results.json` if it is about the checkpoint, which then is the run's last; else
        `RunWeights.evaluation`; {} if the run did not evaluate the checkpoint.
    """

    workdir: str
    config: dict[str, Any]
    results: dict[str, Any]


class TrainedModel(NamedTuple):
    """A model to export.

    Attributes:
      config: architecture, image channels, preprocessing, class names.
      variables: the variables, in the tree of `scan=False`.
      source: one line that says where the model is from.
      run: records of the run that trained it; None if it is not from a workdir.
    """

    config: PretrainedConfig
    variables: Variables
    source: str
    run: RunRecord | None = None

    @property
    def spec(self) -> Spec:
        """Architecture, with the number of classes."""
        return self.config.spec

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing for evaluation."""
        return self.config.preprocess

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the input, from the preprocessing."""
        return (*self.preprocess.size, self.config.channels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes: "class 7" where they are unknown."""
        return class_names(self.config.labels, self.spec.num_classes)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))

    def logits(self, images: Float[ArrayLike, "n h w c"]) -> Float[Array, "n classes"]:
        """Computes float32 logits of normalized images by `model.apply`, without folding."""
        model = create_model(self.spec, scan=False)
        logits: Any = model.apply(self.variables, images, train=False)
        return logits


def load_trained_model(
    where: str, name: str | None = None, *, revision: str | None = None
) -> TrainedModel:
    """Loads the model that `where` names, as `load_pretrained` does, and the records of its run.

    Args:
      where: a workdir, a folder, a file, a Hub repository or a tagged name.
      name: model name, for weights without a config.
      revision: branch, tag or commit of a repository.

    Raises:
      UserError: if there is no model, or it has no classes.
    """
    weights = adapt_weights(read_weights(where, name, revision=revision))
    if not weights.config.spec.num_classes:
        raise UserError(f"{where} has no classification head: expected weights with classes")
    run = read_run(where, weights.evaluation)
    return TrainedModel(weights.config, weights.variables, weights.source, run)


def read_run(where: str, evaluation: dict[str, float]) -> RunRecord | None:
    """Returns the records of the run in a workdir; None if `where` is not a workdir.

    Args:
      where: the workdir, with or without "@" and a checkpoint.
      evaluation: that of the checkpoint, see `RunWeights`.
    """
    workdir = split_checkpoint(where)
    if workdir is None:
        return None
    folder = workdir[0]
    config, results = (_read_json(folder / name) for name in ("config.json", "results.json"))
    if results.get("steps") != evaluation["steps"]:
        results = dict(evaluation) if "test_accuracy" in evaluation else {}
    return RunRecord(str(folder), config, results)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # an unfinished run has no results
        return {}
