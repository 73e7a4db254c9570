"""The command ``sensitivity``: measures how the sampler carries an error of each timestep group into the sample."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit._kinds import PICTURE, FileKind, has_format
from prunekit.choices import SensitivityMeasure
from prunekit.cli.caption_options import CaptionOptions
from prunekit.cli.console import data_options, emit, print_table, refuse_existing, refuse_inputs, tell
from prunekit.cli.costing import ModelPath
from prunekit.cli.interrupts import writing
from prunekit.cli.next_steps import after_sensitivity, suggest
from prunekit.cli.pruning_choices import check_timesteps
from prunekit.cli.reading_options import ReadingOptions
from prunekit.cli.sample_command import ClassOption, OptionalSampler, Steps, subjects
from prunekit.cli.shared_options import ConfigOption, DataOption, Json, Overwrite, Resolution
from prunekit.errors import InputError
from prunekit.limits import MAX_SEED
from prunekit.results.formats import SENSITIVITY

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.allocation import Sensitivity
    from prunekit.groups import TimestepGroups
    from prunekit.steps.measuring_sensitivity import Sampled
    from prunekit.steps.opening import Opened

__all__ = ["COMMANDS"]


def sensitivity(
    model: ModelPath,
    config: ConfigOption = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            "--groups-file",
            help="groups.json or allocation.json (default: the one that is here, else the experts' own, else 5 uniform ones).",
        ),
    ] = None,
    sampler: OptionalSampler = None,
    steps: Steps = 50,
    measured_in: Annotated[
        SensitivityMeasure,
        typer.Option(
            "--in",
            help="Where the change of the sample is measured. auto: in pixels if the model or its pipeline makes pictures, else in "
            "latents.",
        ),
    ] = "auto",
    features: Annotated[
        str,
        typer.Option(
            help="With --in features: digits-cnn, fashion-cnn, inception-v3, a file, or auto for a shipped one that fits."
        ),
    ] = "auto",
    data: DataOption = None,
    resolution: Resolution = None,
    count: Annotated[int, typer.Option(help="Number of samples.")] = 32,
    batch_size: Annotated[int, typer.Option(help="Samples at a time.")] = 64,
    size: Annotated[
        float,
        typer.Option(help="Size of the added noise, relative to the root mean square of each sample's prediction."),
    ] = 0.002,
    check: Annotated[
        bool,
        typer.Option(
            "--check-linearity/--no-check-linearity",
            help="Measure with noise of twice the size, too, to see whether changes are proportional to errors; it takes twice as "
            "long (default: --check-linearity).",
        ),
    ] = True,
    clamped: Annotated[
        bool,
        typer.Option(
            "--clamp/--no-clamp",
            help="Sample as the scheduler does, with its clamping of the clean sample; the figures then hold for errors of one "
            "size only (default: --no-clamp).",
        ),
    ] = False,
    label: ClassOption = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the samples and of the added noise.")] = 0,
    output: Annotated[
        Path,
        typer.Option(help="File to write. A picture is written next to it (.png). An earlier sensitivity is replaced."),
    ] = Path("sensitivity.json"),
    overwrite: Overwrite = False,
    json: Json = False,
    *,
    reading: ReadingOptions,
    captions: CaptionOptions,
) -> None:
    """Measure how the sampler carries an error of each timestep group into the sample; allocate weighs losses by it.

    White noise is added to the predictions of one group after the other. A pipeline with captions is run itself, with its own
    guidance, scheduler and decoding.
    """
    from prunekit.sampling.disturbances import SensitivityOptions
    from prunekit.steps.captioned_sampling import needs_pipeline
    from prunekit.steps.measuring_sensitivity import chosen_measure, measure_sensitivity, write_sensitivity
    from prunekit.steps.opening import is_base, open_model

    picture = output.with_suffix(".png")
    if output.suffix != ".json":
        raise InputError(f"Got --output {output}; expected a file name that ends with .json.")
    named = [model, config, groups, data, captions.prompts]
    refuse_existing(output, overwrite, FileKind("sensitivity", has_format(SENSITIVITY)), named)
    refuse_existing(picture, overwrite, PICTURE, named)
    refuse_inputs(output, [model, captions.pipeline], inside=True)
    options = SensitivityOptions(count, seed, size, check, batch_size, clamped)
    if features != "auto" and measured_in != "features":
        raise InputError(f"Got --features {features} with --in {measured_in}; expected --in features.")
    piped = captions.pipeline is not None or needs_pipeline(model)
    if not piped:
        captions.check_unused()
    opened = open_model(model, config, asked=reading.asked if is_base(model) else None)
    partition = _partition(groups, opened, model)

    def real() -> "Tensor":
        if piped and data is None:
            raise InputError(
                "Got --in features for a pipeline; name the extractor by --features, or pictures to choose it by, with --data."
            )
        return opened.images(data_options(data, resolution), model).train.images

    if piped:
        sampled = _through_pipeline(model, opened, captions, steps, sampler, resolution, label)
    else:
        from prunekit.steps.measuring_sensitivity import Sampled

        sampled = Sampled.alone(opened, Path(model).name, sampler or "ddim", steps, label)
    measure = chosen_measure(measured_in, sampled.latent, piped, features, real)
    found = measure_sensitivity(sampled, partition, options, measure)
    with writing(output, picture):
        write_sensitivity(found, output)
    if json:
        emit(True, {"output": str(output), "picture": str(picture), **found.to_json()})
        return
    show_sensitivity(found)
    tell(f"Written to {output} and {picture}")
    suggest(after_sensitivity(model, output, found.sampler, found.steps, partition, opened.schedule))


def show_sensitivity(found: "Sensitivity") -> None:
    """Print a sensitivity as a table, with what was measured and whether changes are proportional to errors."""
    from prunekit.report.wording import number_text

    rows = [
        [
            str(group.index),
            f"{group.start}–{group.stop - 1}",
            str(group.evaluations),
            number_text(group.amplification, 3),
            number_text(group.se, 2) if group.evaluations else "–",
            number_text(group.linearity, 3),
        ]
        for group in found.groups
    ]
    title = f"Sensitivity in {found.measured_in}: {found.steps} steps of {found.sampler}, {found.count} samples"
    header = ["group", "timesteps", "evaluations", "amplification", "±", f"ratio at {found.checked_size or 0:g}"]
    checked = found.checked_size is not None
    print_table(title, header if checked else header[:-1], rows if checked else [row[:-1] for row in rows])
    tell(
        "Amplification: square change of the sample, divided by the mean square of the noise that each prediction got. The noise "
        f"has {found.size:g} of the prediction's size. {found.describe_linearity()}"
    )


def _partition(path: Path | None, opened: "Opened", model: str) -> "TimestepGroups":
    """Groups from a file, or the model's own; five uniform ones for a model without."""
    from prunekit._json import read_json
    from prunekit.groups import TimestepGroups

    standing = path or next((p for p in (Path("groups.json"), Path("allocation.json")) if p.is_file()), None)
    partition = opened.groups if standing is None else TimestepGroups.from_json(read_json(standing), standing)
    check_timesteps(partition, opened.schedule, model)
    return partition


def _through_pipeline(
    model: str,
    opened: "Opened",
    captions: CaptionOptions,
    steps: int,
    sampler: str | None,
    resolution: str | None,
    label: int | None,
) -> "Sampled":
    """The model as its pipeline's denoiser."""
    from prunekit.cli.console import resolution_of
    from prunekit.data.sizes import read_size
    from prunekit.sampling import PIPELINE
    from prunekit.steps.captioned_sampling import captioned_sampler
    from prunekit.steps.measuring_sensitivity import Sampled

    folder, name = captions.pipeline or model, sampler or PIPELINE
    stored = getattr(opened.model, "about", {}).get("pipeline_arguments", {})
    drawn = captioned_sampler(
        folder,
        subjects(folder, captions.prompts, label),
        steps,
        captions.guidance_scale,
        name,
        read_size(resolution_of(resolution)),
        arguments={**stored, **captions.arguments},
    )
    return Sampled.through(opened, Path(model).name, drawn, name)


COMMANDS = (sensitivity,)
"""The commands of this module."""
