"""Memory of a train step, counted without memory, is what autograd keeps on real tensors."""

import pytest
import torch
from networks import UNET_CONFIG, unet, unet_inputs
from torch import nn

from prunekit.checkpoint import ModelSpec
from prunekit.cost import GPUS, StepCost, count_macs, gpu_hours
from prunekit.errors import InputError


class Chain(nn.Module):
    """Keeps its input, its hidden layer twice (before and after the activation), and nothing else."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x):
        return self.second(torch.sigmoid(self.first(x)))


def kept_for_real(model, inputs):
    """Bytes of the distinct storages that autograd is given, weights aside."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor
    ):
        _ = model.train()(**inputs)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)


def test_a_chain_keeps_what_its_layers_need():
    step = StepCost.of(Chain, lambda: (torch.zeros(1, 6),))
    assert step.activations == 4 * (6 + 10)  # the input of each layer; sigmoid keeps its output, which is one of them
    assert step.count.macs == 6 * 10 + 10 * 3
    params = 6 * 10 + 10 + 10 * 3 + 3
    parts = step.memory(5)
    assert parts["weights"] == parts["gradients"] == parts["average"] == 4 * params
    assert parts["moments"] == 8 * params
    assert parts["activations"] == 5 * step.activations
    assert parts["total"] == 20 * params + 5 * step.activations


def test_a_unet_keeps_what_it_keeps_for_real():
    spec = ModelSpec("UNet2DModel", UNET_CONFIG)
    step = StepCost.of(spec.build, spec.example_inputs)
    real = kept_for_real(unet(), unet_inputs())
    assert real <= step.activations <= 1.03 * real  # shapes alone cannot tell that one reshape need not copy
    assert step.count.to_json() == count_macs(unet(), unet_inputs()).to_json()


def test_hours_follow_the_maker_and_the_share():
    macs = GPUS["A100"]["bf16"] * 3600 / 2
    assert gpu_hours(macs, utilisation=1.0) == pytest.approx(1.0)
    assert gpu_hours(macs, utilisation=0.25) == pytest.approx(4.0)
    assert gpu_hours(macs, precision="no", utilisation=1.0) == pytest.approx(16.0)
    assert gpu_hours(macs, "H100") < gpu_hours(macs)


@pytest.mark.parametrize(("gpu", "share"), [("A1", 0.3), ("A100", 0.0), ("A100", 1.1)])
def test_gpus_and_shares_that_are_none_are_refused(gpu, share):
    with pytest.raises(InputError, match="expected one of A100, H100, RTX4090 and a share in"):
        gpu_hours(1.0, gpu, utilisation=share)


def test_recomputed_blocks_keep_their_inputs_and_one_block():
    spec = ModelSpec("UNet2DModel", UNET_CONFIG)
    step = StepCost.of(spec.build, spec.example_inputs)
    assert step.recomputed is not None
    assert step.recomputed < 0.8 * step.activations
    assert step.memory(5, recomputing=True)["activations"] == 5 * step.recomputed
    assert step.memory(5)["activations"] == 5 * step.activations
    chain = StepCost.of(Chain, lambda: (torch.zeros(1, 6),))
    assert chain.recomputed is None
    assert chain.memory(5, recomputing=True) == chain.memory(5)


def test_moments_in_eight_bits_take_a_quarter():
    step = StepCost.of(Chain, lambda: (torch.zeros(1, 6),))
    assert step.memory(1, eight_bit=True)["moments"] * 4 == step.memory(1)["moments"]
