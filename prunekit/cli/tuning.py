"""The command ``finetune``: one slim model, or all of a folder."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit._json import JsonObject, read_json
from prunekit._missing import check_base, check_slim
from prunekit.choices import VarianceKind
from prunekit.cli.console import data_options, emit, print_table, refuse_inputs
from prunekit.cli.interrupts import keeping, writing, written
from prunekit.cli.next_steps import after_finetune, suggest
from prunekit.cli.output_lock import alone_with
from prunekit.cli.progress_bars import Bars
from prunekit.cli.reading_options import ReadingOptions
from prunekit.cli.shared_options import ConfigOption, DataOption, Exists, Json, Resolution, Seed
from prunekit.cli.training_options import LoggingDir, ReportTo, Resume, TrainingChanges, training
from prunekit.errors import InputError
from prunekit.results.formats import SLIM
from prunekit.steps.standing import SlimFacts, slims_in

if TYPE_CHECKING:
    from prunekit.runs.group_tuning import Tuning

__all__ = ["COMMANDS"]
_log = logging.getLogger(__name__)


def finetune(
    slim: Annotated[
        Path,
        typer.Argument(help="Folder of slim models, e.g. slim, or one of them, e.g. slim/group-3."),
        Exists(check_slim),
    ],
    data: DataOption = None,
    resolution: Resolution = None,
    steps: Annotated[int, typer.Option("--max-train-steps", help="Train steps.")] = 600,
    batch_size: Annotated[
        int, typer.Option("--train-batch-size", help="Images per step, summed over all processes.")
    ] = 128,
    learning_rate: Annotated[float, typer.Option(help="Learning rate after the warm-up.")] = 5e-4,
    overlap: Annotated[
        int, typer.Option(help="Number of timesteps beyond the group's borders that are trained on too.")
    ] = 20,
    share_steps: Annotated[
        Path | None,
        typer.Option(
            help="allocation.json by rule measured with a sensitivity. Groups in which an error changes the sample more get more "
            "of the steps, at the same MACs together (default: none, the same number for each)."
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Base that the slim models were pruned from; they also learn its predictions (default: none)."
        ),
        Exists(check_base),
    ] = None,
    config: ConfigOption = None,
    distillation_weight: Annotated[
        float, typer.Option(help="With --teacher: weight of the teacher's predictions in the loss.")
    ] = 0.5,
    variance: Annotated[
        VarianceKind | None,
        typer.Option(
            help="How the variances of a model that predicts them are kept: by the teacher's, by the variational bound, or not at "
            "all (default: distill with --teacher, otherwise vlb)."
        ),
    ] = None,
    variance_weight: Annotated[
        float | None,
        typer.Option(help="Weight of that in the loss (default: 0.1 for distill, 0.001 for vlb)."),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option("--jobs", min=1, help="Slim models to train at the same time, each in its own process."),
    ] = 1,
    every: Annotated[
        bool,
        typer.Option("--all", help="Also train slim models that keep the whole base, which are otherwise left alone."),
    ] = False,
    resume: Resume = "latest",
    report_to: ReportTo = None,
    logging_dir: LoggingDir = None,
    *,
    changes: TrainingChanges,
    reading: ReadingOptions,
    seed: Seed = 0,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to write (default: the slim model's own, or the folder of all of them)."),
    ] = None,
    json: Json = False,
) -> None:
    """Fine-tune slim models on their own timesteps: one, or all of a folder. Interrupted trainings resume.

    Of a folder, those that have been fine-tuned are skipped, and so are those that keep the whole base: a training of a few steps
    makes them worse more often than better, a long one can help.
    """
    from prunekit.recipe import DistillationOptions, FinetuneOptions
    from prunekit.runs.group_tuning import Tuning

    if config is not None and not teacher:
        raise InputError("Got --config without --teacher, the bare state dict whose architecture it is.")
    if reading.asked is not None and not teacher:
        raise InputError(
            "Got --weights, --noise-schedule or --prediction-type without --teacher, the base that they are of."
        )
    if not 0 <= distillation_weight <= 1:
        raise InputError(f"Got --distillation-weight {distillation_weight:g}; expected a share from 0 to 1.")
    one = _is_one(slim, share_steps)
    others = data_options(data, resolution)
    options = FinetuneOptions(
        overlap,
        DistillationOptions(distillation_weight) if teacher else None,
        variance=_variance(variance, teacher),
        variance_weight=variance_weight,
    )
    settings = replace(
        options.train,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        **changes.typed,
    )
    options = replace(options, train=settings)

    def tuning(source: Path, target: Path, own: int = steps) -> Tuning:
        _check_target(source, target, teacher)
        return Tuning(source, target, options.with_steps(own), others, teacher, reading.asked, config)

    if one:
        facts = _tuned_alone(tuning(slim, output or slim), resume, _Trackers(report_to, logging_dir))
        if facts is not None:
            target = facts["output"]
            emit(json, facts, [f"Fine-tuned {steps} steps, loss {facts['loss']:.4f}; written to {target}"])
            if not json:
                suggest(after_finetune(Path(target)))
        return
    asked = [_Asked(slim, output or slim, facts, every) for facts in slims_in(slim)]
    numbers = _steps(share_steps, asked, steps)
    wanted = [
        tuning(each.facts.folder, each.target, number)
        for each, number in zip(asked, numbers, strict=True)
        if each.state == "fine-tuned"
    ]
    found = _tuned(wanted, resume, _Trackers(report_to, logging_dir), jobs)
    if found is None:
        return
    rows = [_kept(each, found) for each in asked]
    if json:
        emit(True, {"output": str(output or slim), "groups": rows})
        return
    _show(rows, output or slim)
    suggest(after_finetune(output or slim))


def _is_one(slim: Path, shared: Path | None) -> bool:
    """Whether a folder is a slim model, and not the folder of several.

    Raises:
        InputError: it is neither, or it is one and steps are to be shared.
    """
    if slims_in(slim):
        return False
    if not any((slim / name).exists() for name in ("config.json", "model.safetensors")):
        raise InputError(
            f"{slim} has no slim models group-0, group-1, …, and is none; prune first with `prunekit prune base.pt`."
        )
    if shared is not None:
        raise InputError(
            f"Got --share-steps with one slim model, {slim}; expected the folder of all of them, among which to share."
        )
    return True


def _variance(asked: VarianceKind | None, teacher: str | None) -> VarianceKind:
    if asked == "distill" and not teacher:
        raise InputError(
            "Got --variance distill without --teacher, the base whose variances are kept; expected both, or vlb or none."
        )
    return asked or ("distill" if teacher else "vlb")


@dataclass(frozen=True)
class _Trackers:
    """Who tracks trainings: names of accelerate's trackers, and the folder of those that write files."""

    names: str | None
    folder: Path | None

    def of(self, tuning: "Tuning") -> "_Trackers":
        """The same for one training of several, with a folder of its own."""
        return replace(self, folder=None if self.folder is None else self.folder / tuning.target.name)


@dataclass(frozen=True)
class _Asked:
    """A slim model of a folder, and what is to become of it.

    Args:
        slim: the folder of all slim models.
        output: the folder to write them to.
        facts: the slim model.
        every: whether to train it even if it keeps the whole base.
    """

    slim: Path
    output: Path
    facts: SlimFacts
    every: bool

    @property
    def target(self) -> Path:
        """The folder to write."""
        return self.output / self.facts.folder.name

    @property
    def before(self) -> SlimFacts | None:
        """The slim model that is finished: this one, or an earlier output; None if it has to be trained."""
        from prunekit.runs.group_tuning import same_origin

        if self.facts.tuned:
            return self.facts
        for one in slims_in(self.output):
            if one.folder.name == self.target.name and one.tuned and same_origin(one.folder, self.facts.folder):
                return one
        return None

    @property
    def state(self) -> str:
        """``whole``: it is the base and stays as it is; ``before``: it was fine-tuned before; else ``fine-tuned``."""
        if self.before is not None:
            return "before"
        return "whole" if self.facts.whole and not self.every else "fine-tuned"


def _steps(allocation: Path | None, asked: "Sequence[_Asked]", steps: int) -> list[int]:
    """Train steps of every slim model: the same number, or shared by an allocation's sensitivity.

    Raises:
        InputError: the allocation is of other timestep groups than the slim models, or has no sensitivity.
    """
    if allocation is None:
        return [steps] * len(asked)
    from prunekit._json import read_json
    from prunekit.allocation import Allocation, shared_steps
    from prunekit.results.formats import ALLOCATION

    found = Allocation.from_json(read_json(allocation, ALLOCATION), allocation)
    if [each.facts.group for each in asked] != list(found.timestep_groups):
        raise InputError(
            f"{allocation} is of other timestep groups than {asked[0].slim}; expected the one that they were pruned by."
        )
    trained = [not each.facts.whole or each.every for each in asked]
    shared = list(shared_steps(found, steps, trained))
    for each, target in zip(asked, found.groups, strict=True):
        made = each.facts.provenance
        ratio = made["target"] / made["base"] if {"target", "base"} <= set(made) else target.mac_ratio
        if abs(ratio - target.mac_ratio) > 1e-3:
            raise InputError(
                f"{each.facts.folder} was pruned to {ratio:.4g} of the base and {allocation} gives its group "
                f"{target.mac_ratio:.4g}; expected the allocation that it was pruned by."
            )
    return shared


def _check_target(source: Path, target: Path, teacher: str | None) -> None:
    """Refuse a target that would replace something else; fine-tuning in place is allowed."""
    from prunekit._files import check_folder
    from prunekit.slim import FOLDER, check_not_needed

    check_folder(target, FOLDER)
    check_not_needed(target)
    if os.path.realpath(target) != os.path.realpath(source):
        refuse_inputs(target, [source], inside=True)
        _check_same_group(source, target)
    refuse_inputs(target, [teacher], inside=True)


def _check_same_group(source: Path, target: Path) -> None:
    """Refuse to replace another timestep group's slim model."""
    if not (target / "config.json").is_file():
        return
    group, other = (read_json(folder / "config.json", SLIM)["timestep_group"] for folder in (source, target))
    if group != other:
        raise InputError(
            f"{target} has the slim model of the timesteps {other['start']} to {other['stop'] - 1}, and {source} that of "
            f"{group['start']} to {group['stop'] - 1}; give another --output."
        )


def _tuned_alone(tuning: "Tuning", resume: str, trackers: "_Trackers") -> JsonObject | None:
    """Train and write one slim model in this process, which may be one of several of ``accelerate launch``.

    Returns:
        Its facts; None on all processes but the first.
    """
    with (
        alone_with(tuning.target) as unchanged,
        training(
            tuning.checkpoints,
            resume,
            tuning.target.name,
            trackers.names,
            trackers.folder,
            tuning.options.train,
        ) as (report, _, first),
    ):
        tuned = tuning.train(report)
        if first:
            unchanged(f"the trained state is in {tuning.checkpoints}")
            with writing(tuning.target):
                tuned.write()
    return {"output": str(tuning.target), **tuned.facts} if first else None


def _tuned(tunings: "Sequence[Tuning]", resume: str, trackers: "_Trackers", jobs: int) -> dict[Path, JsonObject] | None:
    """Train and write slim models one after the other, or several at the same time; their facts by target.

    Returns:
        None on all processes but the first.
    """
    if jobs == 1 or len(tunings) < 2:
        found = {one.target: _tuned_alone(one, resume, trackers.of(one)) for one in tunings}
        return None if any(facts is None for facts in found.values()) else {k: v for k, v in found.items() if v}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("Got --jobs with accelerate launch, which already starts processes; expected one of them.")
    if trackers.names is not None or trackers.folder is not None:
        flag = "--logging-dir" if trackers.names is None else "--report-to"
        raise InputError(f"Got --jobs with {flag}; expected one of them.")
    from prunekit.runs.executors import Processes
    from prunekit.runs.group_tuning import tune_together
    from prunekit.training.checkpoints import drop_checkpoints

    if resume == "no":
        for one in tunings:
            drop_checkpoints(one.checkpoints)
    folder = tunings[0].target.with_name(".jobs")
    with _alone_with_all(tunings), keeping(lambda: f"trained states are kept in {folder.parent}"):
        with Bars(inside=False).shown() as bars:
            found_together = tune_together(tunings, Processes(jobs), folder, bars)
        written(*found_together)
    return {target: {"output": str(target), **facts} for target, facts in found_together.items()}


@contextmanager
def _alone_with_all(tunings: "Sequence[Tuning]") -> Iterator[None]:
    with ExitStack() as stack:
        for one in tunings:
            stack.enter_context(alone_with(one.target))
        yield


def _kept(asked: _Asked, found: dict[Path, JsonObject]) -> JsonObject:
    """What became of one slim model; one that is not trained is copied to another output."""
    state, facts = asked.state, found.get(asked.target)
    if facts is None and os.path.realpath(asked.target) != os.path.realpath(asked.facts.folder):
        from prunekit.slim import load_slim, save_slim

        if asked.before is None or asked.before.folder == asked.facts.folder:
            save_slim(load_slim(asked.facts.folder), asked.target)
    row: JsonObject = {"group": asked.facts.group.index, "output": str(asked.target)}
    if facts is not None:
        return row | {"state": "fine-tuned"} | facts
    before = asked.before
    return row | {"state": state, "steps": 0 if before is None else before.tuned, "loss": None, "seconds": 0.0}


_SAID = {
    "whole": "keeps the whole base; --all trains it too",
    "before": "was fine-tuned before",
    "fine-tuned": "",
}


def _show(rows: Sequence[JsonObject], output: Path) -> None:
    cells = [
        [
            str(row["group"]),
            str(row["steps"] or "–"),
            "–" if row["loss"] is None else f"{row['loss']:.4f}",
            "–" if row["loss"] is None else f"{row['seconds']:.0f} s",
            _SAID[str(row["state"])],
        ]
        for row in rows
    ]
    print_table(f"Fine-tuned, written to {output}", ["group", "steps", "loss", "time", "note"], cells)


COMMANDS = (finetune,)
