"""Folders that timm and Transformers write themselves, compared with their logits."""

import numpy as np
import pytest
from helpers.networks import apply

from resflax.nn.heads import POOLINGS
from resflax.weights import load_pretrained, read_weights

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
LABELS = [*"abcdefg"]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def randomize(net):
    """Gives every parameter and statistic a value that its initial 0 or 1 would hide."""
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim < 2:
            low = -0.3 if name.endswith(("bias", "mean")) else 0.5
            tensor.uniform_(low, 1.0 if low > 0 else 0.3)
    return net.eval()


def assert_same_outputs(loaded, net, channels):
    images = np.random.default_rng(0).standard_normal((2, 48, 48, channels)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    expected = np.squeeze(np.asarray(getattr(expected, "logits", expected)))
    actual = apply(loaded.model, loaded.variables, images)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [0, 7])
def test_folder_of_timm_loads_with_its_logits(tmp_path, channels, classes):
    net = timm.create_model("test_resnet", in_chans=channels, num_classes=classes)
    names = {"label_names": LABELS} if classes else {}
    timm.models.save_for_hf(randomize(net), tmp_path, model_config=names, safe_serialization=True)
    loaded = load_pretrained(tmp_path)
    assert_same_outputs(loaded, net, channels)
    assert loaded.classes == (tuple(LABELS) if classes else ())
    data = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path}"))
    assert (loaded.preprocess.channels, *loaded.preprocess.size) == tuple(data["input_size"])
    assert loaded.preprocess.crop_pct == data["crop_pct"]
    assert loaded.preprocess.interpolation == data["interpolation"]
    # For one channel, timm averages the moments of the three.
    assert loaded.preprocess.mean == pytest.approx(data["mean"])
    assert loaded.preprocess.std == pytest.approx(data["std"])


@pytest.mark.parametrize("pool", POOLINGS)
def test_folder_of_timm_loads_with_its_pooling(tmp_path, pool):
    net = randomize(timm.create_model("test_resnet", num_classes=7, global_pool=pool))
    arguments = {"model_args": {"global_pool": pool}}
    timm.models.save_for_hf(net, tmp_path, model_config=arguments, safe_serialization=True)
    loaded = load_pretrained(tmp_path)
    assert loaded.model.spec.pooling == pool
    assert_same_outputs(loaded, net, 3)


@pytest.mark.parametrize("head", [True, False])
def test_folder_of_transformers_loads_with_its_logits(tmp_path, head):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        depths=[1, 2],
        hidden_sizes=[16, 32],
        embedding_size=8,
        layer_type="basic",
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
    )
    kind = transformers.ResNetForImageClassification if head else transformers.ResNetModel
    net = randomize(kind(config))
    net.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.classes == (tuple(LABELS) if head else ())
    assert_same_outputs(loaded, net if head else lambda x: net(x).pooler_output, 3)


def test_gray_weights_of_timm_load_without_its_config(tmp_path):
    net = randomize(timm.create_model("test_resnet", in_chans=1, num_classes=7))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    weights = read_weights(tmp_path / "net.pth", "test_resnet")
    assert (weights.config.channels, weights.config.spec.num_classes) == (1, 7)
    assert_same_outputs(load_pretrained(tmp_path / "net.pth", model="test_resnet"), net, 1)
