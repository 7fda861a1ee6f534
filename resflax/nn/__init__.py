"""The residual theorem as pure linen modules."""

from resflax.nn.branches import BRANCHES as BRANCHES
from resflax.nn.branches import Layer as Layer
from resflax.nn.branches import Scale as Scale
from resflax.nn.branches import run_branch as run_branch
from resflax.nn.ops import Ops as Ops
from resflax.nn.ops import make_ops as make_ops
from resflax.nn.plan import Block as Block
from resflax.nn.plan import Feature as Feature
from resflax.nn.plan import plan as plan
from resflax.nn.residual import Residual as Residual
from resflax.nn.residual import identity as identity
from resflax.nn.resnet import ResNet as ResNet
from resflax.nn.scan import stack_params as stack_params
from resflax.nn.scan import unstack_params as unstack_params
from resflax.nn.shortcuts import OPTIONS as OPTIONS
from resflax.nn.shortcuts import linear as linear
from resflax.nn.shortcuts import projection as projection
from resflax.nn.shortcuts import subsample as subsample
from resflax.nn.shortcuts import zero_pad as zero_pad
from resflax.nn.spec import Spec as Spec
from resflax.nn.stems import STEMS as STEMS
