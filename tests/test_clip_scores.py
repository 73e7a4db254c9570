"""The CLIP score with a tiny CLIP model, against the model's own embeddings."""

import json
import shutil
import string
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from prunekit.clip_scores import clip_hash, load_clip
from prunekit.errors import FileFormatError, InputError, MissingFileError

PROMPTS = ["a bag", "a coat", "two red shoes", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP model with random weights and a tokenizer of letters, for prompts of up to 12 tokens."""
    path = tmp_path_factory.mktemp("clip") / "tiny-clip"
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: index for index, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**sizes, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 12}
    vision = {**sizes, "image_size": 16, "patch_size": 4}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    pictures = CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False)
    CLIPProcessor(pictures, tokenizer).save_pretrained(path)
    return path


def pictures(count=4, channels=3):
    return torch.randint(256, (count, channels, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def cosines(folder, images, prompts):
    """100 times the cosines of the model's own embeddings, one picture after the other."""
    clip = load_clip(folder)
    found = []
    for image, prompt in zip(images, prompts, strict=True):
        array = image.permute(1, 2, 0).numpy()
        inputs = clip.processor(text=[prompt], images=[array], return_tensors="pt", truncation=True)
        with torch.no_grad():
            output = clip.model(**inputs)
        found.append(100 * float((output.image_embeds * output.text_embeds).sum()))
    return found


def test_the_score_is_the_mean_cosine_of_the_models_own_embeddings(folder):
    clip, each = load_clip(folder), cosines(folder, pictures(), PROMPTS)
    assert 0 < min(each) < max(each)
    assert clip.score(pictures(), PROMPTS) == pytest.approx(sum(each) / 4, rel=1e-4)
    assert clip.score(pictures()[:1], PROMPTS[:1]) == pytest.approx(each[0], rel=1e-4)


def test_a_mean_below_zero_counts_as_zero(folder):
    clip = load_clip(folder)
    with torch.no_grad():
        clip.model.text_projection.weight.neg_()
    assert clip.score(pictures(), PROMPTS) == 0.0


def test_reading_a_model_prints_nothing(folder, capfd):
    load_clip(folder).score(pictures(), PROMPTS)
    assert capfd.readouterr() == ("", "")


def test_a_long_prompt_keeps_the_token_at_which_it_is_read(folder):
    clip, long = load_clip(folder), "a coat and a bag and more shoes"
    short = long.replace(" ", "")[:10]
    tokens = clip.processor(text=[long], truncation=True, return_tensors="pt").input_ids
    assert tokens.shape == (1, 12)
    assert int(tokens[0, -1]) == clip.model.config.text_config.eos_token_id
    found = [clip.score(image[None], [prompt]) for image in pictures() for prompt in (long, short)]
    assert found == pytest.approx(
        [max(0, *cosines(folder, image[None], [prompt])) for image in pictures() for prompt in (long, short)], rel=1e-4
    )


def test_grey_pictures_count_as_coloured_and_batches_do_not_matter(folder):
    clip, grey = load_clip(folder), pictures(70, 1)
    prompts = [PROMPTS[index % 4] for index in range(70)]
    score = clip.score(grey, prompts)
    assert score == pytest.approx(clip.score(grey.expand(-1, 3, -1, -1), prompts))
    assert score == pytest.approx(max(0.0, sum(cosines(folder, grey.expand(-1, 3, -1, -1), prompts)) / 70), rel=1e-4)


def test_a_model_has_its_folders_name_and_the_hash_of_its_weights(folder):
    clip = load_clip(folder)
    assert clip.describe() == {"name": "tiny-clip", "sha256": clip_hash(folder)}


def test_a_model_that_is_nowhere_is_told_where_to_get(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in ("openai/clip-vit-base-patch16", str(tmp_path / "nowhere")):
        with pytest.raises(
            MissingFileError, match=r"neither a folder.*openai/clip-vit-large-patch14 from the Hugging Face Hub.*`clip`"
        ):
            load_clip(name)
    with pytest.raises(MissingFileError, match=r"no config\.json"):
        load_clip(tmp_path)


def test_a_file_without_some_of_the_weights_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "clip")
    tensors = load_file(folder / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, tmp_path / "clip" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FileFormatError, match=r"lacks text_projection\.weight"):
        load_clip(tmp_path / "clip")
    tensors["text_projection.weight"] = torch.full((8, 16), torch.nan)
    save_file(tensors, tmp_path / "clip" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FileFormatError, match=r"text_projection\.weight that are not finite"):
        load_clip(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(FileFormatError):
        load_clip(tmp_path / "clip")


def test_another_model_is_refused(folder, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(FileFormatError, match="type clip"):
        load_clip(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(FileFormatError, match="no readable CLIP model"):
        load_clip(tmp_path)


@pytest.mark.parametrize("images", [pictures(3), pictures().float(), pictures(channels=2), pictures(0)])
def test_pictures_and_prompts_that_do_not_fit_are_refused(folder, images):
    with pytest.raises(InputError, match="a prompt for each"):
        load_clip(folder).score(images, PROMPTS)


def test_without_transformers_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'prunekit\[text\]'"):
        load_clip(folder)
