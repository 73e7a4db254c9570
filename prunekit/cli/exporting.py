"""The command ``export``, which writes a model for other runtimes."""

from pathlib import Path
from typing import Annotated

import typer

from prunekit._json import JsonObject
from prunekit._missing import check_base
from prunekit.cli.console import emit, refuse_existing, refuse_inputs
from prunekit.cli.interrupts import written
from prunekit.cli.next_steps import after_export, suggest
from prunekit.cli.reading_options import ReadingOptions
from prunekit.cli.shared_options import ConfigOption, Exists, InputsOption, Json, Overwrite

__all__ = ["COMMANDS"]


def export(
    model: Annotated[
        str,
        typer.Argument(help="Base checkpoint, diffusers folder, slim folder or experts folder."),
        Exists(check_base),
    ],
    config: ConfigOption = None,
    inputs: InputsOption = None,
    output: Annotated[
        Path,
        typer.Option(help="File to write. Experts become one file each: model-group-0.onnx, model-group-1.onnx, …"),
    ] = Path("model.onnx"),
    into: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a pipeline with two denoisers of its own, such as Wan 2.2. Two experts are written into a copy of it, "
            "--output, in diffusers' format instead of ONNX, and run there without prunekit (default: none)."
        ),
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Largest difference from torch's output that is accepted.")] = 1e-4,
    overwrite: Overwrite = False,
    json: Json = False,
    *,
    reading: ReadingOptions,
) -> None:
    """Write a model as ONNX with any batch size, and check it with onnxruntime (needs the onnx extra)."""
    if into is not None:
        _write_into(Path(model), into, output, json)
        return
    import torch

    from prunekit.export import export_onnx
    from prunekit.steps.opening import open_model

    opened = open_model(model, config, inputs, reading.asked)
    parts = opened.parts()
    targets = {name: output.with_stem(f"{output.stem}-{name}") if name else output for name in parts}
    for target in targets.values():
        refuse_existing(target, overwrite, inputs=[model, config, inputs])
        refuse_inputs(target, [model], inside=True)
    given = dict(opened.inputs)
    if "timestep" in given:  # the check draws timesteps up to this one
        given["timestep"] = torch.full_like(given["timestep"], opened.schedule.num_timesteps - 1)
    facts: list[JsonObject] = []
    for name, part in parts.items():
        made = export_onnx(part, given, targets[name], tolerance)
        written(made.path)
        facts.append({"output": str(made.path), "inputs": list(made.inputs), "difference": made.difference})
    lines = [f"Written to {fact['output']}; differs by {fact['difference']:.1e} at most" for fact in facts]
    emit(json, facts[0] if len(facts) == 1 else {"experts": facts}, lines)
    if not json:
        suggest(after_export(model))


def _write_into(model: Path, pipeline: Path, output: Path, json: bool) -> None:
    """Write two experts into a copy of a pipeline."""
    from prunekit.nets import load_experts, write_two_experts

    refuse_inputs(output, [model, pipeline])
    experts = load_experts(model)
    write_two_experts(experts, pipeline, output)
    written(output)
    facts: JsonObject = {"output": str(output), "boundary_timestep": experts.groups.cuts[0]}
    told = f"Written to {output}; transformer serves timesteps from {experts.groups.cuts[0]}, transformer_2 the cleaner ones"
    emit(json, facts, [told])


COMMANDS = (export,)
