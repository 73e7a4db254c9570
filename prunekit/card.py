"""Model cards: the README.md of a slim or an experts folder, with front matter that the Hugging Face Hub reads.

Every figure comes from the folder's configs; missing figures are left out. Texts from a config are escaped, so that none can add a
key to the front matter or markup to the page.
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prunekit._json import JsonDict, JsonObject
from prunekit.checkpoint.denoisers import denoiser
from prunekit.errors import InputError
from prunekit.schedule.diffusers import settings_text

__all__ = ["experts_card", "slim_card"]

_CONDITIONS = ("num_class_embeds", "class_embed_type", "encoder_hid_dim", "cross_attention_dim")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def slim_card(config: JsonDict) -> str:
    """The card of one slim model.

    Args:
        config: the content of its ``config.json``.
    """
    group, timesteps = config["timestep_group"], config["num_timesteps"]
    whole = (group["start"], group["stop"]) == (0, timesteps)
    provenance = _mapping(config.get("provenance"))
    rows = {
        "Architecture before pruning": _plain(config["model"]["class"]),
        "MACs per sample per evaluation": _of(config["macs"], provenance.get("base_macs")),
        "Target": _number(provenance.get("target_macs"), " MACs"),
        "Parameters": _number(config["params"]),
        "Residual branches removed": ", ".join(_plain(name.removeprefix("branch:")) for name in _branches(config)),
        "Timesteps": f"{group['start']} … {group['stop'] - 1} of {timesteps} (0 is the cleanest), group {group['index']}",
        **_circumstances(config),
    }
    load = [
        "from prunekit.slim import load_slim",
        'slim = load_slim("path/to/this/folder")',
        "prediction = slim.model(noisy, timestep).sample",
    ]
    if not _of_diffusers(config):
        load[1:] = [
            'slim = load_slim("path/to/this/folder", network)  # the network before pruning, or a function that builds it',
            "prediction = slim.model(noisy, timestep)",
        ]
    if config["model"]["class"] == "MultiDecoderUNet":
        load = [
            "from prunekit.nets import load_multi_decoder",
            'unet, slim = load_multi_decoder("path/to/this/folder")',
            "prediction = unet(noisy, timestep).sample",
        ]
    title = "Slim denoiser" if whole else f"Slim denoiser for timesteps {group['start']} … {group['stop'] - 1}"
    removed = _removed(config)
    told = f"A network of a diffusion model, with {removed} removed."
    if not removed:
        told = "The whole network of a diffusion model; nothing was removed."
    if not whole:
        told += " Use it only for the timesteps below; all others need their own slim models."
    return _card(config, whole, title, told, rows, load)


def experts_card(
    configs: Sequence[JsonDict], extra: JsonDict | None = None, networks: Sequence[int] | None = None
) -> str:
    """The card of an experts folder.

    Args:
        configs: contents of its slim models' ``config.json``, in the order of the timestep groups.
        extra: the content of its ``experts.json`` without the groups.
        networks: for each group, the group whose network it uses; its own if missing.
    """
    first = configs[0]
    networks = range(len(configs)) if networks is None else networks
    stored = sum(configs[network]["params"] for network in set(networks))
    rows = {
        "Architecture before pruning": _plain(first["model"]["class"]),
        "Experts": str(len(configs)),
        "Parameters stored": _number(stored) + (", shared networks counted once" if _shares(networks) else ""),
        "Budget": _number(_mapping(extra).get("budget"), " of the base's MACs"),
        **_circumstances(first),
    }
    shallow = any(map(_branches, configs))
    header = "| timesteps | MACs per sample per evaluation | target | parameters |" + " branches removed |" * shallow
    header += "\n|---|---|---|---|" + "---|" * shallow
    lines = [
        f"| {config['timestep_group']['start']} … {config['timestep_group']['stop'] - 1} "
        f"| {_of(config['macs'], provenance.get('base_macs'))} | {_number(provenance.get('target_macs')) or '–'} "
        f"| {_number(config['params'])}{_shared_with(index, networks)} |" + f" {len(_branches(config))} |" * shallow
        for index, config in enumerate(configs)
        for provenance in [_mapping(config.get("provenance"))]
    ]
    load = [
        "from prunekit.nets import load_experts",
        'unet = load_experts("path/to/this/folder")',
        "prediction = unet(noisy, timestep).sample",
    ]
    told = (
        "One denoiser made of several networks: every sample goes to the expert of its timestep. "
        "It replaces the `unet` of a diffusers pipeline."
    )
    return _card(first, True, "Timestep experts", told, rows, load, "\n".join([header, *lines, ""]))


def _branches(config: JsonDict) -> list[str]:
    """Names of the residual branches that a slim model is without."""
    removed = _mapping(config.get("plan")).get("removed")
    return [name for name in removed if isinstance(name, str)] if isinstance(removed, list | tuple) else []


def _of_diffusers(config: JsonDict) -> bool:
    """Whether a slim model's class is a denoiser of diffusers, which loads by itself and returns its prediction as ``sample``."""
    try:
        denoiser(config["model"]["class"])
    except InputError:
        return False
    return True


def _removed(config: JsonDict) -> str:
    """What a slim model is without, in words; empty if it is the whole network."""
    branches = len(_branches(config))
    if not branches:
        return "" if _mapping(config.get("plan")).get("kept") == {} else "channels"
    said = f"{branches} residual branch{'es' if branches > 1 else ''}"
    return f"channels and {said}" if _mapping(_mapping(config.get("plan")).get("kept")) else said


def _shares(networks: Sequence[int]) -> bool:
    return len(set(networks)) < len(networks)


def _shared_with(index: int, networks: Sequence[int]) -> str:
    return "" if networks[index] == index else f", shared with group {networks[index]}"


def _card(
    config: JsonDict,
    makes_images: bool,
    title: str,
    told: str,
    rows: Mapping[str, str],
    load: Sequence[str],
    table: str = "",
) -> str:
    figures = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value)
    body = f"# {title}\n\n{told}\n\n| | |\n|---|---|\n{figures}\n"
    if table:
        body += f"\n{table}"
    code = "\n".join(load)
    return f"---\n{_front_matter(config, makes_images)}---\n\n{body}\n```python\n{code}\n```\n"


def _front_matter(config: JsonDict, makes_images: bool) -> str:
    """YAML for the hub; each value is JSON, which is YAML too, in ASCII and on one line."""
    model = config["model"]
    unconditional = model["class"] == "UNet2DModel" and not any(model["config"].get(key) for key in _CONDITIONS)
    base = _mapping(config.get("provenance")).get("base_model")
    values: JsonObject = {"library_name": "prunekit", "tags": ["diffusion", "pruning", "structural-pruning"]}
    if makes_images and unconditional:
        values["pipeline_tag"] = "unconditional-image-generation"
    if isinstance(base, str) and len(base) <= 96 and _HUB_ID.fullmatch(base):
        values["base_model"] = base
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items())


def _circumstances(config: JsonDict) -> dict[str, str]:
    """A config's entries on the use and the origin of the model."""
    provenance = _mapping(config.get("provenance"))
    data = _mapping(config.get("data"))
    steps = provenance.get("finetuned_steps")
    return {
        "Predicts": _plain(config.get("prediction_type")),
        "Noise schedule": _plain(_mapping(config.get("noise_schedule")).get("kind")),
        "Sampled": _plain(settings_text(_mapping(_mapping(config.get("noise_schedule")).get("scheduler")))),
        "Trained on": _plain(data.get("source")),
        "Pruned by": ", ".join(
            f"{key} {_plain(provenance[key])}" for key in ("criterion", "proposer") if provenance.get(key)
        ),
        "Fine-tuned": _number(steps, " train steps"),
        "Base's SHA-256": _plain(provenance.get("base_sha256")),
    }


def _mapping(value: object) -> JsonDict:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any, unit: str = "") -> str:
    return f"{value:,}{unit}" if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _of(macs: int, before: object) -> str:
    """``after of before (percent)``, or only the figure if the base's is not known."""
    if not isinstance(before, int) or before <= 0:
        return _number(macs)
    return f"{macs:,} of {before:,} before ({100 * macs / before:.1f} %)"


def _plain(value: object) -> str:
    """A config's text as plain words in a table cell: one line, no markup, at most 120 characters."""
    if value is None:
        return ""
    words = " ".join(str(value).split())[:120]
    words = "".join(character for character in words if character.isprintable())
    return re.sub(r"([\\`*_{}\[\]()#+!|~:@])", r"\\\1", html.escape(words, quote=False)).replace("\\:", "&#58;")
