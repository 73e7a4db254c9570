"""Models of the Hugging Face Hub: their configs and weights are fetched, never code; one's own are pushed, with their cards."""

from pathlib import Path

from prunekit._messages import one_line
from prunekit.checkpoint.folders import NETWORKS, SCHEDULERS
from prunekit.checkpoint.weight_files import DIFFUSERS
from prunekit.errors import InputError, MissingFileError

__all__ = ["fetched", "fetched_whole", "pushed"]

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


def fetched_whole(hub_id: str) -> Path:
    """The local copy of a hub repository's JSON and safetensors files, downloaded where it is not in the hub's cache.

    Args:
        hub_id: ``user/name``.

    Raises:
        MissingFileError: it is neither on the hub nor in the cache, or the hub cannot be reached.
    """
    import huggingface_hub  # noqa: PLC0415 - only hub ids need it

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # its HTTP library's errors have changed their base from version to version
        raise MissingFileError(
            f"{hub_id} is no folder here, and could not be fetched from the Hugging Face Hub ({type(error).__name__}); check the "
            "name and the connection, or give a local path."
        ) from error


def pushed(folder: Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Create a repository on the hub, if it does not exist, and upload a folder to it; returns the page of the commit.

    Args:
        folder: the folder; all of its files are uploaded.
        repo_id: ``name`` or ``user/name``.
        private: whether a new repository is private (default: as the account or organisation sets it).
        token: the hub's access token (default: that of ``hf auth login``, or of the variable ``HF_TOKEN``).

    Raises:
        InputError: the hub refuses, or cannot be reached.
    """
    import huggingface_hub  # noqa: PLC0415 - only hub ids need it

    api = huggingface_hub.HfApi(token=token)
    try:
        created = api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=created.repo_id, folder_path=folder, commit_message="Upload by prunekit")
    except Exception as error:  # its HTTP library's errors have changed their base from version to version
        raise InputError(
            f"{repo_id} could not be pushed to the Hugging Face Hub ({type(error).__name__}: {one_line(error)}); check the name "
            "and the connection, and log in by `hf auth login` or give a token that may write."
        ) from error
    return str(commit.commit_url)
