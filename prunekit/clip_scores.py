"""CLIP score of generated pictures and their prompts, through torchmetrics, with a CLIP model that the user has."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunekit._containers import check_safetensors
from prunekit._files import json_hash, sha256_file
from prunekit._json import JsonObject, read_json
from prunekit._messages import one_line
from prunekit._missing import is_hub_id
from prunekit.errors import FileFormatError, InputError, MissingFileError

if TYPE_CHECKING:
    from transformers import BatchEncoding, CLIPModel, CLIPProcessor

__all__ = ["ClipScorer", "clip_hash", "load_clip"]

_CHUNK = 64  # pictures per forward: bounds memory, not the result
_WHERE = (
    "fetch openai/clip-vit-large-patch14 from the Hugging Face Hub, as with `hf download`, and name its folder by `clip` "
    "(in a recipe, evaluation: {clip: FOLDER})"
)


class _Tensors(nn.Module):
    """A CLIP model whose features are tensors; since transformers 5 its methods return a record, which torchmetrics cannot read."""

    def __init__(self, model: "CLIPModel") -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return _pooled(self.model.get_image_features(pixels.to(self.model.dtype)))

    def get_text_features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return _pooled(self.model.get_text_features(tokens, mask))


@dataclass(frozen=True)
class _Shortening:
    """A processor that shortens long prompts and keeps their last token, at which CLIP reads a prompt's features."""

    processor: "CLIPProcessor"

    def __call__(
        self, text: list[str] | None = None, images: list[Tensor] | None = None, **options: object
    ) -> "BatchEncoding":
        if text is not None:
            options["truncation"] = True
        return self.processor(text=text, images=images, **options)


@dataclass(frozen=True, eq=False)
class ClipScorer:
    """A CLIP model with the facts that accompany its figures.

    Args:
        name: the folder's name or the Hub id.
        sha256: hash of the weights' files.
        model: the model.
        processor: its tokenizer and preparation of pictures.
    """

    name: str
    sha256: str
    model: "CLIPModel"
    processor: "CLIPProcessor"

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> float:
        """Mean over the pictures of 100 times the cosine of a picture's and its prompt's features (arXiv:2104.08718), at least 0.

        Args:
            images: uint8, shape (N, 1 or 3, H, W).
            prompts: N prompts; prompts that are too long for the model are shortened.

        Raises:
            InputError: pictures and prompts do not fit together.
        """
        fitting = images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] in (1, 3)
        if not fitting or len(images) != len(prompts) or len(images) == 0:
            raise InputError(
                f"Got images of {images.dtype} and shape {tuple(images.shape)} and {len(prompts)} prompts; expected uint8 "
                "(count, 1 or 3, height, width) and a prompt for each."
            )
        from torchmetrics.multimodal.clip_score import CLIPScore  # noqa: PLC0415 - takes seconds, as transformers comes with it

        metric = CLIPScore(lambda: (_Tensors(self.model), _Shortening(self.processor)))
        device = self.model.device
        for start in range(0, len(images), _CHUNK):
            pictures = images[start : start + _CHUNK].expand(-1, 3, -1, -1)
            metric.update(pictures.to(device), list(prompts[start : start + _CHUNK]))
        return float(metric.compute())

    def describe(self) -> JsonObject:
        """``name`` and ``sha256``."""
        return {"name": self.name, "sha256": self.sha256}


def load_clip(source: Path | str) -> ClipScorer:
    """Read a CLIP model in transformers' layout, without running code from it and without downloading anything.

    Args:
        source: a folder with config, tokenizer and safetensors files, or the Hub id of a model that is in the Hub's cache.

    Raises:
        MissingFileError: there is no such folder, and no model of that name in the cache; the message says where to get one.
        FileFormatError: the folder holds another model, or none that can be read.
        InputError: transformers is not installed.
    """
    folder = _folder_of(str(source))
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise MissingFileError(f"{folder} has no config.json with safetensors files; expected a CLIP model: {_WHERE}.")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("model_type") != "clip":
        raise FileFormatError(
            f"{folder / 'config.json'} is not of a model of type clip; expected a CLIP model: {_WHERE}."
        )
    for path in folder.glob("*.safetensors"):
        check_safetensors(path)
    model, processor, missing = _read(folder)
    broken = next((name for name, value in model.state_dict().items() if not value.isfinite().all()), None)
    if missing or broken:
        what = f"lacks {min(missing)}" if missing else f"has weights {broken} that are not finite"
        raise FileFormatError(f"{folder} {what}; expected all weights of a CLIP model: {_WHERE}.")
    if torch.cuda.is_available():
        model.cuda()
    name = str(source) if is_hub_id(str(source)) else folder.resolve().name
    return ClipScorer(name, clip_hash(source), model.eval(), processor)


def _read(folder: Path) -> tuple["CLIPModel", "CLIPProcessor", Sequence[str]]:
    """The model, what prepares its inputs, and the names of weights that the files lack."""
    try:
        import transformers  # noqa: PLC0415 - an extra
        from transformers.utils import logging  # noqa: PLC0415 - see above
    except ImportError as error:
        raise InputError(
            "The CLIP score needs transformers; install it with `pip install 'prunekit[text]'`."
        ) from error
    # the other class needs torchvision since transformers 5, and older versions have only the other
    prepares = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    with_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, found = transformers.CLIPModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32, output_loading_info=True
        )
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        pictures = prepares.from_pretrained(folder, local_files_only=True)
        return model, transformers.CLIPProcessor(pictures, tokenizer), sorted(found["missing_keys"])
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise FileFormatError(f"{folder} holds no readable CLIP model ({one_line(error)}); {_WHERE}.") from error
    finally:
        if with_bars:
            logging.enable_progress_bar()


def clip_hash(source: Path | str) -> str:
    """Hash of the weights of a model that :func:`load_clip` takes.

    Raises:
        MissingFileError: there is no such folder, and no model of that name in the cache; the message says where to get one.
    """
    return json_hash([[path.name, sha256_file(path)] for path in sorted(_folder_of(str(source)).glob("*.safetensors"))])


def _folder_of(source: str) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    import huggingface_hub  # noqa: PLC0415 - only hub ids need it

    try:
        return Path(huggingface_hub.snapshot_download(source, local_files_only=True))
    except Exception as error:  # its errors have changed their base from version to version
        raise MissingFileError(
            f"{source} is neither a folder nor a model in the Hub's cache; expected a CLIP model: {_WHERE}."
        ) from error


def _pooled(features: object) -> Tensor:
    """The features themselves, or the ones in transformers' record."""
    pooled = features if isinstance(features, Tensor) else getattr(features, "pooler_output", None)
    if not isinstance(pooled, Tensor):
        raise AssertionError("CLIP returns features as a tensor or in a record")
    return pooled
