"""Metrics of classifiers and ensembles from their log-probabilities: pure NumPy, in float64.

An evaluation reduces each batch to a few numbers per example, so that memory does not grow with the
number of classes; the metrics are computed from those.
"""

from resflax.metrics.calibration import Bins as Bins
from resflax.metrics.calibration import equal_mass_bins as equal_mass_bins
from resflax.metrics.calibration import equal_width_bins as equal_width_bins
from resflax.metrics.classification import Metrics as Metrics
from resflax.metrics.classification import classification_metrics as classification_metrics
from resflax.metrics.classification import summarize as summarize
from resflax.metrics.scores import ExampleScores as ExampleScores
from resflax.metrics.scores import log_softmax as log_softmax
from resflax.metrics.scores import mean_log_probability as mean_log_probability
from resflax.metrics.scores import score_examples as score_examples
