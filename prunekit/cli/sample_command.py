"""The command ``sample``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit._json import JsonObject
from prunekit.cli.caption_options import CaptionOptions
from prunekit.cli.console import emit, refuse_existing, refuse_inputs
from prunekit.cli.costing import ModelPath
from prunekit.cli.interrupts import writing
from prunekit.cli.next_steps import after_sample, suggest
from prunekit.cli.reading_options import ReadingOptions
from prunekit.cli.shared_options import ConfigOption, Json, Overwrite, Resolution
from prunekit.errors import InputError
from prunekit.limits import MAX_SEED
from prunekit.steps.standing import samples_of

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.pipelines import Subject

__all__ = ["COMMANDS", "ClassOption", "OptionalSampler", "SamplerOption", "Steps", "subjects"]

Steps = Annotated[int, typer.Option("--num-inference-steps", help="Sampling steps.")]
SamplerOption = Annotated[
    str,
    typer.Option(help="ddim, ddpm, heun, …, the class name of a diffusers scheduler, or pipeline (the model's own)."),
]
OptionalSampler = Annotated[
    str | None,
    typer.Option(
        help="ddim, ddpm, heun, …, the class name of a diffusers scheduler, or pipeline (the model's own) (default: ddim; of a "
        "pipeline, its own)."
    ),
]
ClassOption = Annotated[
    int | None,
    typer.Option("--class", help="Class to sample from a class-conditional model (default: drawn by the seed)."),
]
_COUNT, _SAMPLER = 64, "ddim"


def sample(
    model: ModelPath,
    config: ConfigOption = None,
    count: Annotated[
        int | None, typer.Option(help="Number of images (default: 64; with --prompts, one for each prompt).")
    ] = None,
    sampler: OptionalSampler = None,
    steps: Steps = 50,
    seed: Annotated[
        int,
        typer.Option(min=0, max=MAX_SEED, help="Seed of the initial noise. Equal seeds give every model equal noise."),
    ] = 0,
    label: ClassOption = None,
    resolution: Resolution = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write (.npz). A picture is written next to it (.png) (default: samples/, under the model's name)."
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
    *,
    reading: ReadingOptions,
    captions: CaptionOptions,
) -> None:
    """Sample images from a model, and write an .npz and a grid picture. A model of latents gives latents in an .npz.

    A pipeline with captions is run itself, with its own guidance, scheduler and decoding. With --pipeline a slim model or experts
    take the place of its denoiser.
    """
    from prunekit.report import grid_png
    from prunekit.steps.captioned_sampling import needs_pipeline
    from prunekit.steps.sample_quality import save_samples

    if count is not None and count < 1:
        raise InputError(f"Got --count {count}; expected at least 1 image.")
    target = output or samples_of(model)
    refuse_existing(target, overwrite, inputs=[model, config, captions.prompts])
    refuse_inputs(target, [model, captions.pipeline], inside=True)

    def check_picture() -> None:
        refuse_existing(target.with_suffix(".png"), overwrite, inputs=[model, config])

    if captions.pipeline is not None or needs_pipeline(model):
        check_picture()
        images, labels = _through_pipeline(model, captions, (count, steps, seed), sampler, resolution, label)
    else:
        captions.check_unused()
        images, labels = _alone(model, config, reading, (count, steps, seed), sampler or _SAMPLER, label, check_picture)
    facts: JsonObject = {"output": str(target), "count": len(images)}
    with writing(target):
        save_samples(images, target, labels)
        if not images.is_floating_point():
            facts["picture"] = str(target.with_suffix(".png"))
            grid_png(images.permute(0, 2, 3, 1).numpy(), target.with_suffix(".png"))
    emit(
        json,
        facts,
        [f"{len(images)} samples: {', '.join(facts[key] for key in ('output', 'picture') if key in facts)}"],
    )
    if not json:
        suggest(after_sample(model))


def _alone(
    model: str,
    config: Path | None,
    reading: ReadingOptions,
    draws: tuple[int | None, int, int],
    sampler: str,
    label: int | None,
    check_picture: Callable[[], None],
) -> "tuple[Tensor, Tensor | None]":
    """Samples of a model without a pipeline, uint8 or latents in floating point, and their classes."""
    from prunekit.sampling import to_images
    from prunekit.steps.budgets import evaluations
    from prunekit.steps.opening import open_model
    from prunekit.steps.placing import placed

    count, steps, seed = draws[0] or _COUNT, *draws[1:]
    opened = open_model(model, config, asked=reading.asked)
    if not opened.latent:
        check_picture()
    evaluations(opened.schedule, sampler, steps)  # refuses a sampler that cannot take this number of steps
    drawn = opened.sampler(sampler, steps, label)
    with placed(opened.model):
        samples = drawn(opened.model, count, seed)
    return samples if opened.latent else to_images(samples), drawn.labels(count, seed)


def subjects(pipeline: Path | str, prompts: Path | None, label: int | None) -> "list[Subject]":
    """What a pipeline is asked to draw: captions, or a class.

    Raises:
        InputError: neither was named, or both were.
    """
    from prunekit.pipelines import read_prompts

    if prompts is not None and label is not None:
        raise InputError("Got --class and --prompts; expected one of them.")
    if prompts is not None:
        return [*read_prompts(prompts)]
    if label is None:
        raise InputError(
            f"{pipeline} takes captions; name a file with a prompt on each line by --prompts, or a class by --class if it takes "
            "classes."
        )
    return [label]


def _through_pipeline(
    model: str,
    captions: CaptionOptions,
    draws: tuple[int | None, int, int],
    sampler: str | None,
    resolution: str | None,
    label: int | None,
) -> "tuple[Tensor, None]":
    """Samples of a pipeline's prompts, or of a class, uint8."""
    from prunekit.cli.console import resolution_of
    from prunekit.data.sizes import read_size
    from prunekit.sampling import PIPELINE, to_images
    from prunekit.steps.captioned_sampling import captioned_sampler, own_denoiser, with_unit
    from prunekit.steps.opening import open_model
    from prunekit.steps.placing import compute_device

    prompts, (count, steps, seed) = subjects(captions.pipeline or model, captions.prompts, label), draws
    own = captions.pipeline is None
    network = None if own else open_model(model).model
    stored = getattr(network, "about", {}).get("pipeline_arguments", {})
    drawn = captioned_sampler(
        captions.pipeline or model,
        prompts,
        steps,
        captions.guidance_scale,
        sampler or PIPELINE,
        read_size(resolution_of(resolution)),
        own,
        {**stored, **captions.arguments},
    )
    network = own_denoiser(drawn) if network is None else with_unit(network, drawn).to(compute_device())
    return to_images(drawn(network, count or len(prompts), seed)), None


COMMANDS = (sample,)
