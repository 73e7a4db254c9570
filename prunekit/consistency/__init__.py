"""How alike two models' outputs are for the same noise, along the whole way from noise to images (arXiv:2404.07946).

docs/consistency.md has the formulas, and what of them is published.
"""

from prunekit.consistency.denoiser import Denoiser
from prunekit.consistency.likeness import Likeness, image_likeness, ssim_window, state_likeness
from prunekit.consistency.measure import Consistency, ConsistencyOptions, StepLikeness, measure_consistency
from prunekit.consistency.seams import Seam

__all__ = [
    "Consistency",
    "ConsistencyOptions",
    "Denoiser",
    "Likeness",
    "Seam",
    "StepLikeness",
    "image_likeness",
    "measure_consistency",
    "ssim_window",
    "state_likeness",
]
