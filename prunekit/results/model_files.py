"""The JSON in folders of models: slim models and experts."""

from typing import Annotated, Literal

from prunekit._json import Bounded, Many, Named, Positive, Whole
from prunekit.results.formats import EXPERTS, SLIM
from prunekit.results.model import Free, Is, Model, NotNull
from prunekit.results.planning_files import GroupPart, Partition

__all__ = ["ExpertsFile", "SlimFile", "StubPart"]

_MAX_TIMESTEPS = 2**20


class StubOutputPart(Model):
    """One tensor that a stub returns.

    Args:
        argument: name of the module's argument that it follows.
        place: the argument's place, where it is given without a name.
        through: children of a shortcut that the argument goes through, in order.
        scale: factor of what a shortcut returns.
        shape: of zeros: for each dimension 1, or 0 for the argument's own; missing for the argument's shape.
    """

    argument: str
    place: Whole
    through: Annotated[Many[str], Bounded(max_length=64)]
    scale: float
    shape: Annotated[Many[Literal[0, 1]] | None, Bounded(max_length=16)] = None


class StubPart(Model):
    """What stands where a module of a residual branch was removed.

    Args:
        module: the module's name.
        kind: `shortcut` returns arguments, through those children that it keeps; `void` returns zeros.
        outputs: the tensors that it returns.
        nested: whether they are returned in a tuple.
    """

    module: str
    kind: Literal["shortcut", "void"]
    outputs: Annotated[Many[StubOutputPart], Bounded(min_length=1, max_length=64)]
    nested: bool


class SlimFile(Model):
    """A slim model without its weights, `config.json`.

    Args:
        format: name and version of the format.
        model: class and config of the unpruned architecture.
        timestep_group: the timesteps that the model is used for.
        num_timesteps: number of timesteps T.
        macs: MACs per sample per evaluation.
        params: number of parameters.
        plan: the channels that were kept.
        sizes: sizes that layers keep outside their tensors, such as numbers of heads.
        stubs: what stands where residual branches were removed; missing if none were.
        noise_schedule: the noise schedule.
        prediction_type: what the network predicts.
        time_unit: what the network is told for the scheduler's timestep t, `scale`·t + `offset`; it is told t if missing. With
            `sign` −1 it predicts the velocity toward the data.
        pipeline_arguments: of the pipeline's own call, as they were given when the images were encoded.
        data: the images that it was trained on.
        provenance: how it was made.
        shapes: shapes of all tensors.
        sha256: hash of the weights' file.
    """

    format: Annotated[str, Is(SLIM)]
    model: Free
    timestep_group: GroupPart
    num_timesteps: Annotated[int, Bounded(ge=1, le=_MAX_TIMESTEPS)]
    macs: Whole
    params: Whole
    plan: Free
    sizes: Named[Named[Positive]]
    stubs: Annotated[Many[StubPart] | None, NotNull()] = None
    noise_schedule: Annotated[Free | None, NotNull()] = None
    prediction_type: Annotated[str | None, NotNull()] = None
    time_unit: Annotated[Free | None, NotNull()] = None
    pipeline_arguments: Annotated[Free | None, NotNull()] = None
    data: Annotated[Free | None, NotNull()] = None
    provenance: Annotated[Free | None, NotNull()] = None
    shapes: Named[Many[Whole]]
    sha256: str


class _ExpertsHead(Model):
    """The format.

    Args:
        format: name and version of the format.
    """

    format: Annotated[str, Is(EXPERTS)]


class ExpertsFile(Partition, _ExpertsHead):
    """The timestep groups of an experts folder, `experts.json`. Slim models are in the folders `group-<index>`.

    Args:
        networks: for each group, the index of the group whose folder has its network; missing if every group has its own.
        reference: the group whose network is stored whole, if the others are stored as their differences from it.
        reference_sha256: hash of that network's file.
    """

    networks: Annotated[Many[Whole] | None, NotNull()] = None
    reference: Annotated[Whole | None, NotNull()] = None
    reference_sha256: Annotated[str | None, NotNull()] = None
