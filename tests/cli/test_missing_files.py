"""A misspelt file is refused before anything heavy is imported."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest

from prunekit._missing import check_slim
from prunekit.checkpoint import load_base, load_state
from prunekit.cli.shared_options import Exists, checked
from prunekit.errors import MissingFileError

COMMANDS = {
    "prune nope.pt": "nope.pt does not exist; expected a checkpoint",
    "importance nope.pt": "nope.pt does not exist; expected a checkpoint",
    "groups --base nope.pt": "nope.pt does not exist; expected a checkpoint",
    "cost nope": "nope does not exist; expected a checkpoint",
    "estimate nope.yaml": "Recipe nope.yaml does not exist",
    "sample nope": "nope does not exist; expected a checkpoint",
    "evaluate nope": "nope does not exist; expected a checkpoint",
    "evaluate . --base nope.pt": "nope.pt does not exist; expected a checkpoint",
    "export nope": "nope does not exist; expected a checkpoint",
    "consistency . nope": "nope does not exist; expected a checkpoint",
    "finetune nope": "nope does not exist; expected a slim model's folder",
    "finetune . --teacher nope.pt": "nope.pt does not exist; expected a checkpoint",
    "run nope.yaml": "Recipe nope.yaml does not exist",
    "prune embedded:digits --config nope.json": "nope.json does not exist; expected a JSON file",
    "cost embedded:digits --inputs nope.json": "nope.json does not exist; expected a JSON file",
}
SCRIPT = """
import sys
from prunekit.cli import main
for command in sys.argv[1:]:
    sys.argv = ["prunekit", *command.split()]
    try:
        main()
    except SystemExit as end:
        print(command, end.code, sorted({"torch", "diffusers", "matplotlib", "numpy"} & set(sys.modules)), file=sys.stderr)
"""


def test_what_a_killed_process_left_aside_is_put_back_first(tmp_path: Path) -> None:
    def command(model: Annotated[Path, Exists(check_slim)]) -> None:
        found.append(model.is_dir())

    found: list[bool] = []
    (tmp_path / ".group-3.old.part").mkdir()
    checked(command)(model=tmp_path / "group-3")
    assert found == [True]
    with pytest.raises(MissingFileError, match="group-4 does not exist"):
        checked(command)(model=tmp_path / "group-4")


def test_a_file_that_reads_like_an_id_of_the_hub_and_a_folder_are_each_told_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"^weights/model does not exist; expected a checkpoint"):
        load_state("weights/model")
    with pytest.raises(MissingFileError, match="is a folder; expected a checkpoint"):
        load_state(tmp_path)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place: Path = tmp_path_factory.mktemp("empty")
    done = subprocess.run(  # noqa: S603 - code of this file
        [sys.executable, "-c", SCRIPT, *COMMANDS], cwd=place, check=True, capture_output=True, text=True
    )
    return done.stderr.splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_file_is_one_sentence_at_once(command: str, said: list[str]) -> None:
    place = next(place for place, line in enumerate(said) if line.startswith(f"{command} 2 ["))
    assert said[place] in (f"{command} 2 []", f"{command} 2 ['numpy']")
    assert COMMANDS[command] in said[place - 1]


def test_what_prunes_and_scores_needs_no_numpy_to_miss_a_file(said: list[str]) -> None:
    assert {"prune nope.pt 2 []", "importance nope.pt 2 []"} <= set(said)


def test_a_folder_of_searches_that_have_not_ended_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "search-4.jsonl").write_text('{"key": "k"}\n')
    with pytest.raises(MissingFileError, match=r"holds searches and no slim model yet; `prunekit prune` goes on"):
        load_base(tmp_path)
