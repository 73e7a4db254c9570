"""Denoisers of diffusers by name, and example inputs that follow from their configs."""

import json

import pytest
import torch
from networks import UNET_CONFIG
from tiny_denoisers import tiny

from prunekit.checkpoint import ModelSpec, denoisers, load_base
from prunekit.checkpoint.denoisers import denoiser
from prunekit.errors import FileFormatError, InputError
from prunekit.graph.forward_pass import output_tensors, run_once

RUNNING = {
    "AllegroTransformer3DModel": {"hidden_states", "encoder_hidden_states", "timestep"},
    "AuraFlowTransformer2DModel": {"hidden_states", "encoder_hidden_states", "timestep"},
    "CogVideoXTransformer3DModel": {"hidden_states", "encoder_hidden_states", "timestep"},
    "CogView4Transformer2DModel": {
        *("hidden_states", "encoder_hidden_states", "timestep", "original_size", "target_size", "crop_coords"),
    },
    "Flux2Transformer2DModel": {
        *("hidden_states", "encoder_hidden_states", "timestep", "img_ids", "txt_ids", "guidance"),
    },
    "FluxTransformer2DModel": {
        *("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "img_ids", "txt_ids"),
    },
    "HunyuanVideoTransformer3DModel": {
        *(
            "hidden_states",
            "timestep",
            "encoder_hidden_states",
            "encoder_attention_mask",
            "pooled_projections",
            "guidance",
        ),
    },
    "LTXVideoTransformer3DModel": {
        *(
            "hidden_states",
            "encoder_hidden_states",
            "timestep",
            "encoder_attention_mask",
            "num_frames",
            "height",
            "width",
        ),
    },
    "LatteTransformer3DModel": {"hidden_states", "timestep", "encoder_hidden_states"},
    "Lumina2Transformer2DModel": {"hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask"},
    "PixArtTransformer2DModel": {"hidden_states", "encoder_hidden_states", "timestep", "added_cond_kwargs"},
    "PriorTransformer": {"hidden_states", "timestep", "proj_embedding", "encoder_hidden_states"},
    "QwenImageTransformer2DModel": {"hidden_states", "encoder_hidden_states", "timestep", "img_shapes"},
    "SD3Transformer2DModel": {"hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"},
    "SanaTransformer2DModel": {"hidden_states", "encoder_hidden_states", "timestep"},
    "StableAudioDiTModel": {"hidden_states", "timestep", "encoder_hidden_states", "global_hidden_states"},
    "UNet3DConditionModel": {"sample", "timestep", "encoder_hidden_states"},
    "UNetMotionModel": {"sample", "timestep", "encoder_hidden_states"},
    "WanTransformer3DModel": {"hidden_states", "timestep", "encoder_hidden_states"},
    "WanVACETransformer3DModel": {"hidden_states", "timestep", "encoder_hidden_states", "control_hidden_states"},
    "ZImageTransformer2DModel": {"x", "t", "cap_feats"},
}
UNDERIVABLE = {
    "Cosmos3OmniTransformer",
    "CosmosTransformer3DModel",  # it needs torchvision
    "DreamLiteTransformer2DModel",
    "HunyuanVideoFramepackTransformer3DModel",
    "JoyImageEditPlusTransformer3DModel",
    "MiniMaxH3Transformer3DModel",
    "OmniGenTransformer2DModel",
    "QwenImage21Transformer2DModel",
    "RFD4ProteinaTransformer",
    "SanaWMTransformer3DModel",
    "UNet1DModel",
    "WanAnimate2Transformer3DModel",
    "WanAnimateTransformer3DModel",
}
"""Classes of diffusers 0.42.1 whose inputs the user has to give."""


FAST = (
    "FluxTransformer2DModel",
    "SD3Transformer2DModel",
    "WanTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "PriorTransformer",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in RUNNING]
)
def test_a_networks_inputs_follow_from_its_config_and_run(name):
    spec = ModelSpec(name, tiny(name))
    inputs = spec.example_inputs()
    assert set(inputs) == RUNNING[name]
    assert output_tensors(run_once(spec.build().eval(), inputs))


def test_conditions_beside_text_are_as_wide_as_the_config_says():
    spec = ModelSpec("UNet2DConditionModel", tiny("UNet2DConditionModel"))
    inputs = spec.example_inputs()
    assert {key: tuple(value.shape) for key, value in inputs["added_cond_kwargs"].items()} == {
        "text_embeds": (1, 40 - 6 * 4),
        "time_ids": (1, 6),
    }
    assert run_once(spec.build().eval(), inputs).sample.shape == (1, 4, 32, 32)


@pytest.mark.slow
def test_every_denoiser_has_inputs_or_a_sentence_that_shows_how_to_write_them():
    asked = {}
    for name in denoisers():
        spec = ModelSpec(name, tiny(name))
        try:
            assert spec.example_inputs(), name
        except (InputError, FileFormatError) as error:
            asked[name] = str(error)
    assert len(denoisers()) > 80
    assert all('{"shape": [' in text and "by `inputs`" in text for text in asked.values())
    assert set(asked) <= UNDERIVABLE


@pytest.mark.parametrize(
    "name",
    [
        *("AutoencoderKL", "DDIMScheduler", "FluxPipeline", "ControlNetModel", "MotionAdapter", "ModelMixin"),
        *(
            "MiniMaxMusic3RVQDepthDecoder",
            "transformers",
            "os.system",
            "transformers.transformer_flux",
            "__class__",
            "",
        ),
    ],
)
def test_nothing_but_denoisers_can_be_named(name):
    with pytest.raises(InputError, match="expected one of the installed diffusers' denoisers"):
        denoiser(name)


def test_a_class_of_ones_own_is_none_of_diffusers():
    class UNet2DModel(torch.nn.Module):
        config = UNET_CONFIG

    with pytest.raises(InputError, match="is not one of DiTTransformer2DModel"):
        ModelSpec.of(UNet2DModel())


def test_inputs_that_cannot_be_derived_give_one_sentence_with_the_json_to_write():
    spec = ModelSpec("JoyImageEditPlusTransformer3DModel", tiny("JoyImageEditPlusTransformer3DModel"))
    with pytest.raises(InputError, match="cannot be derived") as caught:
        spec.example_inputs()
    text = str(caught.value)
    form = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert {"hidden_states", "timestep"} <= set(form)
    assert text.endswith("give the file by `inputs`.")


def test_a_config_that_asks_for_huge_inputs_is_refused_before_they_are_made():
    huge = {"sample_height": 2**20, "sample_width": 2**20}
    with pytest.raises(InputError, match="they would hold"):
        ModelSpec("EasyAnimateTransformer3DModel", tiny("EasyAnimateTransformer3DModel") | huge).example_inputs()


def test_a_config_that_the_class_does_not_take_is_refused():
    with pytest.raises(InputError, match="does not take this config"):
        ModelSpec("WanTransformer3DModel", {"widths": 3}).example_inputs()


def test_a_folder_of_a_text_conditioned_network_loads_with_its_inputs(tmp_path):
    spec = ModelSpec("SD3Transformer2DModel", tiny("SD3Transformer2DModel"))
    model = spec.build().eval()
    model.save_pretrained(tmp_path / "sd3")
    base = load_base(tmp_path / "sd3")
    inputs = base.spec.example_inputs()
    with torch.no_grad():
        assert torch.equal(base.model(**inputs).sample, model(**inputs).sample)


def test_inputs_may_be_given_or_made_of_the_config(tmp_path):
    model = ModelSpec("UNet2DModel", UNET_CONFIG).build()
    model.save_pretrained(tmp_path / "unet")
    own = {"sample": torch.zeros(1, 1, 16, 16), "timestep": torch.tensor([3])}
    assert load_base(tmp_path / "unet", inputs=own).spec.example_inputs() is own
    made = load_base(tmp_path / "unet", inputs=lambda config: {"sample": torch.zeros(1, config["in_channels"], 4, 4)})
    assert made.spec.example_inputs()["sample"].shape == (1, 1, 4, 4)
