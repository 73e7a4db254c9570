"""Make two small text-to-image pipelines on Fashion-MNIST: their trained parts, and their denoisers with random weights.

    python recipes/make_pipelines.py --fashion FOLDER --output pipelines

FOLDER has the four idx files (``train-`` and ``t10k-images-idx3-ubyte``, ``train-`` and ``t10k-labels-idx1-ubyte``, each ``.gz`` or
not). Pictures are enlarged to 32×32 (bicubic) and get captions such as "a photo of a sneaker". The script writes

    vae            an AutoencoderKL with latents of 8×8×4, trained on the 60,000 training pictures
    clip           a CLIPModel with its tokenizer, trained on the same pictures with captions: text encoder and CLIP score
    latent-unet    a StableDiffusionPipeline with a UNet2DConditionModel that predicts the noise
    latent-flow    a StableDiffusion3Pipeline with an SD3Transformer2DModel and flow matching

The two parts are stored in half precision, the pipelines in single precision. ``--pictures FOLDER`` also writes the pictures as
``train/*.png`` and ``test/*.png`` with their captions in ``metadata.jsonl``, for ``prunekit encode``. Training takes about half
an hour on one core, saves its state every 100 steps in ``OUTPUT/training`` and resumes from there. Parts that exist are kept.

Stable Diffusion 3 without T5 is loaded with ``from_pretrained(FOLDER, text_encoder_3=None, tokenizer_3=None)``. It puts
``max_sequence_length`` empty tokens (default: 256) behind those of CLIP; call the pipeline with ``max_sequence_length=1``, which
saves most of the MACs of a network as small as this.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from fashion_parts import SIDE, TEMPLATES, WIDTH, caption, enlarged, make_parts
from PIL import Image
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging

from prunekit.data import ImageData, load_images


def make_unet_pipeline(output: Path) -> None:
    """Stable Diffusion's classes: the noise is predicted, betas are linear in their roots (11.7 MMACs an evaluation)."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=SIDE // 4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(24, 48),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )
    vae = AutoencoderKL.from_pretrained(output / "vae")
    vae.register_to_config(shift_factor=None)  # this pipeline only scales
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel.from_pretrained(output / "clip", dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(output / "clip"),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(output / "latent-unet")


def make_flow_pipeline(output: Path) -> None:
    """Stable Diffusion 3's classes: flow matching, two text encoders that are the same here, no T5 (13.9 MMACs with 17 tokens)."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=6,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=96,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=SIDE // 8,
        qk_norm="rms_norm",
    )
    text_encoder = CLIPTextModelWithProjection.from_pretrained(output / "clip", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(output / "clip")
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKL.from_pretrained(output / "vae"),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(output / "latent-flow")


def write_pictures(images: ImageData, folder: Path) -> None:
    """Write pictures as PNG files and ``metadata.jsonl`` with a caption for each; templates take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for start in range(0, len(images), 1024):
        for offset, picture in enumerate(enlarged(images.images[start : start + 1024])):
            index = start + offset
            name, label = f"{index:05d}.png", int(images.labels[index])
            Image.fromarray(picture[0].numpy()).save(folder / name)
            lines.append(
                json.dumps({"file_name": name, "text": caption(label, index % len(TEMPLATES)), "label": label})
            )
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments and make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--fashion", type=Path, required=True, metavar="FOLDER", help="folder of Fashion-MNIST's idx files"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for parts and pipelines")
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="also write the pictures with their captions there"
    )
    parser.add_argument("--steps", type=int, default=2400, help="train steps of each part (default: 2400)")
    given = parser.parse_args(arguments)
    logging.set_verbosity_error()  # the text encoders are read from CLIP's file, and the rest of it is not missed
    torch.set_num_threads(1)  # sums in another order give other weights
    split = load_images(str(given.fashion), labels=True)
    if given.pictures is not None:
        write_pictures(split.train, given.pictures / "train")
        write_pictures(split.held_out, given.pictures / "test")
    if not (given.output / "clip" / "tokenizer_config.json").is_file():
        make_parts(split.train, split.held_out, given.output, given.steps)
    make_unet_pipeline(given.output)
    make_flow_pipeline(given.output)


if __name__ == "__main__":
    main()
