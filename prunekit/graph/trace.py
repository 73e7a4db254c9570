"""Read the channel groups of a network off one forward pass, see :mod:`prunekit.graph.flow`."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

from torch import nn

from prunekit._chosen import check_choice
from prunekit._messages import one_line
from prunekit.errors import GraphError
from prunekit.graph.branch_trial import branches_of
from prunekit.graph.channels import Channels
from prunekit.graph.constraints import Constraints
from prunekit.graph.deadline import Deadline
from prunekit.graph.declared import as_layers
from prunekit.graph.forward_pass import Inputs, check_inputs, check_is_no_script, undisturbing
from prunekit.graph.group_building import Making
from prunekit.graph.narrowing import corresponds, narrowed
from prunekit.graph.plan import PruningPlan
from prunekit.graph.recording import Unsound
from prunekit.graph.retrying import Retries
from prunekit.graph.structure import ChannelGraph, HeadMode, NormMode, Shrink
from prunekit.graph.surgery import apply
from prunekit.graph.trial import OF_COPIES, OF_SHAPES, Trial
from prunekit.graph.values import random_inputs
from prunekit.graph.weightless import hollow, is_hollow, is_large, weightless

__all__ = ["trace", "with_branches"]

_log = logging.getLogger(__name__)


@undisturbing
def trace(
    model: nn.Module,
    example_inputs: Inputs,
    norm_mode: NormMode = "even",
    head_mode: HeadMode = "whole",
    seconds: float = 300.0,
    progress: Callable[[str], None] | None = None,
    constraints: Constraints | None = None,
    shrink: Shrink = "width",
) -> ChannelGraph:
    """Find which channels can only be removed together.

    Every channel group is pruned for trial, see :mod:`prunekit.graph.trial`; those that fail are left whole, with the reason.
    An attention that does not shrink in the mode asked for is tried in the other one.

    A large network is followed without values, and its groups are tried twice: all of it without values, and a copy with a few
    channels in each group with values. A small one is run as it is.

    Args:
        model: the network; it is run a few times and not changed. It may be on the meta device.
        example_inputs: arguments of one forward pass, batch 1: a dict by name, or a tuple by place.
        norm_mode: how group norms shrink, see :class:`ChannelGraph`.
        head_mode: how attentions shrink: by ``whole`` heads, or ``even``, every head by the same number of channels.
        seconds: limit of following the network through and of its trials, in processor time of the calling thread. After half of
            it, groups that fail are left whole without trying other ways to shrink them.
        progress: is told what is being done, once that takes more than a few seconds; it is logged, too.
        shrink: what is to become smaller, see :meth:`ChannelGraph.shrinking`; residual branches are only looked for if they are to.
        constraints: which layers stay whole, are tied, shrink only so far or in another mode, or are of a kind that nobody sees.

    Raises:
        GraphError: the network cannot be traced, or not within the limit.
        InputError: a mode is unknown, the example inputs are neither a tuple nor a dict, a constraint names no layer, or
            constraints contradict each other or the network.
    """
    for what, given, known in (
        ("norm_mode", norm_mode, NormMode),
        ("head_mode", head_mode, HeadMode),
        ("shrink", shrink, Shrink),
    ):
        check_choice(what, given, get_args(known))
    check_inputs(example_inputs)
    check_is_no_script(model)
    constraints = constraints or Constraints()
    ways = ("whole", "even", "scaled") if head_mode == "whole" else ("even", "scaled", "whole")
    tracing = _Tracing(Retries(ways, constraints), norm_mode, Deadline(seconds, progress))
    with as_layers(model, constraints.declare):
        graph = tracing.run(model, example_inputs)
        graph = graph if shrink == "width" else with_branches(graph, model, example_inputs, tracing.deadline)
        return constraints.held(graph, model).shrinking(shrink)


def with_branches(
    graph: ChannelGraph, model: nn.Module, inputs: Inputs, deadline: Deadline | None = None
) -> ChannelGraph:
    """The graph with the residual branches that can be removed, see :mod:`prunekit.graph.residuals`.

    They are looked for in copies with few channels. If it cannot be followed, there are none, and the reason is logged.

    Args:
        graph: channel groups of the network; one that has branches is given back as it is.
        model: the network.
        inputs: arguments of one forward pass, batch 1.
        deadline: when to give up; 300 seconds from now if missing.
    """
    if graph.branches:
        return graph
    deadline = deadline or Deadline(300.0, None)
    deadline.say("looking for residual branches")
    try:
        narrow = [narrowed(model, graph, seed)[1] for seed in (0, 1)]  # widths that are equal by chance differ
        given = random_inputs(inputs) if is_hollow(inputs) else inputs
        return replace(graph, branches=branches_of(narrow, given, deadline))
    except Exception as error:  # it can be pruned in width
        _log.info("Residual branches of %s are not known (%s).", type(model).__name__, one_line(error))
        return graph


@dataclass(frozen=True, eq=False)
class _Followed:
    """A network that has been followed.

    Args:
        model: the network.
        inputs: of its forward pass.
        bare: both without values, None where it was run with values.
        channels: what its forward pass has said.
        making: makes graphs of that.
    """

    model: nn.Module
    inputs: Inputs
    bare: tuple[nn.Module, Inputs] | None
    channels: Channels
    making: Making


@dataclass(frozen=True, eq=False)
class _Tracing:
    """How one network is traced.

    Args:
        retries: what has been tried.
        norm_mode: how group norms shrink.
        deadline: when to give up.
    """

    retries: Retries
    norm_mode: NormMode
    deadline: Deadline

    def run(self, model: nn.Module, inputs: Inputs) -> ChannelGraph:
        """Follow and try until nothing changes."""
        large = is_large(model)
        while True:
            whole = self._follow(model, inputs, not large)
            if large and self._changes_shapes(whole):
                continue
            trial = self._narrow_trial(whole) if large else None
            if trial is None:
                whole = self._follow(model, inputs, with_values=True) if whole.bare else whole
                self.deadline.say("trying all channel groups")
                graph = whole.making.graph()
                own = apply(model, graph, PruningPlan({}, graph.fingerprint), share=True)
                trial = Trial(own, graph, whole.channels, inputs, self.deadline)
            if not self.retries.after(trial, self.deadline.is_early()):
                return whole.making.in_the_modes_asked_for()

    def _follow(self, model: nn.Module, inputs: Inputs, with_values: bool) -> _Followed:
        """Follow a network through, without values where it runs like that."""
        self.deadline.say(f"following {type(model).__name__} through")
        bare = None
        if not with_values:
            try:
                bare = hollow(model, inputs)
                with weightless():
                    channels = self._channels(*bare)
            except Exception:  # it needs values, and says why when it is run with them
                self.deadline.check()
                bare = None
        if bare is None:
            channels = self._channels(model, inputs)
        return _Followed(model, inputs, bare, channels, Making(channels, self.retries, inputs, self.norm_mode))

    def _channels(self, model: nn.Module, inputs: Inputs) -> Channels:
        return Channels.of(
            model, inputs, self.deadline, self.retries.modes, self.retries.ties, self.retries.constraints
        )

    def _changes_shapes(self, whole: _Followed) -> bool:
        """Try all groups without values; gives back whether something else is to be tried then."""
        if whole.bare is None:
            return False
        self.deadline.say("trying the shapes of all channel groups")
        trial = Trial(whole.bare[0], whole.making.graph(), whole.channels, whole.bare[1], self.deadline, OF_SHAPES)
        try:
            return self.retries.after(trial)
        except Unsound:  # it does not run twice alike; the trial with values says so
            return False

    def _narrow_trial(self, whole: _Followed) -> Trial | None:
        """A trial of a copy with few channels in each group, None where such a copy is another network."""
        graph = whole.making.graph()
        self.deadline.say("trying channel groups on a narrow copy")
        try:
            plan, model = narrowed(whole.model, graph)
            inputs = random_inputs(whole.inputs) if is_hollow(whole.inputs) else whole.inputs
            narrow = self._follow(model, inputs, with_values=True)
        except GraphError:
            self.deadline.check()
            return None
        if not corresponds(graph, whole.channels, plan, narrow.making.graph(), narrow.channels):
            return None
        return Trial(model, narrow.making.graph(), narrow.channels, inputs, self.deadline, OF_COPIES)
