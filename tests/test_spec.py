"""`Spec`: the cached `stages` property, equality, and copies."""

import copy
import dataclasses
import json
import pickle

import pytest

from resflax.nn import BLOCKS, BlockConfig, BlockGeometry, Spec
from resflax.zoo import get_spec


def test_stages_of_a_strided_network():
    spec = Spec((1, 2), (8, 16), block="basic")
    rows = BLOCKS["basic"]
    assert spec.stages == (
        (BlockConfig(rows, (8, 8), 8, BlockGeometry(1)),),
        (
            BlockConfig(rows, (16, 16), 16, BlockGeometry(2)),
            BlockConfig(rows, (16, 16), 16, BlockGeometry(1)),
        ),
    )


def test_stages_dilate_in_place_of_strides_beyond_output_stride():
    stages = get_spec("resnet50").override(output_stride=8).stages
    assert [tuple(stage[0].geometry) for stage in stages] == [
        (1, 1, 1),
        (2, 1, 1),
        (1, 1, 2),
        (1, 2, 4),
    ]
    assert [tuple(stage[1].geometry) for stage in stages] == [
        (1, 1, 1),
        (1, 1, 1),
        (1, 2, 2),
        (1, 4, 4),
    ]
    changes = [stage[0].geometry.strides_or_dilates for stage in stages]
    assert changes == [False, True, True, True]


def test_stages_have_inner_channels_of_groups_and_base_width():
    spec = get_spec("resnext50_32x4d")
    assert [stage[0].channels for stage in spec.stages] == [
        (128, 128, 256),
        (256, 256, 512),
        (512, 512, 1024),
        (1024, 1024, 2048),
    ]


def test_stages_of_a_pruned_network_keep_the_unpruned_width():
    (first, *_), *_ = get_spec("ecaresnet50d_pruned").stages
    assert first.channels == (47, 18, 19)
    assert first.width == 256


def test_stages_are_computed_once_and_leave_the_fields_alone():
    spec = get_spec("resnet50").override(num_classes=7)
    assert spec.stages is spec.stages
    names = [field.name for field in dataclasses.fields(Spec)]
    assert "stages" not in names
    assert "stages" not in repr(spec)
    assert list(json.loads(json.dumps(dataclasses.asdict(spec)))) == names


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_copies_are_equal_and_do_not_carry_the_cache(copied):
    spec = get_spec("ecaresnet50d_pruned")
    assert spec.stages
    twin = copied(spec)
    assert vars(twin).keys() == {field.name for field in dataclasses.fields(Spec)}
    assert twin == spec
    assert hash(twin) == hash(spec)
    assert repr(twin) == repr(spec)
    assert twin.stages == spec.stages


def test_replace_recomputes_stages():
    spec = get_spec("resnet18")
    wider = dataclasses.replace(spec, widths=(128, 256, 512, 1024))
    assert [stage[0].width for stage in spec.stages] == [64, 128, 256, 512]
    assert [stage[0].width for stage in wider.stages] == [128, 256, 512, 1024]
    assert spec != wider
