"""Multi-decoder U-Nets on disk: a slim folder with this project's architecture, rebuilt without pickle."""

from pathlib import Path

import torch

from prunekit._files import json_hash
from prunekit._json import JsonDict, read_json
from prunekit.checkpoint import ModelSpec
from prunekit.errors import FileFormatError, InputError
from prunekit.graph import PruningPlan
from prunekit.groups import TimestepGroup, TimestepGroups
from prunekit.nets.multi_decoder import MultiDecoderUNet
from prunekit.results.formats import SLIM
from prunekit.slim import SlimModel, load_slim, save_slim

__all__ = ["is_multi_decoder", "load_multi_decoder", "multi_decoder_slim", "save_multi_decoder"]

_CLASS = "MultiDecoderUNet"
_MAX_GROUPS = 64


def multi_decoder_slim(net: MultiDecoderUNet, about: JsonDict) -> SlimModel:
    """The network with the metadata of a slim folder; MACs are the mean over all timesteps, rounded up.

    Args:
        net: the network.
        about: noise schedule, prediction type, data and provenance, as from :meth:`prunekit.checkpoint.Base.about`.
    """
    groups, stages = net.groups, net.stage_macs()
    config = {
        "unet": net.unet_config,
        "widths": [list(widths) for widths in net.widths],
        "cuts": list(groups.cuts),
        "num_timesteps": groups.num_timesteps,
        "method": groups.method,
        "middle": net.middle,
    }
    spent = sum(len(group) * macs for group, macs in zip(groups, stages, strict=True))
    provenance = {**about.get("provenance", {}), "stage_macs": list(stages)}
    return SlimModel(
        net,
        ModelSpec(_CLASS, config),
        PruningPlan(net.kept, json_hash(config)[:16], net.removed),
        net.sizes,
        TimestepGroup(0, 0, groups.num_timesteps),
        groups.num_timesteps,
        -(-spent // groups.num_timesteps),
        sum(parameter.numel() for parameter in net.parameters()),
        {**about, "provenance": provenance},
    )


def save_multi_decoder(net: MultiDecoderUNet, folder: Path | str, about: JsonDict) -> None:
    """Write a folder in the slim format, atomically; see :func:`multi_decoder_slim`."""
    folder = Path(folder)
    save_slim(multi_decoder_slim(net, about), folder)


def is_multi_decoder(folder: Path | str) -> bool:
    """Whether a folder holds such a network."""
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file() or not (folder / "model.safetensors").is_file():
        return False
    spec = read_json(path).get("model")
    return isinstance(spec, dict) and spec.get("class") == _CLASS


def load_multi_decoder(folder: Path | str) -> tuple[MultiDecoderUNet, SlimModel]:
    """Read what :func:`save_multi_decoder` wrote: the network, and the metadata in its folder.

    Raises:
        MissingFileError: the folder or one of its two files is missing.
        FileFormatError: hashes, shapes or names disagree, or it is another kind of network.
    """
    folder = Path(folder)
    if folder.is_dir() and not is_multi_decoder(folder):
        read_json(folder / "config.json", SLIM)
        raise FileFormatError(f"{folder} holds another network; expected a multi-decoder U-Net's folder.")
    slim = load_slim(folder, _build)
    net = slim.model
    if not isinstance(net, MultiDecoderUNet):
        raise FileFormatError(f"{folder} holds a {type(net).__name__}; expected a multi-decoder U-Net's folder.")
    net.kept = {name: tuple(kept) for name, kept in slim.plan.kept.items()}
    net.removed = slim.plan.removed
    net.describe(slim.about)
    net.sizes = {name: dict(values) for name, values in slim.sizes.items()}
    with torch.no_grad():
        for group in net.groups:  # a forward pass in every decoder finds layers that do not fit each other
            _try(net, group, folder)
    return net, slim


def _try(net: MultiDecoderUNet, group: TimestepGroup, folder: Path) -> None:
    inputs = net.stage_spec().example_inputs()
    wanted = (1, net.unet_config["out_channels"], *inputs["sample"].shape[2:])
    try:
        shape = tuple(net(**{**inputs, "timestep": group.start})[0].shape)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise FileFormatError(f"The layers of {folder} contradict each other: {str(error).splitlines()[0]}") from error
    if shape != wanted:
        raise FileFormatError(f"{folder} makes outputs of shape {shape}; expected {wanted}.")


def _build(config: JsonDict) -> MultiDecoderUNet:
    """The unpruned network of a folder's config.

    Raises:
        InputError: the config does not describe such a network.
    """
    try:
        groups = TimestepGroups.from_cuts(int(config["num_timesteps"]), config["cuts"], str(config["method"]))
        widths, unet = [list(map(int, own)) for own in config["widths"]], dict(config["unet"])
        middle = config.get("middle", "own")  # folders of earlier versions do not say
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{_CLASS} needs unet, widths, cuts, num_timesteps and method ({error}).") from error
    if len(groups) > _MAX_GROUPS:
        raise InputError(f"Got {len(groups)} decoders; expected at most {_MAX_GROUPS}.")
    made = MultiDecoderUNet(unet, groups, widths, middle)
    made.eval()
    return made
