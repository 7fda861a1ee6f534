"""State, step, engines, and the loop that runs a config."""

from resflax.train.compile_cache import keep_compiled as keep_compiled
from resflax.train.config import check_config as check_config
from resflax.train.config import default_config as default_config
from resflax.train.ensemble import stack as stack
from resflax.train.ensemble import unstack as unstack
from resflax.train.loop import Trainer as Trainer
from resflax.train.metrics import cross_entropy as cross_entropy
from resflax.train.optim import make_optimizer as make_optimizer
from resflax.train.parallel import make_engine as make_engine
from resflax.train.progress import Progress as Progress
from resflax.train.recalibrate import recalibrate as recalibrate
from resflax.train.rundir import RunDir as RunDir
from resflax.train.rundir import params_sha256 as params_sha256
from resflax.train.schedules import make_schedule as make_schedule
from resflax.train.state import TrainState as TrainState
from resflax.train.state import create_state as create_state
from resflax.train.step import make_eval_step as make_eval_step
from resflax.train.step import make_train_step as make_train_step
