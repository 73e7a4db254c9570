"""The examples of docs/pipelines.md run as they are printed, on tiny pipelines."""

import re
from pathlib import Path

import pytest
from expert_pipelines import slim_experts
from pipeline_checks import lora_of
from safetensors.torch import save_file
from tiny_pipelines import saved_pipeline, tiny_pipeline

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pipelines.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
HERE = {  # the CPU has no half precision worth testing and is no accelerator; tiny pictures
    "torch.float16": "torch.float32",
    "pipe.enable_model_cpu_offload()\n": "",  # test_pipelines_table.py tests it
    'pipe("a red shoe", ': 'pipe("a red shoe", height=32, width=32, max_sequence_length=16, ',
}


def test_stable_diffusion_takes_fifteen_lines():
    assert len(EXAMPLES[0].splitlines()) == 15


@pytest.mark.slow
@pytest.mark.parametrize(("example", "name", "folder"), [(0, "sd", "sd15"), (1, "flux", "flux")])
def test_the_example_runs(example, name, folder, tmp_path, monkeypatch):
    network = getattr(tiny_pipeline(name, tmp_path), "unet" if name == "sd" else "transformer")
    slim_experts(network, name).save_pretrained(tmp_path / "experts")
    saved_pipeline(name, tmp_path / "home").rename(tmp_path / folder)
    save_file(lora_of(network, "unet"), tmp_path / "style.safetensors")
    monkeypatch.chdir(tmp_path)
    code = EXAMPLES[example]
    for old, new in HERE.items():
        code = code.replace(old, new)
    if name == "sd":
        code = code.replace(" max_sequence_length=16,", "")
    found: dict[str, object] = {}
    exec(code, found)  # noqa: S102 - the page's own code
    assert found["image"].size == (32, 32)
