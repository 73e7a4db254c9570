"""The command ``encode``."""

from pathlib import Path
from typing import Annotated

import typer

from prunekit._json import JsonObject
from prunekit.choices import Precision, StoredPrecision
from prunekit.cli.caption_options import PipelineArguments, check_pipeline, check_prompts
from prunekit.cli.console import emit, refuse_inputs, resolution_of, tell
from prunekit.cli.interrupts import keeping, written
from prunekit.cli.next_steps import after_encode, suggest
from prunekit.cli.shared_options import Exists, Json, Resolution
from prunekit.errors import InputError
from prunekit.limits import MAX_SEED

__all__ = ["COMMANDS"]


def encode(
    pipeline: Annotated[Path, typer.Argument(help="Folder of a diffusers pipeline."), Exists(check_pipeline)],
    images: Annotated[
        str | None,
        typer.Argument(
            help="Pictures with captions: a folder with metadata.jsonl (file_name, text) or a .txt beside each picture, a "
            ".parquet, or a dataset's folder. For a pipeline with classes, pictures with classes."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder to write; an interrupted one is resumed.")] = Path("encoded"),
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="In place of pictures: a text file with a prompt on each line; the pipeline samples their latents (default: none)."
        ),
        Exists(check_prompts),
    ] = None,
    resolution: Resolution = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Column with the captions (default: text or caption).")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures at a time.")] = 16,
    mixed_precision: Annotated[Precision, typer.Option(help="Precision of the pipeline's networks.")] = "no",
    stored_precision: Annotated[
        StoredPrecision, typer.Option(help="Precision of latents and conditions on the disk.")
    ] = "float16",
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MAX_SEED,
            help="Draw latents from the VAE's distribution by this seed, and noise of samples (default: take its mode; 0).",
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--num-inference-steps", help="Sampling steps, with --prompts.")] = 50,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance of the samples, with --prompts (default: the pipeline's).")
    ] = None,
    pipeline_argument: PipelineArguments = None,
    json: Json = False,
) -> None:
    """Encode pictures with captions by a pipeline's own VAE and text encoders, for importance, prune, finetune and evaluate.

    The folder holds latents and conditions; give it as --data. Without pictures, with --prompts, the latents are
    sampled by the pipeline itself. The pipeline's denoiser is not read for pictures.
    """
    from prunekit.data.encoded_writer import rows_on_disk
    from prunekit.data.sizes import read_size
    from prunekit.pipelines import parse_own_arguments, read_prompts
    from prunekit.steps.encoding import EncodeOptions
    from prunekit.steps.encoding import encode as encode_images

    if (images is None) == (prompts is None):
        got = "both pictures and" if images else "neither pictures nor"
        raise InputError(f"Got {got} --prompts; expected one of them.")
    refuse_inputs(output, [pipeline, images, prompts], inside=True)
    options = EncodeOptions(
        read_size(resolution_of(resolution)),
        caption_column,
        batch_size,
        mixed_precision,
        seed,
        steps,
        guidance_scale,
        parse_own_arguments(pipeline_argument or ()),
        stored_precision,
    )
    with keeping(lambda: _kept(rows_on_disk(output), output)):
        found = encode_images(pipeline, images or read_prompts(prompts or Path()), output, options)
    written(output)
    facts: JsonObject = {
        "output": str(output),
        "train": found.train,
        "held_out": found.held_out,
        "sha256": found.sha256,
    }
    if not json:
        tell(found.report)
    counts = f"{found.train:,} image{'s' * (found.train != 1)} to train on and {found.held_out:,} held out"
    emit(json, facts, [f"{output} is already complete: {counts}" if found.kept else f"Encoded {counts}: {output}"])
    if not json:
        suggest(after_encode(pipeline, output))


def _kept(rows: int, output: Path) -> str | None:
    """What an interrupted encoding leaves behind."""
    return f"{rows:,} encoded images are in {output}" if rows else None


COMMANDS = (encode,)
