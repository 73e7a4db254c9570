"""Names in place of paths."""

from pathlib import Path

import pytest

from prunekit._names import name_of, public_about, public_manifest, without_paths

NAMES = {
    "digits": "digits",
    "/home/arthur/pics": "pics",
    "/home/arthur/pics/": "pics",
    "../arthur/my pics.npz": "my pics.npz",
    "~/pics": "pics",
    r"C:\Users\arthur\pics": "pics",
    r"\\server\arthur\pics": "pics",
    ".": "unnamed",
}


@pytest.mark.parametrize(("path", "name"), NAMES.items())
def test_the_last_name_of_a_path_is_kept(path, name):
    assert name_of(path) == name


SENTENCES = {
    "/home/arthur/base.pt": "base.pt",
    "~arthur/base.pt": "base.pt",
    "file:///home/arthur/base.pt": "base.pt",
    r"C:\Users\arthur\base.pt": "base.pt",
    "On /home/arthur/pics, then (/srv/arthur/other) by 'C:\\Users\\arthur\\x'.": "On pics, then (other) by 'x'.",
    "MACs/sample and 1/2, 3 / 4, and/or": "MACs/sample and 1/2, 3 / 4, and/or",
    "https://example.org/home/page and google/ddpm-cifar10-32": "https://example.org/home/page and google/ddpm-cifar10-32",
    "~5 MACs/s": "~5 MACs/s",
    "/srv/arthur dent/base.pt": "base.pt",
    "/srv/arthur/base.pt is a base": "base.pt is a base",
    "embedded:digits": "embedded:digits",
}


@pytest.mark.parametrize(("text", "expected"), SENTENCES.items())
def test_paths_in_sentences_become_names_and_other_words_stay(text, expected):
    assert without_paths(text) == expected
    assert without_paths({"a": [text, 1.5, None], "b": True}) == {"a": [expected, 1.5, None], "b": True}


def test_a_home_whose_name_has_spaces_is_no_exception(monkeypatch):
    monkeypatch.setenv("HOME", "/home/Arthur Dent")
    assert Path.home() == Path("/home/Arthur Dent")
    assert without_paths("read /home/Arthur Dent/pics today") == "read pics today"
    assert without_paths("/home/Arthur Dent/pics") == "pics"


def test_what_is_said_of_a_model_names_its_images(tmp_path):
    about = {"data": {"source": "../arthur/pics", "resolution": 8}, "provenance": {"made_in": "/home/arthur/work"}}
    assert public_about(about) == {"data": {"source": "pics", "resolution": 8}, "provenance": {"made_in": "work"}}
    assert public_about({"data": "nonsense"}) == {"data": "nonsense"}


def test_a_recipes_relative_paths_become_names_and_a_hub_id_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arthur").mkdir()
    config = {
        "data": {"source": "arthur/pics"},
        "base": {"checkpoint": "arthur/base"},
        "prune": {
            "latency_table": "../arthur/latency.json",
            "search": {"study": "arthur/study", "llm": {"url": "https://arthur:secret@example.org/v1"}},
        },
        "evidence": {"entries": {"a": {"changes": {"prune": {"latency_table": "arthur/b.json"}}}}},
    }
    public = public_manifest({"config": config})["config"]
    assert "arthur" not in str(public)
    assert public["prune"]["search"]["llm"]["url"] == "https://example.org/v1"
    other = {"config": {"base": {"checkpoint": "google/ddpm-cifar10-32"}}}
    assert public_manifest(other) == other
