"""StableHLO artefacts: the inference function with its weights, through `jax.export`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
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


def export_stablehlo(model: Exportable, *, uint8: bool = False, fold: bool = True) -> bytes:
    """Returns a serialized `jax.export.Exported` for a symbolic batch, for cpu, cuda and tpu.

    Its input is `(n, height, width, channels)` of the preprocessing's size, its output
    `(n, classes)`, float32. It contains no custom calls of resflax.
    """
    from jax import export

    (batch,) = export.symbolic_shape("n")
    dtype = jnp.uint8 if uint8 else jnp.float32
    images = jax.ShapeDtypeStruct((batch, *model.input_shape), dtype)
    function = jax.jit(inference_function(model, uint8=uint8, fold=fold))
    return bytes(export.export(function, platforms=PLATFORMS)(images).serialize())


def stablehlo_description(model: Exportable, *, uint8: bool = False) -> dict[str, Any]:
    """Returns the JSON next to an artefact: input, output, preprocessing, classes and members."""
    return {
        "input": {
            "dtype": "uint8" if uint8 else "float32",
            "shape": ["n", *model.input_shape],
            "normalized": not uint8,
        },
        "output": output_name(model, uint8=uint8),
        "platforms": list(PLATFORMS),
        "jax_version": jax.__version__,
        "model": model.config.to_json_dict(),
        **ensemble_metadata(model),
    }


def write_stablehlo(
    model: Exportable, path: Path, *, uint8: bool = False, fold: bool = True
) -> None:
    """Writes the artefact, and its description as `PATH.json`."""
    path.write_bytes(export_stablehlo(model, uint8=uint8, fold=fold))
    text = json.dumps(stablehlo_description(model, uint8=uint8), indent=2)
    path.with_name(path.name + SIDECAR).write_text(text + "\n")
