"""ONNX models, written from the inference form of a network.

The operators are those of the default ONNX domain, opset 17 by default; opsets 13 to 22 can be
chosen. There are no custom operators.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax

from resflax.errors import UserError
from resflax.export.onnx_operators import write_node
from resflax.export.onnx_writer import OnnxWriter
from resflax.export.trained_model import normalization_of
from resflax.inference import Graph, Node, build_graph
from resflax.inference.whole import missing_part
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
    return _write([(config, variables)], is_ensemble=False, uint8=uint8, fold=fold, opset=opset)


def ensemble_to_onnx(
    members: Sequence[tuple[PretrainedConfig, Any]],
    *,
    uint8: bool = False,
    fold: bool = True,
    opset: int = DEFAULT_OPSET,
    description: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> bytes:
    """Returns several networks as one serialized ONNX model, for the mean of their probabilities.

    The output is `probabilities`, float32 `(n, classes)`, also without `uint8`. Nodes of the second
    network are called "member1/..." and so on. `metadata_props` have the entries of the first
    network's config and those of `metadata`.

    Args:
      members: config and variables of each network, for the same classes and images.
      uint8: as in `to_onnx`; pixels are normalized once, if all members normalize them equally.
        Without it, images are normalized for the first member.
      fold: as in `to_onnx`.
      opset: as in `to_onnx`.
      description: text for people, the model's `doc_string`.
      metadata: further entries, as JSON values by name.

    Raises:
      UserError: as `to_onnx`.
    """
    return _write(
        members,
        is_ensemble=True,
        uint8=uint8,
        fold=fold,
        opset=opset,
        description=description,
        metadata=metadata,
    )


def _write(
    members: Sequence[tuple[PretrainedConfig, Any]],
    *,
    is_ensemble: bool,
    uint8: bool,
    fold: bool,
    opset: int,
    description: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> bytes:
    """Returns one model of one or more networks; see `to_onnx` and `ensemble_to_onnx`."""
    check_onnx()
    import onnx

    if opset not in OPSETS:
        raise UserError(f"opset is {opset!r}: expected an integer from {OPSETS[0]} to {OPSETS[-1]}")
    _check_size([variables for _, variables in members])
    for member, _ in members:
        if part := missing_part(member.spec):
            raise UserError(
                f"the network has {part}, which the ONNX export does not have: use the format"
                " stablehlo, or a part that resflax names"
            )
    config = members[0][0]
    preprocess = config.preprocess
    output = "probabilities" if uint8 or is_ensemble else "logits"
    graphs = [
        build_graph(
            member.spec,
            variables,
            outputs=output,
            fold=fold,
            **normalization_of(member.preprocess, preprocess, uint8=uint8),
        )
        for member, variables in members
    ]
    if is_ensemble:
        is_shared = all(member.preprocess == preprocess for member, _ in members)
        graphs = [
            _prefix_names(graph, f"member{i}", share_normalization=is_shared)
            for i, graph in enumerate(graphs)
        ]
    model = _make_model(graphs, preprocess.size, output, uint8=uint8, opset=opset)
    model.doc_string = description
    onnx.helper.set_model_props(model, _metadata(config, metadata or {}))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _prefix_names(graph: Graph, prefix: str, *, share_normalization: bool) -> Graph:
    """Returns the graph of a member, its nodes called "PREFIX/NAME", except shared ones."""
    shared = {graph.input}
    if share_normalization:
        shared |= {node.name for node in graph.nodes if node.op == "normalize"}

    def rename(name: str) -> str:
        return name if name in shared else f"{prefix}/{name}"

    nodes = tuple(
        node._replace(name=rename(node.name), inputs=tuple(map(rename, node.inputs)))
        for node in graph.nodes
    )
    return replace(graph, nodes=nodes, output=rename(graph.output))


def _check_size(variables: Sequence[Any]) -> None:
    size = 4 * sum(array.size for tree in variables for array in jax.tree.leaves(tree["params"]))
    if size > MAX_BYTES:
        raise UserError(
            f"the weights have {size / 2**30:.1f} GiB: expected less than 2 GiB, the limit of ONNX"
            " files; use another format"
        )


def _make_model(
    graphs: Sequence[Graph], size: tuple[int, int], output: str, *, uint8: bool, opset: int
) -> Any:
    """Returns the model of one graph, or of the mean of the outputs of several."""
    from onnx import TensorProto, helper

    (height, width), graph = size, graphs[0]
    shape = (height, width, graph.channels) if uint8 else (graph.channels, height, width)
    dtype = TensorProto.UINT8 if uint8 else TensorProto.FLOAT
    writer = OnnxWriter(opset, {graph.input: graph.channels})
    renamed = {graph.output: output} if len(graphs) == 1 else {}
    for node in _unique_nodes(graphs):
        write_node(writer, node, renamed.get(node.name, node.name))
    if len(graphs) > 1:
        writer.emit("Mean", output, *(writer.result(member.output) for member in graphs))
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


def _unique_nodes(graphs: Sequence[Graph]) -> list[Node]:
    """Returns the nodes of all graphs; of those with one name, which they share, the first."""
    nodes = dict[str, Node]()
    for graph in graphs:
        for node in graph.nodes:
            nodes.setdefault(node.name, node)
    return [*nodes.values()]


def _metadata(config: PretrainedConfig, more: Mapping[str, Any]) -> dict[str, str]:
    preprocess = config.preprocess
    values = {
        "class_names": config.labels,
        **{
            name: getattr(preprocess, name)
            for name in ("mean", "std", "size", "crop_pct", "interpolation")
        },
        "model": config.to_json_dict(),
        **more,
    }
    return {name: json.dumps(value) for name, value in values.items()}
