"""The weights that the world has: state dicts of torch to variables and back."""

from resflax.weights.bridge import from_torch as from_torch
from resflax.weights.bridge import replace_head as replace_head
from resflax.weights.bridge import to_torch as to_torch
from resflax.weights.files import load as load
from resflax.weights.files import save as save
from resflax.weights.hub import Pretrained as Pretrained
from resflax.weights.hub import load_pretrained as load_pretrained
from resflax.weights.hub import read_weights as read_weights
from resflax.weights.preprocess import Preprocess as Preprocess
