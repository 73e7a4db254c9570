"""Inception-v3 from a file that the user has, without torch-fidelity."""

import pytest
import torch
from safetensors.torch import save_file
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from prunekit.errors import FileFormatError, InputError, MissingFileError, UnsafeFileError
from prunekit.evaluation import image_metrics
from prunekit.extractors import choose_extractor, named_extractor
from prunekit.inception import LAYERS, InceptionV3, cached_inception, load_inception


@pytest.fixture(scope="module")
def network():
    """Random weights, under which no feature is constant."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = InceptionV3(64).eval()
        for name, values in net.named_buffers():
            if name.endswith("running_mean"):
                values.normal_(0, 0.1)
            if name.endswith("running_var"):
                values.uniform_(0.2, 0.6)
    return net


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(network.state_dict(), path)
    return path


def pictures(count, seed, channels=3, side=24):
    return torch.randint(
        256, (count, channels, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def test_tensors_have_the_names_and_shapes_of_the_published_file(network):
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items() if value.ndim}
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 23_885_392
    assert shapes["Mixed_5b.branch_pool.conv.weight"] == (32, 192, 1, 1)
    assert shapes["Mixed_6b.branch7x7dbl_5.conv.weight"] == (192, 128, 1, 7)
    assert shapes["Mixed_7a.branch7x7x3_4.conv.weight"] == (192, 192, 3, 3)
    assert shapes["Mixed_7c.branch3x3dbl_3b.bn.running_var"] == (384,)
    assert shapes["fc.weight"] == (1008, 2048)


def test_figures_are_those_of_torchmetrics_with_the_same_network(network, weights):
    real, fake = pictures(12, 0), pictures(9, 1) // 2
    found = image_metrics(real, fake, load_inception(weights, 64), kid_subset_size=9, kid_subsets=3)
    fid = FrechetInceptionDistance(feature=network)
    kid = KernelInceptionDistance(feature=network, subsets=3, subset_size=9)
    for metric in (fid, kid):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected, _ = kid.compute()
    assert found.fid == pytest.approx(float(fid.compute()), rel=1e-4)
    assert found.kid == pytest.approx(float(expected), rel=1e-4)
    assert found.fid > 0.01


def test_every_layer_has_its_width_and_grey_pictures_count_as_coloured(network, weights):
    grey = pictures(2, 0, channels=1, side=40)
    for layer in LAYERS:
        extractor = load_inception(weights, layer)
        features = extractor.features(grey)
        assert features.shape == (2, layer)
        assert torch.equal(features, extractor.features(grey.expand(-1, 3, -1, -1)))
        assert features.std() > 0


def test_weights_as_safetensors_give_the_same_features(network, weights, tmp_path):
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    one, other = (
        load_inception(path, 64).features(pictures(2, 0)) for path in (weights, tmp_path / "weights.safetensors")
    )
    assert torch.equal(one, other)


def test_weights_in_torchs_cache_are_found_and_others_are_told_where_to_get(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MissingFileError, match=r"cache.*https://github.com/toshas/torch-fidelity.*`inception_weights`"):
        named_extractor("inception-v3")
    with pytest.raises(
        MissingFileError, match=r"nowhere\.pth does not exist.*https://github.com/toshas/torch-fidelity"
    ):
        named_extractor("nowhere.pth")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / weights.name).symlink_to(weights)
    assert cached_inception().name == weights.name
    choice = choose_extractor(pictures(3, 0), "inception-v3")
    described = choice.describe()
    assert described["name"] == "inception-v3"
    assert (described["own"], described["num_features"], len(described["sha256"])) == (True, 2048, 64)


def test_another_networks_weights_are_refused_with_the_tensor_that_is_missing(network, tmp_path):
    state = network.state_dict()
    torch.save(
        {key: value for key, value in state.items() if key != "Mixed_6a.branch3x3.conv.weight"}, tmp_path / "a.pth"
    )
    with pytest.raises(
        FileFormatError, match=r"no finite tensor Mixed_6a\.branch3x3\.conv\.weight of shape \(384, 288, 3, 3\)"
    ):
        load_inception(tmp_path / "a.pth")
    torch.save(state | {"fc.bias": torch.full((1008,), torch.nan)}, tmp_path / "b.pth")
    with pytest.raises(FileFormatError, match=r"fc\.bias"):
        load_inception(tmp_path / "b.pth")


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"fc.bias": print}, tmp_path / "weights.pth")
    with pytest.raises(UnsafeFileError):
        load_inception(tmp_path / "weights.pth")


def test_pictures_that_are_not_uint8_and_unknown_layers_are_refused(network):
    with pytest.raises(InputError, match="expected uint8"):
        network(torch.zeros(2, 3, 8, 8))
    with pytest.raises(InputError, match="expected one of 64, 192, 768, 2048"):
        InceptionV3(1024)
