"""Models of the Hugging Face Hub: their configs and weights are fetched, never code."""

from pathlib import Path

from prunekit.checkpoint.folders import NETWORKS, SCHEDULERS
from prunekit.checkpoint.weight_files import DIFFUSERS
from prunekit.errors import MissingFileError

__all__ = ["fetched"]

(_WEIGHTS,) = DIFFUSERS
_FOLDERS = ("", *(f"{name}/" for name in NETWORKS))
_CONFIGS = ("model_index.json", *SCHEDULERS, *(f"{folder}config.json" for folder in _FOLDERS))


def fetched(hub_id: str) -> Path:
    """The local copy of a hub model's configs and weights, downloaded where it is not in the hub's cache; never code.

    Raises:
        MissingFileError: it is neither on the hub nor in the cache, or the hub cannot be reached.
    """
    import huggingface_hub  # noqa: PLC0415 - only hub ids need it

    try:
        for suffix in ("safetensors", "bin"):
            wanted = [
                f"{folder}{_WEIGHTS}*.{form}" for folder in _FOLDERS for form in (suffix, f"{suffix}.index*.json")
            ]
            found = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=[*_CONFIGS, *wanted]))
            if any(any((found / folder).glob(f"{_WEIGHTS}*")) for folder in _FOLDERS):
                break
    except Exception as error:  # its HTTP library's errors have changed their base from version to version
        raise MissingFileError(
            f"{hub_id} is no file or folder here, and could not be fetched from the Hugging Face Hub "
            f"({type(error).__name__}); check the name and the connection, or give a local path."
        ) from error
    return found
