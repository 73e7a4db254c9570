"""The commands ``evaluate`` and ``report``."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunekit._kinds import FileKind, has_format
from prunekit._missing import check_base
from prunekit.cli.caption_options import CaptionOptions
from prunekit.cli.console import data_options, emit, print_table, refuse_existing, refuse_inputs, tell
from prunekit.cli.costing import ModelPath, cost
from prunekit.cli.flags import as_flags
from prunekit.cli.interrupts import keeping, writing, written
from prunekit.cli.next_steps import after_evaluate, after_report, suggest
from prunekit.cli.reading_options import ReadingOptions
from prunekit.cli.sample_command import Steps
from prunekit.cli.shared_options import ConfigOption, Exists, Json, Overwrite, Resolution
from prunekit.errors import InputError, MissingFileError
from prunekit.results.formats import EVALUATION

if TYPE_CHECKING:
    from prunekit.results.expert_results import GroupLoss, Metrics

__all__ = ["COMMANDS"]


def evaluate(
    experts: ModelPath,
    base: Annotated[
        str | None,
        typer.Option(help="Base to compare with, sampled from the same noise (default: none)."),
        Exists(check_base),
    ] = None,
    config: ConfigOption = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Real images to compare with (default: the model's training images).")
    ] = None,
    resolution: Resolution = None,
    count: Annotated[int, typer.Option(help="Images sampled per model and seed.")] = 1024,
    seeds: Annotated[int, typer.Option(help="Number of seeds: 0, 1, …")] = 3,
    loss_samples: Annotated[int, typer.Option(help="Held-out draws per timestep group for the denoising loss.")] = 2048,
    features: Annotated[
        str,
        typer.Option(
            help="digits-cnn, fashion-cnn, inception-v3 with the weights in torch's cache, a file with such weights, or auto: the "
            "shipped extractor that was trained on such pictures; without one there is no FID."
        ),
    ] = "auto",
    inception_weights: Annotated[
        Path | None, typer.Option(help="Inception's weights for FID, torch-fidelity's file (default: see --features).")
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(help="Folder of a CLIP model, or its cached Hub id, for the CLIP score (default: no CLIP score)."),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="ddim, ddpm, heun, …, the class name of a diffusers scheduler, or pipeline (the model's own) (default: ddim; with "
            "--pipeline, its own)."
        ),
    ] = None,
    steps: Steps = 50,
    output: Annotated[Path, typer.Option(help="File to write. An earlier evaluation is replaced.")] = Path(
        "evaluation.json"
    ),
    overwrite: Overwrite = False,
    json: Json = False,
    *,
    reading: ReadingOptions,
    captions: CaptionOptions,
) -> None:
    """Measure the denoising loss of each timestep group, and the quality of samples with standard errors over seeds."""
    from prunekit._files import write_json
    from prunekit.clip_scores import load_clip
    from prunekit.recipe import AllocationOptions, EvaluationOptions
    from prunekit.steps.opening import is_base, open_model
    from prunekit.steps.sample_quality import measure_all
    from prunekit.steps.setting import Setting

    if count < 2 or seeds < 1 or loss_samples < 2:
        raise InputError(
            f"Got --count {count}, --seeds {seeds} and --loss-samples {loss_samples}; "
            "expected at least 2 images, 1 seed and 2 draws."
        )
    refuse_existing(output, overwrite, FileKind("evaluation", has_format(EVALUATION)), [experts, base, data])
    refuse_inputs(output, [experts, base, config], inside=True)
    features = _checked_features(features, inception_weights)
    if clip is not None:
        load_clip(clip)
    if captions.pipeline is None:
        captions.check_unused()
    sampler = sampler or ("ddim" if captions.pipeline is None else "pipeline")
    alone = base is None or is_base(experts)
    opened = open_model(experts, config if is_base(experts) else None, asked=reading.asked if alone else None)
    images = opened.images(data_options(data, resolution), experts)
    row, name = ("model", "model") if base is None and is_base(experts) else ("expert", "experts")
    models, macs = {row: opened.model}, {name: opened.at(images).mean_macs(sampler, steps)}
    sampled = {name: opened.model}
    if base is not None:
        reference = open_model(base, config, asked=reading.asked)
        _check_comparable(opened.at(images), reference.at(images), base)
        models = {"base": reference.model, **models}
        sampled = {"base": reference.model, **sampled}
        macs["base"] = reference.at(images).mean_macs(sampler, steps)
    options = EvaluationOptions(
        samples=count,
        seeds=tuple(range(seeds)),
        features=features,
        clip=clip,
        pipeline=None if captions.pipeline is None else str(captions.pipeline),
        guidance_scale=captions.guidance_scale,
        pipeline_arguments=captions.arguments if captions.pipeline_argument else {},
        loss_samples=loss_samples,
    )
    setting = Setting(
        images,
        opened.groups,
        opened.parameterization,
        AllocationOptions(sampler=sampler, steps=steps),
        options,
        opened.spec,
        pipeline=captions.through(images, steps, sampler, sampled.values()),
    )
    found, _ = measure_all(setting, models, sampled, macs)
    with writing(output):
        write_json(output, found.to_json())
    if json:
        emit(True, found.to_json())
        return
    _show_losses(found.losses or (), models)
    if found.metrics is not None:
        _show_metrics(found.metrics)
    tell(f"Written to {output}")
    suggest(after_evaluate(output, experts))


def _checked_features(features: str, inception_weights: Path | None) -> str:
    """The extractor that the two options ask for; an unknown name and a missing file are refused before anything is measured."""
    from prunekit.extractors import named_extractor

    if inception_weights is not None and features != "auto":
        raise InputError(
            f"Got --features {features} and --inception-weights {inception_weights}; expected one of them."
        )
    asked = features if inception_weights is None else str(inception_weights)
    if asked != "auto":
        named_extractor(asked)
    return asked


def _show_losses(losses: "Sequence[GroupLoss]", models: Iterable[str]) -> None:
    rows = [
        [str(row.group), *(f"{loss.mean:.5f} ± {loss.se:.5f}" for name in models if (loss := getattr(row, name)))]
        for row in losses
    ]
    print_table("Held-out denoising loss, mean ± standard error over samples", ["group", *models], rows)
    _show_bounds(losses, models)


def _show_bounds(losses: "Sequence[GroupLoss]", models: Iterable[str]) -> None:
    """The variational bound of models that predict variances."""
    cells = [
        [
            str(row.group),
            *(f"{one.mean:.5f} ± {one.se:.5f}" for name in models if (one := (row.bounds or {}).get(name))),
        ]
        for row in losses
        if row.bounds
    ]
    if cells:
        print_table("Learned variances: held-out variational bound, bits per dimension", ["group", *models], cells)


def _show_metrics(metrics: "Metrics") -> None:
    """Sample quality and time of every model, or the reason why there is none."""
    from prunekit.report.wording import estimate_text, number_text

    names = {"fid": "FID", "kid": "KID", "precision": "precision", "recall": "recall", "clip_score": "CLIP score"}
    names |= {"agreement": "agreement"}
    measured = [key for key in names if key in ("fid", "kid") or any(getattr(row, key) for row in metrics.rows)]
    cells = [
        [
            row.model,
            *("–" if (one := getattr(row, key)) is None else estimate_text(one) for key in measured),
            f"{number_text(row.seconds_per_image, 3)} s",
        ]
        for row in metrics.rows
    ]
    features = None if metrics.features is None else metrics.features.name
    clip = "" if metrics.clip is None else f", CLIP: {metrics.clip.name}"
    what = f"features: {features or 'not named'}{clip}, n = {metrics.count}"
    columns = ["model", *(names[key] for key in measured), "time per image"]
    print_table(f"Sample quality ({what})", columns, cells)
    if metrics.no_features:
        tell(f"No FID or KID: {as_flags(metrics.no_features)}")


def _check_comparable(opened: Any, reference: Any, base: str) -> None:
    """Refuse a base that solves another task than the model compared with it."""
    told = [
        (one.sample_shape, one.prediction_type, one.schedule.num_timesteps, one.schedule.log_snr.round(6).tolist())
        for one in (opened, reference)
    ]
    if told[0] != told[1]:
        raise InputError(
            f"{base} makes samples of shape {reference.sample_shape} by {reference.prediction_type}, the model makes "
            f"{opened.sample_shape} by {opened.prediction_type}; expected the same, and the same noise schedule, to compare them."
        )


def report(
    run: Annotated[
        Path,
        typer.Argument(
            help="Folder of a run (it has a manifest.json), of single commands, or of runs, such as reports/."
        ),
    ],
    json: Json = False,
) -> None:
    """Make the report of a run, or of a folder in which single commands were run. For a folder of runs, make all of them.

    A run's report is made again from its manifest. Of single commands it shows the allocation and what else there is: groups,
    importance, slim models, experts, evaluation, samples.
    """
    with keeping(lambda: f"each file in {run} is complete, either unchanged or made again"):
        _report(run, json)
    if not json:
        suggest(after_report(run))


def _report(run: Path, json: bool) -> None:
    from prunekit.report import write_all_reports, write_any_report
    from prunekit.runs.run_folder import check_links
    from prunekit.steps.standing import has_steps

    if not run.exists():
        raise MissingFileError(
            f"{run} does not exist; expected the folder of a run, or one in which commands were typed."
        )
    if not run.is_dir():
        raise InputError(f"{run} is a file; expected the folder of a run, or one in which commands were typed.")
    check_links(run, "report" if has_steps(run) else None)
    if (run / "manifest.json").exists():
        page = write_any_report(run)
        written(page)
        emit(json, {"report": str(page)}, [f"Report: {page}"])
        return
    if has_steps(run):
        from prunekit.steps.reporting import write_steps_report

        page = write_steps_report(run)
        written(page)
        emit(json, {"report": str(page)}, [f"Report: {page}"])
        return
    pages: list[str] = []
    index = write_all_reports(run, lambda page: pages.append(str(page)))
    written(index)
    emit(json, {"reports": pages, "index": str(index)}, [*(f"Report: {page}" for page in pages), f"All runs: {index}"])


COMMANDS = (evaluate, cost, report)
