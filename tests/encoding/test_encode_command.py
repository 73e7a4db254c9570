"""``prunekit encode``: pictures and captions become latents and conditions; an interrupted encoding is resumed."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forking import forked
from PIL import Image

from prunekit._locks import alone_at
from prunekit.checkpoint import ModelSpec
from prunekit.cli.app import main
from prunekit.data import load_images
from prunekit.data.captions import CaptionedPart
from prunekit.errors import InputError, PrunekitError
from prunekit.pipelines import PipelineSampler, conditioning_of, conditions_for, encoded, open_pipeline
from prunekit.pipelines.prompts import read_prompts
from prunekit.schedule import NoiseSchedule, Parameterization, TimeUnit
from prunekit.steps.encoding import EncodeOptions, encode
from prunekit.steps.objectives import objective_for

SIZE = (32, 32)
CAPTIONS = ["a cat", "some dog", "a mat"]


def encode_all(pipeline: Path, pictures: Path, output: Path, **options: Any) -> Any:
    encode(pipeline, str(pictures), output, EncodeOptions(SIZE, batch_size=4, **options))
    return load_images(str(output))


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_rows_are_what_the_pipeline_makes_of_each_picture_and_caption(
    name: str, pipeline_folder: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    found = encode_all(pipeline_folder(name), pictures, tmp_path / "data")
    assert (len(found.train), len(found.held_out)) == (11, 2)
    pipeline = open_pipeline(pipeline_folder(name), stand_in=True)
    known = conditioning_of(pipeline, SIZE)
    captions = json.loads((tmp_path / "data" / "held-out" / "captions.json").read_text())
    wanted = conditions_for(pipeline, captions, known, SIZE)
    for key, rows in wanted.items():
        torch.testing.assert_close(found.held_out.columns[key].float(), rows, rtol=2e-3, atol=2e-3)
    names = sorted(path.name for path in pictures.glob("*.png"))
    order = np.random.default_rng(0).permutation(13)
    held_out = [pictures / names[row] for row in sorted(order[:2])]
    pixels = CaptionedPart(held_out, captions).pictures(0, 2, SIZE)
    torch.testing.assert_close(found.held_out.images.float(), encoded(pipeline, pixels), rtol=2e-3, atol=2e-3)
    assert set(found.train.empty) == set(known.empty)
    assert set(found.train.fixed) == set(known.fixed)


def test_an_interrupted_encoding_is_resumed_to_the_same_bytes(
    pipeline_folder: Callable[[str], Path], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encode_all(pipeline_folder("sd"), pictures, tmp_path / "whole", seed=3)
    calls: list[int] = []
    real = CaptionedPart.pictures

    def interrupted(self: CaptionedPart, start: int, stop: int, size: tuple[int, int]) -> torch.Tensor:
        calls.append(start)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, start, stop, size)

    monkeypatch.setattr(CaptionedPart, "pictures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_all(pipeline_folder("sd"), pictures, tmp_path / "data", seed=3)
    with pytest.raises(InputError, match="is not finished"):
        load_images(str(tmp_path / "data"))
    again = encode_all(pipeline_folder("sd"), pictures, tmp_path / "data", seed=3)
    assert calls == [0, 4, 8, 8, 0]  # the rows before were not encoded again
    assert again.sha256 == whole.sha256


def test_other_pictures_or_settings_do_not_resume(
    pipeline_folder: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    encode_all(pipeline_folder("sd"), pictures, tmp_path / "data")
    with pytest.raises(InputError, match="was encoded with another pipeline"):
        encode_all(pipeline_folder("sd"), pictures, tmp_path / "data", seed=1)
    (pictures / "00.png").unlink()
    rows = (pictures / "metadata.jsonl").read_text().splitlines(keepends=True)
    (pictures / "metadata.jsonl").write_text("".join(rows[1:]))
    with pytest.raises(InputError, match="was encoded with another"):
        encode_all(pipeline_folder("sd"), pictures, tmp_path / "data")


def repainted(file: Path) -> None:
    Image.fromarray(np.full((40, 36, 3), 90, np.uint8)).save(file)


def encode_part(pipeline: Path, pictures: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoding that is interrupted after its first batch."""
    real = CaptionedPart.pictures

    def interrupted(self: CaptionedPart, start: int, stop: int, size: tuple[int, int]) -> torch.Tensor:
        if start:
            raise KeyboardInterrupt
        return real(self, start, stop, size)

    with monkeypatch.context() as patch:
        patch.setattr(CaptionedPart, "pictures", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encode_all(pipeline, pictures, output)


@pytest.mark.parametrize("finished", [True, False])
def test_pictures_that_changed_under_their_names_are_named_and_not_mixed(
    finished: bool,
    pipeline_folder: Callable[[str], Path],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline, output = pipeline_folder("sd"), tmp_path / "data"
    if finished:
        encode_all(pipeline, pictures, output)
    else:
        encode_part(pipeline, pictures, output, monkeypatch)
    copied = shutil.copytree(pictures, tmp_path / "copy", copy_function=shutil.copyfile)
    repainted(pictures / "03.png")
    with pytest.raises(InputError, match=r"other pictures of the same names \(03\.png changed\); give a new folder"):
        encode_all(pipeline, pictures, output)
    (output / "pictures.json").unlink()
    with pytest.raises(InputError, match="other pictures of the same names; give a new folder"):
        encode_all(pipeline, pictures, output)
    assert len(encode_all(pipeline, copied, output).train) == 11


def test_an_encoding_of_an_earlier_version_without_hashes_of_pictures_is_kept(
    pipeline_folder: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    encode_all(pipeline_folder("sd"), pictures, tmp_path / "data")
    head = json.loads((tmp_path / "data" / "encoded.json").read_text())
    del head["pipeline"]["pictures_sha256"]
    (tmp_path / "data" / "encoded.json").write_text(json.dumps(head))
    (tmp_path / "data" / "pictures.json").unlink()
    assert encode(pipeline_folder("sd"), str(pictures), tmp_path / "data", EncodeOptions(SIZE)).kept
    assert json.loads((tmp_path / "data" / "encoded.json").read_text()) == head


def said_by(line: str, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> str:
    monkeypatch.setattr(sys, "argv", line.split())
    with pytest.raises(SystemExit, match="0"):
        main()
    return " ".join(capfd.readouterr())


def test_the_command_says_what_was_converted_skipped_cut_and_is_complete_already(
    pipeline_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for row in range(2):
        Image.fromarray(np.full((32, 32), 90 + row, np.uint8)).save(f"pictures/{row}.png")
        Path(f"pictures/{row}.txt").write_text("a cat " * 100 if row else "a cat")
    Image.new("RGBA", (32, 32)).save("pictures/2.png")
    Path("pictures/2.txt").write_text("a mat " * 50)
    Path("pictures/3.gif").touch()
    line = f"prunekit encode {pipeline_folder('sd')} pictures --output data --resolution 32 --batch-size 1"
    said = said_by(line, monkeypatch, capfd)
    assert "; 2 grey pictures made colour; 1 transparent picture laid over white; skipped: 1 .gif." in said
    assert "2 captions are longer than 16 tokens and were cut." in said
    assert "Encoded 2 images to train on and 1 held out: data" in said
    assert "truncated" not in said
    again = said_by(line, monkeypatch, capfd)
    assert "data is already complete: 2 images to train on and 1 held out" in again
    assert "Encoded" not in again
    for row in (2, 3):
        for file in Path("pictures").glob(f"{row}.*"):
            file.unlink()
    one = said_by(line.replace("output data", "output one"), monkeypatch, capfd)
    assert "pictures: 1 picture with a caption to train on, 1 held out" in one
    assert "Encoded 1 image to train on and 1 held out" in one


def test_captions_alone_get_latents_of_the_pipelines_samples(
    pipeline_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    options = EncodeOptions(SIZE, batch_size=2, steps=2)
    encode(pipeline_folder("sd"), CAPTIONS * 2, tmp_path / "data", options)
    found = load_images(str(tmp_path / "data"))
    assert (len(found.train), len(found.held_out)) == (5, 1)
    assert found.train.images.shape[1:] == (4, 8, 8)
    assert float(found.train.images.float().std()) > 0


def rows_of(folder: Path, source: Any, pipeline: Path, **options: Any) -> torch.Tensor:
    """Latents of the rows of both parts."""
    encode(pipeline, source, folder, EncodeOptions(SIZE, steps=2, stored_precision="float32", **options))
    found = load_images(str(folder))
    return torch.cat([found.train.images, found.held_out.images])


def test_every_caption_has_noise_of_its_own_whatever_the_batch_size(
    pipeline_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    pipeline, captions = pipeline_folder("sd"), ["a cat"] * 12
    found, others = (rows_of(tmp_path / f"{size}", captions, pipeline, batch_size=size) for size in (2, 5))
    torch.testing.assert_close(found, others, rtol=1e-3, atol=1e-3)
    assert float(torch.pdist(found.flatten(1)).min()) > 0.1  # the held-out ones, too
    opened = open_pipeline(pipeline)
    shown = PipelineSampler(opened, 2, ["a cat"], size=SIZE, decoded=False)(opened.unet, 1, 0)
    assert float(torch.cdist(shown.flatten(1), found.flatten(1)).min()) > 0.1  # nor that of samples of an evaluation


def test_every_picture_has_a_draw_of_its_own_whatever_the_batch_size(
    pipeline_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    for row in range(12):
        Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / "pictures" / f"{row:02}.png")
        (tmp_path / "pictures" / f"{row:02}.txt").write_text("a cat")
    source, pipeline = str(tmp_path / "pictures"), pipeline_folder("sd")
    found, others = (rows_of(tmp_path / f"{size}", source, pipeline, batch_size=size, seed=3) for size in (2, 5))
    torch.testing.assert_close(found, others, rtol=1e-3, atol=1e-3)
    assert float(torch.pdist(found.flatten(1)).min()) > 1e-3


def test_classes_are_encoded_for_a_pipeline_with_classes(
    pipeline_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    for row in range(7):
        folder = tmp_path / "pictures" / ("cat" if row % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), 30 * row, np.uint8)).save(folder / f"{row}.png")
    encode(pipeline_folder("dit"), str(tmp_path / "pictures"), tmp_path / "data", EncodeOptions(SIZE))
    found = load_images(str(tmp_path / "data"))
    assert found.train.labels is not None
    assert set(found.train.labels.tolist()) | set(found.held_out.labels.tolist()) == {0, 1}
    assert int(found.train.empty["class_labels"]) == 1000


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "has no prompts"), (b"\n \n", "has no prompts"), (b"\xff\xfe\x00", "no text in UTF-8")]
)
def test_a_file_without_prompts_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(PrunekitError, match=said):
        read_prompts(tmp_path / "prompts.txt")


def test_trainings_and_slim_models_use_the_pipelines_unit_of_time(
    pipeline_folder: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    found = encode_all(pipeline_folder("flux"), pictures, tmp_path / "data")
    assert found.train.time_unit == TimeUnit(0.001)
    spec = ModelSpec("Asked", {}, factory=lambda _: torch.nn.Identity())
    objective = objective_for(found.train, spec, Parameterization(NoiseSchedule.linear(1000)))
    heard: list[torch.Tensor] = []

    def network(noisy: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        heard.append(timestep)
        return noisy

    timesteps = torch.tensor([0, 250, 999])
    clean, _, *conditions = objective.draw(timesteps, torch.Generator().manual_seed(0))
    objective.predict(network, clean, timesteps, *conditions)  # type: ignore[arg-type]
    torch.testing.assert_close(heard[0], torch.tensor([0.0, 0.25, 0.999]))


def test_float32_stores_what_the_pipeline_computes(
    pipeline_folder: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    pipeline = pipeline_folder("sd")
    found = encode_all(pipeline, pictures, tmp_path / "data", stored_precision="float32")
    known = open_pipeline(pipeline, stand_in=True)
    wanted = conditions_for(known, found.held_out.captions, conditioning_of(known, SIZE), SIZE)
    for key, rows in wanted.items():
        torch.testing.assert_close(found.held_out.columns[key], rows, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="was encoded in float32; expected a new folder"):
        encode_all(pipeline, pictures, tmp_path / "data")


def held(output: Path) -> None:
    """Encodes into a folder until it is told to go on."""
    with alone_at(output, "Another process encodes."):
        (output.parent / "begun").touch()
        while not (output.parent / "go").exists():
            time.sleep(0.01)


def encode_at_once(pipeline: Path, pictures: Path, output: Path) -> None:
    while not (output.parent / "go").exists():
        time.sleep(0.001)
    encode(pipeline, str(pictures), output, EncodeOptions(SIZE, batch_size=1))


@pytest.mark.slow
def test_two_processes_do_not_encode_into_one_folder(
    pipeline_folder: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    pipeline, output = pipeline_folder("sd"), tmp_path / "data"
    other = forked(held, output)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    with pytest.raises(InputError, match=r"Another process encodes into .*data; wait for its end"):
        encode(pipeline, str(pictures), output, EncodeOptions(SIZE))
    (tmp_path / "go").touch()
    other.join()
    (tmp_path / "go").unlink()
    both = [forked(encode_at_once, pipeline, pictures, output) for _ in range(2)]
    (tmp_path / "go").touch()
    for process in both:
        process.join()
    assert 0 in {process.exitcode for process in both}
    assert len(load_images(output).train) == 11
    assert load_images(output).about()["sha256"] == encode(pipeline, str(pictures), output, EncodeOptions(SIZE)).sha256
    assert not list(tmp_path.glob(".*.lock"))
