"""Pretrained weights: torch state dicts, weights files, the Hugging Face Hub, preprocessing."""

from resflax.weights.adapt import convert_channels as convert_channels
from resflax.weights.adapt import replace_head as replace_head
from resflax.weights.bridge import from_torch as from_torch
from resflax.weights.bridge import to_torch as to_torch
from resflax.weights.ensemble import Ensemble as Ensemble
from resflax.weights.ensemble import load_ensemble as load_ensemble
from resflax.weights.ensemble import read_ensemble as read_ensemble
from resflax.weights.files import load_file as load_file
from resflax.weights.files import save_file as save_file
from resflax.weights.imagenet import imagenet_classes as imagenet_classes
from resflax.weights.preprocess import Preprocess as Preprocess
from resflax.weights.pretrained import Pretrained as Pretrained
from resflax.weights.pretrained import adapt_weights as adapt_weights
from resflax.weights.pretrained import load_pretrained as load_pretrained
from resflax.weights.pretrained_config import PretrainedConfig as PretrainedConfig
from resflax.weights.readers import Weights as Weights
from resflax.weights.readers import read_members as read_members
from resflax.weights.readers import read_weights as read_weights
