import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunekit._files import write_json
from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.groups import Evidence, Grouping, Snr
from prunekit.report import RunResults, claim, describe_grouping, write_report
from prunekit.report.figures import draw_frontiers, styled
from prunekit.report.heatmap import Heatmap
from prunekit.report.wording import warnings_of
from prunekit.schedule import NoiseSchedule

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Elements with their attributes, the text of the page, its tables' exact values, and whether every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text, self.values = [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "data":
            self.values.append(dict(attrs)["value"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folder):
    return Page((folder / "report" / "index.html").read_text())


def test_writes_every_file_and_nothing_else(full_run):
    tables = {
        f"{name}.{ending}" for name in ("table", "losses", "metrics", "ledger", "kinds") for ending in ("csv", "md")
    }
    pictures = {
        f"{name}.png" for name in ("snr_targets", "importance", "widths", "samples", "pareto_loss", "pareto_fid")
    }
    assert {path.name for path in (full_run / "report").iterdir()} == {"index.html"} | tables | pictures
    for name in pictures:
        with Image.open(full_run / "report" / name) as picture:
            picture.load()
            assert min(picture.size) > 300
    assert [path.name for path in full_run.iterdir() if path.name.startswith(".")] == []


def test_page_is_one_file_and_asks_for_nothing(full_run):
    page = page_of(full_run)
    assert page.open == []
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("iframe")
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for _, attributes in page.elements:
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert "srcset" not in attributes
        if "href" in attributes:
            assert attributes["href"][0] == "#"
            assert attributes["href"][1:] in ids
    text = (full_run / "report" / "index.html").read_text()
    assert not re.search(r"url\(|@import|https?://", text)


def test_page_is_accessible(full_run):
    page = page_of(full_run)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert any(attributes.get("class") == "skip" for attributes in page.all("a"))
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) == 7
    images = page.all("img")
    assert len(images) == 6
    assert all(len(attributes["alt"]) > 60 for attributes in images)


def test_inline_pictures_are_those_of_the_folder(full_run):
    inline = [base64.b64decode(a["src"].partition(",")[2]) for a in page_of(full_run).all("img")]
    files = [path.read_bytes() for path in (full_run / "report").glob("*.png")]
    assert sorted(inline) == sorted(files)
    with Image.open(io.BytesIO(inline[0])) as picture:
        assert page_of(full_run).all("img")[0]["width"] == str(picture.width // 2)


def test_page_makes_the_claim(full_run, manifest):
    sentence = claim(RunResults.from_manifest(manifest))
    assert sentence in page_of(full_run).text.replace("\N{NO-BREAK SPACE}", " ")


def test_fid_is_never_bare(full_run):
    text = page_of(full_run).text.replace("\N{NO-BREAK SPACE}", " ")
    markdown = (full_run / "report" / "metrics.md").read_text()
    for found in re.finditer(r"\b[FK]ID\b", text):
        assert text[found.end() :].startswith(" (features: digits-cnn, n = 1024)")
    assert markdown.count("FID") == markdown.count("FID (features: digits-cnn, n = 1024)") == 1


def test_page_has_the_exact_numbers(full_run, manifest):
    values = set(page_of(full_run).values)
    exact = [expert[key] for expert in manifest["experts"] for key in ("macs", "params")]
    exact += [loss[key]["mean"] for loss in manifest["losses"] for key in ("base", "pruned", "expert", "difference")]
    exact += [row[key]["mean"] for row in manifest["metrics"]["rows"] for key in ("fid", "kid")]
    exact += [row[key] for row in manifest["metrics"]["rows"] for key in ("seconds_per_image", "mean_macs")]
    exact += [entry[key] for entry in manifest["ledger"] for key in ("samples", "macs")]
    assert {repr(number) for number in exact} <= values


@pytest.mark.parametrize(
    "missing", [["losses"], ["metrics"], ["experts"], ["assembled"], ["ledger", "seconds"], ["config", "commit"]]
)
def test_a_missing_part_is_left_out(write_run, manifest, missing):
    for expert in manifest["experts"]:
        expert["widths"] = {}
    for part in missing:
        del manifest[part]
    folder = write_run(manifest)
    write_report(folder)
    page = page_of(folder)
    ids = {attributes["id"] for attributes in page.all("section")}
    sections = {"losses": "losses", "metrics": "quality", "ledger": "training"}
    for part, section in sections.items():
        assert (section in ids) == (part not in missing)
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()
    assert (folder / "report" / "losses.csv").exists() == ("losses" not in missing)
    assert (folder / "report" / "metrics.csv").exists() == ("metrics" not in missing)


def test_the_least_run_makes_a_page(write_run, manifest):
    kept = ("format", "recipe", "base", "allocation")
    folder = write_run({key: manifest[key] for key in kept})
    assert write_report(folder) == folder / "report" / "index.html"
    assert {path.name for path in (folder / "report").iterdir()} == {
        "index.html",
        "table.csv",
        "table.md",
        "snr_targets.png",
    }
    assert "With the experts, the quality was not measured." in page_of(folder).text


def test_the_evidence_of_an_allocation_is_drawn(write_run, manifest):
    base = manifest["base"]["macs"]
    points = {"base_macs": base, "macs": [base // 3, base // 2, base], "loss": [3.0, 2.0, 1.0]}
    manifest["allocation"]["frontiers"] = [points for _ in manifest["allocation"]["groups"]]
    folder = write_run({key: manifest[key] for key in ("format", "recipe", "base", "allocation")})
    write_report(folder)
    assert (folder / "report" / "frontiers.png").is_file()
    alt = [attributes["alt"] for attributes in page_of(folder).all("img")]
    assert any("group 0: 3 points from 0.333, target 1" in text for text in alt), alt


@pytest.mark.parametrize("losses", [[0.1, 0.02, 0.0003], [3.0, 2.9, 2.8], [1.0, 0.5, 0.0]])
def test_losses_of_any_range_have_plain_numbers_beside_them(losses, manifest):
    base = manifest["base"]["macs"]
    points = {"base_macs": base, "macs": [base // 3, base // 2, base], "loss": losses}
    manifest["allocation"]["frontiers"] = [points for _ in manifest["allocation"]["groups"]]
    with styled():
        figure = draw_frontiers(RunResults.from_manifest(manifest, None))
        figure.draw_without_rendering()
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    texts = [tick.label1.get_text() for tick in axes.yaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    written = [float(text.replace("−", "-")) for text in texts]
    assert len(written) >= 2
    assert written == sorted(set(written))


def test_why_timesteps_were_cut_is_drawn_where_there_is_a_map(write_run, manifest):
    folder = write_run({key: manifest[key] for key in ("format", "recipe", "base", "allocation")})
    grouping = Snr()(NoiseSchedule.linear(1000), 3)
    write_json(folder / "groups.json", grouping.to_json())
    write_report(folder)
    assert not (folder / "report" / "groups.png").exists()
    places = np.array([0, 400, 999])
    near = 1 - np.abs(places[:, None] - places) / 1000
    mapped = Grouping(grouping.groups, Evidence(places, matrix=near))
    write_json(folder / "groups.json", mapped.to_json())
    write_report(folder)
    assert (folder / "report" / "groups.png").is_file()
    assert describe_grouping(mapped) in [attributes["alt"] for attributes in page_of(folder).all("img")]


def test_missing_errors_are_said(write_run, manifest):
    manifest["metrics"]["seeds"] = [0]
    for row in manifest["metrics"]["rows"]:
        row["fid"]["se"] = row["kid"]["se"] = None
    for loss in manifest["losses"]:
        del loss["pruned"], loss["expert"]["se"]
    for expert in manifest["experts"]:
        expert["widths"] = {}
    folder = write_run(manifest)
    write_report(folder)
    text = page_of(folder).text
    assert "One seed, no error." in text
    assert "Numbers without ±: one seed, no error." in text
    assert "Pruned, before" not in text


def test_hostile_names_are_text(write_run, manifest, importance):
    hostile = '<script>alert("x")</script><img src=x onerror=alert(1)> $\\frac{$'
    manifest["recipe"] = hostile
    manifest["metrics"]["features"]["name"] = hostile
    manifest["metrics"]["rows"][1]["model"] = hostile
    manifest["ledger"][0]["stage"] = hostile
    manifest["config"] = {"name": hostile}
    importance["criterion"] = hostile
    importance["channel_groups"][1]["name"] = hostile
    importance["left_whole"] = {hostile: hostile}
    manifest["experts"][0]["widths"][hostile] = [8, 4]
    folder = write_run(manifest, importance)
    write_report(folder)
    page = page_of(folder)
    assert not page.all("script")
    assert all(attributes["src"].startswith("data:") for attributes in page.all("img"))
    assert hostile in page.text
    assert not any("onerror" in attributes for _, attributes in page.elements)


@pytest.mark.slow
def test_writing_again_gives_the_same_bytes_and_drops_what_is_stale(full_run, tmp_path):
    before = {path.name: path.read_bytes() for path in (full_run / "report").iterdir()}
    again = Path(shutil.copytree(full_run, tmp_path / "again"))
    assert "seconds.csv" not in before
    (again / "report" / "seconds.csv").write_text("from an older report")
    write_report(again)
    assert {path.name: path.read_bytes() for path in (again / "report").iterdir()} == before
    (again / "report" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds an earlier report and also notes\.txt"):
        write_report(again)
    assert (again / "report" / "notes.txt").read_text() == "mine"


def test_a_failing_report_leaves_the_old_one(full_run, tmp_path):
    broken = Path(shutil.copytree(full_run, tmp_path / "broken"))
    (broken / "samples" / "base.npz").write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(FileFormatError, match=r"base\.npz"):
        write_report(broken)
    names = {path.name for path in (full_run / "report").iterdir()}
    assert {path.name for path in (broken / "report").iterdir()} == names


def test_bad_input_is_refused(tmp_path, write_run, manifest, importance):
    with pytest.raises(MissingFileError):
        write_report(tmp_path)
    with pytest.raises(FileFormatError, match="format"):
        RunResults.from_manifest(manifest | {"format": "prunekit-manifest/9"})
    with pytest.raises(FileFormatError, match=r"'experts\[0\]\.macs' is missing"):
        RunResults.from_manifest(manifest | {"experts": [{"group": 0}]})
    short = manifest["base"] | {"noise_schedule": {"kind": "cosine", "num_timesteps": 100}}
    with pytest.raises(FileFormatError, match="timesteps"):
        RunResults.from_manifest(manifest | {"base": short})
    with pytest.raises(FileFormatError, match="timestep group 7"):
        RunResults.from_manifest(manifest | {"losses": [manifest["losses"][0] | {"group": 7}]})
    metrics = manifest["metrics"] | {"rows": [manifest["metrics"]["rows"][0] | {"mean_macs": "many"}]}
    with pytest.raises(FileFormatError, match='is "many"; expected a number'):
        RunResults.from_manifest(manifest | {"metrics": metrics})
    with pytest.raises(FileFormatError, match="importance"):
        Heatmap.of(importance | {"scores": importance["scores"][:3]})
    with pytest.raises(FileFormatError, match=r"float64 of shape \(2, 8, 8\)"):
        write_report(write_run(manifest, samples={"base": np.zeros((2, 8, 8))}))


def test_page_gives_the_reasons_of_what_was_left_whole(full_run, importance):
    text = page_of(full_run).text
    for name, reason in importance["left_whole"].items():
        assert f"{name}: {reason}" in text


def test_samples_are_enlarged_without_smoothing(full_run, samples):
    with Image.open(full_run / "report" / "samples.png") as picture:
        sheet = np.asarray(picture.convert("L"))
    for position, name in ((0, "base"), (7, "base"), (0, "experts")):
        enlarged = samples[name][position, :, :, 0].repeat(12, axis=0).repeat(12, axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(sheet, enlarged.shape)[84]
        assert (windows == enlarged).all(axis=(1, 2)).any()


def test_warns_of_numbers_that_do_not_agree(write_run, manifest):
    assert warnings_of(RunResults.from_manifest(manifest)) == []
    manifest["experts"][1]["macs"] = manifest["experts"][1]["target_macs"] + 1
    manifest["metrics"]["rows"][1]["mac_ratio"] = 0.75
    found = warnings_of(RunResults.from_manifest(manifest))
    assert len(found) == 3
    assert "more than its target" in found[0]
    for expert in manifest["experts"]:
        expert["widths"] = {}
    folder = write_run(manifest)
    write_report(folder)
    assert found[0] in page_of(folder).text


def test_no_figure_is_left_in_matplotlibs_hands(full_run):
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []
    assert mpl.rcParams["text.parse_math"] is True


def test_the_template_is_shipped_with_the_package():
    import prunekit.report

    folder = Path(prunekit.report.__file__).parent / "templates"
    assert {path.name for path in folder.iterdir()} == {"page.html.j2", "blocks.html.j2", "style.css"}
