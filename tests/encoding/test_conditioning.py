"""What pipelines tell their denoisers is found by running them, and equals what their own functions say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import NAMES, SIDE

from prunekit.errors import InputError
from prunekit.pipelines import (
    Conditioning,
    TimeUnit,
    check_latents,
    conditioning_of,
    conditions_for,
    decoded,
    encoded,
    open_pipeline,
)
from prunekit.pipelines.latents import _decoding as _given_to_decode
from prunekit.pipelines.latents import _laid_out, _scaled, has_vae

SIZE = (SIDE, SIDE)
CONDITIONS = {
    "sd": {"encoder_hidden_states"},
    "sdxl": {"encoder_hidden_states", "added_cond_kwargs.text_embeds", "added_cond_kwargs.time_ids"},
    "sd3": {"encoder_hidden_states", "pooled_projections"},
    "flux": {"encoder_hidden_states", "pooled_projections", "guidance"},
    "pixart": {"encoder_hidden_states", "encoder_attention_mask"},
    "sana": {"encoder_hidden_states", "encoder_attention_mask"},
    "dit": {"class_labels"},
    "wan": {"encoder_hidden_states"},
}
REPLACED = {
    "sd": {"encoder_hidden_states"},
    "sdxl": {"encoder_hidden_states", "added_cond_kwargs.text_embeds"},
    "sd3": {"encoder_hidden_states", "pooled_projections"},
    "flux": {"encoder_hidden_states", "pooled_projections"},
    "pixart": {"encoder_hidden_states", "encoder_attention_mask"},
    "sana": {"encoder_hidden_states", "encoder_attention_mask"},
    "dit": {"class_labels"},
    "wan": {"encoder_hidden_states"},
}


@pytest.fixture(scope="module", params=NAMES)
def found(request: pytest.FixtureRequest, pipeline_folder: Callable[[str], Path]) -> tuple[str, Any, Conditioning]:
    pipeline = open_pipeline(pipeline_folder(request.param), stand_in=True)
    return request.param, pipeline, conditioning_of(pipeline, SIZE)


def subjects(name: str) -> tuple[Any, ...]:
    return (1, 3) if name == "dit" else ("cat", "a dog on a mat")


def test_conditions_are_those_that_differ_from_sample_to_sample(found: tuple[str, Any, Conditioning]) -> None:
    name, _, known = found
    assert set(known.shapes) == CONDITIONS[name]
    assert set(known.empty) == REPLACED[name]
    assert all(tuple(value.shape) == known.shapes[key] for key, value in known.empty.items())


def test_the_unit_of_time_is_measured(found: tuple[str, Any, Conditioning]) -> None:
    name, _, known = found
    assert known.unit == (TimeUnit(0.001) if name == "flux" else TimeUnit(1.0))


def test_a_captions_conditions_do_not_depend_on_those_beside_it(found: tuple[str, Any, Conditioning]) -> None:
    name, pipeline, known = found
    two, one = subjects(name), subjects(name)[1:]
    both, alone = (conditions_for(pipeline, each, known, SIZE) for each in (two, one))
    for key, value in both.items():
        torch.testing.assert_close(value[1], alone[key][0], rtol=1e-4, atol=1e-5)
    differing = [key for key, value in both.items() if not torch.equal(value[0], value[1])]
    assert differing


def test_pictures_become_latents_as_the_pipeline_scales_and_lays_them_out(found: tuple[str, Any, Conditioning]) -> None:
    name, pipeline, known = found
    assert has_vae(pipeline)
    check_latents(pipeline, subjects(name), SIZE)
    pictures = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    assert tuple(encoded(pipeline, pictures).shape) == (2, *known.sample)


def test_the_text_embeddings_are_those_of_the_pipelines_own_function(pipeline_folder: Callable[[str], Path]) -> None:
    pipeline = open_pipeline(pipeline_folder("sd"), stand_in=True)
    known = conditioning_of(pipeline, SIZE)
    found = conditions_for(pipeline, ["a cat", "dogs"], known, SIZE)["encoder_hidden_states"]
    wanted, empty = pipeline.encode_prompt(["a cat", "dogs"], "cpu", 1, True)
    assert torch.equal(found, wanted)
    assert torch.equal(known.empty["encoder_hidden_states"], empty[0])


def test_fixed_arguments_are_the_same_for_every_sample(pipeline_folder: Callable[[str], Path]) -> None:
    pipeline = open_pipeline(pipeline_folder("flux"), stand_in=True)
    fixed = conditioning_of(pipeline, SIZE).fixed
    assert {"img_ids", "txt_ids"} <= set(fixed)
    ids = fixed["img_ids"]
    assert isinstance(ids, torch.Tensor)
    assert tuple(ids.shape) == (16, 3)


def test_latents_on_another_scale_are_refused(pipeline_folder: Callable[[str], Path]) -> None:
    pipeline = open_pipeline(pipeline_folder("sd"), stand_in=True)
    pipeline.vae.register_to_config(latents_mean=[0.5] * 4, latents_std=[2.0] * 4)  # this pipeline does not use them
    with pytest.raises(InputError, match="scales its latents in a way of its own"):
        check_latents(pipeline, ("a", "b"), SIZE)


def test_decoding_undoes_encoding_up_to_the_vae(found: tuple[str, Any, Conditioning]) -> None:
    _, pipeline, known = found
    latents = torch.randn(2, *known.sample, generator=torch.Generator().manual_seed(0))
    with _given_to_decode(pipeline.vae) as given:
        pictures = decoded(pipeline, latents, SIZE)
    assert pictures.shape == (2, 3, *SIZE)
    torch.testing.assert_close(_laid_out(pipeline, _scaled(pipeline.vae, given[0])), latents, rtol=1e-4, atol=1e-4)
