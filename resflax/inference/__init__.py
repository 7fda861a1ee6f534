"""Networks in evaluation mode: batch norm folded, executors in JAX and oneDNN."""

from resflax.inference.build import build_graph as build_graph
from resflax.inference.ensemble import EnsemblePredictor as EnsemblePredictor
from resflax.inference.ensemble import make_ensemble_predictor as make_ensemble_predictor
from resflax.inference.graph import OPS as OPS
from resflax.inference.graph import Graph as Graph
from resflax.inference.graph import Node as Node
from resflax.inference.jax_executor import apply_graph as apply_graph
from resflax.inference.predictor import Predictor as Predictor
from resflax.inference.predictor import make_predictor as make_predictor
