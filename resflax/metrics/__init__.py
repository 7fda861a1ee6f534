"""Metrics of classifiers and ensembles from their log-probabilities: pure NumPy, in float64.

An evaluation reduces each batch to a few numbers per example, so that memory does not grow with the
number of classes; the metrics are computed from those.
"""

from resflax.metrics.bootstrap import Interval as Interval
from resflax.metrics.bootstrap import aurc as aurc
from resflax.metrics.bootstrap import bootstrap_interval as bootstrap_interval
from resflax.metrics.bootstrap import bounded_samples as bounded_samples
from resflax.metrics.bootstrap import calibration_error as calibration_error
from resflax.metrics.bootstrap import mean_statistic as mean_statistic
from resflax.metrics.bootstrap import means as means
from resflax.metrics.brier import BrierDecomposition as BrierDecomposition
from resflax.metrics.brier import BrierSums as BrierSums
from resflax.metrics.brier import brier_decomposition as brier_decomposition
from resflax.metrics.brier import brier_sums as brier_sums
from resflax.metrics.calibration import Bins as Bins
from resflax.metrics.calibration import equal_mass_bins as equal_mass_bins
from resflax.metrics.calibration import equal_width_bins as equal_width_bins
from resflax.metrics.calibration import expected_gap as expected_gap
from resflax.metrics.calibration import width_bin_index as width_bin_index
from resflax.metrics.classification import Metrics as Metrics
from resflax.metrics.classification import classification_metrics as classification_metrics
from resflax.metrics.classification import summarize as summarize
from resflax.metrics.conformal import CONFORMAL_SCORES as CONFORMAL_SCORES
from resflax.metrics.conformal import Sets as Sets
from resflax.metrics.conformal import SetSummary as SetSummary
from resflax.metrics.conformal import conformal_scores as conformal_scores
from resflax.metrics.conformal import conformal_threshold as conformal_threshold
from resflax.metrics.conformal import label_scores as label_scores
from resflax.metrics.conformal import prediction_sets as prediction_sets
from resflax.metrics.conformal import reduce_sets as reduce_sets
from resflax.metrics.conformal import summarize_sets as summarize_sets
from resflax.metrics.corruption_error import corruption_errors as corruption_errors
from resflax.metrics.corruption_error import mean_corruption_error as mean_corruption_error
from resflax.metrics.corruption_error import (
    relative_corruption_errors as relative_corruption_errors,
)
from resflax.metrics.ood import OOD_SCORES as OOD_SCORES
from resflax.metrics.ood import Detection as Detection
from resflax.metrics.ood import aupr as aupr
from resflax.metrics.ood import auroc as auroc
from resflax.metrics.ood import detection as detection
from resflax.metrics.ood import detection_statistic as detection_statistic
from resflax.metrics.ood import fpr95 as fpr95
from resflax.metrics.ood import ood_scores as ood_scores
from resflax.metrics.risk_coverage import RiskCoverage as RiskCoverage
from resflax.metrics.scores import ExampleScores as ExampleScores
from resflax.metrics.scores import log_mean_probability as log_mean_probability
from resflax.metrics.scores import log_softmax as log_softmax
from resflax.metrics.scores import score_examples as score_examples
from resflax.metrics.selection import Selection as Selection
from resflax.metrics.selection import SizeCurve as SizeCurve
from resflax.metrics.selection import SubsetSums as SubsetSums
from resflax.metrics.selection import deep_ensemble_equivalent as deep_ensemble_equivalent
from resflax.metrics.selection import greedy_selection as greedy_selection
from resflax.metrics.selection import member_subsets as member_subsets
from resflax.metrics.selection import size_curve as size_curve
from resflax.metrics.selection import subset_sums as subset_sums
from resflax.metrics.systems import System as System
from resflax.metrics.systems import make_systems as make_systems
from resflax.metrics.systems import score_systems as score_systems
from resflax.metrics.systems import sum_brier as sum_brier
from resflax.metrics.temperature import apply_temperature as apply_temperature
from resflax.metrics.temperature import fit_temperature as fit_temperature
from resflax.metrics.uncertainty import Uncertainty as Uncertainty
from resflax.metrics.uncertainty import disagreement as disagreement
from resflax.metrics.uncertainty import ensemble_uncertainty as ensemble_uncertainty
from resflax.metrics.uncertainty import entropy as entropy
from resflax.metrics.uncertainty import expected_entropy as expected_entropy
from resflax.metrics.uncertainty import mutual_information as mutual_information
from resflax.metrics.uncertainty import pairwise_kl as pairwise_kl
