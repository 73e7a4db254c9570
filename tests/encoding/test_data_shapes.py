"""Costs are counted at the shapes of the encoded images, or at stated ones."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from encoded_data import encoded_folder
from tiny_pipelines import tiny_pipeline
from torch._subclasses.fake_tensor import FakeTensorMode

from prunekit.checkpoint import ModelSpec
from prunekit.checkpoint.shaped_inputs import at_shapes, parse_shapes
from prunekit.conditions import flat
from prunekit.cost import StepCost, count_macs
from prunekit.data import EncodedWriter, Encoding, load_images
from prunekit.errors import InputError
from prunekit.steps.data_shapes import at_shapes_of, shaped

TOKENS = 40


def spec_of(name: str, folder: Path) -> ModelSpec:
    pipeline = tiny_pipeline(name, folder)
    return ModelSpec.of(getattr(pipeline, "unet", None) or pipeline.transformer)


def test_more_tokens_cost_what_their_products_take(tmp_path: Path) -> None:
    """Each cross-attention has keys and values of every token, and two products of queries with tokens."""
    spec = spec_of("sd", tmp_path)
    few, many = (at_shapes(spec, {"encoder_hidden_states": (tokens, 32)}) for tokens in (8, TOKENS))
    counts = [count_macs(spec.build(), each.example_inputs()) for each in (few, many)]
    width, positions = 16, 4 * 4  # of the attentions
    attentions = 4  # one on the way down, one in the middle, two on the way up
    more = attentions * (TOKENS - 8) * (2 * 32 * width + 2 * positions * width)
    assert counts[1].macs - counts[0].macs == more
    assert counts[1].params == counts[0].params


def test_shapes_are_those_of_the_encoded_images(tmp_path: Path) -> None:
    spec = spec_of("sd", tmp_path)
    images = load_images(encoded_folder("sd", tmp_path / "data")).train
    found = at_shapes_of(spec, images)
    assert found.example_inputs()["encoder_hidden_states"].shape == (1, 16, 32)
    assert found.example_inputs()["sample"].shape == (1, 4, 8, 8)
    assert found == spec  # as an architecture
    assert at_shapes_of(spec, None) is spec
    again = ModelSpec.from_json(json.loads(json.dumps(found.to_json())))
    assert again.example_inputs()["encoder_hidden_states"].shape == (1, 16, 32)


def test_fixed_arguments_and_masks_are_given_too(tmp_path: Path) -> None:
    """Tokens of pictures have places, which are the same for all; a mask is of ones, so that no row is empty."""
    spec = spec_of("flux", tmp_path)
    fixed = {"img_ids": torch.zeros(20, 3), "txt_ids": torch.zeros(6, 3)}
    writer = EncodedWriter(tmp_path / "data", Encoding({}, (16, 20), {"train": ["a"], "held-out": ["b"]}, fixed=fixed))
    columns = {
        "encoder_hidden_states": torch.ones(1, 6, 32),
        "pooled_projections": torch.ones(1, 32),
        "guidance": torch.ones(1),
    }
    for part in ("train", "held-out"):
        writer.append(part, torch.zeros(1, 20, 16), columns)
    writer.finish()
    inputs = at_shapes_of(spec, load_images(tmp_path / "data").train).example_inputs()
    shapes = {name: tuple(value.shape) for name, value in inputs.items()}
    assert shapes["hidden_states"] == (1, 20, 16)
    assert shapes["img_ids"] == (20, 3)
    assert shapes["txt_ids"] == (6, 3)
    assert shapes["guidance"] == (1,)
    assert count_macs(spec.build(), inputs).macs > 0
    stated = at_shapes(
        spec, {"latents": (20, 16), "encoder_hidden_states": (6, 32), "img_ids": (20, 3), "txt_ids": (6, 3)}
    )
    assert {name: tuple(value.shape) for name, value in stated.example_inputs().items()} == shapes


def test_memory_is_counted_without_values(tmp_path: Path) -> None:
    spec = at_shapes(spec_of("sdxl", tmp_path), {"encoder_hidden_states": (TOKENS, 64)})
    with FakeTensorMode():
        assert flat(spec.example_inputs())["encoder_hidden_states"].shape == (1, TOKENS, 64)
    few, many = (
        StepCost.of(each.build, each.example_inputs)
        for each in (at_shapes(spec, {"encoder_hidden_states": (2, 64)}), spec)
    )
    assert few.activations < many.activations


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (["encoder_hidden_state=77x768"], r"did you mean encoder_hidden_states\?\); expected shapes of latents"),
        (["timestep=1"], "is given no 'timestep'"),
        (["latents=4x8"], r"Got the shape \(4, 8\) for latents; expected 3 axes"),
        (["latents=4x8x-1"], "expected NAME=SIZExSIZE"),
        (["latents"], "expected NAME=SIZExSIZE"),
        (["a=1", "a=2"], "shape of a twice"),
        (["latents=4x99999x99999"], "stand for .* numbers in one sample"),
    ],
)
def test_shapes_that_no_argument_has_are_refused(shapes: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        shaped(spec_of("sd", tmp_path), None, shapes)


def test_images_without_conditions_have_no_shapes_to_tell(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no conditions; expected the folder of encoded images"):
        shaped(spec_of("sd", tmp_path), "digits")
    images = load_images("digits").train
    spec = ModelSpec("UNet2DModel", {"sample_size": 8})
    assert at_shapes_of(spec, images) is spec
    assert parse_shapes([]) == {}
    assert replace(spec) == spec
