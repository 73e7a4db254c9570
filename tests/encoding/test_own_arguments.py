"""Arguments of a pipeline's own call reach every run of it, are stored with the data, and are refused where they mean nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import SIDE

from prunekit.data import load_images
from prunekit.errors import InputError
from prunekit.pipelines import (
    PipelineSampler,
    check_own_arguments,
    conditioning_of,
    open_pipeline,
    parse_own_arguments,
)
from prunekit.steps.encoding import EncodeOptions, encode
from prunekit.steps.sampling_pipeline import SamplingPipeline

SIZE = (SIDE, SIDE)
LETTERS = 16  # tokens of the tiny CLIP
SHORT = {"max_sequence_length": 77}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for row in range(6):
        shades = np.random.default_rng(row).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(shades).save(folder / f"{row}.png")
        (folder / f"{row}.txt").write_text("a cat" if row % 2 else "some dogs")
    return folder


def test_sd3_without_t5_has_as_many_tokens_as_it_is_asked_for(
    pipeline_folder: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    pipeline = pipeline_folder("sd3")
    for name, arguments, tokens in (("default", {}, LETTERS + 256), ("short", SHORT, LETTERS + 77)):
        encode(pipeline, str(pictures), tmp_path / name, EncodeOptions(SIZE, arguments=arguments))
        found = load_images(tmp_path / name)
        assert found.train.columns["encoder_hidden_states"].shape[1:] == (tokens, 32)
        assert found.train.empty["encoder_hidden_states"].shape == (tokens, 32)
        assert found.train.arguments == arguments
    assert json.loads((tmp_path / "short" / "encoded.json").read_text())["arguments"] == SHORT
    assert "arguments" not in json.loads((tmp_path / "default" / "encoded.json").read_text())


def test_an_encoding_does_not_resume_with_other_arguments(
    pipeline_folder: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    pipeline = pipeline_folder("sd3")
    encode(pipeline, str(pictures), tmp_path / "data", EncodeOptions(SIZE, arguments=SHORT))
    with pytest.raises(InputError, match="was encoded with another arguments"):
        encode(pipeline, str(pictures), tmp_path / "data", EncodeOptions(SIZE))


def told_lengths(sampler: PipelineSampler) -> set[int]:
    """Numbers of tokens that the denoiser is told while a picture is sampled."""
    found: set[int] = set()

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        found.add(kwargs["encoder_hidden_states"].shape[1])

    network = sampler.pipeline.transformer
    handle = network.register_forward_pre_hook(note, with_kwargs=True)
    sampler(network, 1, seed=0)
    handle.remove()
    return found


def test_sampling_uses_what_the_data_were_encoded_with_unless_it_is_told_otherwise(
    pipeline_folder: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    folder = pipeline_folder("sd3")
    encode(folder, str(pictures), tmp_path / "data", EncodeOptions(SIZE, arguments=SHORT))
    images = load_images(tmp_path / "data")
    through = SamplingPipeline.of(folder, images, 2, None)
    assert through.sampler.arguments == SHORT
    assert SamplingPipeline.of(folder, images, 2, None, arguments={"max_sequence_length": 9}).sampler.arguments == {
        "max_sequence_length": 9
    }
    pipeline = open_pipeline(folder)
    assert told_lengths(PipelineSampler(pipeline, 2, ["cat"], size=SIZE, arguments=SHORT)) == {LETTERS + 77}
    assert told_lengths(PipelineSampler(pipeline, 2, ["cat"], size=SIZE)) == {LETTERS + 256}


def test_one_negative_prompt_is_for_every_sample(pipeline_folder: Callable[[str], Path]) -> None:
    pipeline = open_pipeline(pipeline_folder("sd"))
    plain, other = (
        PipelineSampler(pipeline, 2, ("cat", "dog"), 4.0, SIZE, arguments=arguments)(pipeline.unet, 2, 0)
        for arguments in ({}, {"negative_prompt": "mat"})
    )
    assert not torch.equal(plain, other)
    known = conditioning_of(open_pipeline(pipeline_folder("sd"), stand_in=True), SIZE, {"negative_prompt": "mat"})
    assert not torch.equal(
        known.empty["encoder_hidden_states"], conditioning_of(pipeline, SIZE).empty["encoder_hidden_states"]
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_sequence_lenght": 77}, r"has no argument 'max_sequence_lenght' \(did you mean max_sequence_length\?\)"),
        ({"clip_length": 3}, "The call of StableDiffusion3Pipeline has no argument 'clip_length'"),
        ({"height": 64}, "'height', which prunekit sets itself; set the resolution instead"),
        ({"guidance_scale": 2}, "set the guidance scale instead"),
        ({"output_type": "pil"}, "prunekit sets itself; leave it out"),
        ({"self": 1}, "has no argument 'self'"),
        (
            {"clip_skip": {1, 2}},
            "Got a set for the pipeline argument clip_skip; expected a value that JSON can express",
        ),
        ({"clip_skip": float("nan")}, "that JSON can express"),
    ],
)
def test_arguments_without_meaning_are_refused(arguments: dict[str, object], said: str) -> None:
    from diffusers import StableDiffusion3Pipeline

    with pytest.raises(InputError, match=said):
        check_own_arguments(StableDiffusion3Pipeline, arguments)


@pytest.mark.parametrize(
    ("texts", "said"),
    [(["x"], "expected NAME=VALUE"), (["a b=1"], "expected NAME=VALUE"), (["a=1", "a=2"], "a twice")],
)
def test_texts_without_a_name_and_a_value_are_refused(texts: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_own_arguments(texts)
