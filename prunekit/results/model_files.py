"""The JSON in folders of models: slim models and experts."""

from typing import Annotated

from prunekit._json import Bounded, Many, Named, Positive, Whole
from prunekit.results.formats import EXPERTS, SLIM
from prunekit.results.model import Free, Is, Model, NotNull
from prunekit.results.planning_files import GroupPart, Partition

__all__ = ["ExpertsFile", "SlimFile"]

_MAX_TIMESTEPS = 2**20


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
    """

    networks: Annotated[Many[Whole] | None, NotNull()] = None
    reference: Annotated[Whole | None, NotNull()] = None
