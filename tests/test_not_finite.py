"""What is measured of numbers that are not finite is refused, in the API too; files with such weights are not read."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunekit.checkpoint import Base, ModelSpec, load_base, save_base
from prunekit.checkpoint.finite import first_not_finite
from prunekit.data import load_images
from prunekit.errors import FileFormatError, InputError
from prunekit.evaluation import group_losses, image_metrics
from prunekit.features import load_features
from prunekit.groups import make_groups
from prunekit.sampling import make_sampler, real_timesteps, to_images
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.training import DenoisingObjective
from prunekit.training.number_checks import Watch

SCHEDULE = NoiseSchedule.linear(100)
BAD = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])


class Breaks(nn.Module):
    """Predicts nothing, and something that is not finite for some samples at one timestep."""

    def __init__(self, timestep: int, value: float, bad: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.timestep, self.value, self.bad = timestep, value, bad

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        made = noisy * self.weight
        if int(timesteps.flatten()[0]) == self.timestep:
            made[: self.bad, 0, 0, 0] = self.value
        return made


@BAD
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun"])
def test_sampling_stops_at_the_evaluation_that_is_not_finite(sampler, value):
    """DDIM clamps a clean image that is infinite: the picture would look like any other."""
    seen: list[int] = []
    timesteps = real_timesteps(sampler, 5, SCHEDULE)
    made = make_sampler(sampler, 5, Parameterization(SCHEDULE), (1, 4, 4))
    where = rf"after evaluation 2 of {len(timesteps)} \(timestep {timesteps[1]:g}\)"
    with pytest.raises(InputError, match=f"3 of 8 samples are not finite {where}"):
        made(Breaks(int(timesteps[1]), value, 3), 8, 0, report=lambda done, _: seen.append(done))
    assert seen == []


@BAD
def test_samples_that_are_not_finite_are_no_pictures(value):
    samples = torch.zeros(8, 1, 4, 4)
    samples[2, 0, 1, 1] = value
    samples[5] = value
    with pytest.raises(InputError, match="2 of 8 samples are not finite"):
        to_images(samples)
    assert to_images(samples[:2]).unique().tolist() == [128]


@BAD
@pytest.mark.parametrize("which", ["real", "generated"])
def test_pictures_that_are_not_finite_have_no_fid(which, value):
    whole, broken = torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.zeros(8, 1, 8, 8)
    broken[3, 0, 2, 2] = value
    pair = (broken, whole) if which == "real" else (whole, broken)
    with pytest.raises(InputError, match=f"1 of 8 {which} images are not finite"):
        image_metrics(*pair, load_features("digits-cnn"))


@BAD
def test_a_loss_that_is_not_finite_is_reported_with_its_timestep_group(value):
    images = torch.zeros(16, 1, 4, 4, dtype=torch.uint8)
    groups = make_groups(SCHEDULE, count=5)
    asked = {"batches": 2, "batch_size": 5, "seed": 0}
    with pytest.raises(
        InputError, match=r"losses of 2 of 10 samples are not finite in timestep group 2 \(timesteps 40 to 59\)"
    ):
        group_losses(_FromFortyOne(value), DenoisingObjective(images, Parameterization(SCHEDULE)), groups, **asked)


class _FromFortyOne(nn.Module):
    """Breaks at the timesteps of one group, of which one sample of each batch is."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight, self.value = nn.Parameter(torch.zeros(())), value

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        made = noisy * self.weight
        made[(timesteps == 41) | (timesteps == 51)] = self.value
        return made


def spec() -> ModelSpec:
    config = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {"block_out_channels": [8], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    return ModelSpec.from_json({"_class_name": "UNet2DModel", **config, **blocks})


@BAD
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", "folder"])
def test_a_checkpoint_is_refused_by_its_tensor(tmp_path, suffix, value):
    own = spec()
    model = own.build()
    with torch.no_grad():
        model.mid_block.resnets[0].conv1.weight[3, 2, 1, 1] = value
    path = tmp_path / f"base{suffix}"
    if suffix == "folder":
        model.save_pretrained(path)
    else:
        save_base(Base(model, own, Parameterization(SCHEDULE)), path)
    with pytest.raises(FileFormatError, match=rf"mid_block\.resnets\.0\.conv1\.weight holds {value} in .*base"):
        load_base(path)


def test_buffers_may_hold_infinities_and_no_nan():
    net = nn.BatchNorm2d(3)
    net.register_buffer("mask", torch.full((2, 2), -math.inf))
    assert first_not_finite(net) is None
    net.running_var[1] = math.nan
    assert first_not_finite(net) == "running_var holds nan"
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        layer = nn.Linear(3, 3).to(dtype)
        assert first_not_finite(layer) is None
        with torch.no_grad():
            layer.bias[2] = math.nan
        assert first_not_finite(layer) == "bias holds nan"


def test_one_file_of_latents_is_refused_by_its_row(tmp_path):
    latents = np.zeros((40, 4, 8, 8), dtype=np.float16)
    latents[29, 3, 0, 0] = np.nan
    latents[31, 3, 0, 0] = np.inf
    path = tmp_path / "latents.npz"
    np.savez(path, latents)
    with pytest.raises(FileFormatError, match=r"Row 29 of .*latents\.npz is not finite"):
        load_images(str(path))


def test_mapped_latents_are_refused_where_all_are_read(tmp_path):
    latents = np.zeros((5000, 1, 2, 2), dtype=np.float32)
    np.save(tmp_path / "held-out.npy", latents[:9])
    latents[4500] = np.nan
    np.save(tmp_path / "train.npy", latents)
    split = load_images(str(tmp_path))  # a mapped file is not read as a whole to open it
    with pytest.raises(InputError, match=rf"rows of {tmp_path.name}/train are not finite, row 4500 the first"):
        _ = split.train.sha256
    assert len(split.held_out.sha256) == 64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_read_one_step_late():
    watch = Watch[int]()
    numbers = [torch.full((2,), float(i), device="cuda") for i in range(3)]
    assert watch.note(0, numbers[0]) == []
    assert watch.note(1, numbers[1]) == [(0, [0.0, 0.0])]
    assert watch.pending() == watch.pending() == [(1, [1.0, 1.0])]
    assert watch.note(2, numbers[2]) == [(1, [1.0, 1.0])]
