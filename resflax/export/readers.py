"""Readers of exported models, each independent of the code that wrote them."""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resflax.export.stablehlo import SIDECAR
from resflax.export.timm_names import find_timm_model
from resflax.export.trained_model import Exportable, TrainedModel, load_trained_model
from resflax.weights import PretrainedConfig


class ExportedModel(NamedTuple):
    """An exported model, loaded.

    Attributes:
      reader: what loaded it, with its version.
      call: maps NHWC images, normalized float32 or uint8 pixels, to logits or probabilities.
      config: the architecture, preprocessing and class names that came with it; None if the reader
        does not return them.
    """

    reader: str
    call: Callable[[np.ndarray], np.ndarray]
    config: PretrainedConfig | None = None


def read_stablehlo(path: Path, model: Exportable) -> ExportedModel:
    """Loads an artefact by `jax.export.deserialize`, and the JSON next to it."""
    del model
    from jax import export

    exported = export.deserialize(bytearray(path.read_bytes()))
    description = json.loads(path.with_name(path.name + SIDECAR).read_text())
    return ExportedModel(
        f"jax {_version('jax')}",
        lambda images: np.asarray(exported.call(images)),
        PretrainedConfig.from_json_dict(description["model"]),
    )


def read_onnx(path: Path, model: Exportable) -> ExportedModel:
    """Loads an ONNX model in ONNX Runtime, or without it in the evaluator of the package `onnx`."""
    del model
    import onnx

    loaded = onnx.load(path)
    metadata = {entry.key: entry.value for entry in loaded.metadata_props}
    config = PretrainedConfig.from_json_dict(json.loads(metadata["model"]))
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        session: Any = ReferenceEvaluator(loaded)
        reader = f"onnx.reference {onnx.__version__}"
    else:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        reader = f"onnxruntime {onnxruntime.__version__}"

    def call(images: np.ndarray) -> np.ndarray:
        is_raw = images.dtype == np.uint8
        batch = images if is_raw else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return np.asarray(session.run(None, {"image": batch})[0])

    return ExportedModel(reader, call, config)


def read_folder(path: Path, model: Exportable) -> ExportedModel:
    """Loads a folder by `load_pretrained`."""
    del model
    loaded = load_trained_model(str(path))
    assert isinstance(loaded, TrainedModel)
    return ExportedModel("resflax", lambda x: np.asarray(loaded.logits(x)), loaded.config)


def read_timm(path: Path, model: Exportable) -> ExportedModel | None:
    """Loads a folder by timm; None without timm, or if it does not have the architecture."""
    if find_timm_model(model.config.spec) is None:
        return None
    try:
        import timm
    except ImportError:
        return None
    net = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    return ExportedModel(f"timm {timm.__version__}", lambda x: _run_torch(net, x))


def read_transformers(path: Path, model: Exportable) -> ExportedModel | None:
    """Loads a folder by Transformers; None without it."""
    del model
    try:
        import transformers
    except ImportError:
        return None
    transformers.utils.logging.disable_progress_bar()
    net = transformers.AutoModelForImageClassification.from_pretrained(path).eval()
    return ExportedModel(
        f"transformers {transformers.__version__}",
        lambda x: _run_torch(lambda batch: net(batch).logits, x),
    )


def _run_torch(net: Any, images: np.ndarray) -> np.ndarray:
    """Runs a torch module of NCHW images on NHWC images."""
    import torch

    with torch.inference_mode():
        batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        return net(batch).numpy()


def _version(package: str) -> str:
    return importlib.metadata.version(package)
