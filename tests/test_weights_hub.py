"""Networks from folders as timm and Transformers write them, and from a Hub out of reach."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from helpers.networks import apply, randomised, variables_of
from huggingface_hub import constants
from make_parity import drawn
from test_weights_cards import IMAGE_PROCESSOR, TIMM, TRANSFORMERS

from resflax import UserError, create_model
from resflax.nn import Spec
from resflax.weights import Preprocess, from_torch, load_pretrained, save, to_torch
from resflax.weights.bridge import shapes_of
from resflax.weights.hub import read_config, read_weights
from resflax.zoo import get_spec


def state_of(spec, layout=None, channels=3):
    state = to_torch(spec, randomised(shapes_of(spec, channels)), layout=layout)
    return {key: drawn(key, array.shape) for key, array in state.items()}


def folder(path, config, state, **beside):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    for name, content in beside.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    save(path / "model.safetensors", state)
    return path


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    state = state_of(get_spec("test_resnet").override(num_classes=7))
    return folder(tmp_path_factory.mktemp("hub") / "timm", TIMM, state)


def flat(variables):
    return traverse_util.flatten_dict(variables)


def assert_same(found, expected):
    assert flat(found).keys() == flat(expected).keys()
    for path, array in flat(expected).items():
        np.testing.assert_array_equal(flat(found)[path], array, strict=True)


def test_a_folder_of_timms_is_the_network_its_weights_and_its_preprocessing(timm_folder):
    model, variables, preprocess = load_pretrained(timm_folder)
    spec = get_spec("test_resnet").override(num_classes=7)
    assert model == create_model("test_resnet", num_classes=7)
    assert_same(variables, from_torch(spec, state_of(spec)))
    assert preprocess == Preprocess(
        (160, 96), 0.95, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "squash"
    )
    assert load_pretrained(str(timm_folder)).model == model
    logits = apply(model, variables, np.zeros((1, 64, 64, 3), np.float32))
    assert logits.shape == (1, 7)
    assert np.isfinite(logits).all()


def test_a_folder_of_transformers_is_as_well(tmp_path):
    spec = Spec((1, 2), (8, 16), stem_width=8, num_classes=11)
    state = state_of(spec, "huggingface")
    place = folder(tmp_path / "hf", TRANSFORMERS, state, preprocessor_config=IMAGE_PROCESSOR)
    model, variables, preprocess = load_pretrained(place)
    assert model.spec == spec
    assert_same(variables, from_torch(spec, state))
    assert preprocess == Preprocess(size=(64, 64), crop_pct=0.875, interpolation="bilinear")
    assert read_config(place).labels == tuple("abcdefghijk")
    older = {**IMAGE_PROCESSOR, "size": 96, "crop_pct": None, "resample": 3}
    folder(place, TRANSFORMERS, state, preprocessor_config=older)
    assert read_config(place).preprocess == Preprocess(size=(96, 96))


def test_another_number_of_classes_is_a_new_head_and_nothing_else(timm_folder):
    model, old, _ = load_pretrained(timm_folder)
    for given, seed in ((3, 0), (3, 1)):
        model, new, _ = load_pretrained(timm_folder, num_classes=given, seed=seed)
        assert model.spec.num_classes == given
        assert new["params"]["head"]["kernel"].shape == (96, given)
        assert not new["params"]["head"]["bias"].any()
        assert_same({**new["params"], "head": 0}, {**old["params"], "head": 0})
        assert_same(new["batch_stats"], old["batch_stats"])
    assert_same(load_pretrained(timm_folder, num_classes=7).variables, old)
    kernels = [
        load_pretrained(timm_folder, num_classes=3, seed=seed).variables["params"]["head"]["kernel"]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert (kernels[0] != kernels[2]).all()


def test_no_classes_means_no_head(timm_folder):
    model, variables, _ = load_pretrained(timm_folder, num_classes=0)
    old = load_pretrained(timm_folder).variables
    assert {path for path in flat(old) if path not in flat(variables)} == {
        ("params", "head", "kernel"),
        ("params", "head", "bias"),
    }
    expected = {path: (x.shape, x.dtype) for path, x in flat(variables_of(model)).items()}
    assert {path: (x.shape, x.dtype) for path, x in flat(variables).items()} == expected


def test_options_are_those_of_create_model(timm_folder):
    model, variables, _ = load_pretrained(
        timm_folder, dtype="bfloat16", features_only=True, out_indices=(2,), output_stride=8
    )
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    (found,) = jax.eval_shape(lambda x: model.apply(variables, x, train=False), image)
    assert (found.shape, found.dtype) == ((1, 8, 8, 48), jax.numpy.bfloat16)
    with pytest.raises(UserError, match="unknown field 'pretrained' of a spec"):
        load_pretrained(timm_folder, pretrained=True)


def test_a_network_that_is_scanned_gets_its_variables_stacked(tmp_path):
    spec = get_spec("cifar_resnet20")
    config = {"architecture": "cifar_resnet20", "num_classes": 10}
    state = state_of(spec) | {"bn1.num_batches_tracked": np.array(2**40)}
    place = folder(tmp_path / "cifar", config, state)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    for scan in (True, False):
        model, variables, preprocess = load_pretrained(place, scan=scan)
        out = jax.eval_shape(
            lambda x, model=model, v=variables: model.apply(v, x, train=False), image
        )
        assert out.shape == (1, 10)
        assert to_torch(spec, variables)["bn1.num_batches_tracked"] == 2**40
    assert preprocess.size == (32, 32)


def test_half_precision_is_widened_exactly(tmp_path):
    spec = get_spec("cifar_resnet8")
    halves = {k: v.astype(ml_dtypes.bfloat16) for k, v in state_of(spec).items()}
    place = folder(tmp_path / "half", {"architecture": "cifar_resnet8", "num_classes": 10}, halves)
    variables = load_pretrained(place).variables
    wide = {key: array.astype(np.float32) for key, array in halves.items()}
    assert_same(variables, from_torch(spec, wide))


def test_grey_images_and_tags_and_models_without_a_head(tmp_path):
    spec = get_spec("test_resnet").override(num_classes=0)
    config = json.loads(json.dumps(TIMM))
    config |= {"architecture": "test_resnet.r160_in1k", "num_classes": 0}
    config["model_args"] |= {"num_classes": 0, "in_chans": 1}
    config["pretrained_cfg"] |= {"input_size": [1, 64, 64], "mean": [0.449], "std": [0.226]}
    place = folder(tmp_path / "grey", config, state_of(spec, channels=1))
    model, variables, preprocess = load_pretrained(place)
    assert model.spec == spec
    assert preprocess(np.zeros((80, 90, 3), np.uint8)).shape == (64, 64, 1)
    assert variables["params"]["stem_conv1"]["kernel"].shape[2] == 1


def test_a_name_is_used_where_the_config_says_none_and_the_file_has_the_classes(tmp_path):
    spec = get_spec("cifar_resnet8").override(num_classes=4)
    save(tmp_path / "a.safetensors", state_of(spec, channels=1))
    card, variables, ours = read_weights(str(tmp_path / "a.safetensors"), "cifar_resnet8")
    assert (card.spec, card.channels, card.told, ours) == (spec, 1, False, False)
    assert_same(variables, from_torch(spec, state_of(spec, channels=1), channels=1))
    with pytest.raises(UserError, match="does not say which network it is: expected --model NAME"):
        read_weights(str(tmp_path / "a.safetensors"))


def test_a_folder_without_weights_or_with_others_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    with pytest.raises(UserError, match="holds no weights: expected model.safetensors"):
        load_pretrained(tmp_path)
    save(tmp_path / "model.safetensors", {"other": np.ones(1)})
    with pytest.raises(UserError, match="this is no state dict of .*left over other"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["resnet50", "./no/folder", "/no/folder", "a/b/c", "~/x"])
def test_what_is_neither_a_folder_nor_a_repository_is_refused(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"there is no folder {name}, nor can a repository"):
        load_pretrained(name)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache of the Hub, which cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_without_a_network_it_says_so_in_one_line(cache):
    with pytest.raises(UserError, match="cannot fetch timm/resnet50.a1_in1k from the Hub: ") as e:
        load_pretrained("timm/resnet50.a1_in1k", revision="main")
    assert "\n" not in str(e.value)
    assert str(e.value).endswith("config.json and model.safetensors will do as well")


def test_what_lies_in_the_hubs_cache_needs_no_network(cache, timm_folder):
    repository = cache / "models--owner--net"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    shutil.copytree(timm_folder, repository / "snapshots" / "c0ffee")
    found = load_pretrained("owner/net")
    assert found.model == load_pretrained(timm_folder).model
    assert_same(found.variables, load_pretrained(timm_folder).variables)
