"""Parameter counts as published (torchvision, timm, papers), and invalid names and fields."""

import re

import jax
import jax.numpy as jnp
import pytest

from resflax import UserError, create_model, get_spec, list_models

COUNTS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet200": 64_673_832,
    "resnet50_v1": 25_557_032,
    "resnet101_v1": 44_549_160,
    "resnet152_v1": 60_192_808,
    # resnet18 and 34 without their three projections and the norms of these.
    "plain18": 11_689_512 - (64 * 128 + 128 * 256 + 256 * 512) - 2 * (128 + 256 + 512),
    "plain34": 21_797_672 - (64 * 128 + 128 * 256 + 256 * 512) - 2 * (128 + 256 + 512),
    "resnetv2_50": 25_549_352,
    "resnetv2_101": 44_541_480,
    "resnetv2_152": 60_185_128,
    "cifar_resnet20": 269_722,
    "cifar_resnet32": 464_154,
    "cifar_resnet44": 658_586,
    "cifar_resnet56": 853_018,
    "cifar_resnet110": 1_727_962,
    "cifar_resnet1202": 19_421_274,
    "cifar_plain56": 853_018,
    "cifar_preact_resnet110": 1_727_962,
    "wrn28_10": 36_479_194,
    "wrn16_4": 2_748_890,
}


def count_parameters(name, **overrides):
    model = create_model(name, **overrides)
    x = jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    return sum(p.size for p in jax.tree.leaves(variables["params"]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameters"), COUNTS.items())
def test_parameter_count(name, parameters):
    assert count_parameters(name) == parameters


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 4, 10])
def test_cifar_parameter_count_is_linear_in_n(n):
    """97,216 n - 21,926 for option A and ten classes."""
    assert count_parameters(f"cifar_resnet{6 * n + 2}") == 97_216 * n - 21_926
    assert count_parameters(f"cifar_plain{6 * n + 2}") == 97_216 * n - 21_926


def test_preact_bottlenecks_have_the_papers_size():
    """He et al. 2016, table 4: 1.7M for ResNet-164 and 10.2M for ResNet-1001, without norms."""
    for depth, millions in ((164, 1.7), (1001, 10.2)):
        spec = create_model(f"cifar_preact_resnet{depth}").spec
        assert spec.block == "bottleneck_v1"
        assert 3 * sum(spec.depths) + 2 == depth
        assert count_parameters(f"cifar_preact_resnet{depth}") == pytest.approx(
            millions * 1e6, rel=0.02
        )


@pytest.mark.parametrize(("depth", "factor"), [(16, 4), (16, 8), (28, 10), (40, 2), (10, 1)])
def test_wide_resnets_are_table_1_of_the_paper(depth, factor):
    """Zagoruyko and Komodakis 2016: three stages of n blocks of two 3x3 layers, k times as wide."""
    n, last, expected = (depth - 4) // 6, 16, 27 * 16
    for width in (16 * factor, 32 * factor, 64 * factor):
        if width != last:
            expected += last * width
        expected += 9 * last * width + (2 * n - 1) * 9 * width**2
        expected += 2 * last + 2 * width + (n - 1) * 4 * width
        last = width
    expected += 2 * last + 10 * last + 10
    assert count_parameters(f"wrn{depth}_{factor}") == expected


def test_resnext29_has_the_published_sizes():
    """Xie et al. 2016, table 7: 34.4M parameters for 8x64d and 68.1M for 16x64d."""
    assert round(count_parameters("cifar_resnext29_8x64d") / 1e6, 1) == 34.4
    assert int(count_parameters("cifar_resnext29_16x64d") / 1e5) / 10 == 68.1


def test_shortcut_options_change_only_the_projections():
    """cifar_resnet20: B adds two 1x1 projections with norms, C seven more."""
    two = 16 * 32 + 32 * 64 + 2 * (32 + 64)
    seven = 3 * (16 * 16 + 32) + 2 * (32 * 32 + 64) + 2 * (64 * 64 + 128)
    assert count_parameters("cifar_resnet20", shortcut="B") == 269_722 + two
    assert count_parameters("cifar_resnet20", shortcut="C") == 269_722 + two + seven
    assert count_parameters("cifar_resnet20", shortcut="D") == 269_722 + two
    assert count_parameters("cifar_resnet20", shortcut="B3") == 269_722 + two + 8 * (
        16 * 32 + 32 * 64
    )
    assert count_parameters("cifar_resnet20", shortcut="none") == 269_722


def test_num_classes_changes_only_the_head():
    assert count_parameters("resnet18", num_classes=10) == 11_689_512 - 990 * 513
    assert count_parameters("resnet18", num_classes=0) == 11_689_512 - 1000 * 513


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "resnet50.tv_in1k", "resnet50.fb_ssl.v2"])
def test_tags_of_timm_do_not_change_the_architecture(name):
    assert get_spec(name) == get_spec("resnet50")
    assert create_model(name, num_classes=7) == create_model("resnet50", num_classes=7)
    assert create_model("cifar_resnet26.mine") == create_model("cifar_resnet26")


def test_list_models_by_pattern_in_natural_order():
    assert list_models("cifar_resnet*") == [f"cifar_resnet{d}" for d in (20, 32, 44, 56, 110, 1202)]
    assert list_models("resnet*_v1") == ["resnet50_v1", "resnet101_v1", "resnet152_v1"]
    assert list_models("nothing*") == []
    assert {*COUNTS} <= {*list_models()}
    for name in list_models():
        create_model(name)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("resnet51", {}, "unknown model 'resnet51': did you mean resnet50"),
        ("resnet51.a1_in1k", {}, "unknown model 'resnet51': did you mean resnet50"),
        ("resnet50.", {}, "unknown model 'resnet50.': did you mean resnet50"),
        (".a1_in1k", {}, "unknown model '.a1_in1k': expected one such as"),
        ("cifar_resnet21", {}, "6n + 2, such as cifar_resnet20 and cifar_resnet26"),
        ("cifar_plain2", {}, "6n + 2, such as cifar_plain8"),
        ("cifar_preact_resnet30", {}, "cifar_preact_resnet29 and cifar_preact_resnet32"),
        ("", {}, "unknown model ''"),
        ("resnet18", {"shortcut": "E"}, "unknown shortcut 'E': expected one of A, B, B3, C, D, n"),
        ("wrn27_10", {}, "the depth must be 6n + 4, such as wrn22_10 and wrn28_10"),
        ("wrn4_2", {}, "such as wrn10_2 and wrn16_2"),
        ("wrn28_0", {}, "unknown model 'wrn28_0': did you mean"),
        ("resnet18", {"attention": "cbam"}, "unknown attention 'cbam': expected one of none, se"),
        ("resnet18", {"antialias": "max"}, "unknown antialias 'max': expected one of none, blur"),
        ("resnet18", {"norm": "layer"}, "unknown norm 'layer': expected one of batch, group"),
        ("resnet18", {"conv": "std"}, "unknown conv 'std': expected one of plain, standardized"),
        (
            "resnet18",
            {"groups": 2},
            "groups is 2, but block 'basic' has no grouped convolution: use",
        ),
        (
            "test_resnet",
            {"groups": 2},
            "groups is 2, but block 'basic' has no grouped convolution: use",
        ),
        ("resnet50", {"groups": 0}, "groups is 0: expected an integer from 1"),
        ("resnet50", {"base_width": 1.5}, "base_width is 1.5"),
        ("resnet50", {"output_stride": 4}, "output_stride is 4: expected 8, 16 or 32"),
        ("resnet50", {"output_stride": "8"}, "output_stride is '8'"),
        ("resnet50", {"block": ("basic",) * 3}, "block has 3 values for 4 stages: expected one"),
        ("resnet50", {"block": ("basic",) * 3 + ("best",)}, "unknown block 'best'"),
        (
            "resnet50",
            {"norm": "group", "stem_width": 48},
            "needs numbers of channels divisible by 32: got 48",
        ),
        (
            "ecaresnet50d_pruned",
            {"scan": True},
            "the blocks of 'ecaresnet50d_pruned' differ, because they are pruned",
        ),
        ("resnet18", {"features_only": 1}, "features_only is 1: expected True or False"),
        (
            "resnet18",
            {"features_only": True, "out_indices": (0, 5)},
            "out_indices is (0, 5): expected integers from 0 (stem) to 4",
        ),
        ("resnet18", {"features_only": True, "out_indices": ()}, "out_indices is (): expected"),
        ("resnet18", {"features_only": True, "out_indices": (True,)}, "out_indices is (True,)"),
        ("resnet18", {"features_only": True, "out_indices": (-1,)}, "out_indices is (-1,)"),
        ("resnet18", {"stem": "mnist"}, "unknown stem 'mnist'"),
        ("resnet18", {"block": "wide"}, "unknown block 'wide'"),
        ("resnet18", {"shortcutt": "A"}, "unknown field 'shortcutt' of a spec: expected depths"),
        ("resnet18", {"dtype": "float31"}, "unknown dtype 'float31': expected one of float32"),
        ("resnet18", {"dtype": "int32"}, "unknown dtype 'int32'"),
        ("resnet18", {"dtype": "float8_e4m3fn"}, "unknown dtype 'float8_e4m3fn'"),
        ("resnet18", {"dtype": "float64"}, "needs 64-bit mode: set JAX_ENABLE_X64=1"),
        ("resnet18", {"num_classes": -1}, "num_classes is -1: expected an integer from 0"),
        ("resnet18", {"num_classes": True}, "num_classes is True"),
        ("resnet18", {"num_classes": "10"}, "num_classes is '10'"),
        ("resnet18", {"depths": (2, 2)}, "differ in length: expected one of each"),
        ("resnet18", {"depths": ()}, "depths is (): expected a tuple of integers"),
        ("resnet18", {"depths": 3}, "depths is 3: expected a tuple of integers"),
        ("resnet18", {"widths": (0, 1, 2, 3)}, "widths[0] is 0: expected an integer from 1"),
        ("resnet18", {"widths": (99999999, 1, 2, 3)}, "widths[0] is 99999999"),
        ("resnet18", {"depths": (2, 2, 2, "2")}, "depths[3] is '2'"),
        ("resnet18", {"stem_width": 1.5}, "stem_width is 1.5"),
        ("resnet18", {"preact": "no"}, "preact is 'no': expected True or False"),
        ("resnet18", {"shortcut": ["A"]}, "shortcut is ('A',): expected one of A, B, "),
        ("cifar_resnet999998", {}, "depths[0] is 166666: expected an integer from 1 to 10000"),
        ("cifar_resnet020", {}, "unknown model 'cifar_resnet020': did you mean cifar_resnet20"),
        ("MNIST", {}, "unknown model 'MNIST': expected one such as"),
        (None, {}, "unknown model None"),
        ("resnet18", {"dtype": None}, "unknown dtype 'None'"),
        ("resnet18", {"dtype": "1000000000000f"}, "unknown dtype '1000000000000f'"),
    ],
)
def test_create_model_rejects_names_and_values_in_one_line(name, overrides, message):
    with pytest.raises(UserError, match=re.escape(message)) as e:
        create_model(name, **overrides)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("ecaresnet50d_pruned", {"depths": (1, 2, 1, 1)}, "pruned does not match depths and block"),
        ("ecaresnet50d_pruned", {"pruned": 5}, "pruned does not match depths and block"),
        ("resnet18", {"block": 5}, "block is 5: expected one of basic, "),
        (
            "resnet26t",
            {"norm": "group"},
            "norm 'group' needs numbers of channels divisible by 32: got 24",
        ),
        (
            "resnet50",
            {"base_width": 1, "widths": (32, 64, 128, 256)},
            "number of channels of a convolution is 0",
        ),
        ("resnet50d", {"stem_width": 1}, "number of channels of a convolution is 0"),
        (
            "senet154",
            {"base_width": 1, "widths": (1, 1, 1, 1)},
            "number of channels of a convolution is 0",
        ),
        ("resnet50", {"features_only": True, "out_indices": 3}, "out_indices is 3: expected"),
        ("resnet50", {"out_indices": (3,)}, "out_indices is (3,): use features_only=True"),
    ],
)
def test_create_model_rejects_combinations_in_one_line(name, overrides, message):
    with pytest.raises(UserError, match=re.escape(message)) as e:
        create_model(name, **overrides)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet50.a1_in1k", "expected the name of an architecture, resnet50, without owner"),
        ("hf-hub:timm/resnet50.a1_in1k", "expected the name of an architecture, resnet50, without"),
        ("microsoft/resnet-50", "expected the name of an architecture, resnet50, without owner"),
        ("google/vit", "unknown model 'vit': expected one such as"),
        ("resnet50.pth", "a file of weights is given to load_pretrained or --config.pretrained"),
        ("out/resnet18.pth.tar", "without .pth.tar: a file of weights is given to load_pret"),
        ("resnet20", "unknown model 'resnet20': did you mean cifar_resnet20?"),
        ("ResNet_110", "unknown model 'ResNet_110': did you mean cifar_resnet110?"),
        ("preact-resnet-164", "did you mean cifar_preact_resnet164?"),
        ("resnext50", "unknown model 'resnext50': did you mean resnext50_32x4d"),
        ("torchvision.models.resnet50", "did you mean resnet50?"),
        ("models.ResNet18", "did you mean resnet18?"),
        ("ResNet-50", "unknown model 'ResNet-50': did you mean resnet50?"),
        ("resnet_50.a1_in1k", "unknown model 'resnet_50': did you mean resnet50?"),
        ("resnet51.a1_in1k", "unknown model 'resnet51': did you mean resnet50, "),
    ],
)
def test_unknown_model_suggests_the_architecture(name, message):
    with pytest.raises(UserError) as e:
        get_spec(name)
    assert message in str(e.value)
