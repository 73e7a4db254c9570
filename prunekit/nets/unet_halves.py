"""A diffusers ``UNet2DModel`` in two halves: the encoder is shared by all timestep groups, and each group has its own decoder.

The encoder is the time embedding, the first convolution and the down blocks; the decoder is the up blocks and the output layers.
The middle block is in the shared half, at the encoder's width, as in the DPM-Solver and latent networks of the multi-stage
framework's code (arXiv:2312.09181); or every decoder has one of its own, at its own width. (The framework's EDM network has one for
each decoder at the encoder's width.) A decoder may have other widths than the encoder: the residual blocks at the border read the
encoder's channels directly, so no adapting layer is needed.
"""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from prunekit._json import JsonDict, JsonObject
from prunekit.errors import InputError

__all__ = ["Decoder", "Encoder", "decoder_config"]

_DOWN = ("DownBlock2D", "AttnDownBlock2D")
_UP = ("UpBlock2D", "AttnUpBlock2D")


class Encoder(nn.Module):
    """Time embedding, first convolution, down blocks and perhaps the middle block of a U-Net.

    Args:
        unet: gives its modules; they are not copied.
        middle: whether the middle block belongs to this half.

    Raises:
        InputError: it has blocks that pass on more than features.
    """

    def __init__(self, unet: UNet2DModel, middle: bool = True) -> None:
        super().__init__()
        config = unet.config
        odd = sorted({*config.down_block_types} - {*_DOWN} | {*config.up_block_types} - {*_UP})
        if odd or config.mid_block_type is None or config.time_embedding_type == "fourier":
            raise InputError(
                f"A multi-decoder U-Net cannot be made of {', '.join(odd) or 'this U-Net'}; expected a UNet2DModel of "
                f"{', '.join((*_DOWN, *_UP))} with a middle block and positional or learned time embedding."
            )
        self.center_input_sample = bool(config.center_input_sample)
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        self.class_embedding, self.class_embed_type = unet.class_embedding, config.class_embed_type
        self.conv_in, self.down_blocks = unet.conv_in, unet.down_blocks
        self.mid_block = unet.mid_block if middle else None

    def forward(
        self, sample: Tensor, timestep: Tensor | float | int, class_labels: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Encode a batch.

        Args:
            sample: noisy input, shape (batch, channels, height, width).
            timestep: a number, or shape (), (1,) or (batch,).
            class_labels: for a class-conditional network, shape (batch,).

        Returns:
            The features of the skip connections, finest first; the features from which the decoder starts, of the last one's shape;
            and the time embedding of shape (batch, channels).

        Raises:
            InputError: class labels are missing, or the network takes none.
        """
        if self.center_input_sample:
            sample = 2 * sample - 1
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1)
        embedding = self._embedded(timesteps.expand(len(sample)), class_labels)
        sample = self.conv_in(sample)
        skips: tuple[Tensor, ...] = (sample,)
        for block in self.down_blocks:
            sample, found = block(hidden_states=sample, temb=embedding)
            skips += found
        return skips, sample if self.mid_block is None else self.mid_block(sample, embedding), embedding

    def _embedded(self, timesteps: Tensor, class_labels: Tensor | None) -> Tensor:
        dtype = self.conv_in.weight.dtype
        embedding: Tensor = self.time_embedding(self.time_proj(timesteps).to(dtype))
        if (self.class_embedding is None) != (class_labels is None):
            raise InputError(
                "This network takes no class labels."
                if self.class_embedding is None
                else "This network needs class_labels."
            )
        if self.class_embedding is None:
            return embedding
        labels = self.time_proj(class_labels) if self.class_embed_type == "timestep" else class_labels
        classes: Tensor = self.class_embedding(labels).to(dtype)
        return embedding + classes


class Decoder(nn.Module):
    """Up blocks and output layers of a U-Net, perhaps after the middle block.

    Args:
        unet: gives its modules; they are not copied.
        middle: whether the middle block belongs to this half.
    """

    def __init__(self, unet: UNet2DModel, middle: bool = False) -> None:
        super().__init__()
        self.mid_block, self.up_blocks = unet.mid_block if middle else None, unet.up_blocks
        self.conv_norm_out, self.conv_act, self.conv_out = unet.conv_norm_out, unet.conv_act, unet.conv_out

    @classmethod
    def of_widths(cls, config: Mapping[str, object], widths: Sequence[int], middle: bool = False) -> "Decoder":
        """A freshly initialised decoder with other widths than the encoder.

        Args:
            config: config of the encoder's U-Net.
            widths: the decoder's ``block_out_channels``, finest first.
            middle: whether it has a middle block of its own.
        """
        decoder = cls(UNet2DModel(**decoder_config(config, widths)), middle)
        skips = _skip_channels(config)
        width = skips[-1]
        own = [] if decoder.mid_block is None else [(decoder.mid_block.resnets, False)]
        for resnets, skipped in (*own, *((block.resnets, True) for block in decoder.up_blocks)):
            for i, resnet in enumerate(resnets):
                reads = width + (skips.pop() if skipped else 0)
                if reads != resnet.in_channels:
                    resnets[i] = _reading(resnet, reads, config)
                width = resnet.out_channels
        return decoder

    def forward(self, skips: Sequence[Tensor], sample: Tensor, embedding: Tensor) -> Tensor:
        """The prediction, shape (batch, channels, height, width), from the output of the :class:`Encoder`."""
        left = tuple(skips)
        if self.mid_block is not None:
            sample = self.mid_block(sample, embedding)
        for block in self.up_blocks:
            count = len(block.resnets)
            sample, left = block(sample, left[-count:], embedding), left[:-count]
        prediction: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(sample)))
        return prediction


def decoder_config(config: JsonDict, widths: Sequence[int]) -> JsonObject:
    """Config of a U-Net with a decoder of these widths that reads the time embedding of the given config.

    The number of norm groups is the config's, or the largest below it that divides all widths and leaves 4 channels to a norm
    group. Attention heads have the config's number of channels, or the largest below it that divides both it and all widths.

    Raises:
        InputError: the numbers of widths and blocks differ.
    """
    own: JsonObject = copy.deepcopy(dict(config))
    full = list(own["block_out_channels"])
    if len(widths) != len(full) or any(not isinstance(width, int) or width < 1 for width in widths):
        raise InputError(f"Got decoder widths {list(widths)}; expected {len(full)} positive integers, finest first.")
    own["time_embedding_dim"] = own.get("time_embedding_dim") or 4 * full[0]
    if list(widths) != full:
        own["norm_num_groups"] = _norm_groups(own.get("norm_num_groups") or 32, *widths)
        own["block_out_channels"] = list(widths)
        if own.get("attention_head_dim"):
            own["attention_head_dim"] = math.gcd(int(own["attention_head_dim"]), *widths)
    return own


def _skip_channels(config: JsonDict) -> list[int]:
    """Channels of every skip connection, finest first."""
    widths, layers = list(config["block_out_channels"]), int(config.get("layers_per_block", 2))
    inner = [width for i, width in enumerate(widths) for _ in range(layers + (i < len(widths) - 1))]
    return [widths[0], *inner]


def _norm_groups(most: int, *widths: int) -> int:
    """Largest number of norm groups up to ``most`` that divides all widths and leaves 4 channels to each norm group."""
    fitting = [n for n in range(1, most + 1) if all(width % n == 0 and width >= 4 * n for width in widths)]
    return max(fitting, default=1)


def _reading(resnet: ResnetBlock2D, channels: int, config: Mapping[str, object]) -> ResnetBlock2D:
    """A residual block like this one, but with another number of input channels."""
    time = resnet.time_emb_proj
    return ResnetBlock2D(
        in_channels=channels,
        out_channels=resnet.out_channels,
        temb_channels=None if time is None else time.in_features,
        eps=resnet.norm1.eps,
        groups=_norm_groups(resnet.norm2.num_groups, channels),
        groups_out=resnet.norm2.num_groups,
        dropout=resnet.dropout.p,
        time_embedding_norm=resnet.time_embedding_norm,
        non_linearity=config.get("act_fn", "silu"),
        output_scale_factor=resnet.output_scale_factor,
    )
