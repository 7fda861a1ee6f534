"""ONNX models, written from the inference form of a network.

The operators are those of the default ONNX domain, opset 17 by default; opsets 13 to 22 can be
chosen. There are no custom operators.
"""

import json
from typing import Any

import jax

from resflax.errors import UserError
from resflax.export.onnx_operators import OnnxWriter, write_node
from resflax.inference import Graph, build_graph
from resflax.weights.pretrained_config import PretrainedConfig

OPSETS = range(13, 23)
DEFAULT_OPSET = 17
# Of weights. Protocol buffers, the file format of ONNX, have less than 2 GiB, nodes included.
MAX_BYTES = 2**31 - 2**24
PRODUCER = "resflax"


def check_onnx() -> None:
    """Checks that the package `onnx` is installed.

    Raises:
      UserError: if it is not.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as e:
        raise UserError('writing ONNX needs onnx: pip install "resflax[onnx]"') from e


def to_onnx(
    config: PretrainedConfig,
    variables: Any,
    *,
    uint8: bool = False,
    fold: bool = True,
    opset: int = DEFAULT_OPSET,
) -> bytes:
    """Returns a network with its weights as a serialized ONNX model.

    The input is `image`: normalized float32 `(n, channels, height, width)`, of the size of the
    preprocessing, with a symbolic batch "n". The output is `logits`, float32 `(n, classes)`. The
    model's `metadata_props` have, as JSON, `class_names`, `mean`, `std`, `size`, `crop_pct`,
    `interpolation` and, under `model`, all of `config`.

    Args:
      config: architecture, channels, preprocessing and class names.
      variables: the variables, stacked or not.
      uint8: take raw uint8 pixels `(n, height, width, channels)` instead, and return the output
        `probabilities`. Normalization and softmax are part of the model.
      fold: fold batch norm into the convolutions. If False, it is written as BatchNormalization.
      opset: version of the ONNX operators.

    Raises:
      UserError: if the package `onnx` is missing, the opset is not one of `OPSETS`, the model is
        too large for a file, or as `build_graph` does.
    """
    check_onnx()
    import onnx

    if opset not in OPSETS:
        raise UserError(f"opset is {opset!r}: expected an integer from {OPSETS[0]} to {OPSETS[-1]}")
    _check_size(variables)
    preprocess = config.preprocess
    statistics = {"mean": preprocess.mean, "std": preprocess.std} if uint8 else {}
    output = "probabilities" if uint8 else "logits"
    graph = build_graph(config.spec, variables, outputs=output, fold=fold, **statistics)
    model = _make_model(graph, preprocess.size, output, uint8=uint8, opset=opset)
    onnx.helper.set_model_props(model, _metadata(config))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _check_size(variables: Any) -> None:
    size = 4 * sum(array.size for array in jax.tree.leaves(variables["params"]))
    if size > MAX_BYTES:
        raise UserError(
            f"the weights have {size / 2**30:.1f} GiB: expected less than 2 GiB, the limit of ONNX"
            " files; use another format"
        )


def _make_model(
    graph: Graph, size: tuple[int, int], output: str, *, uint8: bool, opset: int
) -> Any:
    from onnx import TensorProto, helper

    height, width = size
    shape = (height, width, graph.channels) if uint8 else (graph.channels, height, width)
    dtype = TensorProto.UINT8 if uint8 else TensorProto.FLOAT
    writer = OnnxWriter(opset, {graph.input: graph.channels})
    for node in graph.nodes:
        write_node(writer, node, output if node.name == graph.output else node.name)
    onnx_graph = helper.make_graph(
        writer.nodes,
        PRODUCER,
        [helper.make_tensor_value_info(graph.input, dtype, ["n", *shape])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", graph.features])],
        initializer=writer.initializers,
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(
        onnx_graph,
        opset_imports=opsets,
        # The oldest format that has these operators, which the most runtimes read.
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name=PRODUCER,
    )


def _metadata(config: PretrainedConfig) -> dict[str, str]:
    preprocess = config.preprocess
    values = {
        "class_names": config.labels,
        **{
            name: getattr(preprocess, name)
            for name in ("mean", "std", "size", "crop_pct", "interpolation")
        },
        "model": config.to_json_dict(),
    }
    return {name: json.dumps(value) for name, value in values.items()}
