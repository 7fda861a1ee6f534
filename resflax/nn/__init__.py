"""Residual networks as linen modules: residual block, shortcuts, stems, `Spec` and `ResNet`."""

from typing import TYPE_CHECKING, Any

from resflax.nn.activations import ACTIVATIONS as ACTIVATIONS
from resflax.nn.activations import identity as identity
from resflax.nn.batch_norm import BATCH_NORM_MODES as BATCH_NORM_MODES
from resflax.nn.batch_norm import BatchNormMode as BatchNormMode
from resflax.nn.blocks import BLOCKS as BLOCKS
from resflax.nn.blocks import BlockConfig as BlockConfig
from resflax.nn.blocks import BlockGeometry as BlockGeometry
from resflax.nn.blocks import ConvRow as ConvRow
from resflax.nn.blocks import apply_branch as apply_branch
from resflax.nn.ensembles import ENSEMBLES as ENSEMBLES
from resflax.nn.fixup import fixup_params as fixup_params
from resflax.nn.gates import GATES as GATES
from resflax.nn.gates import Gate as Gate
from resflax.nn.layers import Ops as Ops
from resflax.nn.layers import make_ops as make_ops
from resflax.nn.mc_dropout import sample_logits as sample_logits
from resflax.nn.members import split_members as split_members
from resflax.nn.orders import ORDERS as ORDERS
from resflax.nn.orders import Order as Order
from resflax.nn.residual import Residual as Residual
from resflax.nn.resnet import ResNet as ResNet
from resflax.nn.scan import stack_params as stack_params
from resflax.nn.scan import unstack_params as unstack_params
from resflax.nn.selection import Selection as Selection
from resflax.nn.selection import select as select
from resflax.nn.shortcuts import SHORTCUTS as SHORTCUTS
from resflax.nn.shortcuts import linear_projection as linear_projection
from resflax.nn.shortcuts import projection as projection
from resflax.nn.shortcuts import subsample as subsample
from resflax.nn.shortcuts import zero_pad as zero_pad
from resflax.nn.spec import Spec as Spec
from resflax.nn.stages import FeatureInfo as FeatureInfo
from resflax.nn.stems import STEMS as STEMS

if TYPE_CHECKING:
    from resflax.nn.nnx import to_nnx as to_nnx


def __getattr__(name: str) -> Any:
    if name != "to_nnx":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from resflax.nn.nnx import to_nnx  # imports NNX, which linen does without

    return to_nnx
