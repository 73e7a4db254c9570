"""The commands ``train`` and ``assemble``."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit._json import JsonObject, read_json
from prunekit._missing import check_base
from prunekit.choices import PredictionType
from prunekit.cli.console import data_options, emit, refuse_existing, refuse_inputs, resolution_of
from prunekit.cli.interrupts import writing, written
from prunekit.cli.next_steps import after_assemble, after_train, suggest
from prunekit.cli.output_lock import alone_with
from prunekit.cli.shared_options import Json, Overwrite, Resolution, Seed
from prunekit.cli.training_options import LoggingDir, ReportTo, ResumeOrContinue, TrainingChanges, training
from prunekit.errors import InputError
from prunekit.steps.standing import command, slims_in

if TYPE_CHECKING:
    from prunekit.checkpoint import Base
    from prunekit.data import ImageSplit
    from prunekit.recipe import BaseOptions, DataOptions
    from prunekit.training import TrainOptions

__all__ = ["COMMANDS"]
_log = logging.getLogger(__name__)


_ALONGSIDE = {"recipe", "output", "overwrite", "resume", "report_to", "logging_dir", "json"}
"""Options of ``train`` that may be given with a recipe; all others come from the recipe."""


def train(
    context: typer.Context,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Recipe whose base is trained. The images, the network and the options are the recipe's (default: none)."
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Images: digits, embedded:fashion, a folder or zip of pictures, a folder of arrays, encoded images, an .npz "
            "(FILE::KEY names the array), a .parquet or dataset folder, idx files.",
        ),
    ] = "digits",
    resolution: Resolution = None,
    config: Annotated[
        Path | None,
        typer.Option(help="JSON of a diffusers model: _class_name and its arguments (default: a small U-Net)."),
    ] = None,
    steps: Annotated[int, typer.Option("--max-train-steps", help="Train steps.")] = 2000,
    batch_size: Annotated[
        int, typer.Option("--train-batch-size", help="Images per step, summed over all processes.")
    ] = 128,
    learning_rate: Annotated[float, typer.Option(help="Learning rate after the warm-up.")] = 1e-3,
    noise_schedule: Annotated[
        str | None,
        typer.Option(
            help="Noise schedule: linear, cosine, cosine:4000 (timesteps) or a scheduler_config.json (default: linear, or that of "
            "the prediction type: rectified_flow, edm)."
        ),
    ] = None,
    prediction_type: Annotated[PredictionType, typer.Option(help="What the model predicts.")] = "epsilon",
    resume: ResumeOrContinue = "latest",
    report_to: ReportTo = None,
    logging_dir: LoggingDir = None,
    *,
    changes: TrainingChanges,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("base.pt"),
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Train a base denoiser and write base.pt. An interrupted training resumes from its last checkpoint."""
    finished = None if resume in ("latest", "no") else resume
    if finished is not None and (recipe is not None or not os.path.exists(finished)):
        raise InputError(
            f"Got --resume-from-checkpoint {resume}; expected latest, no, or the file of a finished base, without a recipe."
        )
    refuse_existing(output, overwrite, inputs=[recipe, config, data, finished])
    from prunekit.checkpoint import save_base
    from prunekit.data import note_place
    from prunekit.steps.bases import few_samples, train_base
    from prunekit.training import TrainOptions
    from prunekit.training.checkpoints import drop_checkpoints

    checkpoints = output.with_name(output.name + ".checkpoints")
    with alone_with(output, overwrite) as unchanged:
        settings = TrainOptions(
            steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed, **changes.typed
        )
        trained = None
        if recipe is not None:
            options, images = _of_recipe(recipe, context)
        elif finished is not None:
            options, images, trained = _of_finished(finished, data_options(data, resolution), settings, context)
        else:
            options, images = _of_options(data, resolution, config, (noise_schedule, prediction_type), settings)
        steps = options.train.steps
        going_on = resume if finished is None else "latest"
        with training(checkpoints, going_on, "train", report_to, logging_dir, options.train) as (
            report,
            tracking,
            first,
        ):
            base, result = train_base(options, images, checkpoints, report, trained)
            if tracking is not None and (drawn := few_samples(base, images)) is not None:
                tracking.images("samples", drawn, steps)
            if first:
                unchanged(f"the trained state is in {checkpoints}")
                with writing(output):
                    save_base(base, output)
                    note_place(images, output.parent)
                    drop_checkpoints(checkpoints)
    if first:
        facts = {"output": str(output), "steps": steps, "loss": result.losses[-1][1], "seconds": result.seconds}
        emit(json, facts, [f"Trained {steps} steps, loss {facts['loss']:.4f}; written to {output}"])
        if not json:
            suggest(after_train(output))


def _of_options(
    data: str,
    resolution: str | None,
    config: Path | None,
    task: tuple[str | None, PredictionType],
    settings: "TrainOptions",
) -> tuple["BaseOptions", "ImageSplit"]:
    """The base options and images from the command's own options; ``task`` has the noise schedule and the prediction type."""
    from prunekit.checkpoint import ModelSpec, named_schedule
    from prunekit.data import load_images
    from prunekit.recipe import BaseOptions
    from prunekit.steps.image_choice import image_size
    from prunekit.steps.presets import small_unet

    model = read_json(config) if config else None
    spec = None if model is None else ModelSpec.from_json(model)
    size = resolution_of(resolution) or (None if spec is None else image_size(spec))
    images = load_images(data, size, spec is not None and spec.num_classes is not None)
    model = small_unet(images) if model is None else model
    schedule = None if task[0] is None else named_schedule(task[0]).to_config()
    return BaseOptions(model=model, noise_schedule=schedule, prediction_type=task[1], train=settings), images


def _of_finished(
    path: str, others: "DataOptions", settings: "TrainOptions", context: typer.Context
) -> tuple["BaseOptions", "ImageSplit", "Base"]:
    """A finished base's own options, its images or those that were typed, and the base.

    Raises:
        InputError: an option was typed that is the base's own.
    """
    from prunekit.recipe import BaseOptions
    from prunekit.steps.bases import open_base
    from prunekit.steps.image_choice import images_of

    typed = _typed(context)
    if own := sorted(typed & {"config", "noise_schedule", "prediction_type"}):
        raise InputError(f"Got --resume-from-checkpoint {path} with {', '.join(own)}; expected the base to say that.")
    check_base(path)
    base = open_base(path)
    images = images_of(base, others if "data" in typed else None, path)
    told = {name: base.provenance.get(name) for name in ("steps", "batch_size")}
    _log.warning(
        "%s is trained on from step %s to %d with batches of %d (before: %s). It has the moving average only, so AdamW starts "
        "anew; the learning rate is at its place in the new schedule.",
        path,
        told["steps"] or 0,
        settings.steps,
        settings.batch_size,
        told["batch_size"] or "unknown",
    )
    return BaseOptions(model=base.spec.to_json(), train=settings), images, base


def _typed(context: typer.Context) -> set[str]:
    """Names of the options that were typed."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _of_recipe(path: Path, context: typer.Context) -> tuple["BaseOptions", "ImageSplit"]:
    """The base options and images from a recipe; most other options of the command are then refused.

    Raises:
        InputError: such an option was given, or the recipe's base is already trained.
    """
    from prunekit.data import load_images
    from prunekit.recipe import load_recipe

    if other := sorted(_typed(context) - _ALONGSIDE):
        raise InputError(f"Got --recipe with {', '.join(other)}; expected the recipe to say them: change it there.")
    recipe = load_recipe(path)
    if recipe.base.model is None:
        raise InputError(f"The base of {path} is a checkpoint; expected a recipe with a model to train.")
    return recipe.base, load_images(recipe.data.source, recipe.data.resolution, recipe.data.labels)


def assemble(
    slim: Annotated[Path, typer.Argument(help="Folder with group-0, group-1, …")],
    output: Annotated[Path, typer.Option(help="Experts folder to write.")] = Path("experts"),
    share: Annotated[
        bool,
        typer.Option("--share", help="Store experts as their differences from the largest one, to save space on disk."),
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option(
            help="With --share: largest relative error of a tensor's difference, from 0 to 1; 0 is only rounding."
        ),
    ] = 0.01,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            help="Also push the experts, with their card, to this repository on the Hugging Face Hub (default: none)."
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push-to-hub: make a new repository private.")
    ] = False,
    json: Json = False,
) -> None:
    """Put slim models together into one drop-in denoiser."""
    from prunekit._files import check_folder
    from prunekit.nets import load_experts
    from prunekit.nets.experts_files import FOLDER
    from prunekit.steps.assembling import assemble as put_together

    check_folder(output, FOLDER)
    refuse_inputs(output, [slim])
    refuse_inputs(output, slim.glob("group-*"), inside=True)
    if os.path.realpath(output.parent) == os.path.realpath(slim) and output.name.startswith("group-"):
        raise InputError(f"Got --output {output}, the name of a slim model in {slim}; give another --output.")
    partition = put_together(slim, output, share=tolerance if share else None)
    written(output)
    _note_untrained(slim)
    experts = load_experts(output)
    facts: JsonObject = {
        "output": str(output),
        "groups": len(partition),
        "macs": list(experts.macs),
        "params": experts.stored_params,
        "params_resident": experts.resident_params,
    }
    stored = f"{experts.stored_params:,} parameters stored, {experts.resident_params:,} in memory"
    lines = [f"Assembled {len(partition)} experts, {stored}: {output}"]
    if push_to_hub is not None:
        from prunekit.checkpoint.hub import pushed

        facts["pushed"] = pushed(output, push_to_hub, private or None)
        lines.append(f"Pushed to {facts['pushed']}")
    emit(json, facts, lines)
    if not json:
        suggest(after_assemble(slim, output))


def _note_untrained(slim: Path) -> None:
    """Say which slim models were pruned and not fine-tuned."""
    untrained = [str(one.group.index) for one in slims_in(slim) if not one.finished]
    if untrained:
        _log.info(
            "Not fine-tuned: group %s. `%s` trains what is left.", ", ".join(untrained), command("finetune", slim)
        )


COMMANDS = (train, assemble)
