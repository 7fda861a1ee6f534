"""Datasets, example order, data loading and augmentation.

TensorFlow Datasets and Grain are imported when a dataset needs them.
"""

from resflax.data.augment import Augment as Augment
from resflax.data.augment import flip_parity as flip_parity
from resflax.data.augment import make_augment as make_augment
from resflax.data.augment import make_mix as make_mix
from resflax.data.augment import normalize as normalize
from resflax.data.batches import Split as Split
from resflax.data.batches import eval_batches as eval_batches
from resflax.data.batches import train_batches as train_batches
from resflax.data.datasets import Dataset as Dataset
from resflax.data.datasets import load_dataset as load_dataset
from resflax.data.eval_transform import EvalTransform as EvalTransform
from resflax.data.in_memory import InMemorySplit as InMemorySplit
from resflax.data.order import EvalOrder as EvalOrder
from resflax.data.order import TrainOrder as TrainOrder
from resflax.data.order import batch_epochs as batch_epochs
from resflax.data.order import batch_indices as batch_indices
from resflax.data.order import batch_repeats as batch_repeats
from resflax.data.roles import SplitChoice as SplitChoice
from resflax.data.source import ON_BAD_EXAMPLE as ON_BAD_EXAMPLE
from resflax.data.source import check_on_bad_example as check_on_bad_example
from resflax.data.splits import load_split as load_split
from resflax.data.streaming import StreamingSplit as StreamingSplit
