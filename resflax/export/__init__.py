"""Trained models as artefacts: folders of timm and Transformers, ONNX, StableHLO."""

from resflax.export.exporter import ExportReport as ExportReport
from resflax.export.exporter import export as export
from resflax.export.formats import FORMATS as FORMATS
from resflax.export.formats import ExportOptions as ExportOptions
from resflax.export.trained_model import TrainedEnsemble as TrainedEnsemble
from resflax.export.trained_model import TrainedModel as TrainedModel
from resflax.export.trained_model import load_trained_model as load_trained_model
