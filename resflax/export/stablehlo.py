"""StableHLO artefacts: the inference function with its weights, through `jax.export`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from resflax.export.trained_model import (
    Exportable,
    TrainedEnsemble,
    ensemble_metadata,
    networks_of,
    normalization_of,
    output_name,
)
from resflax.inference import apply_graph, build_graph

PLATFORMS = ("cpu", "cuda", "tpu")
SIDECAR = ".json"
SPACE = ("depth", "height", "width")


def inference_function(
    model: Exportable, *, uint8: bool = False, fold: bool = True
) -> Callable[[Array], Array]:
    """Returns the function that is exported, with the weights inside.

    Args:
      model: the model; for an ensemble, the function returns the mean of its probabilities.
      uint8: take uint8 pixels and return probabilities, instead of normalized images and logits.
      fold: fold batch norm into the convolutions.
    """
    is_ensemble = isinstance(model, TrainedEnsemble)
    graphs = [
        build_graph(
            member.spec,
            member.variables,
            outputs="probabilities" if uint8 or is_ensemble else "logits",
            fold=fold,
            **normalization_of(member.preprocess, model.preprocess, uint8=uint8),
        )
        for member in networks_of(model)
    ]

    def run(images: Array) -> Array:
        # One by one: under `vmap`, XLA's convolutions of all members would be grouped ones.
        outputs = [apply_graph(graph, graph.arrays, images) for graph in graphs]
        return sum(outputs[1:], start=outputs[0]) / len(outputs) if is_ensemble else outputs[0]

    return run


def input_axes(model: Exportable, *, symbolic: bool) -> tuple[list[str | int], list[str]]:
    """Returns the axes of the input, names or sizes, and the constraints of the named ones.

    The first is "n". The spatial ones have the sizes of the preprocessing, or names if `symbolic`.
    """
    *space, channels = model.input_shape
    if not symbolic:
        return ["n", *space, channels], []
    names = SPACE[-len(space) :] if len(space) > 1 else ("length",)
    smallest = np.max([net.spec.min_sizes for net in networks_of(model)], 0)
    constraints = [f"{name} >= {size}" for name, size in zip(names, smallest, strict=True)]
    return ["n", *names, channels], constraints


def export_stablehlo(
    model: Exportable, *, uint8: bool = False, fold: bool = True, symbolic: bool = False
) -> bytes:
    """Returns a serialized `jax.export.Exported` for a symbolic batch, for cpu, cuda and tpu.

    Its input is `(n, *space, channels)` of the preprocessing's size, or of any size if `symbolic`;
    its output `(n, classes)`, float32. It contains no custom calls of resflax.
    """
    from jax import export

    axes, constraints = input_axes(model, symbolic=symbolic)
    shape = export.symbolic_shape(", ".join(map(str, axes)), constraints=constraints)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8 if uint8 else jnp.float32)
    function = jax.jit(inference_function(model, uint8=uint8, fold=fold))
    return bytes(export.export(function, platforms=PLATFORMS)(images).serialize())


def stablehlo_description(
    model: Exportable, *, uint8: bool = False, symbolic: bool = False
) -> dict[str, Any]:
    """Returns the JSON next to an artefact: input, output, preprocessing, classes and members."""
    axes, constraints = input_axes(model, symbolic=symbolic)
    return {
        "input": {
            "dtype": "uint8" if uint8 else "float32",
            "shape": axes,
            **({"constraints": constraints} if constraints else {}),
            "normalized": not uint8,
        },
        "output": output_name(model, uint8=uint8),
        "platforms": list(PLATFORMS),
        "jax_version": jax.__version__,
        "model": model.config.to_json_dict(),
        **ensemble_metadata(model),
    }


def write_stablehlo(
    model: Exportable,
    path: Path,
    *,
    uint8: bool = False,
    fold: bool = True,
    symbolic: bool = False,
) -> None:
    """Writes the artefact, and its description as `PATH.json`."""
    path.write_bytes(export_stablehlo(model, uint8=uint8, fold=fold, symbolic=symbolic))
    text = json.dumps(stablehlo_description(model, uint8=uint8, symbolic=symbolic), indent=2)
    path.with_name(path.name + SIDECAR).write_text(text + "\n")
