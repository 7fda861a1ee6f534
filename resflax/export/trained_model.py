"""A trained model or ensemble with the record of its training: the input of all formats."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from resflax.errors import UserError
from resflax.nn import Spec
from resflax.weights import Preprocess, PretrainedConfig, Weights, adapt_weights, read_ensemble
from resflax.weights.array_preprocess import ArrayPreprocess
from resflax.weights.bridge import Variables
from resflax.weights.class_names import class_names
from resflax.weights.ensemble import describe_members
from resflax.weights.preprocess import renormalization
from resflax.weights.workdirs import split_checkpoint
from resflax.zoo import create_model

# Prefixes in `Weights.evaluation` of an ensemble's metrics, and those in `RunRecord.results`.
ENSEMBLE_PREFIXES = {"ensemble_validation_": "validation_", "ensemble_": "test_"}


class RunRecord(NamedTuple):
    """Records of the run whose checkpoint is exported.

    Attributes:
      workdir: the directory, as the user named it.
      config: `config.json`; {} if it cannot be read.
      results: `results.json` if it is about the checkpoint, which then is the run's last; else
        `RunWeights.evaluation`; {} if the run did not evaluate the checkpoint. For a member of an
        ensemble, "test_accuracy" and "test_loss" are its own; for some of the members, {}.
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
      where: name of the model, see `Weights`.
    """

    config: PretrainedConfig
    variables: Variables
    source: str
    run: RunRecord | None = None
    where: str = ""

    @property
    def spec(self) -> Spec:
        """Architecture, with the number of classes."""
        return self.config.spec

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing for evaluation."""
        return self.config.preprocess

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Spatial axes and channels of the input, from the preprocessing."""
        return self.config.input_shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes: "class 7" where they are unknown."""
        return class_names(self.config.labels, self.spec.num_classes)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))

    def logits(self, images: Float[ArrayLike, "n *space c"]) -> Float[Array, "n classes"]:
        """Computes float32 logits of normalized images by `model.apply`, without folding."""
        model = create_model(self.spec, scan=False)
        logits: Any = model.apply(self.variables, images, train=False)
        return logits


class TrainedEnsemble(NamedTuple):
    """An ensemble to export, as one model that returns the mean of its members' probabilities.

    Attributes:
      members: at least two models, with the same classes and preprocessing.
      source: one line that says where the members are from.
      run: records of the run that trained all of them; None if there is no such run.
    """

    members: tuple[TrainedModel, ...]
    source: str
    run: RunRecord | None = None

    @property
    def config(self) -> PretrainedConfig:
        """Architecture of the first member, and the preprocessing and class names of all."""
        return self.members[0].config

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing for evaluation; members can differ from it in mean and std."""
        return self.config.preprocess

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Spatial axes and channels of the input, from the preprocessing."""
        return self.members[0].input_shape

    @property
    def parameters(self) -> int:
        """Number of trainable parameters of all members."""
        return sum(member.parameters for member in self.members)

    def probabilities(self, images: Float[ArrayLike, "n *space c"]) -> Float[Array, "n classes"]:
        """Computes the mean of the probabilities that `TrainedModel.logits` gives.

        Args:
          images: normalized as `preprocess` says, that is, for the first member.
        """
        x = jnp.asarray(images)
        logits = []
        for member in self.members:
            scale, bias = renormalization(self.preprocess, member.preprocess)
            logits.append(member.logits(x * scale + bias))
        return jax.nn.softmax(jnp.stack(logits)).mean(0)


Exportable = TrainedModel | TrainedEnsemble


def input_dtype(model: Exportable) -> str:
    """Returns the dtype of examples before they are normalized: "uint8" for images."""
    preprocess = model.preprocess
    return preprocess.dtype if isinstance(preprocess, ArrayPreprocess) else "uint8"


def networks_of(model: Exportable) -> tuple[TrainedModel, ...]:
    """Returns the members of an ensemble, or the model alone."""
    return model.members if isinstance(model, TrainedEnsemble) else (model,)


def normalization_of(own: Preprocess, given: Preprocess, *, uint8: bool) -> dict[str, Any]:
    """Returns the arguments of `build_graph` for the normalization of a network's images.

    Args:
      own: preprocessing of the network.
      given: preprocessing of the images, which can have another mean and std.
      uint8: whether the images are uint8 pixels, which are not normalized yet.
    """
    if uint8:
        return {"mean": own.mean, "std": own.std}
    same = (own.mean, own.std) == (given.mean, given.std)
    return {} if same else {"scale_and_bias": renormalization(given, own)}


def output_name(model: Exportable, *, uint8: bool) -> str:
    """Returns the name of the output: "probabilities" for ensembles and pixels, else "logits"."""
    return "probabilities" if uint8 or isinstance(model, TrainedEnsemble) else "logits"


def ensemble_metadata(model: Exportable) -> dict[str, Any]:
    """Returns what a file says about an ensemble, under "ensemble"; {} for one network."""
    if not isinstance(model, TrainedEnsemble):
        return {}
    record = {
        "description": describe_ensemble(model),
        "size": len(model.members),
        "members": [
            {"source": m.source, "spec": m.config.to_json_dict()["spec"]} for m in model.members
        ],
        "results": model.run.results if model.run else {},
    }
    return {"ensemble": record}


def describe_ensemble(model: TrainedEnsemble) -> str:
    """Returns one paragraph for people: the members, what the model returns, and its accuracy."""
    data = model.run.config.get("dataset") if model.run else None
    results = model.run.results if model.run else {}
    metrics = {"accuracy": results.get("test_accuracy"), **results.get("ensemble", {})}
    numbers = ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in metrics.items()
        if isinstance(value, int | float)
    )
    return (
        f"Ensemble of {len(model.members)} image classifiers, {model.parameters:,} parameters,"
        f" {model.config.spec.num_classes} classes: returns the mean of their probabilities."
        f"{f' Trained on {data}.' if data else ''}"
        f"{f' On the test split: {numbers}.' if numbers else ''}"
        f" Exported by resflax from an {model.source}."
    )


def load_trained_model(
    where: str | Sequence[str], name: str | None = None, *, revision: str | None = None
) -> Exportable:
    """Loads the model or ensemble that `where` names, and the records of its run.

    Args:
      where: a name as `read_members` takes it, or several, which form an ensemble.
      name: model name, for weights without a config.
      revision: branch, tag or commit of a repository.

    Raises:
      UserError: if there is no model, it has no classes, or the members of an ensemble are for
        other classes or images.
    """
    wheres = [where] if isinstance(where, str) else where
    members = [adapt_weights(w) for w in read_ensemble(wheres, name, revision=revision)]
    for weights in members:
        if not weights.config.spec.num_classes:
            raise UserError(
                f"{weights.where} has no classification head: expected weights with classes"
            )
    models = tuple(
        TrainedModel(w.config, w.variables, w.source, read_run_record([w], whole=False), w.where)
        for w in members
    )
    if len(models) == 1:
        return models[0]
    name_of_run = split_checkpoint(wheres[0]) if len(wheres) == 1 else None
    whole = (
        name_of_run is not None
        and name_of_run.members is None
        and not name_of_run.names_several_checkpoints
    )
    return TrainedEnsemble(models, describe_members(members), read_run_record(members, whole=whole))


def read_run_record(members: Sequence[Weights], *, whole: bool) -> RunRecord | None:
    """Returns the records of the run that trained some networks; None if there is not one.

    Args:
      members: the networks.
      whole: whether they are all members of the ensemble that one checkpoint has.
    """
    names = [split_checkpoint(weights.where) for weights in members]
    folders = {name.folder if name else None for name in names}
    if None in folders or len(folders) > 1:
        return None
    [folder] = filter(None, folders)
    config, results = (_read_json(folder / name) for name in ("config.json", "results.json"))
    return RunRecord(str(folder), config, _choose_results(results, members, whole=whole))


def _choose_results(
    results: dict[str, Any], members: Sequence[Weights], *, whole: bool
) -> dict[str, Any]:
    """Returns `RunRecord.results` of some networks from the `results.json` of their run."""
    if len(members) > 1 and not whole:
        return {}
    evaluation, own = members[0].evaluation, dict[str, Any]()
    prefixes = ENSEMBLE_PREFIXES if whole else {"validation_": "validation_", "test_": "test_"}
    for key, value in evaluation.items():
        prefix = next((p for p in prefixes if key.startswith(p)), "")
        if prefix:
            own[prefixes[prefix] + key.removeprefix(prefix)] = value
    is_last = results.get("steps") == evaluation["steps"]
    is_member = any(key.startswith("ensemble_") for key in evaluation) and not whole
    if is_last and not is_member:
        return results
    if not own:
        return {}
    about_the_run = {key: results[key] for key in results if key not in ("members", "ensemble")}
    return {**(about_the_run if is_last else {}), "steps": evaluation["steps"], **own}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # an unfinished run has no results
        return {}
