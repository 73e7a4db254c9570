"""Whether experts work in a pipeline, check by check. A check fails by an assertion, or returns why it does not apply."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import numpy as np
import torch
import torch._dynamo
from expert_pipelines import (
    FLOWS,
    GROUPS,
    UNITS,
    assert_alike,
    denoiser_of,
    first_call,
    pair,
    part_of,
    pictures,
    routes,
    slim_experts,
    with_experts,
)
from PIL import Image
from tiny_pipelines import SIDE, tiny_pipeline
from torch import nn

import prunekit
from prunekit.nets import load_experts
from prunekit.schedule import TimeUnit

Check = Callable[[str, Path], str | None]
_DIFFUSION = (
    *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler"),
    *("EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler", "LCMScheduler", "TCDScheduler"),
)
_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
_SOLVERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")


def same_pictures(name: str, folder: Path) -> str | None:
    """Full-width experts make the base's pictures, bit for bit."""
    base, other, experts = pair(name, folder)
    with routes(experts) as taken:
        assert torch.equal(pictures(base, name), pictures(other, name))
    assert len({index for index, _ in taken}) > 1
    return None


def schedulers(name: str, folder: Path) -> str | None:
    """Under every scheduler each step's expert is that of the scheduler's timestep, and the pictures are the base's."""
    run = 0
    for scheduler in _schedulers(name):
        base, other, experts = pair(name, folder)
        base.scheduler = scheduler()
        try:
            expected = pictures(base, name)
        except (ValueError, AssertionError):
            continue  # the pipeline itself does not take this scheduler
        other.scheduler = scheduler()
        with routes(experts) as taken:
            assert torch.equal(pictures(other, name), expected), scheduler
        unit = UNITS.get(name, TimeUnit())
        expected_steps = [round((told - unit.offset) / unit.scale, 3) for _, told in taken]
        assert [index for index, _ in taken] == GROUPS.index_of(np.minimum(expected_steps, 999)).tolist(), scheduler
        run += 1
    assert run >= 3
    return None


def saving(name: str, folder: Path) -> str | None:
    """Pruned experts are written with the pipeline and read with it, and the pictures are the same."""
    pipeline = tiny_pipeline(name, folder)
    with_experts(pipeline, name, slim_experts)
    expected = pictures(pipeline, name)
    pipeline.save_pretrained(folder / "saved")
    missing = {part: None for part, value in pipeline.components.items() if value is None}
    again = diffusers.DiffusionPipeline.from_pretrained(folder / "saved", **missing)
    again.set_progress_bar_config(disable=True)
    assert type(denoiser_of(again)) is prunekit.TimestepExperts
    assert_alike(pictures(again, name), expected)
    return None


def offloading(name: str, folder: Path) -> str | None:
    """Offloaded as a whole, layer by layer, and one expert at a time from disk, with the CPU in the accelerator's place."""
    base, other, experts = pair(name, folder)
    expected = pictures(base, name)
    other.enable_model_cpu_offload(device="cpu")
    assert torch.equal(pictures(other, name), expected)
    other.remove_all_hooks()
    experts.save_pretrained(folder / "experts")
    for own in (experts, load_experts(folder / "experts", "one")):
        other.register_modules(**{part_of(other): own})
        accelerate.cpu_offload(own, torch.device("cpu"))
        assert_alike(pictures(other, name), expected)
        assert {one.device.type for one in own.parameters()} == {"meta"}
    return None


def slicing(name: str, folder: Path) -> str | None:
    """Sliced attention and a sliced VAE reach every expert, and attention processors can be set."""
    base, other, experts = pair(name, folder)
    for one in (base, other):
        one.enable_attention_slicing(1)
        one.vae.enable_slicing()
    assert torch.equal(pictures(base, name), pictures(other, name))
    sliceable = [one for one in denoiser_of(base).modules() if hasattr(one, "set_attention_slice")]
    processors = [{str(type(one)) for one in getattr(own, "attn_processors", {}).values()} for own in experts.experts]
    assert all(own == processors[0] for own in processors)
    if hasattr(experts, "attn_processors"):
        experts.set_attn_processor(experts.attn_processors)
        assert torch.equal(pictures(base, name), pictures(other, name))
    return None if sliceable else "the VAE's; the class has no sliced attention"


def lora(name: str, folder: Path) -> str | None:
    """A LoRA of the base on full-width experts makes the pictures of the base with it; on pruned ones it is cut exactly."""
    base, other, _ = pair(name, folder)
    if not hasattr(base, "load_lora_weights"):
        return "the pipeline takes none"
    weights = lora_of(denoiser_of(base), part_of(base))
    plain = pictures(base, name)
    for one in (base, other):
        one.load_lora_weights(weights, adapter_name="own")
        one.set_adapters("own", 0.5)
    changed = pictures(base, name)
    assert not torch.equal(changed, plain)
    assert torch.equal(pictures(other, name), changed)
    for one in (base, other):
        one.unload_lora_weights()
    unloaded = pictures(base, name)
    assert_alike(unloaded, plain)
    assert torch.equal(pictures(other, name), unloaded)
    pruned = tiny_pipeline(name, folder)
    experts = with_experts(pruned, name, slim_experts)
    before = pictures(pruned, name)
    pruned.load_lora_weights(weights, adapter_name="own")
    assert not torch.equal(pictures(pruned, name), before)
    assert all(expert.peft_config for expert in experts.experts)
    return None


_counters: list[Any] = []  # kept, because torch knows a backend by its address


def compiling(name: str, folder: Path) -> str | None:
    """Compiled experts make the same pictures; where the class names its blocks, these can be compiled alone."""
    from torch._dynamo import reset
    from torch._dynamo.testing import CompileCounter

    base, _, experts = pair(name, folder)
    expected = pictures(base, name)
    ways = ["compile", *(["compile_repeated_blocks"] if experts.experts[0]._repeated_blocks else [])]
    for way in ways:
        reset()
        counter = CompileCounter()
        _counters.append(counter)
        experts = with_experts(tiny := tiny_pipeline(name, folder), name)
        getattr(experts, way)(backend=counter)
        with torch._dynamo.config.patch(recompile_limit=64):
            made = pictures(tiny, name)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
        assert counter.frame_count > 0
    return None if len(ways) == 2 else "whole experts; the class names no blocks"


_PICTURES = {
    "sd": ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionControlNetPipeline"),
    "sdxl": (
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLControlNetPipeline",
    ),
    "sd3": ("StableDiffusion3Img2ImgPipeline",),
    "flux": ("FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxControlNetPipeline"),
    "sana": ("SanaControlNetPipeline",),
    "wan": ("WanVideoToVideoPipeline",),
}


def from_pictures(name: str, folder: Path) -> str | None:
    """Image-to-image, inpainting and ControlNet pipelines with full-width experts make the base's pictures."""
    if name not in _PICTURES:
        return "diffusers has no such pipeline for it"
    for kind in _PICTURES[name]:
        base, other, _ = pair(name, folder)
        found = []
        control = _control(name, base) if "ControlNet" in kind else {}
        for pipeline in (base, other):
            own = {part_of(pipeline): denoiser_of(pipeline), **control}
            made = getattr(diffusers, kind).from_pipe(pipeline, **own)
            made.set_progress_bar_config(disable=True)
            picture = Image.fromarray(np.arange(SIDE * SIDE * 3, dtype=np.uint8).reshape(SIDE, SIDE, 3))
            several = [picture] if name == "flux" and control else [picture] * 2
            images = {"image": several, "control_image": several, "strength": 0.75}
            if name == "wan":  # its clean-up of prompts needs another package
                words = {key: torch.ones(1, 16, 32) for key in ("prompt_embeds", "negative_prompt_embeds")}
                images |= {"video": [picture.resize((16, 16))] * 5, "prompt": None, **words}
            images["mask_image"] = [Image.fromarray(np.tri(SIDE, dtype=np.uint8) * 255)] * 2
            if "control_image" in inspect.signature(made.__call__).parameters:
                images.pop("image" if control else "control_image")
            found.append(pictures(made, name, **images))
        assert torch.equal(*found), kind
    return {"sd3": "image-to-image only", "sana": "ControlNet only", "wan": "video-to-video only"}.get(name)


def mixed_batch(name: str, folder: Path) -> str | None:
    """Samples of one batch with different timesteps meet their own experts, with their own rows of every condition."""
    pipeline = tiny_pipeline(name, folder)
    bound = first_call(pipeline, name)
    experts = with_experts(pipeline, name, slim_experts)
    form, unit = experts._form, UNITS.get(name, TimeUnit())
    batch = len(bound[form.sample])
    times = torch.tensor([900.0, 100.0, 500.0, 250.0][:batch])
    bound[form.timestep] = times * unit.scale + unit.offset
    with torch.no_grad():
        found = experts(**bound).sample
        for row, index in enumerate(GROUPS.index_of(times.numpy()).tolist()):
            own = experts._split(bound, torch.tensor([row]), batch)
            alone = experts.experts[index](**own, return_dict=False)[0]
            torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-3, atol=1e-5)
    return None


CHECKS: dict[str, Check] = {
    "base's pictures": same_pictures,
    "schedulers": schedulers,
    "save and load": saving,
    "offload": offloading,
    "slicing": slicing,
    "LoRA": lora,
    "compile": compiling,
    "img2img": from_pictures,
    "mixed batch": mixed_batch,
}
"""By the column of the table."""


def lora_of(network: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 with random weights on attention and feed-forward layers, as pipelines store it."""
    import copy

    from peft import LoraConfig, get_peft_model_state_dict

    copied: Any = copy.deepcopy(network)
    targets = [
        layer
        for layer, module in copied.named_modules()
        if isinstance(module, nn.Linear)
        and layer.split(".")[-1] in ("to_q", "to_k", "to_v", "proj")
        and "embed" not in layer
    ]
    copied.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets))
    generator = torch.Generator().manual_seed(1)
    return {
        f"{prefix}.{key}": 0.3 * torch.randn(tensor.shape, generator=generator)
        for key, tensor in get_peft_model_state_dict(copied).items()
    }


def _schedulers(name: str) -> list[Callable[[], Any]]:
    from tiny_pipelines import NAMES

    assert name in NAMES
    config = _scheduler_config(name)

    def maker(kind: str, **options: Any) -> Callable[[], Any]:
        known = getattr(diffusers, kind)
        return lambda: known(**options) if options else known.from_config(config)

    if name in FLOWS:
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        return [*(maker(kind) for kind in _FLOW), *(maker(kind, **flow) for kind in _SOLVERS)]
    return [maker(kind) for kind in _DIFFUSION]


def _scheduler_config(name: str) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return tiny_pipeline(name, Path(folder)).scheduler.config


def _control(name: str, base: Any) -> dict[str, Any]:
    """A ControlNet of a base with random weights, where it would begin with zeros."""
    torch.manual_seed(5)
    if name in ("sd", "sdxl"):
        net = diffusers.ControlNetModel.from_unet(base.unet, conditioning_channels=3)
        net.controlnet_cond_embedding = type(net.controlnet_cond_embedding)(
            base.unet.config.block_out_channels[0], 3, (8, 8, 16)
        )
    elif name == "sana":
        net = diffusers.SanaControlNetModel.from_config(base.transformer.config)
    else:
        heads = {"attention_head_dim": 8, "num_attention_heads": 2}
        net = diffusers.FluxControlNetModel.from_transformer(
            base.transformer, num_layers=1, num_single_layers=1, **heads
        )
    for weight in net.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.1)
    return {"controlnet": net.eval()}
