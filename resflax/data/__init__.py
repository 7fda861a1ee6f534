"""Datasets through TensorFlow Datasets, their order, and pure augmentation. Knows no model."""

from resflax.data.augment import Augment as Augment
from resflax.data.augment import flip_parity as flip_parity
from resflax.data.augment import make_augment as make_augment
from resflax.data.augment import make_mix as make_mix
from resflax.data.augment import normalize as normalize
from resflax.data.batches import batch_indices as batch_indices
from resflax.data.batches import eval_batches as eval_batches
from resflax.data.batches import train_batches as train_batches
from resflax.data.datasets import Dataset as Dataset
from resflax.data.datasets import Split as Split
from resflax.data.datasets import load_dataset as load_dataset
from resflax.data.in_memory import InMemorySplit as InMemorySplit
from resflax.data.loader import stream_eval_batches as stream_eval_batches
from resflax.data.loader import stream_train_batches as stream_train_batches
from resflax.data.streaming import StreamingSplit as StreamingSplit
