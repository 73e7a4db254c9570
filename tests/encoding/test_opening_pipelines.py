"""Pipelines' folders are opened without running code of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.errors import FileFormatError, MissingFileError, PrunekitError, UnsafeFileError
from prunekit.pipelines import StandIn, denoisers_of, open_pipeline


@pytest.fixture
def copied(pipeline_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pipeline_folder("sd"), tmp_path / "pipe"))


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_denoisers_weights_are_read_or_a_stand_in_is_put_there(copied: Path) -> None:
    whole, without = open_pipeline(copied), open_pipeline(copied, stand_in=True)
    assert type(denoisers_of(whole)["unet"]).__name__ == "UNet2DConditionModel"
    stand_in = denoisers_of(without)["unet"]
    assert isinstance(stand_in, StandIn)
    assert stand_in.config.sample_size == 8
    assert sum(parameter.numel() for parameter in stand_in.parameters()) == 1
    assert all(not part.training for part in whole.components.values() if isinstance(part, torch.nn.Module))


def test_a_stand_in_needs_no_weights_on_disk(copied: Path) -> None:
    (copied / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert isinstance(denoisers_of(open_pipeline(copied, stand_in=True))["unet"], StandIn)
    with pytest.raises(FileFormatError, match="cannot be read"):
        open_pipeline(copied)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"_class_name": ["pipeline", "Own"]}, UnsafeFileError, "code of its own"),
        ({"_class_name": "os"}, FileFormatError, "expected a pipeline"),
        ({"_class_name": "UNet2DModel"}, FileFormatError, "expected a pipeline"),
        ({"vae": ["os", "system"]}, UnsafeFileError, "the library 'os'"),
        ({"unet": ["some_package", "Net"]}, UnsafeFileError, "the library 'some_package'"),
        ({"unet": [None, None]}, FileFormatError, "neither a unet nor a transformer"),
        ({"_class_name": 3}, FileFormatError, "expected a pipeline"),
    ],
)
def test_an_index_that_names_something_else_is_refused(
    copied: Path, changes: dict[str, Any], error: type[PrunekitError], words: str
) -> None:
    rewrite(copied, **changes)
    with pytest.raises(error, match=words):
        open_pipeline(copied, stand_in=True)


def test_weights_in_pickles_are_refused(copied: Path) -> None:
    weights = copied / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save({}, copied / "vae" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UnsafeFileError, match="pickle"):
        open_pipeline(copied)


def test_code_in_a_components_folder_is_not_run(copied: Path) -> None:
    (copied / "unet" / "net.py").write_text(f"open({str(copied / 'ran')!r}, 'w')\n")
    config = copied / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": {"AutoModel": "net.Net"}}))
    open_pipeline(copied)
    assert not (copied / "ran").exists()


def test_a_folder_without_an_index_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="has no model_index"):
        open_pipeline(tmp_path)
