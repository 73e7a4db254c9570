"""The script that makes two small text-to-image pipelines."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from prunekit.clip_scores import load_clip
from prunekit.data import load_images
from prunekit.steps.bases import open_base

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture
def script(monkeypatch):
    """Import a script of ``recipes/`` as it imports its neighbours."""
    monkeypatch.syspath_prepend(str(RECIPES))

    def load(name):
        for known in ("make_pipelines", "fashion_parts"):
            sys.modules.pop(known, None)
        return importlib.import_module(name)

    return load


@pytest.fixture
def fashion(tmp_path):
    """Files like Fashion-MNIST's, with 300 and 40 random pictures of ten classes."""
    draw, folder = np.random.default_rng(0), tmp_path / "fashion"
    folder.mkdir()
    for part, count in (("train", 300), ("t10k", 40)):
        pictures = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", pictures), ("labels-idx1", labels)):
            sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())
    return folder


def test_every_caption_fits_and_each_of_its_words_is_one_token(script):
    parts = script("fashion_parts")
    tokenizer = parts.make_tokenizer()
    captions = [parts.caption(label, template) for label in range(10) for template in range(len(parts.TEMPLATES))]
    assert len(set(captions)) == len(captions) == 70
    for text in captions:
        words = text.replace("-", " - ").split()
        assert tokenizer.tokenize(text) == [f"{word}</w>" for word in words]
        assert len(words) + 2 <= parts.TOKENS
    assert (
        tokenizer.decode(tokenizer("Übermäßig 3!").input_ids, skip_special_tokens=True).replace(" ", "")
        == "übermäßig3!"
    )


def test_training_resumes_to_the_same_weights(script, tmp_path):
    parts = script("fashion_parts")

    def trained(state, stop=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)

        def loss(generator):
            batch = torch.randn(4, 3, generator=generator)
            if stop is not None and generator.initial_seed() == stop:
                raise KeyboardInterrupt
            return (model(batch) - batch[:, :2]).square().mean()

        parts.train(model, parts.VAE, 230, loss, state)
        return model.weight

    whole = trained(tmp_path / "a.pt")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "b.pt", stop=215)
    assert torch.equal(trained(tmp_path / "b.pt"), whole)


@pytest.mark.slow
def test_both_pipelines_make_pictures_of_a_prompt(script, fashion, tmp_path):
    from diffusers import DiffusionPipeline

    out, parts, pictures = tmp_path / "out", tmp_path / "parts", tmp_path / "pictures"
    options = ["--output", str(out), "--parts", str(parts)]
    own = ["--fashion", str(fashion), "--steps", "2", "--pictures", str(pictures)]
    script("make_pipelines").main([*options, *own])
    found = json.loads((parts / "parts.json").read_text())
    assert 0 <= found["CLIP's zero-shot accuracy"] <= 1
    assert sum(path.stat().st_size for name in ("vae", "clip") for path in (parts / name).iterdir()) < 3_000_000
    without_t5 = {"text_encoder_3": None, "tokenizer_3": None}
    for name, denoiser, absent, extra in (
        ("latent-unet", "unet", {}, {}),
        ("latent-flow", "transformer", without_t5, {"max_sequence_length": 1}),
    ):
        pipeline = DiffusionPipeline.from_pretrained(out / name, **absent)
        pipeline.set_progress_bar_config(disable=True)
        network = getattr(pipeline, denoiser)
        assert {network.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}
        image = pipeline("a photo of a bag", num_inference_steps=2, output_type="pt", **extra).images
        assert image.shape == (1, 3, 32, 32)
    trained = open_base(str(RECIPES / "latent-bases" / "unet.safetensors")).model.state_dict()
    found = DiffusionPipeline.from_pretrained(out / "latent-unet").unet.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in trained.items())
    lines = [json.loads(line) for line in (pictures / "train" / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == 300
    assert lines[7] == {"file_name": "00007.png", "text": "a photo of a sneaker", "label": 7}
    with Image.open(pictures / "test" / "00039.png") as picture:
        assert (picture.size, picture.mode) == ((32, 32), "L")
    split = load_images(str(pictures), labels=True)
    assert (len(split.train), len(split.held_out)) == (300, 40)
    assert split.held_out.labels.tolist() == [row % 10 for row in range(40)]
    before = (parts / "vae" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    script("make_pipelines").main(options)
    assert (parts / "vae" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == before


def test_parts_that_must_be_trained_and_pictures_need_the_files(script, tmp_path, capsys):
    for options in (["--parts", str(tmp_path / "new")], ["--pictures", str(tmp_path / "pictures")]):
        with pytest.raises(SystemExit):
            script("make_pipelines").main(["--output", str(tmp_path / "out"), *options])
        assert "need --fashion" in capsys.readouterr().err


@pytest.fixture(scope="module")
def shipped():
    """Parts that were trained on all pictures."""
    return RECIPES / "fashion-parts"


def test_the_trained_parts_are_small_and_decode_what_they_encode(shipped):
    from diffusers import AutoencoderKL

    assert sum(path.stat().st_size for path in shipped.rglob("*")) < 3_000_000
    vae = AutoencoderKL.from_pretrained(shipped / "vae")
    grey = load_images("embedded:fashion").held_out.images[:64].float()
    pictures = (
        functional.interpolate(grey, (32, 32), mode="bicubic").clamp(0, 255).div(127.5).sub(1).expand(-1, 3, -1, -1)
    )
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mode()
        error = (vae.decode(latents).sample - pictures).abs().mean() / 2
    assert latents.shape == (64, 4, 8, 8)
    assert error < 0.03
    assert latents.std() * vae.config.scaling_factor == pytest.approx(1, abs=0.15)


def test_the_trained_clip_model_knows_its_classes(script, shipped):
    parts, clip = script("fashion_parts"), load_clip(shipped / "clip")
    images = load_images("embedded:fashion", labels=True).held_out
    own = [parts.caption(int(label), 0) for label in images.labels[:200]]
    others = [parts.caption((int(label) + 5) % 10, 0) for label in images.labels[:200]]
    assert clip.score(images.images[:200], own) > clip.score(images.images[:200], others) + 30
