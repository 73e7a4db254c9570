"""Combines the slim models of all timestep groups into experts."""

from pathlib import Path

from prunekit._leftovers import restore_within
from prunekit.errors import InputError
from prunekit.groups import TimestepGroups
from prunekit.nets import save_experts
from prunekit.slim import load_slim

__all__ = ["assemble"]


def assemble(folder: Path | str, output: Path | str, count: int | None = None) -> TimestepGroups:
    """Put the slim models of a folder (``group-0`` …) together into an experts folder.

    Args:
        folder: holds the slim models' folders.
        output: experts folder to write.
        count: take ``group-0`` … ``group-<count − 1>``; all folders if missing.

    Raises:
        InputError: the slim models do not cover all timesteps, or differ in noise schedule or prediction type.
    """
    folder = Path(folder)
    output = Path(output)
    restore_within(folder)
    found = sorted(path for path in folder.glob("group-*") if path.is_dir()) if folder.is_dir() else []
    if count is not None:
        found = [folder / f"group-{index}" for index in range(count)]
    if not found:
        raise InputError(f"{folder} has no folders group-0, group-1, …; prune first with `prunekit prune base.pt`.")
    slims = sorted((load_slim(path) for path in found), key=lambda slim: slim.group.index)
    try:
        groups = TimestepGroups(slims[0].num_timesteps, tuple(slim.group for slim in slims))
    except InputError as error:
        raise InputError(f"The slim models in {folder} do not cover the timesteps: {error}") from error
    for slim in slims:
        if any(slim.about.get(key) != slims[0].about.get(key) for key in ("noise_schedule", "prediction_type")):
            raise InputError(
                f"The slim models of groups 0 and {slim.group.index} in {folder} have different noise schedules or prediction "
                "types; expected all of them to be pruned from one base."
            )
    save_experts(slims, groups, output)
    return groups
