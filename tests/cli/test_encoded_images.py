"""The commands on a pipeline's folder with encoded images: scored, pruned, fine-tuned, assembled, measured."""

from pathlib import Path

import pytest
import torch
import yaml
from command_line import done, typed
from encoded_data import SHAPES, encoded_folder
from PIL import Image
from tiny_pipelines import tiny_pipeline
from torch import nn

from prunekit import load_experts
from prunekit._json import read_json
from prunekit.cli.next_steps import after_export, after_report
from prunekit.pipelines import PipelineSampler


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the commands are typed: a pipeline ``pipe`` with noise prediction, and ``data``; the name of the pipeline."""
    from diffusers import DDIMScheduler

    (tmp_path / "words").mkdir()
    pipeline = tiny_pipeline(request.param, tmp_path / "words")
    pipeline.register_modules(scheduler=DDIMScheduler(clip_sample=False))
    model = getattr(pipeline, "unet", None) or pipeline.transformer
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.any():
                nn.init.normal_(module.weight, std=0.02)  # a fresh network's last layers are zero
    pipeline.save_pretrained(tmp_path / "pipe")
    encoded_folder(request.param, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return str(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("folder", SHAPES, indirect=True)
def test_a_pipelines_denoiser_goes_all_the_way_on_encoded_images(folder: str) -> None:
    done("prunekit groups --cuts 500")
    done("prunekit importance pipe --data data --samples 8")
    done("prunekit allocate --budget 0.8 --base pipe --rule uniform")
    done("prunekit prune pipe --data data --samples 8 --rounds 1")
    done(
        "prunekit finetune slim --data data --max-train-steps 2 --train-batch-size 4 --teacher pipe --label-dropout 0.5 "
        "--condition-dropout encoder_hidden_states=0.1"
    )
    done("prunekit assemble slim")
    experts = load_experts("experts")
    assert experts.mean_macs([100, 900]) <= 0.8 * experts.about["provenance"]["base_macs"]
    done("prunekit evaluate experts --base pipe --data data --loss-samples 8")
    losses = read_json(Path("evaluation.json"))["losses"]
    assert [row["group"] for row in losses] == [0, 1]
    assert all(abs(row["difference"]["mean"]) > 0 for row in losses)
    Path("prompts.txt").write_text("a boot\n")
    for model in ("pipe", "slim/group-0", "experts"):
        if any(Path("pipe").glob("text_encoder*")):
            line = after_report(Path(model)) if model == "experts" else after_export(model)
            assert line.endswith("--prompts prompts.txt")
            assert (" --pipeline pipe " in line) == (model != "pipe")
            done(f"{line} --num-inference-steps 2")
        else:
            assert after_export(model) == f"prunekit sample {model}"


@pytest.mark.slow
@pytest.mark.parametrize("folder", SHAPES, indirect=True)
def test_a_recipe_runs_on_encoded_images(folder: str) -> None:
    recipe = {
        "name": "encoded",
        "data": {"source": "data"},
        "base": {"checkpoint": "pipe"},
        "groups": {"count": 2},
        "allocation": {"budget": 0.8, "rule": "uniform", "steps": 3},
        "prune": {"samples": 8, "batch_size": 8, "search": {"rounds": 1, "shortlist": 2}},
        "finetune": {
            "train": {"steps": 2, "batch_size": 4, "warmup_steps": 1, "label_dropout": 0.1},
            "distillation": {"weight": 0.5},
        },
        "evaluation": {"samples": 4, "seeds": [0], "loss_samples": 8, "grid": 2},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    done("prunekit run recipe.yaml --output run")
    manifest = read_json(Path("run/manifest.json"))
    assert len(manifest["losses"]) == 2
    assert "metrics" not in manifest


@pytest.mark.parametrize("folder", ["sd"], indirect=True)
def test_missing_conditions_are_named_before_anything_is_done(folder: str) -> None:
    Path("latents").mkdir()
    for name in ("train", "held-out"):
        (Path("data") / name / "latents.npy").rename(Path("latents") / f"{name}.npy")
    said = typed("prunekit importance pipe --data latents --samples 8")
    assert said.code == 2
    assert "takes encoder_hidden_states, which latents" in said.sentence
    assert "prunekit encode" in said.sentence


@pytest.mark.parametrize("folder", ["sd"], indirect=True)
@pytest.mark.parametrize("line", ["sample pipe/unet --count 2", "consistency pipe/unet pipe/unet"])
def test_what_gives_no_conditions_says_so(folder: str, line: str) -> None:
    said = typed(f"prunekit {line}")
    assert said.code == 2
    assert "UNet2DConditionModel takes encoder_hidden_states, which nothing gives here" in said.err


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["sd3"], indirect=True)
def test_the_pipelines_own_arguments_go_from_encode_to_samples(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The experts know them from the data, so ``sample`` has them by default."""
    Path("pictures").mkdir()
    for row in range(6):
        Image.new("RGB", (32, 32), (40 * row, 0, 0)).save(f"pictures/{row}.png")
        Path(f"pictures/{row}.txt").write_text("a cat")
    Path("prompts.txt").write_text("a cat\n")
    found = typed("prunekit encode pipe pictures --output own --pipeline-argument height=3")
    assert found.code == 2
    assert "set the resolution instead" in found.sentence
    done("prunekit encode pipe pictures --output own --resolution 32 --pipeline-argument max_sequence_length=40")
    done("prunekit groups --cuts 500")
    done("prunekit allocate --budget 0.8 --base pipe --rule uniform")
    done("prunekit prune pipe --data own --samples 8 --rounds 1")
    done("prunekit assemble slim")
    assert load_experts("experts").about["pipeline_arguments"] == {"max_sequence_length": 40}
    told: list[dict[str, object]] = []
    sampler = PipelineSampler.__post_init__
    monkeypatch.setattr(
        PipelineSampler, "__post_init__", lambda own: (told.append(dict(own.arguments)), sampler(own))[1]
    )
    line = "prunekit sample experts --pipeline pipe --prompts prompts.txt --num-inference-steps 2 --resolution 32 --overwrite"
    done(line)
    done(f"{line} --pipeline-argument max_sequence_length=50")
    done(
        "prunekit evaluate experts --pipeline pipe --data own --count 2 --seeds 1 --loss-samples 4 --num-inference-steps 2"
    )
    assert [one["max_sequence_length"] for one in told] == [40, 50, 40]
    found = typed("prunekit sample experts --output other.npz --pipeline-argument max_sequence_length=50")
    assert "Got --pipeline-argument for a model that is no pipeline" in found.err
