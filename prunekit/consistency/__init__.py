"""How similar two models' outputs are for the same noise, at every step from noise to images (arXiv:2404.07946).

docs/consistency.md has the formulas and says which of them are published.
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
