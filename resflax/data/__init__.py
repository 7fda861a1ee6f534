"""Datasets through TensorFlow Datasets, their order, and pure augmentation. Knows no model."""

from resflax.data.augment import make_augment as make_augment
from resflax.data.augment import normalize as normalize
from resflax.data.batches import batch_indices as batch_indices
from resflax.data.batches import eval_batches as eval_batches
from resflax.data.batches import train_batches as train_batches
from resflax.data.sources import Dataset as Dataset
from resflax.data.sources import Examples as Examples
from resflax.data.sources import load_dataset as load_dataset
