"""The next command: every command of the flow ends with it, and ``prunekit`` alone shows where a folder stands."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit._json import JsonDict, read_json
from prunekit._kinds import has_format
from prunekit.errors import PrunekitError
from prunekit.results.formats import ALLOCATION, EVALUATION, EXPERTS, GROUPS, SENSITIVITY, SLIM
from prunekit.steps.standing import (
    UNKNOWN_BASE,
    SlimFacts,
    base_near,
    base_of,
    command,
    missing_groups,
    other_than,
    partition_of,
    prune_missing,
    samples_of,
    slims_in,
)

if TYPE_CHECKING:
    from prunekit.groups import TimestepGroup, TimestepGroups
    from prunekit.schedule import NoiseSchedule

__all__ = [
    "after_allocate",
    "after_assemble",
    "after_comparison",
    "after_cost",
    "after_encode",
    "after_evaluate",
    "after_export",
    "after_finetune",
    "after_groups",
    "after_importance",
    "after_latency",
    "after_prune",
    "after_recover",
    "after_report",
    "after_run",
    "after_sample",
    "after_sensitivity",
    "after_train",
    "show_flow",
    "suggest",
]

_BUDGET, _FRONTIER_FLOOR, _STEPS = 0.8, 0.3, 50
_FRONTIERS = Path("frontiers")
_PROMPTS = "prompts.txt"
UNKNOWN_IMAGES = "IMAGES"
"""Stands in a command for images that no file names."""
_GROUPS, _ALLOCATION, _SLIM, _EXPERTS = Path("groups.json"), Path("allocation.json"), Path("slim"), Path("experts")


def suggest(*commands: str) -> None:
    """Print the next command, as the last line of a command's text."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"Next: {' && '.join(commands)}")
        if any(UNKNOWN_BASE in line.split() for line in commands):
            print(f"({UNKNOWN_BASE} is the trained network: a file, a folder or embedded:digits.)")
        if any(UNKNOWN_IMAGES in line.split() for line in commands):
            print(f"({UNKNOWN_IMAGES} are the pictures that it was trained on: a folder, or another source.)")


def after_train(base: Path) -> str:
    """After a base: cut its timesteps."""
    return command("groups", base=base)


def after_encode(pipeline: Path, data: Path) -> str:
    """After an encoding: prune with it if there is an allocation; else make one."""
    if _ALLOCATION.is_file():
        return command("prune", pipeline, data=data)
    return command("allocate", budget=_BUDGET, base=pipeline, data=data)


def after_groups(base: str | None, groups: Path, config: Path | None = None) -> str:
    """After groups: divide a budget."""
    found, file = base or _standing_base(), other_than(groups, _GROUPS)
    return command("allocate", budget=_BUDGET, base=found, config=config, groups_file=file)


def after_allocate(base: str | None, allocation: Path, config: Path | None = None, data: str | None = None) -> str:
    """After an allocation: prune."""
    found = base or _standing_base() or UNKNOWN_BASE
    images = data or _images_of(found)
    return command("prune", found, config=config, allocation=other_than(allocation, _ALLOCATION), data=images)


def after_prune(
    base: str,
    slim: Path,
    allocation: Path | None,
    groups: "Iterable[TimestepGroup] | None" = None,
    **told: object,
) -> str:
    """After pruning: prune the groups that are still missing, else fine-tune all of them.

    Args:
        base: the base.
        slim: the folder of all slim models.
        allocation: the allocation that was named.
        groups: all timestep groups; by files near the slim models if missing.
        told: options of the prune that those of the missing groups share.
    """
    slims = slims_in(slim)
    if groups is None:
        missing = missing_groups(slims, _near(slim, allocation)) if slims else []
    else:
        have = {one.group.index for one in slims}
        missing = [group for group in groups if group.index not in have]
    if missing:
        return _prune_missing(slims, slim, missing, base, allocation, **told)
    unfinished = any(not one.finished for one in slims)
    return command("finetune", slim, data=_encoded(base)) if unfinished else command("assemble", slim)


def _prune_missing(
    slims: Sequence[SlimFacts],
    slim: Path,
    missing: "Iterable[TimestepGroup]",
    base: str,
    plan: Path | None = None,
    **told: object,
) -> str:
    """The command that prunes the groups that are still missing."""
    data = told.pop("data", None) or _encoded(base)
    return prune_missing(slims, [group.index for group in missing], slim, plan, base, data=data, **told)


def after_finetune(slim: Path) -> str:
    """After a fine-tuning: what the folder with all groups needs next; its model is sampled if it is in no such folder.

    Args:
        slim: the folder with all groups, or one slim model.
    """
    one = slims_in(slim.parent) if not slims_in(slim) else []
    if one and any(os.path.realpath(each.folder) == os.path.realpath(slim) for each in one):
        slim = slim.parent
    slims = slims_in(slim)
    if not slims:
        return _sample(slim)
    if any(not one.finished for one in slims):
        return command("finetune", slim, data=_encoded(base_of(slims, slim)))
    if missing := missing_groups(slims, _near(slim, None)):
        return _prune_missing(slims, slim, missing, base_of(slims, slim))
    return command("assemble", slim)


def after_assemble(slim: Path, experts: Path) -> str:
    """After the experts: compare them with their base."""
    return _evaluate(experts, base_of(slims_in(slim), slim))


def after_evaluate(evaluation: Path, model: str) -> str:
    """After an evaluation: the page about the folder's steps; where no budget was planned, a budget, or samples of experts."""
    if (evaluation.parent / _ALLOCATION).is_file():
        return command("report", evaluation.parent)
    if has_format(EXPERTS)(Path(model) / "experts.json"):
        return _sample(model)
    return (
        command() if has_format(SLIM)(Path(model) / "config.json") else command("allocate", budget=_BUDGET, base=model)
    )


def after_sample(model: str) -> str:
    """After samples: of experts, their quality; of anything else, its cost."""
    if has_format(EXPERTS)(Path(model) / "experts.json"):
        return _evaluate(model, base_of(slims_in(Path(model)), Path(model)))
    return command("allocate", budget=_BUDGET, base=model)


def after_report(run: Path) -> str:
    """After a report: experts that the folder has can be sampled; else the flow is shown."""
    for experts in (run / "experts", run):
        if has_format(EXPERTS)(experts / "experts.json"):
            return _sample(experts)
    return command()


def after_cost(model: str, config: Path | None = None) -> str:
    """After the cost of a base: divide a budget of it. Experts have one already."""
    if (Path(model) / "experts.json").is_file():
        return _sample(model, _evaluate(model, base_of(slims_in(Path(model)), Path(model))))
    slim = (Path(model) / "config.json").is_file() and has_format(SLIM)(Path(model) / "config.json")
    return after_finetune(Path(model)) if slim else command("allocate", budget=_BUDGET, base=model, config=config)


def after_importance(base: str) -> str:
    """After scores: prune if there is an allocation, which prune scores for by itself; else make one."""
    if _ALLOCATION.is_file():
        return command("prune", base, data=_images_of(base))
    return command("allocate", budget=_BUDGET, base=base, data=_encoded(base))


def after_latency(base: str, table: Path) -> str:
    """After layer times: prune to a share of the base's time."""
    return command("prune", base, target=_BUDGET, target_of="latency", latency_table=table, data=_images_of(base))


def after_sensitivity(
    model: str, sensitivity: Path, sampler: str, steps: int, groups: "TimestepGroups", schedule: "NoiseSchedule"
) -> str:
    """After a sensitivity: divide a budget by it if frontiers are recorded, else record them. Experts have a budget already."""
    if (Path(model) / "experts.json").is_file():
        return _sample(model)
    if _with_frontiers(len(groups), _FRONTIERS) is None:
        return command("prune", model, target=_FRONTIER_FLOOR, output=_FRONTIERS, data=_images_of(model))
    return command(
        "allocate",
        budget=_BUDGET,
        base=model,
        rule="measured",
        journals=_FRONTIERS,
        sensitivity=sensitivity,
        **_sampled(sampler, steps),
        **_cut(groups, schedule),
    )


def after_recover(
    base: str, slim: Path, recoveries: Path, groups: "Sequence[TimestepGroup]", schedule: "NoiseSchedule"
) -> list[str]:
    """After recoveries: divide a budget by the corrected losses, weighed by a sensitivity if one is here.

    Frontiers are recorded first where the searches of the slim models, in ``slim``, did not.
    """
    frontiers = _with_frontiers(len(groups), slim, _FRONTIERS)
    images, record = _images_of(base), list[str]()
    if frontiers is None:
        record = [command("prune", base, target=_FRONTIER_FLOOR, output=_FRONTIERS, data=images)]
    sensitivity, known = Path("sensitivity.json"), dict[str, object]()
    if sensitivity.is_file():
        with suppress(PrunekitError, OSError):
            found = read_json(sensitivity, SENSITIVITY)
            known = {"sensitivity": sensitivity, **_sampled(str(found["sampler"]), int(found["steps"]))}
    allocate = command(
        "allocate",
        budget=_BUDGET,
        base=base,
        rule="measured",
        journals=frontiers or _FRONTIERS,
        recoveries=recoveries,
        **known,
        **_cut(groups, schedule),
    )
    return [*record, allocate]


def _cut(groups: "Iterable[TimestepGroup]", schedule: "NoiseSchedule") -> dict[str, object]:
    """The options by which allocate gets these timestep groups, which other commands also take from an allocation."""
    from prunekit.steps.budgets import cut_groups

    cuts = tuple(groups)
    if _GROUPS.is_file() or not _ALLOCATION.is_file():
        return {}
    if cuts == tuple(cut_groups(schedule, len(cuts))):
        return {"groups": len(cuts)}
    return {"groups_file": _ALLOCATION, "output": _ALLOCATION.with_stem("measured")}


def _with_frontiers(count: int, *folders: Path) -> Path | None:
    """The first folder with the frontiers of so many timestep groups."""
    from prunekit.allocation import read_frontiers

    for folder in folders:
        with suppress(PrunekitError, OSError):
            read_frontiers(folder, count)
            return folder
    return None


def _sampled(sampler: str, steps: int) -> dict[str, object]:
    """The options of an allocation for a sampler, as far as they are not the defaults."""
    told: dict[str, object] = {} if sampler == "ddim" else {"sampler": sampler}
    return told if steps == _STEPS else {**told, "num_inference_steps": steps}


def after_run(folder: Path, pipeline: str | None = None, entry: str | None = None) -> str:
    """After a run: sample from what it made.

    Args:
        folder: the run's.
        pipeline: through which its recipe samples; None for a run without one.
        entry: folder of the entry that a comparison's claim is about; None for any other run.
    """
    made = [folder / "experts", folder / "base.pt", folder / "base" / "base.pt"]
    made = made if entry is None else [folder / "entries" / entry / "experts", *made]
    model = next((path for path in made if path.exists()), None)
    if model is None:
        return command("report", folder)
    return _sample(model) if pipeline is None else command("sample", model, pipeline=pipeline, prompts=_PROMPTS)


def after_comparison(second: str, first: str) -> str:
    """After a comparison of outputs: the quality of the experts in it, or what a base costs."""
    for experts, other in ((second, first), (first, second)):
        if (Path(experts) / "experts.json").is_file():
            return command("evaluate", experts, base=None if (Path(other) / "experts.json").is_file() else other)
    return command("cost", first)


def after_export(model: str) -> str:
    """After an export: samples of the same model, to compare with."""
    return _sample(model)


def _sample(model: Path | str, otherwise: str | None = None) -> str:
    """Sample a model; if its samples are there, another command, or else count its costs."""
    if samples_of(str(model)).exists():
        return otherwise or command("cost", model)
    return command("sample", model, **_captions(Path(model)))


def _captions(model: Path) -> dict[str, object]:
    """The options by which a model is sampled whose pipeline takes captions; none for other models."""
    if _takes_captions(model):
        return {"prompts": _PROMPTS}
    if not any(index for place in _near(model, None) for index in place.glob("*/model_index.json")):
        return {}
    slims = slims_in(model) or [one for one in slims_in(model.parent) if one.folder.name == model.name]
    base = Path(base_of(slims, model)) if slims else model
    return {"pipeline": base, "prompts": _PROMPTS} if _takes_captions(base) else {}


def _takes_captions(folder: Path) -> bool:
    """Whether a folder is that of a pipeline with a text encoder, as far as its index says."""
    with suppress(OSError, PrunekitError):
        return any(name.startswith("text_encoder") for name in read_json(folder / "model_index.json"))
    return False


def _evaluate(experts: Path | str, base: str) -> str:
    """Compare experts with their base; experts of a pipeline are sampled through it, on the encoded images in this folder."""
    encoded = _encoded(base)
    return command("evaluate", experts, base=base, pipeline=None if encoded is None else base, data=encoded)


def _encoded(base: str) -> Path | None:
    """The folder of encoded images in this folder if the base is a pipeline; else None."""
    if not (Path(base) / "model_index.json").is_file():
        return None
    return next((path.parent for path in sorted(Path().glob("*/encoded.json"))), None)


def _images_of(base: str) -> Path | str | None:
    """The images that have to be typed to prune a base: those encoded for it, or a word for them; None if it knows its own."""
    return _encoded(base) or (UNKNOWN_IMAGES if _says_no_images(base) else None)


def _says_no_images(base: str) -> bool:
    """Whether a base is a folder of another program, which records no images that it was trained on."""
    return any((Path(base) / name).is_file() for name in ("model_index.json", "config.json"))


def _near(slim: Path, allocation: Path | None) -> list[Path]:
    """Where the files of a slim folder's groups may be."""
    return [*([allocation.parent] if allocation else []), slim.resolve().parent, Path()]


def _standing_base() -> str | None:
    """The base in this folder, if there is one."""
    found = base_near(None, [Path()])
    return None if found == UNKNOWN_BASE else found


@dataclass(frozen=True)
class _Step:
    """A step of the flow in this folder.

    Args:
        name: the command.
        does: what it does, in a few words.
        state: what is there, empty if nothing is.
        done: whether nothing is missing.
    """

    name: str
    does: str
    state: str
    done: bool


def show_flow() -> None:
    """Print the flow, what of it this folder has, and the next command."""
    steps, following = _flow()
    print("prunekit makes experts for groups of timesteps from one trained denoiser.")
    print("The steps, and what this folder has of them:\n")
    for step in steps:
        mark = "done" if step.done else "part" if step.state else "–"
        print(f"  {mark:>4}  {step.name:<9} {step.does:<34} {step.state}".rstrip())
    print()
    suggest(following)
    print("All commands: prunekit --help. A whole experiment from a recipe: prunekit run")


def _flow() -> tuple[list[_Step], str]:
    """The steps with their states, and the next command."""
    base, slims, plan = _standing_base(), slims_in(_SLIM), _read(_ALLOCATION, ALLOCATION)
    base = base or (base_of(slims, _SLIM) if slims else None)
    cut = _read(_GROUPS, GROUPS) or plan
    missing = missing_groups(slims, [Path()]) if slims else []
    cut_by = partition_of(slims, [Path()]) if slims else None
    count = len(cut_by[0]) if cut_by else len(cut["groups"]) if cut else 0
    tuned = [one for one in slims if one.finished]
    experts, judged = has_format(EXPERTS)(_EXPERTS / "experts.json"), has_format(EVALUATION)(Path("evaluation.json"))
    page = Path("report/index.html")
    pruned, of = len(slims), max(len(slims) + len(missing), count)
    steps = [
        _Step("train", "a base; or bring your own", base or "", base is not None),
        _Step("groups", "cuts the timesteps", f"{count} groups" if cut else "", bool(cut)),
        _Step("allocate", "divides a budget of compute", _planned(plan), bool(plan)),
        _Step("prune", "makes a slim model for each group", _counted(pruned, of, _SLIM), pruned > 0 and not missing),
        _Step(
            "finetune",
            "trains each on its own timesteps",
            _counted(len(tuned), of, _SLIM) if tuned else "",
            bool(tuned) and len(tuned) == of,
        ),
        _Step("assemble", "puts them together as one denoiser", str(_EXPERTS) if experts else "", experts),
        _Step("evaluate", "compares them with the base", "evaluation.json" if judged else "", judged),
        _Step("report", "a page about all of this", str(page) if page.is_file() else "", page.is_file()),
    ]
    following = {
        "train": command("train", data="digits", output="base.pt"),
        "groups": command("groups", base=base),
        "allocate": command("allocate", budget=_BUDGET, base=base),
        "prune": after_prune(base or UNKNOWN_BASE, _SLIM, None) if slims else command("prune", base or UNKNOWN_BASE),
        "finetune": command("finetune", _SLIM),
        "assemble": command("assemble", _SLIM),
        "evaluate": command("evaluate", _EXPERTS, base=base),
        "report": command("report", "."),
    }
    last = max((at for at, step in enumerate(steps) if step.done or (step.state and step.name in _NEEDED)), default=-1)
    open_ = [step.name for at, step in enumerate(steps) if not step.done and (at > last or step.name in _NEEDED)]
    return steps, following[open_[0]] if open_ else _sample(_EXPERTS)


_NEEDED = ("prune", "finetune")
"""Steps that may be partly done although a later one is; all others are passed over if a later one is done or begun."""


def _planned(plan: JsonDict | None) -> str:
    return f"{plan['budget']:.4g}, rule {plan['rule']}" if plan else ""


def _counted(found: int, of: int, folder: Path) -> str:
    return f"{folder} ({found} of {of} groups)" if found else ""


def _read(path: Path, kind: str) -> JsonDict | None:
    try:
        return read_json(path, kind)
    except (PrunekitError, OSError):
        return None
