"""What leaves the machine says names and hashes; where files lie, and so who has them, stays here."""

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from micro_recipe import micro
from sklearn.datasets import load_digits

from prunekit._files import write_json
from prunekit._json import read_json
from prunekit.checkpoint import load_base
from prunekit.data import load_images, note_place, noted_places
from prunekit.errors import InputError
from prunekit.nets import load_experts
from prunekit.report import write_report
from prunekit.runs.experts_run import Run
from prunekit.runs.publishing import publish
from prunekit.slim import load_slim
from prunekit.steps.bases import open_base
from prunekit.steps.image_choice import images_for, images_of

USER = "zaphod beeblebrox"


def pictures(path: Path, seed: int = 0) -> Path:
    """Digits in an order of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(1797)
    np.savez(path, images=np.round(load_digits().images[order, ..., None] * (255 / 16)).astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with pictures, a base that says where they lie as earlier versions did, and a run from it."""
    home = tmp_path_factory.mktemp("home") / USER
    source = str(pictures(home / "pics.npz"))
    base = open_base("embedded:digits")
    named = replace(base, data={"source": source, "resolution": 8}, provenance={"made in": f"{home}/work", "steps": 3})
    state = base.model.state_dict()
    torch.save({"format": "prunekit-base/1", **named.about(), "state_dict": state}, home / "mine.pt")
    sections = {"base": {"checkpoint": str(home / "mine.pt")}, "data": {"source": source}}
    Run(
        micro(**sections, description=f"Made in {home.parent}/zaphod/work.", evaluation__features="digits-cnn"),
        home / "run",
    ).execute()
    publish(home / "run", home / "reports")
    return home


def bytes_of(path: Path) -> bytes:
    """A file's bytes, and those of an archive's members."""
    content = path.read_bytes() + path.name.encode()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content += b"".join(archive.read(name) + name.encode() for name in archive.namelist())
    return content


@pytest.mark.parametrize(
    "part",
    [
        "reports",
        "run/experts",
        "run/slim",
        "run/pruned",
        "run/base.pt",
        "run/manifest.json",
        "run/report",
        "run/importance.json",
    ],
)
def test_no_published_byte_has_the_users_name(home, part):
    place = home / part
    files = [path for path in place.rglob("*") if path.is_file()] if place.is_dir() else [place]
    assert files
    for path in files:
        content = bytes_of(path).lower()
        for secret in (b"zaphod", b"beeblebrox", str(home.parent).encode().lower(), str(Path.cwd()).encode().lower()):
            assert secret not in content, path


def test_cards_and_pages_have_the_images_name(home):
    assert load_base(home / "mine.pt").data["source"] == str(home / "pics.npz")  # as earlier versions wrote it
    assert "| Trained on | pics.npz |" in (home / "run" / "experts" / "README.md").read_text()
    assert load_slim(home / "run" / "slim" / "group-0").about["data"]["source"] == "pics.npz"
    page = (home / "reports" / "micro" / "report" / "index.html").read_text()
    assert "source pics.npz" in page
    assert "Made in work." in page
    manifest = read_json(home / "reports" / "micro" / "manifest.json")
    assert manifest["config"]["base"]["checkpoint"] == "mine.pt"
    assert manifest["base"]["data"]["sha256"] == load_images(str(home / "pics.npz")).sha256


@pytest.mark.slow
def test_a_manifest_of_an_earlier_version_is_published_and_shown_without_paths(home, tmp_path):
    old = tmp_path / "old"
    content = read_json(home / "run" / "manifest.json")
    content["config"]["data"]["source"] = content["base"]["data"]["source"] = "/home/zaphod/pics.npz"
    content["config"]["description"] = "Made in /home/zaphod/work."
    write_json(old / "manifest.json", content)
    write_report(old)
    target = publish(old, tmp_path / "reports")
    pages = [old / "report" / "index.html", target / "report" / "index.html", tmp_path / "reports" / "index.html"]
    for path in [*pages, target / "manifest.json"]:
        assert "zaphod" not in path.read_text(), path


def test_what_a_run_made_finds_its_images_again(home):
    base = load_base(home / "run" / "base.pt")
    assert (base.data["source"], "sha256" in base.data) == ("pics.npz", True)
    images = images_of(base, None, home / "run" / "base.pt")
    assert images.sha256 == base.data["sha256"]
    experts = load_experts(home / "run" / "experts")
    assert images_for(experts.about["data"], experts.spec, None, home / "run" / "experts").sha256 == images.sha256


def test_images_are_known_by_their_content(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, spec = load_base(home / "run" / "base.pt").data, open_base("embedded:digits").spec
    model = tmp_path / "models" / "base.pt"
    with pytest.raises(
        InputError, match=r"images, pics\.npz with SHA-256 \w{16}…, are not found near it; name them by"
    ):
        images_for(data, spec, None, model)
    pictures(tmp_path / "pics.npz", seed=1)
    with pytest.raises(InputError, match=r"not found near it \(.*/pics\.npz holds other ones\); name them by `data`"):
        images_for(data, spec, None, model)
    pictures(tmp_path / "models" / "pics.npz")
    assert images_for(data, spec, None, model).sha256 == data["sha256"]


def test_a_place_is_noted_once_beside_models_and_kept_out_of_repositories(tmp_path):
    images = load_images(str(pictures(tmp_path / "pics" / "mine.npz")))
    note_place(images, tmp_path / "work")
    note_place(images, tmp_path / "work" / "slim")  # a folder above knows
    assert [path.name for path in (tmp_path / "work").iterdir()] == [".prunekit"]
    assert (tmp_path / "work" / ".prunekit" / ".gitignore").read_text() == "*\n"
    assert noted_places(images.sha256, "gone", tmp_path / "work" / "slim" / "group-0") == [Path(images.source)]
    (tmp_path / "work" / ".prunekit" / "images.json").write_text("{")
    assert noted_places(images.sha256, "gone", tmp_path / "work" / "slim" / "group-0") == []
    note_place(load_images("digits"), tmp_path / "digits")
    assert not (tmp_path / "digits").exists()
