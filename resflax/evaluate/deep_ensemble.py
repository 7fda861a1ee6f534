"""The deep-ensemble equivalent: how many independent members reach the same likelihood."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from resflax.errors import UserError
from resflax.metrics import deep_ensemble_equivalent

OWN_MEMBERS = "its own members"


class Reference(NamedTuple):
    """A deep ensemble to compare with.

    Attributes:
      name: its file, or `OWN_MEMBERS`.
      calibrated_nll: mean negative log-likelihood of 1, 2, ... of its members, after temperature
        scaling.
      split: name of the split.
    """

    name: str
    calibrated_nll: Float[np.ndarray, " sizes"]
    split: str


def read_reference(path: Path) -> Reference:
    """Reads the `evaluation.json` of a deep ensemble.

    Raises:
      UserError: if it cannot be read, or is not that of an ensemble with calibration.
    """
    try:
        values = json.loads(path.read_text())
        split = str(values["split"])
        curve = np.array(values["size_curve"]["calibrated_nll"], np.float64)
    except OSError as e:
        raise UserError(f"cannot read the deep ensemble {path}: {e.strerror}") from e
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(
            f"{path} is not the evaluation of a calibrated ensemble: expected an evaluation.json"
            " that resflax evaluate wrote for one"
        ) from e
    return Reference(str(path), curve, split)


def describe_equivalent(values: dict[str, Any], reference: Reference) -> dict[str, Any]:
    """Returns the deep-ensemble equivalent as JSON values.

    Args:
      values: results of the evaluation, see `results`.
      reference: the deep ensemble.

    Returns:
      "members", None if no size of the reference is as good, and "reference". If members were
      selected, also "selected", their equivalent.
    """

    def members(nll: float) -> float | None:
        size = deep_ensemble_equivalent(nll, reference.calibrated_nll)
        return size if math.isfinite(size) else None

    found = {"members": members(values["calibrated"]["nll"]), "reference": reference.name}
    if "selected" in values:
        found["selected"] = members(values["selected"]["calibrated"]["nll"])
    return found
