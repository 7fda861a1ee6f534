"""Evaluation of trained networks: metrics, calibration, test-time views, reports."""

from resflax.evaluate.metrics import ExampleScores as ExampleScores
from resflax.evaluate.metrics import Metrics as Metrics
from resflax.evaluate.metrics import classification_metrics as classification_metrics
from resflax.evaluate.metrics import score_examples as score_examples
from resflax.evaluate.metrics import summarize as summarize
