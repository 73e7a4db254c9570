"""The table pipeline × check: experts in tiny pipelines of diffusers' own classes."""

import pytest
from pipeline_checks import CHECKS
from tiny_pipelines import NAMES


@pytest.mark.slow_but("dit-*", "sd3-*", "flux-mixed batch", "flux-base's pictures", "wan-base's pictures", "sana-LoRA")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_experts_work_in_the_pipeline_or_the_reason_is_known(name, check, tmp_path):
    assert CHECKS[check](name, tmp_path) in (None, *REASONS.get((name, check), ()))


REASONS = {
    ("dit", "LoRA"): ("the pipeline takes none",),
    ("pixart", "LoRA"): ("the pipeline takes none",),
    ("dit", "img2img"): ("diffusers has no such pipeline for it",),
    ("pixart", "img2img"): ("diffusers has no such pipeline for it",),
    ("sd3", "img2img"): ("image-to-image only",),
    ("sana", "img2img"): ("ControlNet only",),
    ("wan", "img2img"): ("video-to-video only",),
    **{
        (name, "slicing"): ("the VAE's; the class has no sliced attention",)
        for name in ("sd3", "flux", "pixart", "sana", "dit", "wan")
    },
    **{(name, "compile"): ("whole experts; the class names no blocks",) for name in ("sd3", "pixart", "sana", "dit")},
}
"""What a cell says in place of yes; any other answer is a failure."""
