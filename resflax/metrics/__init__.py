"""Metrics of classifiers and ensembles from their log-probabilities: pure NumPy, in float64.

An evaluation reduces each batch to a few numbers per example, so that memory does not grow with the
number of classes; the metrics are computed from those.
"""

from resflax.metrics.brier import BrierDecomposition as BrierDecomposition
from resflax.metrics.brier import BrierSums as BrierSums
from resflax.metrics.brier import brier_decomposition as brier_decomposition
from resflax.metrics.brier import brier_sums as brier_sums
from resflax.metrics.calibration import Bins as Bins
from resflax.metrics.calibration import equal_mass_bins as equal_mass_bins
from resflax.metrics.calibration import equal_width_bins as equal_width_bins
from resflax.metrics.classification import Metrics as Metrics
from resflax.metrics.classification import classification_metrics as classification_metrics
from resflax.metrics.classification import summarize as summarize
from resflax.metrics.ensembles import EnsembleMetrics as EnsembleMetrics
from resflax.metrics.ensembles import EnsembleScores as EnsembleScores
from resflax.metrics.ensembles import concatenate as concatenate
from resflax.metrics.ensembles import score_ensemble as score_ensemble
from resflax.metrics.ensembles import summarize_ensemble as summarize_ensemble
from resflax.metrics.risk_coverage import RiskCoverage as RiskCoverage
from resflax.metrics.scores import ExampleScores as ExampleScores
from resflax.metrics.scores import log_softmax as log_softmax
from resflax.metrics.scores import mean_log_probability as mean_log_probability
from resflax.metrics.scores import score_examples as score_examples
from resflax.metrics.temperature import apply_temperature as apply_temperature
from resflax.metrics.temperature import fit_temperature as fit_temperature
from resflax.metrics.uncertainty import Uncertainty as Uncertainty
from resflax.metrics.uncertainty import disagreement as disagreement
from resflax.metrics.uncertainty import ensemble_uncertainty as ensemble_uncertainty
from resflax.metrics.uncertainty import entropy as entropy
from resflax.metrics.uncertainty import expected_entropy as expected_entropy
from resflax.metrics.uncertainty import mutual_information as mutual_information
from resflax.metrics.uncertainty import pairwise_kl as pairwise_kl
