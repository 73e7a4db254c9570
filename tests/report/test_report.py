import base64
import hashlib
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
from prunekit.report import RunResults, claim, write_report
from prunekit.report.charts.layout import Scale, tick_text
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
        if not {"style", "script"} & set(self.open):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folder):
    return Page((folder / "report" / "index.html").read_text())


def test_writes_every_file_and_nothing_else(full_run):
    tables = {
        f"{name}.{ending}" for name in ("table", "losses", "metrics", "ledger", "kinds") for ending in ("csv", "md")
    }
    pictures = {f"{name}.png" for name in ("samples", "pareto_loss", "pareto_fid")}
    assert {path.name for path in (full_run / "report").iterdir()} == {"index.html"} | tables | pictures
    for name in pictures:
        with Image.open(full_run / "report" / name) as picture:
            picture.load()
            assert min(picture.size) > 300
    assert [path.name for path in full_run.iterdir() if path.name.startswith(".")] == []


def test_page_is_one_file_and_asks_for_nothing(full_run):
    page = page_of(full_run)
    assert page.open == []
    assert len(page.all("script")) == 1
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


def test_the_pages_policy_lets_its_own_script_run_and_no_other(full_run):
    text = (full_run / "report" / "index.html").read_text()
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (a["content"] for a in page_of(full_run).all("meta") if "content" in a and "script-src" in a["content"])
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_page_is_accessible(full_run):
    page = page_of(full_run)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert any(attributes.get("class") == "skip" for attributes in page.all("a"))
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) == 8
    assert [len(attributes["alt"]) > 20 for attributes in page.all("img")] == [
        True
    ] * 4  # a slider and a strip of two models
    charts = [attributes["aria-label"] for attributes in page.all("svg") if "aria-label" in attributes]
    assert len(charts) == 2 * len(set(charts)) == 14  # seven charts in two layouts
    points = [attributes for attributes in page.all("g") if attributes.get("class", "").startswith("point")]
    assert all(len(attributes["aria-label"]) > 10 for attributes in points)
    assert sum(attributes["tabindex"] == "0" for attributes in points) == len(charts)


def test_images_on_the_page_are_the_samples_pixel_for_pixel(full_run, samples):
    inline = [base64.b64decode(a["src"].partition(",")[2]) for a in page_of(full_run).all("img")]
    for data, name in zip(inline, ("base", "experts", "base", "experts"), strict=True):
        with Image.open(io.BytesIO(data)) as picture:
            sheet = np.asarray(picture)
        assert (sheet[:8, :8, 0] == samples[name][0, ..., 0]).all()
        assert (sheet[9:17, 9:17, 0] == samples[name][9, ..., 0]).all()  # eight in a row
        assert (sheet[8] == 0).all()


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
    sections = {"losses": "losses", "ledger": "training"}
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
    }
    assert "With the experts, the quality was not measured." in page_of(folder).text


def test_the_evidence_of_an_allocation_is_drawn(write_run, manifest):
    base = manifest["base"]["macs"]
    points = {"base_macs": base, "macs": [base // 3, base // 2, base], "loss": [3.0, 2.0, 1.0]}
    manifest["allocation"]["frontiers"] = [points for _ in manifest["allocation"]["groups"]]
    folder = write_run({key: manifest[key] for key in ("format", "recipe", "base", "allocation")})
    write_report(folder)
    alt = [attributes.get("aria-label", "") for attributes in page_of(folder).all("svg")]
    assert any("group 0: 3 points from 0.333, target 1" in text for text in alt), alt


@pytest.mark.parametrize("losses", [[0.1, 0.02, 0.0003], [3.0, 2.9, 2.8], [1.0, 0.5, 0.0]])
def test_losses_of_any_range_have_plain_numbers_beside_them(losses):
    scale = Scale.around(losses, 100, 0, log=True)
    written = [float(tick_text(tick).replace("−", "-")) for tick in scale.ticks]
    assert 2 <= len(written) <= 7
    assert written == sorted(set(written))
    assert all(scale.low <= tick <= scale.high for tick in written)


def test_why_timesteps_were_cut_is_drawn_where_there_is_a_map(write_run, manifest):
    folder = write_run({key: manifest[key] for key in ("format", "recipe", "base", "allocation")})
    grouping = Snr()(NoiseSchedule.linear(1000), 3)
    write_json(folder / "groups.json", grouping.to_json())
    write_report(folder)
    assert "Similarity of timesteps" not in page_of(folder).text
    places = np.array([0, 400, 999])
    near = 1 - np.abs(places[:, None] - places) / 1000
    mapped = Grouping(grouping.groups, Evidence(places, matrix=near))
    write_json(folder / "groups.json", mapped.to_json())
    write_report(folder)
    told = [attributes.get("aria-label") for attributes in page_of(folder).all("svg")]
    assert "Similarity of timesteps" in page_of(folder).text
    assert any("3 groups boxed" in text for text in told if text)


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
    assert len(page.all("script")) == 1
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
    assert {path.name for path in folder.iterdir()} == {"page.html.j2", "blocks.html.j2", "page.js", "style.css"}
