"""Options of commands that sample through a pipeline with captions."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit.cli.shared_options import Exists
from prunekit.errors import InputError, MissingFileError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from prunekit._json import JsonObject
    from prunekit.data import ImageSplit
    from prunekit.steps.sampling_pipeline import SamplingPipeline

__all__ = ["CaptionOptions", "PipelineArguments", "check_pipeline", "check_prompts"]

PipelineArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--pipeline-argument",
        help="Argument of the pipeline's own call, NAME=VALUE in JSON, e.g. max_sequence_length=77; may be repeated (default: "
        "none for encode, elsewhere those with which the data were encoded).",
    ),
]


def check_prompts(path: Path | str) -> None:
    """Refuse a file of prompts that is no file."""
    if not Path(path).is_file():
        raise MissingFileError(f"{path} does not exist; expected a text file with a prompt on each line.")


def check_pipeline(path: Path | str) -> None:
    """Refuse a folder that is no pipeline's."""
    if not (Path(path) / "model_index.json").is_file():
        raise MissingFileError(
            f"{path} has no model_index.json; expected the folder of a pipeline, as diffusers' save_pretrained writes it."
        )


@dataclass(frozen=True)
class CaptionOptions:
    """Through which pipeline samples are drawn, of which captions, and how strongly they are guided."""

    pipeline: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the pipeline that the model is a denoiser of; its text encoders, guidance and scheduler are used "
            "(default: the model's folder, if it is a pipeline's)."
        ),
        Exists(check_pipeline),
    ] = None
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file with a prompt on each line, for pipelines that take captions (default: none)."),
        Exists(check_prompts),
    ] = None
    guidance_scale: Annotated[
        float | None, typer.Option(help="Strength of classifier-free guidance (default: the pipeline's).")
    ] = None
    pipeline_argument: PipelineArguments = None

    @property
    def arguments(self) -> "JsonObject":
        """Arguments of the pipeline's own call."""
        from prunekit.pipelines import parse_own_arguments

        return parse_own_arguments(self.pipeline_argument or ())

    def through(
        self, images: "ImageSplit", steps: int, scheduler: str, models: "Iterable[nn.Module]"
    ) -> "SamplingPipeline | None":
        """The pipeline that judges encoded images; None if none was named.

        Args:
            images: encoded images.
            steps: sampling steps.
            scheduler: ``pipeline`` for the pipeline's own.
            models: that it will run.
        """
        if self.pipeline is None:
            return None
        from prunekit.pipelines import read_prompts
        from prunekit.steps.sampling_pipeline import SamplingPipeline

        prompts = None if self.prompts is None else read_prompts(self.prompts)
        found = SamplingPipeline.of(
            self.pipeline, images, steps, self.guidance_scale, scheduler, prompts, self.arguments
        )
        found.fit(*models)
        return found

    def check_unused(self) -> None:
        """Refuse options that have no meaning without a pipeline.

        Raises:
            InputError: one was given.
        """
        given = {
            "--prompts": self.prompts,
            "--guidance-scale": self.guidance_scale,
            "--pipeline-argument": self.pipeline_argument or None,
        }
        for flag, value in given.items():
            if value is not None:
                raise InputError(
                    f"Got {flag} for a model that is no pipeline; name the folder of its pipeline by --pipeline."
                )
