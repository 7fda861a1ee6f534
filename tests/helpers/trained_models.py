"""Models with random weights of plausible scale, to export."""

from helpers.networks import randomized
from resflax.export import TrainedModel
from resflax.weights import Preprocess, PretrainedConfig
from resflax.weights.shapes import variable_shapes
from resflax.zoo import get_spec


def trained_model(name, *, channels=3, labels=(), size=(32, 32), preprocess=None, **overrides):
    """Returns a model as if it had been trained.

    `name` is that of a spec, or a spec; `overrides` are fields of the spec.
    """
    spec = get_spec(name).override(**overrides)
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels]
    settings = {"size": size, "crop_pct": 0.9, "interpolation": "bilinear", "mean": mean}
    preprocess = Preprocess(**{**settings, "std": std, **(preprocess or {})})
    variables = randomized(variable_shapes(spec, channels))
    return TrainedModel(PretrainedConfig(spec, channels, preprocess, labels), variables, "a test")
