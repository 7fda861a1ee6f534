"""Reads weights by where they are: a run, a folder, a file, a Hub repository."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from resflax.data.class_names import IMAGENET_CLASSES
from resflax.errors import Report, UserError, print_to_stderr
from resflax.nn import Spec
from resflax.nn.drop import RATES
from resflax.weights.arrays import Arrays
from resflax.weights.bridge import (
    Variables,
    from_torch,
    is_flat,
    unflatten,
)
from resflax.weights.complete_config import complete_config
from resflax.weights.imagenet import imagenet_classes
from resflax.weights.places import Found, find_arrays, without_scheme
from resflax.weights.prefixes import strip_prefixes
from resflax.weights.pretrained_config import PretrainedConfig
from resflax.weights.run_history import RunHistory
from resflax.weights.shapes import variable_shapes
from resflax.zoo import get_spec


class Weights(NamedTuple):
    """Weights and what they are for.

    Attributes:
      config: architecture, preprocessing and class names.
      variables: variables in the tree of `scan=False`.
      source: one line that says what was read.
      is_flax: whether the arrays had resflax's names (`flatten`), not torch's.
      evaluation: of a run's checkpoint, see `RunWeights`; {} for others.
      where: name of this network alone: for the members of a run's ensemble, "runs/x#2".
      history: how a run trained it; None for others.
    """

    config: PretrainedConfig
    variables: Variables
    source: str
    is_flax: bool
    evaluation: dict[str, float]
    where: str
    history: RunHistory | None = None


def read_weights(
    where: str | Path,
    name: str | Spec | None = None,
    *,
    revision: str | None = None,
    report: Report = print_to_stderr,
) -> Weights:
    """Reads the weights of one network, with their architecture, preprocessing and class names.

    Images are normalized as `Weights.config.preprocess` says. For a run these are the run's own
    moments, for a config.json those that it has. A weights file without a config.json gets the
    default of its architecture, `default_preprocess`, which the caller may replace.

    Args:
      where: one of

        - the workdir of a run, also with a checkpoint: "runs/x", "runs/x@best", "runs/x@last",
          "runs/x@200"; by default the last one; for an ensemble with the index of a member,
          "runs/x#2" or "runs/x@best#2";
        - a folder in timm's or Transformers' layout;
        - a weights file, with `name` or a config.json in the same folder;
        - a Hub repository, "owner/name";
        - a name with one of timm's tags, "resnet50.a1_in1k", for the repository of that name.
      name: model name or spec; None to use that of the run or the config.json. The number of
        classes is always that of the weights.
      revision: branch, tag or commit of a repository.
      report: called with messages, such as about corrupt checkpoints that are skipped.

    Raises:
      UserError: if there are no weights, they are those of several networks, the model is unknown
        or the weights do not match it.
    """
    members = read_members(where, name, revision=revision, report=report)
    if len(members) > 1:
        raise UserError(
            f"{where} is an ensemble of {len(members)} networks, and one network is needed:"
            f" expected one of its members, such as {members[0].where}"
        )
    return members[0]


def read_members(
    where: str | Path,
    name: str | Spec | None = None,
    *,
    revision: str | None = None,
    report: Report = print_to_stderr,
) -> tuple[Weights, ...]:
    """Reads the weights of every network that `where` names.

    Args:
      where: as in `read_weights`, and also the workdir of an ensemble (all members that have not
        diverged: "runs/x", "runs/x@best"), some of its members ("runs/x#0,2"), and several
        checkpoints of a run ("runs/x@100,200", or "runs/x@last:3" for the last three).
      name: as in `read_weights`.
      revision: as in `read_weights`.
      report: as in `read_weights`; also called for members that are left out.

    Returns:
      One entry per network, with its variables; by checkpoint, then by member.

    Raises:
      UserError: if there are no weights, a checkpoint or member does not exist or is named twice,
        the model is unknown or the weights do not match it.
    """
    where, spec = without_scheme(str(where)), None if name is None else get_spec(name)
    found = find_arrays(where, revision, report, spec)
    return tuple(_make_weights(network, spec, where) for network in found)


def _make_weights(found: Found, spec: Spec | None, where: str) -> Weights:
    """Converts arrays to variables, and completes their config.

    Raises:
      UserError: if the model is unknown or the arrays do not match it.
    """
    if found.problem and spec is None:
        raise UserError(
            f"{found.problem}: expected the config.json of the weights, or the model's name"
            " (--model NAME, or --config.model=NAME in training), with which it is not read"
        )
    if found.config and spec and not _have_equal_parameters(found.config.spec, spec):
        found = found._replace(config=None, problem="it is that of another network")
    with _named_errors(where):
        stripped = strip_prefixes(found.arrays)
        arrays = stripped.arrays
        config = complete_config(found.config, arrays, spec, where)
        is_flax = is_flat(arrays)
        convert = unflatten if is_flax else _from_torch_unrolled
        variables = convert(config.spec, arrays, channels=config.channels)
    notes = [found.source, *_notes(found, config, str(stripped))]
    if config.spec.num_classes == IMAGENET_CLASSES and not (config.labels or found.is_own_record):
        config = config._replace(labels=imagenet_classes())
        notes.append("class names of ImageNet-1k")
    return Weights(
        config,
        variables,
        "; ".join(notes),
        is_flax,
        found.evaluation or {},
        found.where or where,
        found.history,
    )


def _notes(found: Found, config: PretrainedConfig, stripped: str) -> Iterator[str]:
    """Yields what was changed and assumed; `stripped` says what `strip_prefixes` changed."""
    if found.problem:
        yield f"{found.config_name} is that of something else, and not used"
    elif found.config_name:
        yield f"normalization of {found.config_name}"
    if stripped:
        yield stripped
    if found.config is None:
        mean, std = map(_format_moments, (config.preprocess.mean, config.preprocess.std))
        yield f"default normalization of the architecture: mean {mean}, std {std}"
    if not config.spec.num_classes:
        yield "no classification head"


def _have_equal_parameters(spec: Spec, other: Spec) -> bool:
    """Returns whether two specs are of one network, whatever its classes and regularization are."""
    specs = [x.override(num_classes=0, **dict.fromkeys(RATES, 0.0)) for x in (spec, other)]
    if specs[0].to_json_dict() == specs[1].to_json_dict():
        return True
    return variable_shapes(specs[0]) == variable_shapes(specs[1])


@contextmanager
def _named_errors(where: str) -> Iterator[None]:
    """Adds the name of the weights to errors."""
    try:
        yield
    except UserError as e:
        raise e if where in str(e) else UserError(f"{where}: {e}") from e


def _format_moments(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _from_torch_unrolled(spec: Spec, arrays: Arrays, *, channels: int) -> Variables:
    return from_torch(spec, arrays, channels=channels, scan=False)
