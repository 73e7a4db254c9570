"""One network in one call: the target is met, the network stays, what is saved loads again, and wrong arguments get a sentence."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from networks import unet, unet_inputs
from torch import Generator, Tensor, nn

import prunekit as pk
from prunekit.recipe import PruneOptions
from prunekit.search import SearchOptions

GROUP = pk.TimestepGroup(3, 600, 800)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 24, 3, padding=1), nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        result: Tensor = self.last(torch.tanh(self.first(x) + t.reshape(-1, 1, 1, 1) / 1000))
        return result


def denoiser() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Denoiser().eval()


INPUTS = (torch.zeros(1, 1, 8, 8), torch.tensor([7]))


def loss(model: nn.Module, timesteps: Tensor, generator: Generator) -> Tensor:
    noise = torch.randn(len(timesteps), 1, 8, 8, generator=generator)
    result: Tensor = (model(noise, timesteps) - noise).square().mean()
    return result


@pytest.mark.parametrize("target", [0.6, 0.3])
def test_pruning_without_data_meets_a_fraction_and_changes_nothing_of_the_network(target: float) -> None:
    model = denoiser()
    before = copy.deepcopy(model.state_dict())
    pruned = pk.prune(model, INPUTS, target=target)
    full = pk.count_macs(model, INPUTS).macs
    assert target * full - full / 24 < pruned.macs <= target * full
    assert pk.count_macs(pruned.model, INPUTS).macs == pruned.macs
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert f"{pruned.macs:,} of {full:,} MACs" in str(pruned)


def test_a_fraction_and_the_same_number_of_macs_give_the_same_plan() -> None:
    full = pk.count_macs(denoiser(), INPUTS).macs
    by_fraction, by_number = (pk.prune(denoiser(), INPUTS, target=target) for target in (0.5, full // 2))
    assert by_fraction.plan == by_number.plan
    assert by_fraction.result.target == by_number.result.target


def test_searched_and_repaired_it_loses_less_than_by_its_weights_alone() -> None:
    model, probe = denoiser(), pk.Probe(loss, GROUP, samples=64)
    quick = PruneOptions(samples=64, search=SearchOptions(rounds=3, shortlist=3))
    searched = pk.prune(model, INPUTS, loss=loss, group=GROUP, target=0.6, options=quick)
    by_weights = pk.prune(model, INPUTS, target=0.6)
    assert probe.mean(searched.model) < probe.mean(by_weights.model)
    assert searched.slim.group == GROUP
    assert searched.result.measured


def test_a_foreign_network_is_saved_and_loaded_in_one_call_each(tmp_path: Path) -> None:
    pruned = pk.prune(denoiser(), INPUTS, target=0.5)
    pruned.save(str(tmp_path / "slim"))
    again = pk.load_slim(str(tmp_path / "slim"), denoiser(), INPUTS)
    assert torch.equal(again.model(*INPUTS), pruned.model(*INPUTS))
    with pytest.raises(pk.InputError, match="Denoiser"):
        pk.load_slim(tmp_path / "slim")


def test_a_denoiser_of_diffusers_needs_no_factory(tmp_path: Path) -> None:
    pruned = pk.prune(unet(), unet_inputs(), target=0.7)
    pruned.save(tmp_path / "slim")
    again = pk.load_slim(tmp_path / "slim").model(**unet_inputs()).sample
    assert torch.equal(again, pruned.model(**unet_inputs()).sample)


def test_a_network_with_nothing_to_prune_says_so() -> None:
    pruned = pk.prune(nn.Conv2d(1, 1, 3), (torch.zeros(1, 1, 8, 8),), target=1.0)
    assert str(pruned).startswith("Nothing of the network can be pruned")


def from_the_global_generator(model: nn.Module, timesteps: Tensor, generator: Generator) -> Tensor:
    noise = torch.randn(len(timesteps), 1, 8, 8)
    return (model(noise, timesteps) - noise).square().mean()  # type: ignore[no-any-return]


def from_numpy(model: nn.Module, timesteps: Tensor, generator: Generator) -> Tensor:
    import numpy as np

    return loss(model, timesteps, generator) + np.random.rand()  # noqa: NPY002 - the mistake


@torch.no_grad()
def of_another_network(model: nn.Module, timesteps: Tensor, generator: Generator) -> Tensor:
    return loss(denoiser(), timesteps, generator)


SINGLE: dict[str, Any] = {"loss": loss, "group": GROUP, "target": 0.6}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a batch of two": (
        {"target": 0.6, "example_inputs": (torch.zeros(2, 1, 8, 8), torch.tensor([7, 7]))},
        "batch of 2",
    ),
    "torch's global generator": ({**SINGLE, "loss": from_the_global_generator}, "torch's global generator"),
    "NumPy's global generator": ({**SINGLE, "loss": from_numpy}, "NumPy's global generator"),
    "a loss of another network": ({**SINGLE, "loss": of_another_network}, "does not call the network that it is given"),
    "a loss and no group": ({"loss": loss, "target": 0.6}, "no timestep group"),
    "a list of groups": ({**SINGLE, "group": [GROUP]}, "Got a list as the group"),
    "a group past the end": ({**SINGLE, "num_timesteps": 100}, "num_timesteps is 100"),
    "options that need a loss": ({"target": 0.6, "options": PruneOptions()}, "none was given"),
    "a percentage": ({"target": 60.5}, "Got 60.5 as the target; expected a fraction"),
    "a negative target": ({"target": -0.5}, "expected a fraction"),
    "words": ({"target": "0.6"}, "expected a fraction"),
    "no number": ({"target": float("nan")}, "expected a fraction"),
    "a tensor as the target": ({"target": torch.tensor(0.5)}, "expected a fraction"),
    "no timesteps": ({"target": 0.6, "num_timesteps": 0}, "Got num_timesteps 0; expected a whole number from 1"),
    "half a timestep": ({"target": 0.6, "num_timesteps": 1.5}, r"num_timesteps 1\.5"),
    "a list as the config": ({"target": 0.6, "config": [1]}, "as the config; expected a dict"),
    "a config that JSON has not": ({"target": 0.6, "config": {"a": {1, 2}}}, "as the config; expected a dict"),
    "a config with no number": ({"target": 0.6, "config": {"a": math.nan}}, "as the config; expected a dict"),
    "a bare tensor": (
        {"target": 0.6, "example_inputs": torch.zeros(1, 1, 8, 8)},
        r"Got a Tensor as the example inputs",
    ),
    "no inputs": ({"target": 0.6, "example_inputs": None}, "Got a NoneType as the example inputs; expected a tuple"),
    "a loss of two arguments": (
        {**SINGLE, "loss": lambda model, t: 0},
        r"The loss takes \(model, t\); expected loss\(model, t",
    ),
    "a loss that is none": ({**SINGLE, "loss": 3}, "Got 3 as the loss; expected a function"),
    "out of reach": ({"target": 0.01}, "below what this network can be pruned to"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_get_one_sentence(name: str) -> None:
    own, message = WRONG[name]
    with pytest.raises(pk.InputError, match=message) as caught:
        pk.prune(denoiser(), **{"example_inputs": INPUTS, **own})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "Got a NoneType; expected a network"),
        (Denoiser, "Got the class Denoiser; expected a network"),
        (denoiser().state_dict(), "Got a OrderedDict; expected a network"),
        ([denoiser()], "Got a list; expected a network"),
        (torch.export.export(denoiser(), INPUTS).module(), r"a GraphModule cannot be put in eval mode.*exported from"),
    ],
    ids=["nothing", "a class", "a state dict", "a list", "an exported one"],
)
def test_what_is_no_network_that_can_be_pruned_gets_one_sentence(model: Any, message: str) -> None:
    for call in (lambda: pk.prune(model, INPUTS, target=0.5), lambda: pk.count_macs(model, INPUTS)):
        with pytest.raises(pk.PrunekitError, match=f"(?i){message}"):
            call()


def test_a_lazy_network_is_to_be_called_once_before() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.LazyConv2d(16, 3), nn.ReLU(), nn.Conv2d(16, 1, 3))

    with pytest.raises(pk.InputError, match="lazy layers, which have no sizes yet; call it once"):
        pk.prune(make(), INPUTS[:1], target=0.5)
    called = make()
    called(INPUTS[0])
    assert pk.prune(called, INPUTS[:1], target=0.5).result.spent <= pk.count_macs(called, INPUTS[:1]).macs // 2


@pytest.mark.parametrize("output", [None, "text", 3])
def test_a_network_that_returns_no_tensors_gets_one_sentence(output: object) -> None:
    class Mute(nn.Conv2d):
        def forward(self, x: Tensor) -> object:  # type: ignore[override]
            super().forward(x)
            return output

    with pytest.raises(pk.PrunekitError, match=f"{type(output).__name__}"):
        pk.prune(Mute(1, 4, 3), INPUTS[:1], target=0.5)


def test_a_network_may_draw_numbers_of_its_own() -> None:
    class Noisy(Denoiser):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x + 0.01 * torch.randn_like(x), t)

    assert pk.Probe(loss, GROUP, samples=8).mean(Noisy()) > 0


def in_half(dtype: torch.dtype) -> tuple[nn.Module, dict[str, Tensor]]:
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in unet_inputs().items()}
    return unet().eval().to(dtype), inputs


def loss_in_half(model: nn.Module, timesteps: Tensor, generator: Generator) -> Tensor:
    dtype = next(model.parameters()).dtype
    noise = torch.randn(len(timesteps), 1, 8, 8, generator=generator).to(dtype)
    result: Tensor = (model(noise, timesteps).sample - noise).square().float().mean()
    return result


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(
    "proxy",
    [
        pytest.param(proxy, marks=() if proxy == "repaired-recovery" else pytest.mark.slow)
        for proxy in ("repaired-recovery", "loss", "bias", "least-squares", "recovery")
    ],
)
def test_a_network_in_half_precision_keeps_its_type_and_is_repaired(
    proxy: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Sums over rows are solved in wider types, and short trainings step on copies in float32."""
    model, inputs = in_half(dtype)
    options = PruneOptions(samples=8, batch_size=4, search=SearchOptions(rounds=1, shortlist=2, proxy=proxy))
    pruned = pk.prune(model, inputs, target=0.6, loss=loss_in_half, group=GROUP, options=options)
    assert pruned.macs <= 0.6 * pk.count_macs(model, inputs).macs
    assert all(np.isfinite(entry["loss"]) for entry in pruned.result.measured)
    pruned.save(tmp_path / "slim")
    for network in (pruned.model, pk.load_slim(tmp_path / "slim").model):
        assert {parameter.dtype for parameter in network.parameters()} == {dtype}
        assert all(bool(parameter.isfinite().all()) for parameter in network.parameters())


def test_repair_in_half_precision_is_near_that_in_float32() -> None:
    """The mended network's loss, once in bfloat16 and once on the same weights in float32."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model, inputs = in_half(torch.bfloat16)
        model = model.to(dtype)
        inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        options = PruneOptions(
            criterion="magnitude", samples=32, batch_size=32, search=SearchOptions(proposer="oneshot")
        )
        pruned = pk.prune(model, inputs, target=0.6, loss=loss_in_half, group=GROUP, options=options)
        whole = loss_in_half(model, torch.full((64,), 700), Generator().manual_seed(3))
        mended = loss_in_half(pruned.model, torch.full((64,), 700), Generator().manual_seed(3))
        found.append(float((mended / whole).detach()))
    assert found[1] == pytest.approx(found[0], rel=0.05)


@pytest.mark.slow
def test_a_target_of_time_measures_layer_times_at_the_batch_size_asked_for(tmp_path: Path) -> None:
    table = tmp_path / "times.json"
    search = SearchOptions(proposer="oneshot", target_of="latency")
    options = PruneOptions("magnitude", repair="none", search=search, latency_table=str(table), latency_batch_size=3)
    pruned = pk.prune(denoiser(), INPUTS, target=1.0, options=options)
    assert pruned.result.spent <= pruned.result.target
    about = pruned.slim.about["provenance"]["latency"]
    assert about["batch_size"] == 3
    written = table.read_bytes()
    pk.prune(denoiser(), INPUTS, target=1.0, options=options)
    assert table.read_bytes() == written
    with pytest.raises(pk.errors.InputError, match="layer times for batches of 3, and `latency_batch_size` asks for 2"):
        pk.prune(denoiser(), INPUTS, target=1.0, options=replace(options, latency_batch_size=2))


def test_what_comes_back_is_in_eval_mode_as_when_it_is_loaded() -> None:
    layers = (
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(16, 1, 3, padding=1),
    )
    network = nn.Sequential(*layers).train()
    found = pk.prune(network, INPUTS[:1], target=0.5).model
    assert not any(module.training for module in found.modules())
    assert network.training
    assert torch.equal(found(torch.ones(1, 1, 8, 8)), found(torch.ones(1, 1, 8, 8)))


def test_networks_without_values_or_gradients_are_refused() -> None:
    with pytest.raises(pk.InputError, match="on the meta device"):
        pk.prune(Denoiser().to("meta"), INPUTS, target=0.5)
    with torch.inference_mode():
        made = Denoiser()
        with pytest.raises(pk.InputError, match="inference mode"):
            pk.prune(denoiser(), INPUTS, target=0.5)
    with pytest.raises(pk.InputError, match="inference mode"):
        pk.prune(made, INPUTS, target=0.5)


def test_a_pruned_network_of_diffusers_refuses_a_config_that_nothing_can_read(tmp_path: Path) -> None:
    """Alone and within a pipeline; a whole one is saved, and experts of one group are saved with the pipeline."""
    config = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}
    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    network = UNet2DModel(in_channels=1, out_channels=1, **config, **blocks)
    inputs = {"sample": torch.zeros(1, 1, 8, 8), "timestep": torch.tensor(1)}
    pruned = pk.prune(network, inputs, target=0.5)
    pruned.save(tmp_path / "slim")
    again = pk.load_slim(tmp_path / "slim")
    for model in (pruned.model, copy.deepcopy(again.model)):
        pipeline = DDIMPipeline(unet=model, scheduler=DDIMScheduler())
        assert len(pipeline(batch_size=2, num_inference_steps=1).images) == 2
        for save in (model.save_pretrained, pipeline.save_pretrained):
            with pytest.raises(pk.InputError, match=r"whose widths its config does not have"):
                save(tmp_path / "saved")
    pk.prune(network, inputs, target=1.0).model.save_pretrained(tmp_path / "whole")
    assert UNet2DModel.from_pretrained(tmp_path / "whole").config.block_out_channels == [8, 16]
    groups = pk.make_groups(pk.NoiseSchedule.linear(), count=1)
    pk.save_experts([again], groups, tmp_path / "experts")
    experts = pk.load_experts(tmp_path / "experts")
    DDIMPipeline(unet=experts, scheduler=DDIMScheduler()).save_pretrained(tmp_path / "pipeline")
    loaded = DDIMPipeline.from_pretrained(tmp_path / "pipeline").unet
    torch.testing.assert_close(loaded(**inputs).sample, again.model(**inputs).sample)


class Twice(nn.Module):
    """A network whose modules have second names, or whose norm takes a convolution's bias as its weight.

    Args:
        tied: the latter.
    """

    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.wide, self.norm, self.narrow = (
            nn.Conv2d(8, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.Conv2d(16, 8, 3, padding=1),
        )
        self.blocks = nn.ModuleList([self.wide, self.norm, self.narrow])
        if tied:
            self.norm.weight = self.wide.bias

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks in turn."""
        h = self.first(x)
        for block in self.blocks:
            h = torch.relu(block(h))
        return self.last(h)


@pytest.mark.parametrize("tied", [False, True])
def test_second_names_and_shared_vectors_are_pruned_and_repaired(tied: bool, tmp_path: Path) -> None:
    inputs, everything = (torch.zeros(1, 1, 8, 8),), pk.TimestepGroup(0, 0, 1000)

    def loss(model: nn.Module, timesteps: Tensor, generator: Generator) -> Tensor:
        noise = torch.randn(len(timesteps), 1, 8, 8, generator=generator)
        return (model(noise) - noise).square().mean()

    options = PruneOptions(samples=8, batch_size=4, search=SearchOptions(rounds=2, shortlist=2))
    with_loss = {"loss": loss, "group": everything, "options": options}
    for told in ({}, with_loss):
        pruned = pk.prune(Twice(tied), inputs, target=0.6, config={}, **told)
        assert pruned.macs <= 0.6 * pk.count_macs(Twice(tied), inputs).macs
        assert pruned.model.blocks[0] is pruned.model.wide
        assert (pruned.model.norm.weight is pruned.model.wide.bias) == tied
        folder = tmp_path / f"slim-{len(told)}"
        pruned.save(folder)
        again = pk.load_slim(folder, lambda *_: Twice(tied), inputs).model
        noise = torch.randn(2, 1, 8, 8)
        assert torch.equal(again(noise), pruned.model(noise))


@pytest.mark.parametrize("criterion", ["taylor", "diff-pruning", "fisher"])
def test_an_optimizer_that_steps_in_the_backward_pass_does_not(criterion: str) -> None:
    """Hooks of the caller on complete gradients stay, and are off meanwhile."""
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    optimizers = {each: torch.optim.SGD([each], 0.1) for each in network.parameters()}

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for each in network.parameters():
        each.register_post_accumulate_grad_hook(step)

    def loss(model: nn.Module, timesteps: Tensor, generator: Generator) -> Tensor:
        noise = torch.randn(len(timesteps), 1, 8, 8, generator=generator)
        return (model(noise) - noise).square().mean()

    before = copy.deepcopy(network.state_dict())
    groups = pk.TimestepGroups.from_cuts(100, [50])
    pk.importance(network, (torch.zeros(1, 1, 8, 8),), loss, groups, samples=8, by=criterion)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    network(torch.randn(1, 1, 8, 8)).sum().backward()
    assert not torch.equal(network[0].weight, before["0.weight"])
