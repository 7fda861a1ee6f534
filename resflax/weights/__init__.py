"""Pretrained weights: torch state dicts, weights files, the Hugging Face Hub, preprocessing."""

from resflax.weights.bridge import from_torch as from_torch
from resflax.weights.bridge import replace_head as replace_head
from resflax.weights.bridge import to_torch as to_torch
from resflax.weights.files import load_file as load_file
from resflax.weights.files import save_file as save_file
from resflax.weights.hub import Pretrained as Pretrained
from resflax.weights.hub import load_pretrained as load_pretrained
from resflax.weights.hub import read_weights as read_weights
from resflax.weights.preprocess import Preprocess as Preprocess
from resflax.weights.pretrained_config import PretrainedConfig as PretrainedConfig
