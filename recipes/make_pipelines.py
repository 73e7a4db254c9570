"""Make two small text-to-image pipelines on Fashion-MNIST.

    python recipes/make_pipelines.py --output pipelines

writes ``pipelines/latent-unet``, a StableDiffusionPipeline with a UNet2DConditionModel that predicts the noise, and
``pipelines/latent-flow``, a StableDiffusion3Pipeline with an SD3Transformer2DModel and flow matching. A denoiser has the weights of
``recipes/latent-bases`` if they are there, and otherwise random ones. The other parts are trained and lie in
``recipes/fashion-parts``: an AutoencoderKL with latents of 8×8×4 for pictures of 32×32, and a CLIPModel with its tokenizer, which
is the text encoder and gives CLIP scores.

    python recipes/make_pipelines.py --output pipelines --fashion FOLDER --pictures pipelines/pictures

also writes the pictures, enlarged to 32×32 (bicubic), as ``train/*.png`` and ``test/*.png`` with captions such as "a photo of a
sneaker" in ``metadata.jsonl``, for ``prunekit encode``. FOLDER has the four idx files (``train-`` and ``t10k-images-idx3-ubyte``,
``train-`` and ``t10k-labels-idx1-ubyte``, each ``.gz`` or not). With ``--parts NEW`` the parts are trained anew on the 60,000
training pictures: half an hour on one core. Training saves its state every 100 steps in ``NEW/training`` and resumes from there.

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
from prunekit.steps.bases import open_base

PARTS = Path(__file__).with_name("fashion-parts")
BASES = Path(__file__).with_name("latent-bases")


def with_weights(network: torch.nn.Module, path: Path) -> None:
    """Give a network the weights of a base, if there is one."""
    if path.is_file():
        network.load_state_dict(open_base(str(path)).model.state_dict())


def make_unet_pipeline(parts: Path, output: Path, bases: Path = BASES) -> None:
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
    with_weights(unet, bases / "unet.safetensors")
    vae = AutoencoderKL.from_pretrained(parts / "vae")
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
        text_encoder=CLIPTextModel.from_pretrained(parts / "clip", dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(parts / "clip"),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(output / "latent-unet")


def make_flow_pipeline(parts: Path, output: Path, bases: Path = BASES) -> None:
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
    with_weights(transformer, bases / "flow.safetensors")
    text_encoder = CLIPTextModelWithProjection.from_pretrained(parts / "clip", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(parts / "clip")
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKL.from_pretrained(parts / "vae"),
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
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for the pipelines")
    parser.add_argument("--fashion", type=Path, metavar="FOLDER", help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="also write the pictures with captions there")
    parser.add_argument(
        "--parts", type=Path, metavar="FOLDER", default=PARTS, help="the trained parts (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=2400, help="train steps of each part (default: %(default)s)")
    given = parser.parse_args(arguments)
    trained = (given.parts / "clip" / "tokenizer_config.json").is_file()
    if given.fashion is None and (given.pictures is not None or not trained):
        parser.error("pictures, and parts that are not trained yet, need --fashion")
    logging.set_verbosity_error()  # the text encoders are read from CLIP's file, and the rest of it is not missed
    torch.set_num_threads(1)  # sums in another order give other weights
    split = None if given.fashion is None else load_images(str(given.fashion), labels=True)
    if split is not None and given.pictures is not None:
        write_pictures(split.train, given.pictures / "train")
        write_pictures(split.held_out, given.pictures / "test")
    if split is not None and not trained:
        make_parts(split.train, split.held_out, given.parts, given.steps)
    make_unet_pipeline(given.parts, given.output)
    make_flow_pipeline(given.parts, given.output)


if __name__ == "__main__":
    main()
