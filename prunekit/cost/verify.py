"""Checks of a pruned network against its plan, before it is used."""

from torch import nn

from prunekit.cost.closed_form import CostModel
from prunekit.cost.counter import count_macs
from prunekit.errors import GraphError
from prunekit.graph import ChannelGraph, PruningPlan, attributes
from prunekit.graph.forward_pass import Inputs, output_tensors, run_once
from prunekit.graph.layers import group_count
from prunekit.graph.surgery import all_tensors, sliced_shapes

__all__ = ["verify"]


def verify(
    model: nn.Module, pruned: nn.Module, graph: ChannelGraph, plan: PruningPlan, cost: CostModel, inputs: Inputs
) -> None:
    """Refuse a pruned network that does not match its plan.

    Args:
        model: the full network.
        pruned: the network that :func:`prunekit.graph.apply` made from it.
        graph: the channel groups.
        plan: the channels that were kept.
        cost: the cost model of ``graph``.
        inputs: arguments of one forward pass at batch 1.

    Raises:
        GraphError: a tensor does not have the planned width, a size stored outside tensors is wrong, norm groups do not divide
            their channels, the forward pass fails or gives another shape, or MACs or parameters differ from the predicted ones.
    """
    _check_widths(model, pruned, graph, plan)
    for name, sizes in attributes(model, graph, plan).items():
        for key, value in sizes.items():
            found = getattr(pruned.get_submodule(name), key)
            if found not in (value, (value,)):
                raise GraphError(f"{name}.{key} of the pruned network is {found}; its plan says {value}.")
    for name, module in pruned.named_modules():
        groups, weight = group_count(module), module._parameters.get("weight")
        if groups is not None and weight is not None and len(weight) % groups:
            raise GraphError(f"{name} has {len(weight)} channels, which its {groups} norm groups do not divide.")
    try:
        found = _shapes(run_once(pruned, inputs))
    except Exception as error:  # a network may raise any error
        raise GraphError(f"The pruned network does not run ({type(error).__name__}: {error}).") from error
    if found != (expected := _shapes(run_once(model, inputs))):
        raise GraphError(f"The pruned network gives outputs of shapes {found}; the full one {expected}.")
    widths = plan.widths(graph)
    counted, macs, params = count_macs(pruned, inputs), int(cost.macs(widths)), int(cost.params(widths))
    if (counted.macs, counted.params) != (macs, params):
        raise GraphError(
            f"The pruned network costs {counted.macs:,} MACs and {counted.params:,} parameters; "
            f"its plan says {macs:,} and {params:,}. This is a defect of prunekit."
        )


def _check_widths(model: nn.Module, pruned: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> None:
    """Check that every dimension of every tensor has as many positions as the plan leaves."""
    state = all_tensors(pruned)
    expected = sliced_shapes(model, graph, plan)
    for key in all_tensors(model):
        if key not in expected:
            if key in state:
                raise GraphError(f"{key} is in the pruned network; its plan removes the branch that it belongs to.")
            continue
        found, wanted = list(state[key].shape), list(expected[key])
        if found != wanted:
            raise GraphError(f"{key} of the pruned network has shape {found}; its plan says {wanted}.")


def _shapes(output: object) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in output_tensors(output)]
