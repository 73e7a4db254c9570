"""Commands that make models: ``demo``, ``run``, ``train``, ``importance``, ``prune``, ``finetune``, ``assemble``."""

from dataclasses import replace
from enum import StrEnum
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

import typer

from prunekit.allocation import Allocation
from prunekit.cli.console import Bars, chosen_allocation, data_options, emit, print_table, refuse_existing
from prunekit.errors import InputError
from prunekit.groups import TimestepGroups
from prunekit.schedule import NoiseSchedule

__all__ = ["COMMANDS"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="digits, a folder of PNG/JPEG, an .npz, idx files; the checkpoint's own if absent."),
]
Resolution = Annotated[int | None, typer.Option(help="Side of the square images.")]
BasePath = Annotated[
    str, typer.Argument(help="Base checkpoint (.pt, .safetensors), diffusers folder, or embedded:digits.")
]

ConfigOption = Annotated[
    Path | None, typer.Option(help="For a bare state dict: JSON of the architecture, with its _class_name.")
]


class Criterion(StrEnum):
    """Importance criteria."""

    magnitude = "magnitude"
    taylor = "taylor"
    random = "random"


class Proposer(StrEnum):
    """Proposers of the search."""

    greedy = "greedy"
    oneshot = "oneshot"
    uniform = "uniform"


class NormMode(StrEnum):
    """Ways in which group norms shrink."""

    even = "even"
    whole = "whole"


CriterionOption = Annotated[Criterion, typer.Option(help="How channels are scored.")]
NormOption = Annotated[
    NormMode, typer.Option("--norm-mode", help="even: from every norm group; whole: whole norm groups.")
]
Samples = Annotated[int, typer.Option(help="Timesteps per group in the calibration set.")]
Seed = Annotated[int, typer.Option(help="Seed.")]


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the run.")] = Path("demo"),
    json: Json = False,
) -> None:
    """Run the main job on the embedded digits: base → groups → allocation → pruned experts → report."""
    from prunekit._files import atomic_path

    with as_file(files("prunekit") / "assets" / "digits-demo.yaml") as path:
        manifest = _execute(path, output)
    base = Path("base.pt")
    if not base.exists():
        with atomic_path(base) as part:
            part.write_bytes((output / "base.pt").read_bytes())
    _conclude(manifest, json)
    if not json:
        print(f"A base to try the other commands on: {base}")


def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a .yaml file.")],
    output: Annotated[Path | None, typer.Option(help="Folder for the run; runs/<recipe's name> if absent.")] = None,
    publish: Annotated[
        Path | None, typer.Option(help="Copy results and report to this folder, under the recipe's name.")
    ] = None,
    json: Json = False,
) -> None:
    """Run a recipe stage by stage; a second run goes on where the first stopped."""
    manifest = _execute(recipe, output)
    if publish is not None:
        from prunekit.pipeline.runner import publish as copy_results

        copy_results(manifest.parent, publish)
    _conclude(manifest, json)


def train(
    data: Annotated[
        str, typer.Option("--data", help="digits, a folder of PNG/JPEG, an .npz, or idx files.")
    ] = "digits",
    resolution: Resolution = None,
    config: Annotated[
        Path | None,
        typer.Option(help="JSON of a diffusers model (_class_name and its arguments); a small U-Net if absent."),
    ] = None,
    steps: Annotated[int, typer.Option("--max-train-steps", help="Train steps.")] = 2000,
    batch_size: Annotated[int, typer.Option("--train-batch-size", help="Images per step.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="AdamW's learning rate after the warm-up.")] = 1e-3,
    prediction_type: Annotated[str, typer.Option(help="epsilon, sample or v_prediction.")] = "epsilon",
    mixed_precision: Annotated[str, typer.Option(help="no, fp16 or bf16.")] = "no",
    seed: Seed = 0,
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("base.pt"),
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Train a base denoiser and write base.pt; an interrupted training goes on from its last checkpoint."""
    refuse_existing(output, overwrite)
    import shutil

    from prunekit._files import read_json
    from prunekit.checkpoint import save_base
    from prunekit.data import load_images
    from prunekit.pipeline.presets import small_unet
    from prunekit.pipeline.runner import training_reporter
    from prunekit.pipeline.stages import train_base
    from prunekit.recipe import BaseOptions
    from prunekit.training import PREDICTION_TYPES, TrainOptions

    if prediction_type not in PREDICTION_TYPES:
        raise InputError(f"Got --prediction-type {prediction_type}; expected one of {', '.join(PREDICTION_TYPES)}.")
    images = load_images(data, resolution)
    model = read_json(config) if config else small_unet(images)
    settings = TrainOptions(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate, mixed_precision=mixed_precision, seed=seed
    )
    options = BaseOptions(model=model, prediction_type=prediction_type, train=settings)  # type: ignore[arg-type]
    checkpoints = output.with_name(output.name + ".checkpoints")
    with Bars().shown() as bars:
        base, result = train_base(options, images, checkpoints, training_reporter(bars, "train"))
    save_base(base, output)
    shutil.rmtree(checkpoints, ignore_errors=True)
    facts = {"output": str(output), "steps": steps, "loss": result.losses[-1][1], "seconds": result.seconds}
    emit(json, facts, [f"Trained {steps} steps, loss {facts['loss']:.4f}; written to {output}"])


def importance(
    base: BasePath,
    config: ConfigOption = None,
    criterion: CriterionOption = Criterion.taylor,
    groups: Annotated[Path | None, typer.Option("--groups-file", help="groups.json or allocation.json.")] = None,
    data: DataOption = None,
    resolution: Resolution = None,
    samples: Samples = 256,
    norm_mode: NormOption = NormMode.even,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option(help="File to write; a heatmap goes beside it as .png.")] = Path(
        "importance.json"
    ),
    json: Json = False,
) -> None:
    """Score every channel for every timestep group; write importance.json and a heatmap."""
    from prunekit._files import read_json, write_json
    from prunekit.groups import make_groups
    from prunekit.pipeline.stages import Bench, images_of, open_base, score_groups
    from prunekit.recipe import PruneOptions
    from prunekit.report import heatmap_png

    loaded = open_base(base, config)
    images = images_of(loaded, data_options(data, resolution))
    options = PruneOptions(criterion=criterion.value, norm_mode=norm_mode.value, samples=samples, seed=seed)
    standing = groups or next((p for p in (Path("groups.json"), Path("allocation.json")) if p.is_file()), None)
    partition = TimestepGroups.from_json(read_json(standing)) if standing else make_groups(loaded.schedule)
    _check_timesteps(partition, loaded.schedule, base)
    scores = score_groups(Bench.of(loaded, norm_mode.value), images.train, partition, options)
    write_json(output, scores.to_json())
    picture = output.with_suffix(".png")
    heatmap_png(scores.to_json(), picture)
    facts = {
        "output": str(output),
        "heatmap": str(picture),
        "criterion": criterion.value,
        "channel_groups": len(scores.sizes),
    }
    emit(
        json,
        facts,
        [f"Scored {len(scores.sizes)} channel groups for {len(partition)} timestep groups: {output}, {picture}"],
    )


def prune(
    base: BasePath,
    config: ConfigOption = None,
    group: Annotated[
        int | None, typer.Option(help="Timestep group, 0 = cleanest; all of the allocation's if absent.")
    ] = None,
    allocation: Annotated[
        Path | None, typer.Option(help="allocation.json; the one that stands here if absent.")
    ] = None,
    target: Annotated[
        float | None, typer.Option(help="Fraction of the base's MACs, instead of the allocation's.")
    ] = None,
    criterion: CriterionOption = Criterion.taylor,
    proposer: Annotated[Proposer, typer.Option(help="How widths are decided.")] = Proposer.greedy,
    norm_mode: NormOption = NormMode.even,
    data: DataOption = None,
    resolution: Resolution = None,
    samples: Samples = 256,
    rounds: Annotated[int, typer.Option(help="Decisions on the way to the target.")] = 12,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option(help="Folder; each slim model becomes group-N in it.")] = Path("slim"),
    json: Json = False,
) -> None:
    """Prune a base to a timestep group's MAC target, by importance on the group's own timesteps."""
    from prunekit.pipeline.runner import write_journal
    from prunekit.pipeline.stages import Bench, images_of, open_base, prune_group, score_groups
    from prunekit.recipe import PruneOptions
    from prunekit.search import SearchOptions
    from prunekit.slim import save_slim

    loaded = open_base(base, config)
    plan = _wanted_targets(allocation, target, loaded.schedule)
    partition = plan.timestep_groups
    _check_timesteps(partition, loaded.schedule, base)
    wanted = list(partition) if group is None else [partition[group]]
    images = images_of(loaded, data_options(data, resolution))
    search = SearchOptions(proposer=proposer.value, rounds=rounds)
    options = PruneOptions(
        criterion=criterion.value, norm_mode=norm_mode.value, samples=samples, seed=seed, search=search
    )
    bench = Bench.of(loaded, norm_mode.value)
    targets = plan.for_model(bench.macs)
    scores = score_groups(bench, images.train, wanted, options)
    facts: list[dict[str, Any]] = []
    for one in wanted:
        macs = targets.groups[one.index].target_macs or 0
        slim, result = prune_group(bench, images.train, scores, one, macs, options)
        save_slim(slim, output / f"group-{one.index}")
        write_journal(result, output / f"search-{one.index}.jsonl")
        facts.append(
            {
                "group": one.index,
                "output": str(output / f"group-{one.index}"),
                "base_macs": bench.macs,
                "target_macs": macs,
                "macs": slim.macs,
                "mac_ratio": slim.macs / bench.macs,
                "params": slim.params,
                "measured_candidates": sum("steps" in entry for entry in result.memory),
            }
        )
    if json:
        emit(True, facts[0] if group is not None else {"groups": facts})
    else:
        _show_pruned(f"Pruned from {bench.macs:,} MACs ({criterion.value}, {proposer.value})", facts)


def _wanted_targets(path: Path | None, target: float | None, schedule: NoiseSchedule) -> Allocation:
    """The allocation, or one with the same ``target`` for every group of the allocation or groups that stand here.

    Raises:
        InputError: the target is no fraction.
        MissingFileError: there is neither an allocation nor a target.
    """
    from prunekit._files import read_json
    from prunekit.pipeline.planning import cut_groups, plan_budget

    if target is None:
        return Allocation.from_json(read_json(chosen_allocation(path)))
    if not 0 < target <= 1:
        raise InputError(f"Got --target {target:g}; expected a fraction of the base's MACs, above 0 and at most 1.")
    standing = path or next((p for p in (Path("allocation.json"), Path("groups.json")) if p.is_file()), None)
    groups = TimestepGroups.from_json(read_json(standing)) if standing else cut_groups(schedule)
    steps = min(50, schedule.num_timesteps)
    return plan_budget(groups, schedule, target, rule="uniform", steps=steps, floor=min(target, 0.1))


def _check_timesteps(groups: TimestepGroups, schedule: NoiseSchedule, base: str) -> None:
    """Refuse timestep groups of another schedule's length."""
    if groups.num_timesteps != schedule.num_timesteps:
        raise InputError(
            f"The timestep groups cover {groups.num_timesteps} timesteps and {base} was trained with {schedule.num_timesteps}; "
            f"make groups and allocation again with --num-timesteps {schedule.num_timesteps}."
        )


def _show_pruned(title: str, facts: list[dict[str, Any]]) -> None:
    header = ["group", "target MACs", "MACs", "ratio", "parameters", "written to"]
    rows = [
        [
            str(f["group"]),
            f"{f['target_macs']:,}",
            f"{f['macs']:,}",
            f"{f['mac_ratio']:.4f}",
            f"{f['params']:,}",
            f["output"],
        ]
        for f in facts
    ]
    print_table(title, header, rows)


def finetune(
    slim: Annotated[Path, typer.Argument(help="Slim model's folder, e.g. slim/group-3.")],
    data: DataOption = None,
    resolution: Resolution = None,
    steps: Annotated[int, typer.Option("--max-train-steps", help="Train steps.")] = 600,
    batch_size: Annotated[int, typer.Option("--train-batch-size", help="Images per step.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="AdamW's learning rate after the warm-up.")] = 5e-4,
    overlap: Annotated[int, typer.Option(help="Timesteps beyond the group's borders that are trained on too.")] = 20,
    mixed_precision: Annotated[str, typer.Option(help="no, fp16 or bf16.")] = "no",
    logging_dir: Annotated[Path | None, typer.Option(help="TensorBoard folder (needs the tracking extra).")] = None,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option(help="Folder to write; the slim model's own if absent.")] = None,
    json: Json = False,
) -> None:
    """Fine-tune a slim model on its own timesteps; goes on from its last checkpoint when it was interrupted."""
    import shutil

    from prunekit.pipeline.runner import training_reporter
    from prunekit.pipeline.stages import finetune_slim, images_of_slim
    from prunekit.recipe import FinetuneOptions
    from prunekit.slim import load_slim, save_slim
    from prunekit.training.tracking import with_tensorboard

    loaded = load_slim(slim)
    images = images_of_slim(loaded, data_options(data, resolution))
    options = FinetuneOptions(overlap=overlap)
    settings = replace(
        options.train,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        mixed_precision=mixed_precision,
        seed=seed,
    )
    target = output or slim
    checkpoints = target.with_name(f".{target.name}.checkpoints")
    with Bars().shown() as bars:
        report = with_tensorboard(training_reporter(bars, slim.name), logging_dir)
        tuned, result = finetune_slim(loaded, images.train, replace(options, train=settings), checkpoints, report)
    save_slim(tuned, target)
    shutil.rmtree(checkpoints, ignore_errors=True)
    facts = {"output": str(target), "steps": steps, "loss": result.losses[-1][1], "seconds": result.seconds}
    emit(json, facts, [f"Fine-tuned {steps} steps, loss {facts['loss']:.4f}; written to {target}"])


def assemble(
    slim: Annotated[Path, typer.Argument(help="Folder with group-0, group-1, …")],
    output: Annotated[Path, typer.Option(help="Experts folder to write.")] = Path("experts"),
    json: Json = False,
) -> None:
    """Put slim models together into one drop-in denoiser."""
    from prunekit.nets import load_experts
    from prunekit.pipeline.stages import assemble as put_together

    partition = put_together(slim, output)
    experts = load_experts(output)
    facts = {"output": str(output), "groups": len(partition), "macs": list(experts.macs), "params": sum(experts.params)}
    emit(json, facts, [f"Assembled {len(partition)} experts, {sum(experts.params):,} parameters in all: {output}"])


def _execute(recipe: Path, output: Path | None) -> Path:
    from prunekit.pipeline.runner import Run
    from prunekit.recipe import load_recipe

    checked = load_recipe(recipe)
    with Bars().shown() as bars:
        return Run(checked, output or Path("runs") / checked.name, bars).execute()


def _conclude(manifest: Path, json: bool) -> None:
    """Print a run's table, its claim and where its report is."""
    from prunekit._files import read_json
    from prunekit.report import claim, read_run, summary_rows

    data = read_json(manifest)
    if json:
        emit(True, data)
        return
    if "allocation" in data:
        rows = summary_rows(data)
        header = ["model", "timesteps", "share", "target", "MACs", "ratio", "parameters", "loss change"]
        print_table(f"Run {data['recipe']}: cost and held-out loss", header, [_summary_cells(row) for row in rows])
        print(claim(read_run(manifest.parent)))
        print(f"Report: {manifest.parent / 'report' / 'index.html'}")
    else:
        print(f"Run {data['recipe']} is done: {manifest}")


def _summary_cells(row: dict[str, Any]) -> list[str]:
    """One row of the final table as text; a dash where there is no number."""

    def text(key: str, form: str) -> str:
        return "–" if row[key] is None else format(row[key], form)

    change = "–" if row["loss_change_percent"] is None else f"{row['loss_change_percent']:+.2f} %"
    forms = {"share": ".2f", "target_ratio": ".3f", "macs": ",.0f", "mac_ratio": ".4f", "params": ",d"}
    return [row["model"], row["timesteps"], *(text(key, form) for key, form in forms.items()), change]


COMMANDS = (demo, run, train, importance, prune, finetune, assemble)
