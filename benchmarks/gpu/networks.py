"""Networks of the size of SDXL's U-Net and of DiT-XL/2, with random weights and random data of the right shapes; tiny ones, too."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from _manifest import REPORTS
from torch import Generator, Tensor, nn

from prunekit.checkpoint import ModelSpec
from prunekit.checkpoint.shaped_inputs import at_shapes
from prunekit.conditions import flat
from prunekit.data import ImageData
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.steps.objectives import objective_for
from prunekit.training import DenoisingObjective

sys.path.append(str(REPORTS.parents[1] / "tests" / "recipes"))  # the configs that the tests of recipes know
from real_configs import CONFIGS

SAMPLES = 64  # latents in memory


@dataclass(frozen=True)
class Large:
    """A network to train and to search.

    Args:
        spec: the network.
        shapes: of conditions whose length the config does not tell, by their paths.
        batches: batch sizes to train with, each with and without gradient checkpointing.
        checkpointed: which of them with gradient checkpointing.
    """

    spec: ModelSpec
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    batches: tuple[int, ...] = ()
    checkpointed: tuple[int, ...] = ()

    def inputs(self) -> Any:
        """Arguments of one forward pass, batch 1."""
        return at_shapes(self.spec, self.shapes).example_inputs()

    def build(self, device: torch.device) -> nn.Module:
        """The network, made where it is to run."""
        torch.manual_seed(0)
        with device:
            return self.spec.build()

    def objective(self) -> DenoisingObjective:
        """The loss on random latents, with random conditions or classes."""
        draws = Generator().manual_seed(0)
        given = {name: value for name, value in flat(self.inputs()).items() if isinstance(value, Tensor)}
        sample = next(value for value in given.values() if value.ndim == 4)
        columns = {
            name: torch.randn(SAMPLES, *value.shape[1:], generator=draws).half()
            for name, value in given.items()
            if value is not sample and value.ndim > 1
        }
        classes = self.spec.num_classes
        labels = None if classes is None else torch.randint(classes, (SAMPLES,), generator=draws)
        latents = torch.randn(SAMPLES, *sample.shape[1:], generator=draws).half()
        images = ImageData(latents, "random latents", labels, columns)
        return objective_for(images, self.spec, Parameterization(NoiseSchedule.linear()))


def networks(tiny: bool) -> dict[str, Large]:
    """The networks by name."""
    if tiny:
        return {
            "sdxl": Large(_narrow_sdxl(), {"encoder_hidden_states": (5, 16)}, (1,), (2,)),
            "dit-xl-2": Large(ModelSpec("DiTTransformer2DModel", {**DIT_XL, **_NARROW_DIT}), {}, (1,), (2,)),
        }
    return {
        "sdxl": Large(CONFIGS["sdxl"], {"encoder_hidden_states": (77, 2048)}, (1, 4), (4, 8)),
        "dit-xl-2": Large(ModelSpec("DiTTransformer2DModel", DIT_XL), {}, (32,), (32, 128)),
    }


DIT_XL = {  # facebook/DiT-XL-2-256
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "num_embeds_ada_norm": 1000,
}
_NARROW_DIT = {"sample_size": 8, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}


def _narrow_sdxl() -> ModelSpec:
    return ModelSpec(
        "UNet2DConditionModel",
        {
            **CONFIGS["sdxl"].config,
            "sample_size": 8,
            "layers_per_block": 1,
            "block_out_channels": [8, 16, 16],
            "transformer_layers_per_block": [1, 1, 1],
            "attention_head_dim": [1, 2, 2],
            "cross_attention_dim": 16,
            "norm_num_groups": 4,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64,
        },
    )
