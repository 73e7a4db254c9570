"""What the steps of the job have left in a folder: which files, which slim models, and which of them are missing.

It reads JSON alone, so that the command line can say at once where a user stands.
"""

import os
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit._files import sha256_file
from prunekit._json import JsonDict, read_json
from prunekit._messages import one_line
from prunekit._missing import EMBEDDED
from prunekit.errors import FileFormatError, PrunekitError
from prunekit.results.formats import SLIM

if TYPE_CHECKING:
    from prunekit.groups import TimestepGroup, TimestepGroups

__all__ = [
    "UNKNOWN_BASE",
    "SlimFacts",
    "base_near",
    "base_of",
    "command",
    "has_steps",
    "missing_groups",
    "other_than",
    "partition_of",
    "prune_missing",
    "samples_of",
    "slims_in",
]

UNKNOWN_BASE = "BASE"
"""Stands in a command for a base that is not found near its slim models."""
_BASES = ("base.pt", "base.safetensors")
_NETWORK = "diffusion_pytorch_model"
_CHECKPOINTS = (
    *("*.pt", "*.safetensors", "*.pth", "*.ckpt", f"*/{_NETWORK}*.safetensors"),
    *("*/unet/*.safetensors", "*/transformer/*.safetensors"),
)
_SMALL = 2 * 2**30  # bytes; larger files are not hashed for the sake of a suggestion


@dataclass(frozen=True)
class SlimFacts:
    """What a slim model's ``config.json`` says of where it stands in the job.

    Args:
        folder: its folder.
        group: its timesteps.
        num_timesteps: T.
        whole: whether it keeps every channel of the base.
        tuned: number of steps that it was fine-tuned for; 0 if it was not.
        provenance: how it was made.
    """

    folder: Path
    group: "TimestepGroup"
    num_timesteps: int
    whole: bool
    tuned: int
    provenance: JsonDict

    @property
    def finished(self) -> bool:
        """Whether it needs no fine-tuning: it had one, or it is the base itself."""
        return self.whole or self.tuned > 0


def has_steps(folder: Path) -> bool:
    """Whether single commands were run in a folder: it has an allocation, and no manifest of a run."""
    return (folder / "allocation.json").is_file() and not (folder / "manifest.json").exists()


def slims_in(folder: Path, *, all_readable: bool = False) -> list[SlimFacts]:
    """The slim models ``group-0``, ``group-1``, … in a folder by their group.

    Args:
        folder: the folder.
        all_readable: whether one that cannot be read is refused; otherwise it is skipped.

    Raises:
        FileFormatError: one cannot be read.
    """
    found = []
    for path in sorted(folder.glob("group-*/config.json")) if folder.is_dir() else []:
        try:
            found.append(_facts_of(path))
        except (PrunekitError, OSError, KeyError, TypeError, ValueError) as error:
            if all_readable:
                raise FileFormatError(
                    f"{path} cannot be read ({one_line(error)}); prune that group again, or remove {path.parent}."
                ) from error
    return sorted(found, key=lambda slim: slim.group.index)


def _facts_of(path: Path) -> SlimFacts:
    from prunekit.groups import TimestepGroup  # noqa: PLC0415 - needs numpy, which a missing file does not

    config = read_json(path, SLIM)
    group, provenance = config["timestep_group"], config.get("provenance", {})
    return SlimFacts(
        path.parent,
        TimestepGroup(int(group["index"]), int(group["start"]), int(group["stop"])),
        int(config["num_timesteps"]),
        not (config["plan"]["kept"] or config["plan"].get("removed") or config.get("stubs")),
        int(provenance.get("finetuned_steps") or 0),
        provenance,
    )


def partition_of(slims: Sequence[SlimFacts], places: Iterable[Path]) -> "tuple[TimestepGroups, Path] | None":
    """The timestep groups that slim models belong to, and the file that has them; None if no file near them does.

    Args:
        slims: the slim models; at least one.
        places: folders in which ``allocation.json`` and ``groups.json`` are looked for.
    """
    from prunekit.groups import TimestepGroups  # noqa: PLC0415 - needs numpy, which a missing file does not

    for place in places:
        for name in ("allocation.json", "groups.json"):
            with suppress(PrunekitError, OSError, KeyError, TypeError, ValueError):
                groups = TimestepGroups.from_json(read_json(place / name), place / name)
                if groups.num_timesteps == slims[0].num_timesteps and all(
                    slim.group.index < len(groups) and groups[slim.group.index] == slim.group for slim in slims
                ):
                    return groups, place / name
    return None


def missing_groups(slims: Sequence[SlimFacts], places: Iterable[Path]) -> "list[TimestepGroup]":
    """The timestep groups without a slim model, as far as files near them or the slim models themselves show.

    Without a file of groups, they are uniform if the slim models are of uniform groups. Otherwise what lies between two slim models
    counts as one group for each index that is missing, and what lies after the last one as one group.
    """
    from prunekit.groups import TimestepGroup  # noqa: PLC0415 - needs numpy, which a missing file does not

    known = partition_of(slims, places)
    have = {slim.group.index for slim in slims}
    groups = _uniform(slims) if known is None else known[0]
    if groups is not None:
        return [group for group in groups if group.index not in have]
    missing, at, index = list[TimestepGroup](), 0, 0
    for slim in slims:
        missing += [TimestepGroup(one, at, slim.group.start) for one in range(index, slim.group.index)]
        at, index = slim.group.stop, slim.group.index + 1
    if at < slims[-1].num_timesteps:
        missing.append(TimestepGroup(index, at, slims[-1].num_timesteps))
    return missing


def prune_missing(
    slims: Sequence[SlimFacts],
    missing: Sequence[int],
    folder: Path,
    plan: Path | None = None,
    base: str | None = None,
    **told: object,
) -> str:
    """The command that prunes missing timestep groups as the first one was pruned.

    Args:
        slims: the slim models that are there; at least one.
        missing: the groups without one.
        folder: where the slim models are.
        plan: the allocation that was named; by files near the slim models if missing.
        base: the base; one near the slim models that has their hash if missing.
        told: options that are known better than by the slim models; None for those that are not.
    """
    made = slims[0].provenance
    if plan is None:
        known = partition_of(slims, [folder.resolve().parent, Path()])
        plan = Path(os.path.relpath(known[1])) if known and known[1].name == "allocation.json" else None
    sought: dict[str, object] = {
        "target": None if plan or not made.get("base") else _fraction(made["target"], made["base"]),
        "allocation": None if plan is None else other_than(plan, Path("allocation.json")),
        "output": other_than(folder, Path("slim")),
        **{name: made[name] for name, usual in _USUAL.items() if made.get(name, usual) != usual},
        **({"llm_endpoint": "URL", "llm_model": "MODEL"} if made.get("proposer") == "llm" else {}),
    }
    sought |= {name: one for name, one in told.items() if one is not None}
    return command("prune", base or base_of(slims, folder), group=list(missing), **sought)


_USUAL = {
    "target_of": "macs",
    "criterion": "taylor",
    "proposer": "greedy",
    "proxy": "least-squares",
    "repair": "least-squares",
    "seed": 0,
    "shrink": "width",
}
"""Options of ``prune`` that a slim model records, and their defaults."""


def _fraction(target: float, base: float) -> float:
    """The shortest decimal fraction of a base's cost that is a target; counts, of MACs or parameters, are rounded down."""
    exact, error = target / base, 1 / base if isinstance(target, int) else 1e-6
    return next(
        (short for digits in range(1, 6) if abs((short := round(exact, digits)) - exact) < error), round(exact, 6)
    )


def other_than(path: Path, default: Path) -> Path | None:
    """A path that has to be typed, since it is not the default."""
    return None if os.path.realpath(path) == os.path.realpath(default) else path


def _uniform(slims: Sequence[SlimFacts]) -> "TimestepGroups | None":
    """The uniform timestep groups that slim models are of, the fewest; None if they are of other ones."""
    from prunekit.groups import Uniform  # noqa: PLC0415 - needs numpy, which a missing file does not
    from prunekit.schedule import NoiseSchedule  # noqa: PLC0415 - as above

    last, timesteps = slims[-1].group.index, slims[0].num_timesteps
    schedule, shortest = NoiseSchedule.linear(timesteps), min(len(slim.group) for slim in slims)
    for count in range(last + 1, min(timesteps, timesteps // shortest + 1) + 1):
        groups = Uniform()(schedule, count).groups
        if all(groups[slim.group.index] == slim.group for slim in slims):
            return groups
    return None


def base_near(sha256: str | None, places: Iterable[Path]) -> str:
    """The base of a given hash, or without a hash the base that stands there, as it is typed; ``BASE`` if none is found."""
    for place in places:
        standing = [place / name for name in _BASES if (place / name).is_file()]
        others = [path for pattern in _CHECKPOINTS for path in sorted(place.glob(pattern)) if path not in standing]
        for path in [*standing, *(others if sha256 else [])]:
            if not sha256 or (path.stat().st_size <= _SMALL and sha256_file(path) == sha256):
                if path.parent.name in ("unet", "transformer"):
                    return str(path.parent.parent)
                return str(path.parent if path.name.startswith(_NETWORK) else path)
    for asset in (files("prunekit") / "assets").iterdir():
        name = asset.name.removesuffix("-base.safetensors")
        if sha256 and name != asset.name and sha256_file(Path(str(asset))) == sha256:
            return f"{EMBEDDED}{name}"
    return UNKNOWN_BASE


def base_of(slims: Sequence[SlimFacts], folder: Path) -> str:
    """The base that slim models in a folder were pruned from, as it is typed."""
    sha256 = next((str(found) for one in slims if (found := one.provenance.get("base_sha256"))), None)
    return base_near(sha256, dict.fromkeys([Path(), Path(os.path.relpath(folder.resolve().parent))]))


def samples_of(model: str) -> Path:
    """The file that ``prunekit sample`` writes of a model if it is not told otherwise."""
    name = Path(model.replace(":", "-"))
    return Path("samples") / f"{name.stem if Path(model).is_file() else name.name or 'model'}.npz"


def command(*words: object, **options: object) -> str:
    """A command line to be typed, quoted for a shell; options that are None are left out, lists are repeated."""
    typed = ["prunekit", *map(str, words)]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            typed += [] if one is None else [f"--{name.replace('_', '-')}", str(one)]
    return shlex.join(typed)
