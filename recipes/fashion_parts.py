"""The trained parts of small text-to-image pipelines on Fashion-MNIST; :mod:`make_pipelines` puts them together."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Generator, Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from prunekit._files import atomic_path
from prunekit.data import ImageData
from prunekit.evaluation import image_metrics
from prunekit.extractors import OwnExtractor
from prunekit.features import load_features

SIDE, TOKENS, WIDTH = 32, 16, 64
CLASSES = (
    "a t-shirt",
    "trousers",
    "a pullover",
    "a dress",
    "a coat",
    "a sandal",
    "a shirt",
    "a sneaker",
    "a bag",
    "an ankle boot",
)
TEMPLATES = (
    "a photo of {}",
    "a picture of {}",
    "a small photo of {}",
    "a grey photo of {}",
    "this is {}",
    "{}",
    "{} in a catalogue",
)
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


@dataclass(frozen=True)
class Plan:
    """How a part is trained: AdamW, with a learning rate that rises linearly and then falls along half a cosine."""

    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup: int = 100

    def rate(self, step: int, steps: int) -> float:
        """The share of the learning rate at a step."""
        return min((step + 1) / self.warmup, 1.0) * 0.5 * (1 + math.cos(math.pi * step / steps))


VAE = Plan(batch_size=64, learning_rate=2e-3, weight_decay=0.0)
CLIP = Plan(batch_size=128, learning_rate=1e-3, weight_decay=0.05)
KL_WEIGHT = 1e-3  # of the KL divergence of one latent number, compared with the error of one pixel


def say(text: str) -> None:
    """Print a line at once, since training takes long."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def caption(label: int, template: int) -> str:
    """A picture's caption, such as "a photo of a sneaker"."""
    return TEMPLATES[template].format(CLASSES[label])


def pixels(pictures: Tensor) -> Tensor:
    """Grey uint8 pictures (N, 1, 28, 28) as the VAE takes them: float32 (N, 3, 32, 32) from −1 to 1."""
    return enlarged(pictures).float().div(127.5).sub(1).expand(-1, 3, -1, -1)


def enlarged(pictures: Tensor) -> Tensor:
    """Grey pictures enlarged to 32×32, uint8 (N, 1, 32, 32)."""
    large = functional.interpolate(pictures.float(), (SIDE, SIDE), mode="bicubic", align_corners=False)
    return large.round().clamp(0, 255).to(torch.uint8)


def train(model: nn.Module, plan: Plan, steps: int, loss_of: Callable[[Generator], Tensor], state: Path) -> None:
    """Train a model; its state is saved every 100 steps, and a second call resumes from there to the same weights.

    Args:
        model: the model, in eval mode and without gradients afterwards.
        plan: see :class:`Plan`.
        steps: number of train steps.
        loss_of: the loss of a batch that the generator draws.
        state: file for the state; its name is shown.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: plan.rate(step, steps))
    first, parts = 0, {"model": model, "optimizer": optimizer, "schedule": schedule}
    if state.is_file():
        saved = torch.load(state, weights_only=True)
        first = saved.pop("step")
        for part, content in saved.items():
            parts[part].load_state_dict(content)
    model.train()
    losses = []
    for step in range(first, steps):
        loss = loss_of(Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            with atomic_path(state) as part:
                torch.save({"step": step + 1, **{key: one.state_dict() for key, one in parts.items()}}, part)
            say(f"{state.stem}: step {step + 1} of {steps}, loss {sum(losses) / len(losses):.4f}")
            losses.clear()
    model.eval().requires_grad_(False)


def make_vae(images: ImageData, steps: int, state: Path) -> AutoencoderKL:
    """An autoencoder with four times smaller sides and four channels, trained on absolute errors (arXiv:2112.10752)."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        norm_num_groups=8,
        sample_size=SIDE,
    )

    def loss(generator: Generator) -> Tensor:
        chosen = torch.randint(len(images), (VAE.batch_size,), generator=generator)
        real = pixels(images.images[chosen])
        latents = vae.encode(real).latent_dist
        error = (vae.decode(latents.sample(generator)).sample - real).abs().mean()
        return error + KL_WEIGHT * latents.kl().mean() / latents.mean[0].numel()

    train(vae, VAE, steps, loss, state)
    drawn = Generator().manual_seed(0)
    parts = [vae.encode(pixels(part)).latent_dist.sample(drawn) for part in images.images[:8192].split(256)]
    latents = torch.cat(parts)
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    return vae


def make_tokenizer() -> CLIPTokenizer:
    """A tokenizer for any text, for which every word of the captions is one token."""
    texts = [caption(label, template) for label in range(len(CLASSES)) for template in range(len(TEMPLATES))]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    trainer = trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges), *SPECIAL]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def make_clip(images: ImageData, steps: int, state: Path) -> CLIPModel:
    """A CLIPModel (arXiv:2103.00020); all captions of a picture's class count as its own (as in arXiv:2204.03610)."""
    tokenizer = make_tokenizer()
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        **special,
    )
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=4,
    )
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH))
    captions = [caption(label, template) for label in range(len(CLASSES)) for template in range(len(TEMPLATES))]
    tokens = tokens_of(tokenizer, captions).view(len(CLASSES), len(TEMPLATES), TOKENS)

    def loss(generator: Generator) -> Tensor:
        chosen = torch.randint(len(images), (CLIP.batch_size,), generator=generator)
        labels = images.labels[chosen]
        template = torch.randint(len(TEMPLATES), labels.shape, generator=generator)
        real = moved(pixels(images.images[chosen]), generator)
        scores = clip(input_ids=tokens[labels, template], pixel_values=real).logits_per_image
        same = (labels[:, None] == labels).float()
        wanted = same / same.sum(1, keepdim=True)
        return 0.5 * (functional.cross_entropy(scores, wanted) + functional.cross_entropy(scores.T, wanted))

    train(clip, CLIP, steps, loss, state)
    return clip


def moved(pictures: Tensor, generator: Generator) -> Tensor:
    """Pictures that are mirrored at random and moved by up to two pixels, together; black comes in at the borders."""
    mirrored = torch.rand(len(pictures), generator=generator) < 0.5
    pictures = torch.where(mirrored[:, None, None, None], pictures.flip(3), pictures)
    down, right = torch.randint(5, (2,), generator=generator).tolist()
    return functional.pad(pictures, (2, 2, 2, 2), value=-1.0)[..., down : down + SIDE, right : right + SIDE]


def tokens_of(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token numbers, int64, shape (captions, 16)."""
    numbers: Tensor = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return numbers


def measure(vae: AutoencoderKL, clip: CLIPModel, held_out: ImageData) -> dict[str, float]:
    """What the parts do on the 10,000 held-out pictures."""
    real = enlarged(held_out.images)
    decoded = torch.cat([vae(pixels(part)).sample.mean(1, keepdim=True) for part in held_out.images.split(256)])
    decoded = decoded.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    net = load_features("fashion-cnn").net
    distances = image_metrics(real, decoded, OwnExtractor("fashion-cnn", net))
    text = tokens_of(make_tokenizer(), [caption(label, 0) for label in range(len(CLASSES))])
    scores = [clip(input_ids=text, pixel_values=pixels(part)).logits_per_image for part in held_out.images.split(256)]
    difference = (real.float() - decoded.float()).div(255)
    found = {
        "mean absolute error (0 … 1)": difference.abs().mean().item(),
        "PSNR in dB": -10 * difference.square().mean().log10().item(),
        "FID of decoded pictures, fashion-cnn": distances.fid,
        "fashion-cnn's accuracy on pictures": net.accuracy(real, held_out.labels),
        "fashion-cnn's accuracy on decoded pictures": net.accuracy(decoded, held_out.labels),
        "CLIP's zero-shot accuracy": (torch.cat(scores).argmax(1) == held_out.labels).float().mean().item(),
        "scaling factor": vae.config.scaling_factor,
        "shift factor": vae.config.shift_factor,
    }
    return {name: round(value, 4) for name, value in found.items()}


def make_parts(images: ImageData, held_out: ImageData, output: Path, steps: int) -> None:
    """Train the autoencoder and CLIP, measure them, and write them in half precision."""
    training = output / "training"
    training.mkdir(parents=True, exist_ok=True)
    vae, clip = make_vae(images, steps, training / "vae.pt"), make_clip(images, steps, training / "clip.pt")
    with torch.no_grad():
        found = measure(vae.eval(), clip.eval(), held_out)
    for name, value in found.items():
        say(f"{name}: {value}")
    (output / "parts.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    vae.half().save_pretrained(output / "vae")
    clip.half().save_pretrained(output / "clip")
    processor = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    CLIPProcessor(processor, make_tokenizer()).save_pretrained(output / "clip")
