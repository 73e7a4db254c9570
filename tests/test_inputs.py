"""Example inputs as JSON."""

import json

import pytest
import torch

from prunekit.checkpoint import read_inputs
from prunekit.checkpoint.inputs import form_of, inputs_of
from prunekit.errors import FileFormatError, MissingFileError

FORM = {
    "sample": {"shape": [1, 4, 8, 8]},
    "timestep": {"shape": [1], "dtype": "int64", "value": 500},
    "mask": {"shape": [1, 3], "dtype": "bool", "value": True},
    "img_shapes": {"constant": [[[1, 8, 8]]]},
    "fps": {"constant": 16},
    "added": {"object": {"text_embeds": {"shape": [1, 12]}}},
    "texts": {"list": [{"shape": [8, 5]}, {"constant": None}]},
}


def test_a_form_is_what_it_says(tmp_path):
    (tmp_path / "inputs.json").write_text(json.dumps(FORM))
    found = read_inputs(str(tmp_path / "inputs.json"))
    assert list(found) == list(FORM)
    assert torch.equal(found["sample"], torch.zeros(1, 4, 8, 8))
    assert torch.equal(found["timestep"], torch.tensor([500]))
    assert torch.equal(found["mask"], torch.ones(1, 3, dtype=torch.bool))
    assert (found["img_shapes"], found["fps"]) == ([[[1, 8, 8]]], 16)
    assert found["added"]["text_embeds"].shape == (1, 12)
    assert (found["texts"][0].shape, found["texts"][1]) == ((8, 5), None)


def test_the_form_of_inputs_is_read_back_as_they_were():
    assert form_of(inputs_of(FORM, "The inputs")) == FORM
    drawn = form_of({"sample": torch.randn(1, 3, generator=torch.Generator().manual_seed(0))})
    assert drawn == {"sample": {"shape": [1, 3]}}


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"sample": [1, 4, 8, 8]},
        {"sample": {"shape": [1, -4]}},
        {"sample": {"shape": [1.5]}},
        {"sample": {"shape": "8"}},
        {"sample": {"shape": [8], "dtype": "os.system"}},
        {"sample": {"shape": [8], "dtype": "int64", "value": "7"}},
        {"sample": {"shape": [8], "dtype": "int32", "value": 2**70}},
        {"sample": {"shape": [8], "dtype": "int64", "value": 2.5}},
        {"sample": {"shape": [8], "dtype": "int32", "value": -0.001}},
        {"sample": {"shape": [8], "dtype": "bool", "value": 2}},
        {"sample": {"shape": [8], "value": True}},
        {"sample": {"shape": [8], "dtype": "float16", "value": 1e6}},
        {"sample": {"shape": [8], "dtype": "bfloat16", "value": 1e39}},
        {"sample": {"shape": [8], "constant": 3}},
        {"sample": {"shape": [8], "stride": [1]}},
        {"sample": {"shape": [2**20, 2**20]}},
        {"a": {"shape": [2**10]}, "b": {"shape": [2**26]}},
        {"sample": {"list": {"shape": [1]}}},
        {"sample": {"list": [{"list": [{"list": [{"list": [{"list": [{"list": []}]}]}]}]}]}},
    ],
)
def test_other_forms_are_refused_with_an_example(form):
    with pytest.raises(FileFormatError, match=r"expected"):
        inputs_of(form, "inputs.json")


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(MissingFileError):
        read_inputs(tmp_path / "inputs.json")
