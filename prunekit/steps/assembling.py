"""Combines the slim models of all timestep groups into experts."""

from pathlib import Path

from prunekit import nets
from prunekit._leftovers import restore_within
from prunekit.errors import InputError
from prunekit.groups import TimestepGroups
from prunekit.slim import load_slim
from prunekit.steps.standing import missing_groups, partition_of, prune_missing, slims_in

__all__ = ["assemble"]


def assemble(
    folder: Path | str, output: Path | str, count: int | None = None, share: float | None = None
) -> TimestepGroups:
    """Put the slim models of a folder (``group-0`` …) together into an experts folder.

    Args:
        folder: holds the slim models' folders.
        output: experts folder to write.
        count: take ``group-0`` … ``group-<count − 1>``; all folders if missing.
        share: tolerance for storing networks as differences, see :func:`prunekit.nets.save_experts`.

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
    if count is None:
        _check_complete(folder)
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
    nets.save_experts(slims, groups, output, share=share)
    return groups


def _check_complete(folder: Path) -> None:
    """Refuse slim models of some timestep groups only.

    Raises:
        InputError: it names the groups that are missing, and has the command that makes them.
    """
    slims = slims_in(folder)
    places = [folder.resolve().parent, Path()]
    missing = missing_groups(slims, places) if slims else []
    if not missing:
        return
    known = partition_of(slims, places)
    told = ", ".join(f"{group.index} (timesteps {group.start} to {group.stop - 1})" for group in missing)
    of = "" if known is None else f" of {len(known[0])}"
    again = prune_missing(slims, [group.index for group in missing], folder)
    several = len(missing) > 1
    noun = "groups" if several or of else "group"
    what = f"{len(missing)}{of} {noun} {'are' if several else 'is'} missing, {told}"
    raise InputError(
        f"The slim models in {folder} do not cover the timesteps: {what}; make {'them' if several else 'it'} with `{again}`."
    )
