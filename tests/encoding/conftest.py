from collections.abc import Callable
from pathlib import Path

import pytest
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
