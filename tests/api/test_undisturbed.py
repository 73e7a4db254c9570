"""Public calls change neither the caller's network nor torch's random state, even if a forward pass writes buffers or draws."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import prunekit as pk
from prunekit.graph.copying import copied
from prunekit.graph.forward_pass import evaluation_mode, run_once

INPUTS = (torch.zeros(1, 3, 8, 8),)
EVERYTHING = pk.TimestepGroup(0, 0, 1000)


class Writer(nn.Module):
    """A small network with a forward pass that leaves something behind.

    Args:
        habit: what it leaves.
    """

    def __init__(self, habit: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        middle: nn.Module = nn.Conv2d(16, 16, 3, padding=1)
        if habit == "spectral norm":
            middle = parametrizations.spectral_norm(middle)
        if habit == "old spectral norm":
            middle = nn.utils.spectral_norm(middle)
        if habit == "old weight norm":
            middle = nn.utils.weight_norm(middle)
        self.first, self.middle = nn.Conv2d(3, 16, 3, padding=1), middle
        self.last = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))
        self.habit, self.is_filled, self.results = habit, False, [torch.ones(2)]
        self.calls, self.last_seen, self.gains, self.tally = 0, torch.ones(2), None, torch.zeros(())
        self.make = nn.Identity()
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("means", torch.zeros(16))
        self.register_buffer("table", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The images do not depend on earlier passes."""
        h = self._note(self._fill(self._write(self.first(x))))
        if self.habit == "draws":
            h = h + 0.01 * torch.randn_like(h)
        h = self.middle(h.relu()).relu()
        if self.habit == "keeps a result":
            self.results = [h.mean()]
        return self.last(h)

    def _write(self, h: Tensor) -> Tensor:
        """Write buffers at every pass."""
        if self.habit == "counts":
            self.passes += 1
        if self.habit == "writes through data":
            self.passes.data.add_(1)
        if self.habit == "replaces":
            self.means = h.detach().mean((0, 2, 3))
        if self.habit == "adds a buffer":
            self.table = torch.linspace(0, 1, h.shape[-1])
            h = h + self.table
        return h

    def _note(self, h: Tensor) -> Tensor:
        """Write attributes that are no buffers."""
        if self.habit == "keeps activations":
            self.calls, self.last_seen, self.first.seen = self.calls + 1, h, h
        if self.habit == "writes into an attribute":
            self.tally += 1
        if self.habit == "keeps what a weight gives":
            self.gains = self.gains if self.gains is not None else self.first.bias.detach().relu()
            h = h * self.gains.view(1, -1, 1, 1)
        if self.habit == "drops an attribute" and hasattr(self, "last_seen"):
            del self.last_seen
        return h

    def _fill(self, h: Tensor) -> Tensor:
        """Write buffers at the first pass."""
        if self.habit == "fills once":
            if not self.is_filled:
                self.means.copy_(h.detach().mean((0, 2, 3)))
            h = h - self.means.view(1, -1, 1, 1)
        if self.habit == "makes a buffer":
            if not self.is_filled:
                self.make.register_buffer("made", torch.linspace(0, 1, h.shape[-1]), persistent=False)
            h = h + self.make.made
        self.is_filled = self.is_filled or self.habit in ("fills once", "makes a buffer")
        return h


HABITS = (
    "counts",
    "writes through data",
    "fills once",
    "replaces",
    "adds a buffer",
    "makes a buffer",
    "draws",
    "spectral norm",
    "old spectral norm",
    "old weight norm",
    "keeps a result",
    "keeps activations",
    "writes into an attribute",
    "keeps what a weight gives",
    "drops an attribute",
)


def loss(model: nn.Module, timesteps: Tensor, generator: torch.Generator) -> Tensor:
    """How far the network is from giving noise back."""
    noise = torch.randn(len(timesteps), 3, 8, 8, generator=generator)
    return (model(noise) - noise).square().mean()


CALLS: dict[str, Callable[[nn.Module], Any]] = {
    "count_macs": lambda model: pk.count_macs(model, INPUTS),
    "trace": lambda model: pk.trace(model, INPUTS),
    "prune": lambda model: pk.prune(model, INPUTS, target=0.7),
    "prune with a loss": lambda model: pk.prune(model, INPUTS, target=0.7, loss=loss, group=EVERYTHING),
    "importance": lambda model: pk.importance(model, INPUTS, loss, [EVERYTHING], samples=8),
}


def _held(model: nn.Module) -> dict[str, Any]:
    return {
        "modes": [module.training for module in model.modules()],
        "buffers": {name: None if each is None else (id(each), each.clone()) for name, each in _buffers(model)},
        "parameters": {name: (id(each), each.detach().clone()) for name, each in model.named_parameters()},
        "hooks": [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        "gradients": [(each.requires_grad, each.grad) for each in model.parameters()],
        "drawn": torch.get_rng_state(),
        "attributes": [{name: id(value) for name, value in vars(module).items()} for module in model.modules()],
        "tally": model.tally.clone(),
    }


def _buffers(model: nn.Module) -> list[tuple[str, Tensor | None]]:
    return [(f"{name}.{key}", each) for name, module in model.named_modules() for key, each in module._buffers.items()]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_a_call_leaves_everything_as_it_was(habit: str, training: bool) -> None:
    """In both modes; and a call again gives the same result, since each pass starts alike."""
    model = Writer(habit).train(training)
    for call in CALLS.values():
        before = _held(model)
        call(model)
        torch.testing.assert_close(_held(model), before, rtol=0, atol=0)
    first, second = (pk.prune(model, INPUTS, target=0.7, loss=loss, group=EVERYTHING) for _ in range(2))
    assert first.macs == second.macs <= 0.7 * pk.count_macs(model, INPUTS).macs
    assert first.result.measured == second.result.measured
    torch.testing.assert_close(
        dict(first.model.named_parameters()), dict(second.model.named_parameters()), rtol=0, atol=0
    )
    torch.testing.assert_close(first.model.passes, torch.zeros(()))


def test_each_pass_starts_alike() -> None:
    """A table that a network fills in its first pass is filled in each, since the mark that says so is undone as well."""
    model = Writer("fills once").eval()
    found = [run_once(model, (torch.full((1, 3, 8, 8), value),)) for value in (1.0, 2.0, 1.0)]
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    assert not model.is_filled
    with evaluation_mode(model):
        model(INPUTS[0])
        assert model.is_filled
    assert not model.is_filled


def test_what_a_pass_puts_into_a_list_stays() -> None:
    """Modules get their attributes back, and not what the objects hold that these are."""
    model = Writer("").eval()
    model.make.register_forward_hook(lambda module, *_: model.results.append(torch.zeros(3)))
    model.make.forward = lambda: None
    with evaluation_mode(model):
        model.make()
        model.calls = 5
    assert (len(model.results), model.calls) == (2, 0)


def test_a_lazy_layer_stays_what_its_first_pass_makes_of_it() -> None:
    """Its class and its weights cannot go back, so its attributes do not either."""
    model = nn.Sequential(nn.LazyConv2d(16, 3), nn.LazyBatchNorm2d(), nn.Conv2d(16, 3, 3)).eval()
    run_once(model, INPUTS)
    assert model[0].in_channels == 3
    assert model[1].num_features == len(model[1].running_mean) == 16
    assert pk.count_macs(model, INPUTS).macs == pk.count_macs(model, INPUTS).by_operator["convolution"] > 0


class Loading(nn.Module):
    """Loads the network that it needs, and knows by an attribute which one it has."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded, self.network = 0, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The same image, from another network."""
        self.loaded, self.network = self.loaded + 1, nn.Identity()
        return self.network(x)


def test_a_network_that_loads_another_part_knows_which_one_it_has() -> None:
    """The part stays, so what the network says of it stays, too."""
    model = nn.Sequential(Loading()).eval()
    first = model[0].network
    run_once(model, INPUTS)
    assert model[0].network is not first
    assert model[0].loaded == 1


@pytest.mark.parametrize("is_part", [False, True], ids=["the network", "a part of it"])
def test_torchscript_is_refused_in_one_sentence(is_part: bool) -> None:
    """What undoes a pass is not in the way, and counting works."""
    plain = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 3, 3)).eval()
    script = torch.jit.trace(plain, INPUTS)
    model = nn.Sequential(script) if is_part else script
    named = "whose module 0 is a TorchScript" if is_part else "that is a TorchScript"
    for name in ("trace", "prune", "importance"):
        with pytest.raises(pk.GraphError, match=f"{named} .*expected the torch.nn.Module that it was made from"):
            CALLS[name](model)
    assert pk.count_macs(model, INPUTS).macs == pk.count_macs(plain, INPUTS).macs


def test_results_that_a_network_keeps_are_copied() -> None:
    """torch's own deep copy refuses tensors that autograd computed."""
    model = Writer("keeps a result").train()
    kept = model(INPUTS[0])
    assert kept.requires_grad
    assert model.results[0].requires_grad
    made = copied(model)
    assert torch.equal(made.results[0], model.results[0])
    assert not made.results[0].requires_grad
    made.results[0].zero_()
    assert model.results[0].item() != 0
