"""Prunes one network in one call: without data, or by a search and repair with a loss on a group of timesteps."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunekit._json import JsonDict
from prunekit.checkpoint import ModelSpec
from prunekit.cost import CostModel
from prunekit.errors import InputError
from prunekit.graph import ChannelGraph, PruningPlan, attributes, trace
from prunekit.graph.branch import said_of_branches
from prunekit.graph.copying import copied
from prunekit.graph.forward_pass import Inputs, check_has_values, undisturbing
from prunekit.groups import TimestepGroup
from prunekit.importance import Loss, no_loss
from prunekit.limits import MAX_COUNT
from prunekit.search import SearchOptions, SearchResult
from prunekit.slim import SlimModel, save_slim
from prunekit.steps.image_choice import needs_images
from prunekit.steps.placing import inputs_on
from prunekit.steps.searching import score, search_and_repair, search_provenance
from prunekit.steps.timing_layers import times_in

if TYPE_CHECKING:
    from prunekit.recipe import PruneOptions

__all__ = ["Pruned", "prune"]

_NUM_TIMESTEPS = 1000


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned network, and the search's result.

    Args:
        slim: the pruned network with everything that is needed to save it.
        result: widths, costs and the search's measurements.
        graph: the channel groups; ``graph.left_whole`` names the layers that were not pruned, with reasons.
    """

    slim: SlimModel
    result: SearchResult
    graph: ChannelGraph

    @property
    def model(self) -> nn.Module:
        """The pruned network, in eval mode on the CPU: an ordinary module of the same class."""
        return self.slim.model

    @property
    def plan(self) -> PruningPlan:
        """The channels to keep in every channel group."""
        return self.slim.plan

    @property
    def macs(self) -> int:
        """MACs per sample per evaluation."""
        return self.slim.macs

    @property
    def params(self) -> int:
        """Number of parameters."""
        return self.slim.params

    def save(self, folder: Path | str) -> None:
        """Write a folder of safetensors and JSON; :func:`prunekit.load_slim` reads it.

        Raises:
            InputError: the folder has something other than an earlier slim model in it.
        """
        save_slim(self.slim, folder)

    def __repr__(self) -> str:
        return f"<Pruned: {self}>"

    def __str__(self) -> str:
        if self.result.nothing_to_prune is not None:
            return f"Nothing of the network can be pruned; its layers stay whole, {self.result.nothing_to_prune}."
        unit = {"macs": "MACs", "params": "parameters", "latency": "ns"}[self.result.target_of]
        narrower = sum(0 < after < before for before, after in self.result.widths.values())
        removed = f"{said_of_branches(self.plan.removed)}, " if self.plan.removed else ""
        whole = len(self.graph.left_whole)
        return (
            f"{self.result.spent:,} of {self.result.base:,} {unit} ({self.result.spent / max(self.result.base, 1):.4f}), "
            f"{self.params:,} parameters; {removed}{narrower} of {len(self.result.widths)} channel groups "
            f"{'is' if narrower == 1 else 'are'} narrower, {whole} {'layer was' if whole == 1 else 'layers were'} left whole."
        )


@undisturbing
def prune(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    target: float | int,
    loss: Loss | None = None,
    group: TimestepGroup | None = None,
    options: "PruneOptions | JsonDict | None" = None,
    num_timesteps: int = _NUM_TIMESTEPS,
    config: JsonDict | None = None,
) -> Pruned:
    """Prune a network to a target, which is never exceeded; the network itself is not changed.

    Without a loss, channels are removed by their weights' magnitude. With one, a search finds the widths at which the loss on
    the timestep group rises least, and layers are repaired in closed form.

    Args:
        model: any module.
        example_inputs: arguments of one forward pass at batch 1, by name (a dict) or by place (a tuple).
        target: a fraction of the network's MACs as a float in (0, 1], or a whole number of MACs; never exceeded. With
            ``options.search.target_of`` it can also be a target of parameters or time. For time, ``options.latency_table`` is
            the file of layer times; they are measured on the model's device and written if it does not exist.
        loss: ``loss(model, timesteps, generator) -> scalar``: the mean over int64 timesteps of shape (batch,). All randomness must
            come from the generator.
        group: the timesteps at which the network will be used; needed with a loss.
        options: how to score, search and repair: options, or a mapping with the keys of a recipe's ``prune`` section.
        num_timesteps: T, the number of timesteps that is saved with the network.
        config: the network's constructor arguments, saved with it; a denoiser of diffusers has its own.

    Returns:
        The pruned network, its costs and its widths; :meth:`Pruned.save` writes it.

    Raises:
        BudgetError: the network cannot be pruned to the target; ``feasible`` has the range.
        GraphError: the network cannot be traced, or the pruned one does not run.
        InputError: an argument is invalid.

    Example:
        >>> import prunekit, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 3, 3))
        >>> pruned = prunekit.prune(network, (torch.zeros(1, 3, 8, 8),), target=0.5)
        >>> pruned.macs / prunekit.count_macs(network, (torch.zeros(1, 3, 8, 8),)).macs
        0.5
    """
    from prunekit.recipe import PruneOptions, section_of  # noqa: PLC0415 - recipes load pydantic and more

    without_data = PruneOptions(criterion="magnitude", search=SearchOptions(proposer="oneshot"), repair="none")
    chosen = without_data if options is None and loss is None else section_of(PruneOptions, options)
    check_has_values(model)
    _check_saved(num_timesteps, config)
    group = _checked_group(group, loss, chosen, num_timesteps)
    spec = _spec_of(model, inputs_on(torch.device("cpu"), example_inputs), config)
    graph = trace(
        model,
        example_inputs,
        chosen.norm_mode,
        chosen.head_mode,
        constraints=chosen.constraints,
        shrink=chosen.shrink,
    )
    cost = CostModel.of(model, graph, example_inputs)
    scores = score(model, example_inputs, loss, [group], chosen, graph, num_timesteps)
    latency = None
    if chosen.search.target_of == "latency" and chosen.latency_table is not None:
        size = chosen.latency_batch_size
        latency = times_in(chosen.latency_table, size, model, graph, example_inputs).bind(graph, cost)
    found, result = search_and_repair(
        model, example_inputs, graph, cost, loss or no_loss, scores.of(group.index), group, target, chosen, latency
    )
    told = {} if latency is None else {"latency": latency.table.about()}
    about = {"provenance": {**search_provenance(result, chosen), **told}}
    sizes = attributes(model, graph, result.plan)
    slim = SlimModel(found, spec, result.plan, sizes, group, num_timesteps, result.macs, result.params, about)
    return Pruned(slim, result, graph)


def _check_saved(num_timesteps: int, config: object) -> None:
    """Refuse what could not be read again from a saved network."""
    if isinstance(num_timesteps, bool) or not isinstance(num_timesteps, int) or not 1 <= num_timesteps <= MAX_COUNT:
        raise InputError(f"Got num_timesteps {num_timesteps!r:.40}; expected a whole number from 1 to {MAX_COUNT:,}.")
    try:
        is_json = config is None or (isinstance(config, dict) and bool(json.dumps(config, allow_nan=False)))
    except (TypeError, ValueError, RecursionError):
        is_json = False
    if not is_json:
        raise InputError(
            f"Got {config!r:.80} as the config; expected a dict of texts, numbers, lists and dicts, as JSON has them, since it is "
            "saved with the network."
        )


def _checked_group(
    group: TimestepGroup | None, loss: Loss | None, options: "PruneOptions", num_timesteps: int
) -> TimestepGroup:
    """The timestep group; all timesteps if there is no loss."""
    if loss is None and needs_images(options.criterion, options.search.proposer, options.repair):
        raise InputError(
            f"The options (criterion {options.criterion}, proposer {options.search.proposer}, repair {options.repair}) evaluate a "
            "loss and none was given; pass loss= and group=, or leave options out to prune by the weights alone."
        )
    if group is None:
        if loss is not None:
            raise InputError(
                "Got a loss and no timestep group; pass group=groups[3], or group=TimestepGroup(0, 0, T) for all T timesteps."
            )
        return TimestepGroup(0, 0, num_timesteps)
    if not isinstance(group, TimestepGroup):
        raise InputError(f"Got a {type(group).__name__} as the group; expected one TimestepGroup, such as groups[3].")
    if group.stop > num_timesteps:
        raise InputError(
            f"The group's timesteps end at {group.stop - 1} and num_timesteps is {num_timesteps}; pass the model's own number."
        )
    return group


def _spec_of(model: nn.Module, example_inputs: Inputs, config: JsonDict | None) -> ModelSpec:
    """How to build the network again: by its class; the caller's own class needs a factory, which is given to ``load_slim``."""
    try:
        return replace(ModelSpec.of(model), inputs=example_inputs)
    except InputError:
        own: Any = config if config is not None else {}
        return ModelSpec(type(model).__name__, own, factory=lambda _: copied(model).cpu(), inputs=example_inputs)
