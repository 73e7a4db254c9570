"""The report of a folder in which single commands were run, one after the other: what a run's manifest would say of it."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from prunekit._json import read_json
from prunekit.allocation import Allocation
from prunekit.checkpoint import ModelSpec
from prunekit.cost import count_macs
from prunekit.errors import InputError, MissingFileError, PrunekitError
from prunekit.report.page import write_page
from prunekit.report.run import RunResults, read_importance, read_samples
from prunekit.results.expert_results import Assembled, BaseResult, Evaluation, Expert, ExpertsManifest
from prunekit.results.formats import ALLOCATION, EVALUATION, EXPERTS, MANIFEST, SLIM
from prunekit.results.model import plain
from prunekit.results.planning_files import ImportanceFile
from prunekit.results.predicted_time import PredictedTime
from prunekit.schedule import NoiseSchedule
from prunekit.steps.bases import open_base
from prunekit.steps.standing import UNKNOWN_BASE, SlimFacts, base_near, slims_in

__all__ = ["write_steps_report"]


def write_steps_report(folder: Path) -> Path:
    """Write ``report/`` into a folder with ``allocation.json`` and what else the single commands have made.

    ``groups.json``, ``importance.json``, ``slim/`` or ``experts/``, ``evaluation.json`` and ``samples/`` are shown if they are
    there.

    Returns:
        Path of ``report/index.html``.

    Raises:
        FileFormatError: a file cannot be read.
        MissingFileError: neither the base nor slim models of it are there.
    """
    source = folder / "allocation.json"
    allocation = Allocation.from_json(read_json(source, ALLOCATION), source)
    slims = slims_in(folder / "experts") or slims_in(folder / "slim")
    base = _base(folder, slims)
    if allocation.base_macs is None:
        allocation = allocation.for_model(base.macs)
    importance = read_importance(folder)
    experts = [_expert(slim, allocation, importance) for slim in slims if slim.group.index < len(allocation.groups)]
    found: dict[str, object] = {"experts": experts} if experts else {}
    if (folder / "experts" / "experts.json").is_file() and len(experts) == len(allocation.groups):
        read_json(folder / "experts" / "experts.json", EXPERTS)
        found["assembled"] = _assembled(experts, allocation, base.macs)
    if (path := folder / "evaluation.json").is_file():
        judged = Evaluation.of(read_json(path, EVALUATION), str(path), "make it again with `prunekit evaluate`")
        found |= {name: part for name in ("losses", "metrics") if (part := getattr(judged, name)) is not None}
    manifest = ExpertsManifest.model_validate(
        {
            "format": MANIFEST,
            "recipe": folder.resolve().name or "steps",
            "base": base,
            "allocation": plain(allocation.to_json()),
            **found,
        }
    )
    return write_page(RunResults.from_manifest(manifest, importance, read_samples(folder)), folder)


def _base(folder: Path, slims: Sequence[SlimFacts]) -> BaseResult:
    """The base, read from its own file if that is near, else from what the slim models say of it.

    Raises:
        MissingFileError: there is neither.
    """
    sha256 = next((str(found) for slim in slims if (found := slim.provenance.get("base_sha256"))), None)
    name = base_near(sha256, [folder, Path()])
    if name != UNKNOWN_BASE:
        opened = open_base(name)
        counted = count_macs(opened.model, opened.spec.example_inputs())
        return BaseResult(
            macs=counted.macs,
            params=counted.params,
            sha256=opened.sha256,
            data=plain(opened.data),
            noise_schedule=plain(opened.schedule.to_config()),
        )
    for slim in slims:
        config = read_json(slim.folder / "config.json", SLIM)
        with suppress(PrunekitError, KeyError):
            params = config["params"] if slim.whole else _parameters(ModelSpec.from_json(config["model"]))
            return BaseResult(
                macs=int(slim.provenance["base_macs"]),
                params=params,
                sha256=sha256,
                data=plain(config.get("data", {})),
                noise_schedule=plain(NoiseSchedule.from_config(config["noise_schedule"]).to_config()),
            )
    raise MissingFileError(
        f"{folder} has an allocation, and neither its base nor slim models of it; expected base.pt there, or slim/ as "
        "`prunekit prune` writes it."
    )


def _parameters(spec: ModelSpec) -> int:
    return sum(parameter.numel() for parameter in spec.build().parameters())


def _expert(slim: SlimFacts, allocation: Allocation, importance: ImportanceFile | None) -> Expert:
    """One group's slim model.

    Raises:
        InputError: it was made for other timesteps than the allocation's.
    """
    target = allocation.groups[slim.group.index]
    if (target.start, target.stop) != (slim.group.start, slim.group.stop):
        raise InputError(
            f"{slim.folder} is for timesteps {slim.group.start} to {slim.group.stop - 1}, and allocation.json gives group "
            f"{slim.group.index} those from {target.start} to {target.stop - 1}; prune again with this allocation."
        )
    config = read_json(slim.folder / "config.json", SLIM)
    sizes = {part.name: part.size for part in importance.channel_groups} if importance is not None else {}
    kept, removed = config["plan"]["kept"], config["plan"].get("removed", [])
    branches = (importance.branches if importance is not None else None) or {}
    gone = {name for branch in removed if branch in branches for name in branches[branch].channel_groups}
    known: dict[str, object] = {"removed": removed} if removed else {}
    if sizes and kept.keys() <= sizes.keys() and set(removed) <= branches.keys():
        known["widths"] = {
            name: [size, 0 if name in gone else len(kept.get(name, range(size)))]
            for name, size in sizes.items()
            if name not in branches
        }
    if (time := PredictedTime.from_provenance(slim.provenance, str(slim.folder / "config.json"))) is not None:
        known["time"] = time
    return Expert.joined(
        group=slim.group.index,
        target_macs=None if time is not None else target.target_macs,
        macs=config["macs"],
        params=config["params"],
        **known,
    )


def _assembled(experts: Sequence[Expert], allocation: Allocation, base_macs: int) -> Assembled:
    macs = {expert.group: expert.macs for expert in experts}
    mean = sum(group.share * macs[group.index] for group in allocation.groups)
    return Assembled(mean_macs=mean, mean_mac_ratio=mean / base_macs, params=sum(expert.params for expert in experts))
