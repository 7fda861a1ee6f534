"""Pretrained networks from timm and Transformers folders and from the Hub's offline cache."""

import json
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from helpers.networks import apply, variables_of
from helpers.weight_files import IMAGE_PROCESSOR, TIMM, TRANSFORMERS, state_of
from huggingface_hub import constants

from resflax import UserError, create_model
from resflax.nn import Spec
from resflax.weights import (
    Preprocess,
    from_torch,
    load_file,
    load_pretrained,
    read_weights,
    save_file,
    to_torch,
)
from resflax.weights.pretrained_config import read_config
from resflax.zoo import get_spec


def write_folder(path, config, state, **json_files):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    for name, content in json_files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    save_file(path / "model.safetensors", state)
    return path


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    state = state_of(get_spec("test_resnet").override(num_classes=7))
    return write_folder(tmp_path_factory.mktemp("hub") / "timm", TIMM, state)


def flat(variables):
    return traverse_util.flatten_dict(variables)


def assert_same(actual, expected):
    assert flat(actual).keys() == flat(expected).keys()
    for path, array in flat(expected).items():
        np.testing.assert_array_equal(flat(actual)[path], array, strict=True)


def test_timm_folder_gives_model_weights_and_preprocessing(timm_folder):
    model, variables, preprocess, *_ = load_pretrained(timm_folder)
    spec = get_spec("test_resnet").override(num_classes=7)
    assert model == create_model("test_resnet", num_classes=7)
    assert_same(variables, from_torch(spec, state_of(spec)))
    assert preprocess == Preprocess(
        size=(160, 96),
        crop_pct=0.95,
        interpolation="bilinear",
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.25, 0.3),
        crop_mode="squash",
    )
    assert load_pretrained(str(timm_folder)).model == model
    logits = apply(model, variables, np.zeros((1, 64, 64, 3), np.float32))
    assert logits.shape == (1, 7)
    assert np.isfinite(logits).all()


def test_transformers_folder_gives_the_same(tmp_path):
    spec = Spec((1, 2), (8, 16), stem_width=8, num_classes=11)
    state = state_of(spec, "huggingface")
    path = write_folder(tmp_path / "hf", TRANSFORMERS, state, preprocessor_config=IMAGE_PROCESSOR)
    model, variables, preprocess, *_ = load_pretrained(path)
    assert model.spec == spec
    assert_same(variables, from_torch(spec, state))
    assert preprocess == Preprocess(size=(64, 64), crop_pct=0.875, interpolation="bilinear")
    assert read_config(path).labels == tuple("abcdefghijk")
    older = {**IMAGE_PROCESSOR, "size": 96, "crop_pct": None, "resample": 3}
    write_folder(path, TRANSFORMERS, state, preprocessor_config=older)
    assert read_config(path).preprocess == Preprocess(size=(96, 96))


@pytest.mark.slow
def test_num_classes_replaces_the_head_only(timm_folder):
    model, old, *_ = load_pretrained(timm_folder)
    for seed in (0, 1):
        model, new, *_ = load_pretrained(timm_folder, num_classes=3, seed=seed)
        assert model.spec.num_classes == 3
        assert new["params"]["head"]["kernel"].shape == (96, 3)
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


def test_zero_classes_remove_the_head(timm_folder):
    model, variables, *_ = load_pretrained(timm_folder, num_classes=0)
    old = load_pretrained(timm_folder).variables
    assert {path for path in flat(old) if path not in flat(variables)} == {
        ("params", "head", "kernel"),
        ("params", "head", "bias"),
    }
    expected = {path: (x.shape, x.dtype) for path, x in flat(variables_of(model)).items()}
    assert {path: (x.shape, x.dtype) for path, x in flat(variables).items()} == expected


def test_options_are_passed_to_create_model(timm_folder):
    model, variables, *_ = load_pretrained(
        timm_folder, dtype="bfloat16", features_only=True, out_indices=(2,), output_stride=8
    )
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    (features,) = jax.eval_shape(lambda x: model.apply(variables, x, train=False), image)
    assert (features.shape, features.dtype) == ((1, 8, 8, 48), jax.numpy.bfloat16)
    with pytest.raises(UserError, match="unknown field 'pretrained' of a spec"):
        load_pretrained(timm_folder, pretrained=True)


def test_variables_are_stacked_if_the_model_scans(tmp_path):
    spec = get_spec("cifar_resnet20")
    config = {"architecture": "cifar_resnet20", "num_classes": 10}
    state = state_of(spec) | {"bn1.num_batches_tracked": np.array(2**40)}
    path = write_folder(tmp_path / "cifar", config, state)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    for scan in (True, False):
        model, variables, preprocess, *_ = load_pretrained(path, scan=scan)
        out = jax.eval_shape(
            lambda x, model=model, v=variables: model.apply(v, x, train=False), image
        )
        assert out.shape == (1, 10)
        assert to_torch(spec, variables)["bn1.num_batches_tracked"] == 2**40
    assert preprocess.size == (32, 32)


def test_half_precision_converts_exactly_to_float32(tmp_path):
    spec = get_spec("cifar_resnet8")
    halves = {k: v.astype(ml_dtypes.bfloat16) for k, v in state_of(spec).items()}
    config = {"architecture": "cifar_resnet8", "num_classes": 10}
    path = write_folder(tmp_path / "half", config, halves)
    variables = load_pretrained(path).variables
    converted = {key: array.astype(np.float32) for key, array in halves.items()}
    assert_same(variables, from_torch(spec, converted))


def test_grayscale_model_with_a_tag_and_without_a_head(tmp_path):
    spec = get_spec("test_resnet").override(num_classes=0)
    config = json.loads(json.dumps(TIMM))
    config |= {"architecture": "test_resnet.r160_in1k", "num_classes": 0}
    config["model_args"] |= {"num_classes": 0, "in_chans": 1}
    config["pretrained_cfg"] |= {"input_size": [1, 64, 64], "mean": [0.449], "std": [0.226]}
    path = write_folder(tmp_path / "gray", config, state_of(spec, channels=1))
    model, variables, preprocess, *_ = load_pretrained(path)
    assert model.spec == spec
    assert preprocess(np.zeros((80, 90, 3), np.uint8)).shape == (64, 64, 1)
    assert variables["params"]["stem_conv1"]["kernel"].shape[2] == 1


def test_read_weights_infers_channels_and_classes(tmp_path):
    spec = get_spec("cifar_resnet8").override(num_classes=4)
    save_file(tmp_path / "a.safetensors", state_of(spec, channels=1))
    config, variables, _, is_flax, *_ = read_weights(tmp_path / "a.safetensors", "cifar_resnet8")
    assert (config.spec, config.channels, is_flax) == (spec, 1, False)
    assert_same(variables, from_torch(spec, state_of(spec, channels=1), channels=1))
    with pytest.raises(UserError, match=r"cannot tell which model .* \(--model NAME"):
        read_weights(str(tmp_path / "a.safetensors"))


def test_folder_without_matching_weights_is_rejected(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    with pytest.raises(UserError, match="no weights in .*: expected model.safetensors"):
        load_pretrained(tmp_path)
    save_file(tmp_path / "model.safetensors", {"other": np.ones(1)})
    with pytest.raises(UserError, match="not a state dict of .*1 unexpected: other"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["resnet50", "./no/folder", "/no/folder", "a/b/c"])
def test_invalid_repository_name_is_rejected(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{name} is not an existing file or folder, nor a Hub"):
        load_pretrained(name)


@pytest.mark.slow
def test_import_loads_no_optional_or_higher_level_module():
    code = "import sys, resflax.weights; print(*sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    optional = {"huggingface_hub", "torch", "matplotlib", "tensorflow_datasets", "grain", "orbax"}
    higher = {"resflax.train", "resflax.run.checkpoint", "resflax.cli"}
    assert not {*process.stdout.split()} & (optional | higher)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty Hub cache in offline mode."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_offline_error_is_one_line(cache):
    with pytest.raises(UserError, match="cannot fetch timm/resnet50.a1_in1k from the Hub: ") as e:
        load_pretrained("timm/resnet50.a1_in1k", revision="main")
    assert "\n" not in str(e.value)
    assert str(e.value).endswith("; there is no local folder of this name either")


def add_to_cache(cache, name, folder):
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    shutil.copytree(folder, repository / "snapshots" / "c0ffee")


@pytest.mark.parametrize(
    ("repository", "where"),
    [("owner/net", "owner/net"), ("timm/test_resnet.r160_in1k", "test_resnet.r160_in1k")],
)
def test_cached_repository_loads_offline(cache, timm_folder, repository, where):
    """A name with one of timm's tags is the name of a repository of timm."""
    add_to_cache(cache, repository, timm_folder)
    loaded = load_pretrained(where)
    assert loaded.model == load_pretrained(timm_folder).model
    assert_same(loaded.variables, load_pretrained(timm_folder).variables)
    assert loaded.source == f"{repository} from the Hub; normalization of its config.json"


def test_name_without_a_tag_asks_for_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="a model's name needs a tag, such as resnet50.a1_in1k"):
        load_pretrained("resnet50")
    with pytest.raises(UserError, match="resnet51.a1_in1k is not .*: did you mean resnet50"):
        load_pretrained("resnet51.a1_in1k")
    for where in ("resnet50.pth", "runs/a.safetensors"):
        with pytest.raises(UserError, match=f"file not found: {where}"):
            load_pretrained(where)


def test_weights_without_the_head_of_their_config_load(timm_folder, tmp_path):
    state = {k: v for k, v in load_file(timm_folder).items() if not k.startswith("fc.")}
    body = load_pretrained(write_folder(tmp_path / "body", TIMM, state))
    assert (body.model.spec.num_classes, body.classes) == (0, ())
    assert_same(body.variables, load_pretrained(timm_folder, num_classes=0).variables)
    assert body.source.endswith("; normalization of its config.json; no classification head")


def test_transformers_model_without_a_head_loads(tmp_path):
    """As `ResNetModel.save_pretrained` names its arrays."""
    spec = Spec((1, 2), (8, 16), stem_width=8, num_classes=0)
    state = {k.removeprefix("resnet."): v for k, v in state_of(spec, "huggingface").items()}
    assert "embedder.embedder.convolution.weight" in state
    path = write_folder(tmp_path / "hf", TRANSFORMERS, state)
    loaded = load_pretrained(path)
    assert loaded.model.spec == spec
    assert_same(loaded.variables, from_torch(spec, state_of(spec, "huggingface")))
    assert load_pretrained(path, num_classes=3).model.spec.num_classes == 3


def test_gray_stem_is_recognized_without_the_config(tmp_path):
    """As timm wrote configs before it recorded `in_chans`."""
    spec = get_spec("test_resnet").override(num_classes=7)
    config = {"architecture": "test_resnet", "num_classes": 7}
    path = write_folder(tmp_path / "gray", config, state_of(spec, channels=1))
    loaded = load_pretrained(path)
    assert loaded.variables["params"]["stem_conv1"]["kernel"].shape[2] == 1
    assert loaded.preprocess(np.zeros((80, 90, 3), np.uint8)).shape == (224, 224, 1)


def test_class_names_that_do_not_fit_are_rejected(timm_folder, tmp_path):
    config = {**TIMM, "label_names": ["a", "b"]}
    path = write_folder(tmp_path / "net", config, load_file(timm_folder))
    message = "net has 2 class names for 7 classes: expected one per class"
    with pytest.raises(UserError, match=message):
        load_pretrained(path)
