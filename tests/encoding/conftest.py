import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_pipelines import saved_pipeline


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``pipeline_folder(name)``: the folder of a tiny pipeline, made once."""
    made: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("pipelines")

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = saved_pipeline(name, root)
        return made[name]

    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 13 pictures with captions."""
    folder, rows = tmp_path / "pictures", []
    folder.mkdir()
    for row in range(13):
        shades = np.random.default_rng(row).integers(0, 256, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(shades).save(folder / f"{row:02}.png")
        rows.append({"file_name": f"{row:02}.png", "text": ["a cat", "some dog", "a mat"][row % 3]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
