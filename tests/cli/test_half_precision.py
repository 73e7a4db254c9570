"""A pipeline whose weights are in half precision goes all the way; computing is in float32."""

from pathlib import Path

import pytest
import torch
from command_line import done
from encoded_data import encoded_folder
from safetensors.torch import load_file
from tiny_pipelines import tiny_pipeline
from torch import nn

from prunekit._json import read_json
from prunekit.nets import load_experts


def half_pipeline(name: str, folder: Path, dtype: torch.dtype) -> None:
    (folder / "words").mkdir()
    pipeline = tiny_pipeline(name, folder / "words")
    model = getattr(pipeline, "unet", None) or pipeline.transformer
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.any():
                nn.init.normal_(module.weight, std=0.02)  # a fresh network's last layers are zero
    pipeline.to(dtype).save_pretrained(folder / "pipe")
    encoded_folder(name, folder / "data")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_a_base_in_half_precision_goes_all_the_way(
    name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_pipeline(name, tmp_path, dtype)
    monkeypatch.chdir(tmp_path)
    part = "transformer" if name == "sd3" else "unet"
    (stored,) = Path("pipe", part).glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(stored).values()} == {dtype}
    done("prunekit groups --cuts 500")
    done("prunekit importance pipe --data data --samples 8")
    done("prunekit allocate --budget 0.8 --base pipe --data data --rule uniform")
    done("prunekit prune pipe --data data --samples 8 --rounds 1")
    done(
        "prunekit finetune slim --data data --max-train-steps 2 --train-batch-size 4 --teacher pipe --mixed-precision bf16"
    )
    done("prunekit assemble slim")
    experts = load_experts("experts")
    assert experts.mean_macs([100, 900]) <= 0.8 * experts.about["provenance"]["base_macs"]
    done("prunekit evaluate experts --base pipe --data data --loss-samples 8")
    assert len(read_json(Path("evaluation.json"))["losses"]) == 2
