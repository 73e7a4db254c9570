"""Files that commands keep for each other: tables of layer times, journals of searches, metadata of bases, notes of images."""

from typing import Annotated, Literal

from prunekit._json import Amount, Bounded, Many, Named, Pair, Positive, Ratio, Whole
from prunekit.choices import TimedPrecision
from prunekit.results.formats import BASE, IMAGES, LATENCY, SEARCH
from prunekit.results.model import Free, Is, JsonValue, Model, NotNull

__all__ = [
    "BaseFile",
    "ImagesFile",
    "JournalAnswer",
    "JournalEntry",
    "JournalHeader",
    "LatencyFile",
    "LayerKindPart",
    "LayerTimesPart",
]

_Time = Annotated[float, Bounded(gt=0)]


class LayerKindPart(Model):
    """Everything except the widths that decides a layer's time.

    Args:
        op: kind of layer.
        size: positions of the input per sample (height, width); for an attention: queries, keys, width of a head (0: one head).
        kernel: kernel size of a convolution.
        stride: its stride.
        padding: its padding.
        dilation: its dilation.
        groups: its number of groups.
        fixed: input and output width if pruning does not change it, else 0.
    """

    op: Literal["conv", "depthwise", "transposed", "linear", "attention"]
    size: Many[Whole]
    kernel: Annotated[Many[Whole] | None, NotNull()] = None
    stride: Annotated[Many[Whole] | None, NotNull()] = None
    padding: Annotated[Many[Whole] | None, NotNull()] = None
    dilation: Annotated[Many[Whole] | None, NotNull()] = None
    groups: Annotated[Positive | None, NotNull()] = None
    fixed: Annotated[Pair[Whole] | None, NotNull()] = None


class LayerTimesPart(Model):
    """Times of one kind of layer.

    Args:
        kind: the kind of layer.
        inner: input widths, rising.
        outer: output widths, rising.
        seconds: seconds per batch, for each input width a list over the output widths; never falling.
        blocks: input and output channels that the kernel takes at a time; 1 where time falls evenly.
    """

    kind: LayerKindPart
    inner: Many[Whole]
    outer: Many[Whole]
    seconds: Many[Many[Amount]]
    blocks: Annotated[Pair[Positive] | None, NotNull()] = None


class _UsedPart(Model):
    """How a layer uses a table.

    Args:
        table: index of the table.
        calls: number of calls in a forward pass.
        positions: output positions per sample and call.
    """

    table: Whole
    calls: Whole
    positions: Whole


class _RestPart(Model):
    """Time that no table has.

    Args:
        layer_scale: factor of the layers' times.
        seconds: part that does not depend on the plan; 0 since the part for each run of a layer is there.
        seconds_per_value: part for each number that the layers output.
        seconds_per_call: part for each run of a layer.
    """

    layer_scale: Amount
    seconds: Annotated[Amount | None, NotNull()] = None
    seconds_per_value: Amount
    seconds_per_call: Annotated[Amount | None, NotNull()] = None


class _CheckPart(Model):
    """A pruned network whose time was predicted and measured.

    Args:
        mac_ratio: its MACs as a fraction of the base's.
        predicted: predicted seconds per batch.
        measured: measured seconds per batch.
    """

    mac_ratio: Amount
    predicted: Amount
    measured: _Time


class LatencyFile(Model):
    """Layer times, measured on one machine.

    Args:
        format: name and version of the format.
        machine: the machine, torch's version and the number of threads.
        batch_size: samples in a batch.
        fingerprint: of the network's channel groups.
        base_seconds: measured seconds per batch of the network before pruning.
        rest: time outside the layers.
        times: tables of layer times.
        layers: for each layer, how it uses a table.
        checks: networks that were not used to fit the rest.
        dtype: type of weights and activations.
        compiled: whether the networks were compiled by ``torch.compile``.
    """

    format: Annotated[str, Is(LATENCY)]
    machine: Free
    batch_size: Positive
    fingerprint: str
    base_seconds: _Time
    rest: _RestPart
    times: Many[LayerTimesPart]
    layers: Named[_UsedPart]
    checks: Many[_CheckPart]
    dtype: Annotated[TimedPrecision | None, NotNull()] = None
    compiled: Annotated[bool | None, NotNull()] = None


class JournalHeader(Model):
    """The first line of a search's journal.

    Args:
        format: name and version of the format.
        key: hash of everything that decides the search: network, target, options and version.
    """

    format: Annotated[str, Is(SEARCH)]
    key: str


class JournalEntry(Model):
    """A line of a search's journal: a measured candidate or a round's choice.

    Args:
        round: the round, 0 for the base.
        chosen: how the choice was made; only lines of choices have it.
        steps: for each channel group, the number of steps that it has shrunk by.
        macs: MACs of the candidate.
        loss: its proxy.
        spent: its cost in the target's unit, if that is not MACs.
        draws: number of draws of a screening; missing if all draws were used.
        sliced: whether the screening started from the repaired network of another plan.
    """

    round: int
    chosen: JsonValue = None
    steps: Many[Whole]
    macs: Whole
    loss: float
    spent: Annotated[Whole | None, NotNull()] = None
    draws: Annotated[Positive | None, NotNull()] = None
    sliced: Annotated[bool | None, NotNull()] = None


class JournalAnswer(Model):
    """A line of a search's journal: a language model's answer, or the reason why it failed.

    Args:
        round: the round.
        ratios: for each channel group, the ratio that is removed.
        failed: why there is no answer.
    """

    round: int
    ratios: Annotated[Named[Ratio] | None, NotNull()] = None
    failed: Annotated[str | None, NotNull()] = None


class BaseFile(Model):
    """The metadata of a base: in ``base.pt`` under ``about``, in ``base.safetensors`` in the header.

    Args:
        format: name and version of the format.
        model: class and config of the network.
        noise_schedule: the noise schedule.
        prediction_type: what the network predicts.
        data: images that it was trained on: name, hash, size.
        provenance: how it was made, with its figures.
    """

    format: Annotated[str, Is(BASE)]
    model: Annotated[Free | None, NotNull()] = None
    noise_schedule: Annotated[Free | None, NotNull()] = None
    prediction_type: Annotated[str | None, NotNull()] = None
    data: Annotated[Free | None, NotNull()] = None
    provenance: Annotated[Free | None, NotNull()] = None


class ImagesFile(Model):
    """Paths of images by their hash, noted next to the models that were made from them.

    Args:
        format: name and version of the format.
        images: hash of the images → their path on this machine.
    """

    format: Annotated[str, Is(IMAGES)]
    images: Named[str]
