"""One encoder with a decoder for every timestep group; decoders may have different widths (arXiv:2312.09181, section 4)."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from torch import Tensor, nn

from prunekit._chosen import check_choice
from prunekit._json import JsonDict, JsonObject
from prunekit._types import FloatArray
from prunekit.checkpoint import ModelSpec
from prunekit.choices import Middle
from prunekit.conditions import rows_of
from prunekit.cost import count_macs
from prunekit.errors import InputError
from prunekit.graph import ChannelGraph, ChannelGroup
from prunekit.graph.branch import is_within
from prunekit.graph.copying import copied
from prunekit.groups import TimestepGroups
from prunekit.nets.drop_in import DropInOutput, Router, scattered
from prunekit.nets.model_config import full_config, time_unit_of, timeline_of
from prunekit.nets.pretrained import Pretrained
from prunekit.nets.unet_halves import Decoder, Encoder
from prunekit.schedule import TimeUnit
from prunekit.slim import SlimModel

__all__ = ["MultiDecoderUNet", "StageUNet"]


class StageUNet(nn.Module):
    """The encoder with one decoder: a whole network, called as diffusers' U-Nets are. Both halves are shared, not copied.

    Args:
        encoder: the shared half.
        decoder: the timestep group's half.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> DropInOutput | tuple[Tensor]:
        """Predict, whatever the timestep; see :meth:`MultiDecoderUNet.forward`."""
        output = self.decoder(*self.encoder(sample, timestep, class_labels))
        return DropInOutput(output) if return_dict else (output,)


class MultiDecoderUNet(Pretrained, ModelMixin, ConfigMixin):  # type: ignore[misc] # diffusers has no types
    """A shared encoder, run once for a batch, and one decoder for each timestep group; each SAMPLE goes to its group's decoder.

    A model of diffusers: it stands in for a pipeline's ``unet``, and is saved and loaded with the pipeline.
    (The public code of arXiv:2312.09181 sends a whole batch to the decoder of its first sample.)

    Args:
        config: config of a diffusers ``UNet2DModel``; it describes the encoder, and the decoders except for their widths.
        groups: the partition of the timesteps, group 0 the cleanest.
        widths: for every timestep group its decoder's ``block_out_channels``, finest first; if missing, all have the encoder's.
        middle: ``shared`` for one middle block at the encoder's width, ``own`` for one in each decoder at its width.

    Raises:
        InputError: the config does not describe such a U-Net, or widths and timestep groups do not match.
    """

    __module__ = "prunekit"  # the library that a pipeline's model_index.json names
    config_name = "config.json"
    routes_samples = True  # a batch may leave some decoders without a gradient

    def __init__(
        self,
        config: JsonDict,
        groups: TimestepGroups,
        widths: Sequence[Sequence[int]] | None = None,
        middle: Middle = "shared",
    ) -> None:
        super().__init__()
        check_choice("middle", middle, get_args(Middle))
        own: JsonObject = json.loads(json.dumps({k: v for k, v in config.items() if not k.startswith("_")}))
        widths = [own["block_out_channels"]] * len(groups) if widths is None else widths
        if len(widths) != len(groups):
            raise InputError(f"Got widths for {len(widths)} decoders; expected one for each of {len(groups)} groups.")
        self.groups, self.middle = groups, middle
        self.kept: dict[str, tuple[int, ...]] = {}
        self.removed: tuple[str, ...] = ()
        self.sizes: dict[str, dict[str, int]] = {}
        self.widths = tuple(tuple(int(width) for width in wide) for wide in widths)
        self.unet_config = own
        self.about: JsonObject = {}
        self._router = Router(groups, TimeUnit())  # pipelines of UNet2DModel tell timesteps as they are
        self.register_to_config(**full_config(ModelSpec("UNet2DModel", own)))
        try:
            unet = UNet2DModel(**own)
        except (TypeError, ValueError) as error:
            raise InputError(f"UNet2DModel does not take this config: {str(error).splitlines()[0]}") from error
        self.encoder = Encoder(unet, middle == "shared")
        self.decoders = nn.ModuleList(Decoder.of_widths(own, wide, middle == "own") for wide in self.widths)

    @classmethod
    def from_unet(cls, unet: nn.Module, groups: TimestepGroups, middle: Middle = "shared") -> "MultiDecoderUNet":
        """A trained U-Net with a copy of its decoder for every timestep group; its predictions equal the U-Net's.

        Args:
            unet: a diffusers ``UNet2DModel``; it is not changed.
            groups: the partition of the timesteps.
            middle: where the middle block is, see the class.

        Raises:
            InputError: it is another kind of network.
        """
        if not isinstance(unet, UNet2DModel):
            raise InputError(f"Got a {type(unet).__name__}; expected a diffusers UNet2DModel.")
        made = cls(dict(unet.config), groups, middle=middle)
        whole = copied(unet)
        made.encoder = Encoder(whole, middle == "shared")
        made.decoders = nn.ModuleList(copied(Decoder(whole, middle == "own")) for _ in groups)
        made.train(unet.training)
        return made

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return cast(torch.dtype, self.encoder.conv_in.weight.dtype)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return cast(torch.device, self.encoder.conv_in.weight.device)

    def describe(self, about: JsonDict) -> None:
        """Set noise schedule, prediction type, data and provenance, which :meth:`save_pretrained` writes.

        Args:
            about: as from :meth:`prunekit.checkpoint.Base.about`.
        """
        self.about, self._router = (
            dict(about),
            Router(self.groups, time_unit_of(about) or TimeUnit(), timeline_of(about)),
        )

    def save(self, folder: Path | str) -> None:
        """Write a folder in the slim format; :func:`prunekit.nets.load_multi_decoder` reads it.

        Args:
            folder: folder to write.
        """
        from prunekit.nets.multi_decoder_files import save_multi_decoder  # noqa: PLC0415 - it imports this module

        save_multi_decoder(self, folder, self.about)

    @classmethod
    def _read(cls, folder: Path, **options: Any) -> "MultiDecoderUNet":
        from prunekit.nets.multi_decoder_files import load_multi_decoder  # noqa: PLC0415 - it imports this module

        return load_multi_decoder(folder, **options)[0]

    def stage(self, index: int) -> StageUNet:
        """The network that processes a timestep group's samples; it shares its modules with this network.

        Raises:
            InputError: there is no such timestep group.
        """
        return StageUNet(self.encoder, cast(Decoder, self.decoders[self.groups[index].index])).train(self.training)

    def stage_graph(self, graph: ChannelGraph) -> ChannelGraph:
        """A stage's channel groups, where those that reach into the shared encoder keep all their channels, and its branches.

        Args:
            graph: channel groups of a network that :meth:`stage` returned.
        """
        shared = {g.name for g in graph if not all(is_within(place, ["decoder"]) for place in _places(g))}
        return graph.with_whole(shared)

    def with_pruned(self, slims: Iterable[SlimModel]) -> "MultiDecoderUNet":
        """A copy with the decoders of pruned stages; the encoder and the other decoders are copied from this network.

        Args:
            slims: stages that were pruned with a graph from :meth:`stage_graph`, with their timestep groups.

        Raises:
            InputError: a slim model is not a stage of such a network, or its encoder was pruned.
        """
        made = copied(self)
        encoder = {key: tensor.shape for key, tensor in self.encoder.state_dict().items()}
        for slim in slims:
            stage, index = slim.model, self.groups[slim.group.index].index
            if not isinstance(stage, StageUNet) or encoder != {
                k: t.shape for k, t in stage.encoder.state_dict().items()
            }:
                raise InputError(
                    f"The slim model for timestep group {index} is no stage of this network with its encoder whole; "
                    "prune stage(i) by stage_graph of its channel groups."
                )
            made.decoders[index] = copied(stage.decoder)
            place = f"decoders.{index}."
            made.kept = {k: v for k, v in made.kept.items() if not k.startswith(place)}
            made.kept |= {k.replace("decoder.", place, 1): tuple(v) for k, v in slim.plan.kept.items()}
            made.sizes = {k: v for k, v in made.sizes.items() if not k.startswith(place)}
            made.sizes |= {k.replace("decoder.", place, 1): dict(v) for k, v in slim.sizes.items()}
            others = [name for name in made.removed if not name.startswith(f"branch:{place}")]
            made.removed = (*others, *(name.replace("decoder.", place, 1) for name in slim.plan.removed))
        return made

    def stage_spec(self) -> ModelSpec:
        """A stage's description for the engine: the U-Net's config, and the arguments of one forward pass."""
        inputs = ModelSpec("UNet2DModel", self.unet_config).example_inputs()
        return ModelSpec("MultiDecoderUNet.stage", self.unet_config, inputs=inputs)

    def stage_macs(self) -> tuple[int, ...]:
        """MACs per sample of each stage: encoder plus decoder."""
        inputs = self.stage_spec().example_inputs()
        return tuple(count_macs(self.stage(group.index), inputs).macs for group in self.groups)

    def mean_macs(self, sampling_steps: Sequence[int] | FloatArray) -> float:
        """Mean MACs per evaluation over a sampler's timesteps."""
        shares = self.groups.shares(np.asarray(sampling_steps, dtype=np.int64))
        return float(shares @ np.array(self.stage_macs(), dtype=np.float64))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> DropInOutput | tuple[Tensor]:
        """Predict with the decoder of each sample's timestep group.

        Args:
            sample: noisy input, shape (batch, channels, height, width).
            timestep: a number, or shape (), (1,) or (batch,); fractional ones belong to the group that contains them.
            class_labels: for a class-conditional network, shape (batch,).
            return_dict: False returns a tuple.

        Raises:
            InputError: there are neither one nor as many timesteps as samples, or there are no samples.
        """
        batch, output = len(sample), sample.new_empty(0)
        routes = list(self._router.routes(timestep, batch, sample.device))
        skips, *others = self.encoder(sample, timestep, class_labels)
        for index, rows in routes:
            own = [rows_of(skip, rows, batch) for skip in skips]
            part = self.decoders[index](own, *(rows_of(other, rows, batch) for other in others))
            output = scattered(output, part, rows, batch)
        return DropInOutput(output) if return_dict else (output,)


def _places(group: ChannelGroup) -> Iterator[str]:
    """Layers that a channel group has channels of, or modules that a residual branch is removed with."""
    yield from (member.layer for member in group.members)
    if group.branch is not None:
        yield from (stub.module for stub in group.branch.stubs)
