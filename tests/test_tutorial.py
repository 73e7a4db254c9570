"""The tutorial runs as it stands, on a tiny pipeline; the pages about choosing and scale say what is so; no link is broken."""

import contextlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import unet
from PIL import Image
from true_figures import figures
from typer.testing import CliRunner

import prunekit
from prunekit.allocation import RULES
from prunekit.checkpoint import Base, ModelSpec
from prunekit.cli.app import app
from prunekit.cost import GPUS, count_macs
from prunekit.graph import PruningPlan
from prunekit.groups import make_groups
from prunekit.nets import load_experts, save_experts
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.slim import SlimModel
from prunekit.steps.bench import Bench

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TUTORIAL = (DOCS / "tutorial.md").read_text(encoding="utf-8")
SCALE = (DOCS / "scale.md").read_text(encoding="utf-8")
PAGES = sorted([*DOCS.rglob("*.md"), *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY"))])


def blocks(page: str, kind: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    return [content for name, content in found if name == kind]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline of random weights and pictures."""
    from diffusers import DDPMPipeline, DDPMScheduler

    place = tmp_path_factory.mktemp("tutorial")
    network = unet(in_channels=3, out_channels=3)
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(place / "my-pipeline")
    rng = np.random.default_rng(0)
    (place / "my-images").mkdir()
    for index in range(30):
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(place / "my-images" / f"{index}.png")
    return place


def shortened(source: str) -> str:
    """The example with few draws and steps; everything else as it stands."""
    quick = "PruneOptions(samples=8, batch_size=8, search=SearchOptions(rounds=1, shortlist=2))"
    tuned = "FinetuneOptions(train=TrainOptions(steps=2, batch_size=4))"
    needs = "from prunekit.recipe import FinetuneOptions, PruneOptions\nfrom prunekit.search import SearchOptions\n"
    return f"{needs}from prunekit.training import TrainOptions\n" + source.replace("PruneOptions()", quick).replace(
        "FinetuneOptions()", tuned
    ).replace("budget=0.8)\nimages", f"budget=0.8, pruning={quick}, finetuning={tuned})\nimages").replace(
        "num_inference_steps=50", "num_inference_steps=2"
    )


def lines_of(source: str) -> list[str]:
    return [line for line in source.splitlines() if line.strip()]


@pytest.mark.slow
def test_the_whole_job_is_five_lines_and_gives_experts_that_a_pipeline_takes(desk: Path) -> None:
    whole = blocks(TUTORIAL, "python")[0]
    assert len(lines_of(whole)) == 5
    names: dict[str, Any] = {}
    with contextlib.chdir(desk):
        exec(compile(shortened(whole), "tutorial.md", "exec"), names)  # noqa: S102 - the example is the test
    assert [image.size for image in names["images"]] == [(8, 8)] * 4
    full = count_macs(unet(in_channels=3, out_channels=3), names["pipeline"].unet.spec.example_inputs()).macs
    assert names["pipeline"].unet.mean_macs(list(range(0, 1000, 20))) <= 0.8 * full
    quick = '{"samples": 8, "batch_size": 8, "search": {"rounds": 1, "shortlist": 2}}'
    changed = blocks(TUTORIAL, "python")[1].replace('"steps": 2000', '"steps": 2, "batch_size": 4')
    changed = changed.replace("finetuning=finetuning", f"finetuning=finetuning, pruning={quick}")
    names["pipeline"].unet, again = unet(in_channels=3, out_channels=3), names["pipeline"].unet
    with contextlib.chdir(desk):
        exec(compile(changed, "tutorial.md", "exec"), names)  # noqa: S102 - the example is the test
    assert names["pipeline"].unet.params == again.params


@pytest.mark.slow
def test_step_by_step_it_is_ten_lines_and_imports(desk: Path) -> None:
    making = blocks(TUTORIAL, "python")[2]
    assert len([line for line in lines_of(making) if not line.startswith(("from ", "import "))]) == 10
    names: dict[str, Any] = {}
    with contextlib.chdir(desk):
        exec(compile(shortened(making), "tutorial.md", "exec"), names)  # noqa: S102 - the example is the test
    experts = load_experts(desk / "experts")
    assert experts.mean_macs(list(range(0, 1000, 20))) <= 0.8 * names["bench"].macs


def test_a_network_of_ones_own_is_pruned_saved_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(model: Any, timesteps: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        noise = torch.randn(len(timesteps), 3, 8, 8, generator=generator)
        return (model(noise) - noise).square().mean()  # type: ignore[no-any-return]

    monkeypatch.chdir(tmp_path)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 24, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(24, 3, 1))
    groups = make_groups(NoiseSchedule.linear(), count=5)
    names: dict[str, Any] = {"pk": prunekit, "model": model, "loss": loss, "groups": groups}
    names["example_inputs"] = (torch.zeros(1, 3, 8, 8),)
    exec(compile(blocks(TUTORIAL, "python")[3], "tutorial.md", "exec"), names)  # noqa: S102 - the example is the test
    assert count_macs(names["again"], names["example_inputs"]).macs == names["pruned"].macs


SHORT = {
    "prune": "--samples 8 --rounds 1",
    "finetune": "--max-train-steps 2 --train-batch-size 4",
    "evaluate": "--count 4 --seeds 1 --loss-samples 4 --num-inference-steps 2",
    "sample": "--num-inference-steps 2",
}


@pytest.mark.slow
def test_the_tutorials_commands_go_the_same_way(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (commands,) = [block for block in blocks(TUTORIAL, "") if block.startswith("prunekit")]
    for name in ("my-pipeline", "my-images"):
        (tmp_path / name).symlink_to(desk / name)
    monkeypatch.chdir(tmp_path)
    for line in commands.strip().splitlines():
        _, command, *rest = shlex.split(line)
        result = CliRunner().invoke(app, [command, *rest, *known(command)])
        assert result.exit_code == 0, (line, result.output, result.exception)
    assert (tmp_path / "evaluation.json").is_file()
    assert len(load_experts(tmp_path / "experts").groups) == 5


def known(command: str) -> list[str]:
    """Options that make a command short, of those that it has."""
    has = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300"}).output
    words = shlex.split(SHORT.get(command, ""))
    pairs = zip(words[::2], words[1::2], strict=True)
    return [word for option, value in pairs if option in has for word in (option, value)]


def test_the_pipeline_of_latents_takes_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import AutoencoderKL

    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "sample_size": 8,
    }
    spec, schedule = ModelSpec("DiTTransformer2DModel", config), NoiseSchedule.linear()
    bench = Bench.of(Base(spec.build().eval(), spec, Parameterization(schedule)))
    about = {"noise_schedule": schedule.to_config(), "prediction_type": "epsilon"}
    groups, plan = make_groups(schedule, 2), PruningPlan({}, bench.graph.fingerprint)
    told = figures(bench.base.model, spec.example_inputs())
    slims = [SlimModel(spec.build().eval(), spec, plan, {}, group, 1000, *told, about) for group in groups]
    save_experts(slims, groups, tmp_path / "experts")
    blocks_ = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, **blocks_).save_pretrained(tmp_path / "my-vae")
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(SCALE, "python")
    names: dict[str, Any] = {}
    exec(compile(example.replace("steps=50", "steps=2"), "scale.md", "exec"), names)  # noqa: S102 - as above
    assert len(names["images"]) == 2
    assert names["images"][0].size == (16, 16)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_leads_nowhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_pictures_of_the_reports_are_in_the_repository() -> None:
    """They are made anew by ``make reports`` and ignored by git unless they are added by force."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    listed = subprocess.run([git, "ls-files", "reports"], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    known = {ROOT / line for line in listed.stdout.splitlines()}
    pages = [path for path in known if path.suffix == ".md"]
    named = {
        page.parent / link for page in pages for link in re.findall(r"\]\(([^)#:]+\.png)\)", page.read_text("utf-8"))
    }
    assert len(named) > 10
    assert sorted(named - known) == []


def test_the_index_lists_every_page() -> None:
    listed = set(re.findall(r"\]\((\w[\w-]*\.md)\)", (DOCS / "README.md").read_text(encoding="utf-8")))
    assert listed == {page.name for page in DOCS.glob("*.md")} - {"README.md"}


@pytest.mark.parametrize(
    ("page", "whose"),
    [
        ("experts", "Where each part comes from"),
        ("groups", "This project's choices"),
        ("allocation", "this project's"),
        ("importance", "Where each part comes from"),
        ("search", "Where each part comes from"),
        ("engine", "Where each part comes from"),
        ("multistage", "this project's"),
        ("training-schedules", "this project's"),
        ("consistency", "Where each part comes from"),
    ],
)
def test_every_methods_page_names_its_source_and_what_is_not_the_papers(page: str, whose: str) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert whose in text
    assert re.search(r"arXiv:\d{4}\.\d{5}", text)
    assert re.search(
        rf"^\| \[[^]]+\]\({page}\.md\) \|", (DOCS / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )


def test_the_allocation_page_lists_the_rules() -> None:
    page = (DOCS / "allocation.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `([a-z]+)` \|", page, flags=re.MULTILINE)) == sorted(RULES)


def test_figures_on_choosing_are_the_reports() -> None:
    """The table of rules is that of the report, and single figures stand in the report that is linked beside them."""
    page = (DOCS / "choosing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (0\.\d) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", page, flags=re.MULTILINE)
    report = (ROOT / "reports" / "search" / "allocations.md").read_text(encoding="utf-8")
    assert len(rows) == 3
    for budget, *values in rows:
        for rule, value in zip(("uniform", "linear", "snr", "measured"), values, strict=True):
            (line,) = [line for line in report.splitlines() if line.startswith(f"| {rule} | {budget} |")]
            assert value == "–" or line.split("|")[7].strip() == value
    for item in re.split(r"\n(?=- |\n)", page):
        links = re.findall(r"\]\((\.\./reports/[^)]+\.md)\)", item)
        texts = " ".join((DOCS / link).read_text(encoding="utf-8") for link in links)
        for figure in re.findall(r"\d\.\d\d+ ± \d\.\d+", item):
            assert figure in texts or not links


def test_figures_on_experts_are_the_evidence() -> None:
    page = (DOCS / "experts.md").read_text(encoding="utf-8").partition("**On several bases.**")[0]
    links = set(re.findall(r"\]\((\.\./reports/[^)]+/evidence\.md)\)", page))
    evidence = " ".join((DOCS / link).read_text(encoding="utf-8") for link in sorted(links))
    figures = re.findall(r"\d\.\d\d+ ± \d\.\d+", page)
    assert len(figures) >= 6
    assert len(links) == 2
    for row in re.findall(
        r"^\| (?:experts|one network|the base) .*\| (\S+) \| (\S+) \| (\S+) \|$", page, flags=re.MULTILINE
    ):
        assert all(f"| {figure.strip('*')} |" in evidence for figure in row)
    assert [figure for figure in figures if figure not in evidence] == []


COUNTED = ("one", "two", "three", "four", "five")


BASES = {
    "the base": "base",
    "the base with extra training": "base trained on",
    "experts at 0.8, rule `snr`": "experts 0.8, snr",
    "experts at 0.8, rule `linear`": "experts 0.8, linear",
    "experts at 0.8, rule `snr`, a learning rate per group": "experts 0.8, snr, rates by group",
    "experts at 0.8, rule `linear`, a learning rate per group": "experts 0.8, linear, rates by group",
    "experts without pruning": "experts without pruning",
    "one network, pruned by the search to 0.8": "one network, searched 0.8",
    "experts at 0.6, rule `snr`": "experts 0.6, snr",
    "experts at 0.8, `measured` by sensitivity": "experts 0.8, by sensitivity",
    "experts at 0.8, `measured` by sensitivity, a learning rate per group": "experts 0.8, by sensitivity, rates by group",
    "experts at 0.6, `measured` by sensitivity": "experts 0.6, by sensitivity",
}
"""Entries by their names in docs/experts.md."""


COST = {
    "the base, trained whole": "base",
    "the base with 0.7 of the steps": "base of fashion-cost",
    "the same, trained on at 1e-4": "0.7 base trained on to 0.94",
    "the same, trained on at 1e-3": "0.7 base trained on to 0.94, rate 0.001",
    "the same and experts, rule `snr`": "0.7 base and experts 0.8, snr",
    "the same and experts, `measured` by sensitivity": "0.7 base and experts 0.8, by sensitivity",
}


def bases_figures() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "reports" / "bases" / "bases.json").read_text(encoding="utf-8"))
    return found


def manifests_of_bases(own: bool) -> dict[str, dict[str, float]]:
    """FID by base and entry, read from the manifests: the mean over the base's own fine-tuning seeds, or with seed 0."""
    fids: dict[str, dict[str, list[float]]] = {}
    tuned = set()
    for path in sorted((ROOT / "reports" / "bases").glob("fashion-*/base-*.json")):
        base, _, named = path.stem.partition("-seed-")
        seed = int(named or base[-1])
        wanted = (seed % 10 == int(base[-1])) if own else (seed == 0)
        for row in json.loads(path.read_text(encoding="utf-8"))["evidence"]:
            tuned |= {base} if wanted else set()
            if wanted or row["seed"] is None:  # a base has no fine-tuning seed
                shorter = row["entry"] == "base" and path.parent.name == "fashion-cost"  # its base has 0.7 of the steps
                name = "base of fashion-cost" if shorter else row["entry"]
                fids.setdefault(base, {}).setdefault(name, []).append(row["fid"])
    return {
        base: {entry: float(np.mean(found)) for entry, found in entries.items()}
        for base, entries in fids.items()
        if base in tuned
    }


def test_figures_on_several_bases_are_those_of_their_manifests() -> None:
    designs = bases_figures()["designs"]
    assert [design["fids"] for design in designs] == [manifests_of_bases(own=True), manifests_of_bases(own=False)]
    text = (DOCS / "experts.md").read_text(encoding="utf-8").partition("**On several bases.**")[2]
    tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    whole, cost, shared = tables[:3]
    for name, *values in ([cell.strip(" *") for cell in line.strip("|").split("|")] for line in cost.splitlines()[2:]):
        bases_of_cost = [designs[0]["fids"][base] for base in ("base-0", "base-1", "base-2")]
        assert values[2:] == [f"{found[COST[name]]:.3f}" if COST[name] in found else "–" for found in bases_of_cost]
    for table, design in zip((whole, shared), designs, strict=True):
        bases, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        fids = {name.replace("-", " "): found for name, found in design["fids"].items()}
        assert bases[1:] == [*fids]
        for name, *values in rows:
            entry = BASES[name]
            assert values == [f"{found[entry]:.3f}" if entry in found else "–" for found in fids.values()]
        most = {name for name, entry in BASES.items() if sum(entry in found for found in fids.values()) > 1}
        assert most <= {name for name, *_ in rows}


def known_on_bases() -> set[str]:
    """Every figure that pages may tell of several bases: FIDs, their means, differences and spreads."""
    found = bases_figures()
    known = {f"{row['fid']:.3f}" for row in length_rows()}
    followed = found["following"]
    assert f"{max(followed['ranks']):.2f} and {followed['weighed']:.2f} over {followed['pairs']} networks" in one_line(
        "allocation"
    )
    for design in found["designs"]:
        every = [*design["fids"].values()]
        names = {name for own in every for name in own}
        known |= {f"{own[name]:.3f}" for own in every for name in own}
        known |= {f"{np.mean([own[name] for own in every if name in own]):.3f}" for name in names}
        for pair in design["differences"]:
            ends = [] if pair["low"] is None else [pair["low"], pair["high"]]
            known |= {f"{abs(value):.3f}" for value in (pair["mean"], *ends, *(pair["rest"] or ()))}
            both = [own for own in every if pair["entry"] in own and pair["other"] in own]
            known |= {f"{abs(own[pair['entry']] - own[pair['other']]):.3f}" for own in both}
    for spread in found["spreads"]:
        known |= {f"{value:.3f}" for value in spread.values() if isinstance(value, float)}
    return known


def length_rows() -> list[dict[str, Any]]:
    text = (ROOT / "reports" / "bases" / "lengths.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_figures_on_a_specialist_are_those_of_the_manifests() -> None:
    section = (DOCS / "experts.md").read_text(encoding="utf-8").partition("## The base and one specialist")[2]
    rows = re.findall(
        r"^\| ([^|]+) \| [\d.]+ \| (\S+) \| (\S+) \| (\S+) \|$", section.partition("\n## ")[0], flags=re.MULTILINE
    )
    assert [name for name, *_ in rows] == list(SPECIALISTS)
    fids = bases_figures()["designs"][0]["fids"]
    for name, *values in rows:
        assert values == [f"{fids[f'base-{i}'][SPECIALISTS[name]]:.3f}" for i in range(3)]


SPECIALISTS = {
    "base alone": "base",
    "with a specialist of the base's size": "specialist, whole",
    "of half its size": "specialist, 0.5",
    "of 0.3": "specialist, 0.3",
    "of 0.15": "specialist, 0.15",
    "no specialist, the base trained for as long, rate 1e-4": "base trained on for 0.02",
    "the same at rate 1e-3": "base trained on for 0.02, rate 0.001",
    "the same at rate 1e-4, each loss divided by its size": "base trained on for 0.02, weight inverse loss",
    "the same, divided by the root of its size": "base trained on for 0.02, weight inverse root loss",
}
"""Rows of that table, and their entries."""


@pytest.mark.parametrize("page", ["choosing", "results", "experts", "allocation"])
def test_pages_tell_what_was_measured_on_several_bases(page: str) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    if page in SECTIONS:
        start, end = SECTIONS[page]
        text = "reports/bases/" + text.partition(start)[2].partition(end)[0].replace("\n", " ")
        text = text.replace("1.301", "")  # of reports/fashion-tdc
    items = [item for item in re.split(r"\n(?=- |\n|\|)", text) if "reports/bases/" in item]
    said = {figure for item in items for figure in re.findall(r"\d\.\d{3}", item.partition("reports/bases/")[2])}
    assert said
    assert said <= known_on_bases()


SECTIONS = {
    "experts": ("**On several bases.**", "[Swaps of single experts]"),
    "allocation": ("**Does the rule give better experts?**", "## Recoveries"),
}
"""Where a page tells of them: from one text to another. On other pages it is the items that name the report."""


def one_line(page: str) -> str:
    return " ".join((DOCS / f"{page}.md").read_text(encoding="utf-8").split())


def test_readmes_table_is_that_of_the_bases() -> None:
    names = {
        "base": "base",
        "the same base after the extra training that the experts had": "base trained on",
        "one network for all timesteps, pruned by the same search": "one network, searched 0.8",
        "**experts**, rule `snr`": "experts 0.8, snr",
        "**experts**, rule `snr`, a learning rate per group": "experts 0.8, snr, rates by group",
        "**experts**, rule `linear`": "experts 0.8, linear",
        "**experts**, rule `linear`, a learning rate per group": "experts 0.8, linear, rates by group",
    }
    own = bases_figures()["designs"][0]
    fids, pairs = [*own["fids"].values()], {(one["entry"], one["other"]): one for one in own["differences"]}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| [*\d.]+ \| [*]*([\d.]+)[*]* \| (.*?) ?\| (.*?) ?\|$", text, flags=re.MULTILINE)
    assert [name for name, *_ in rows] == [*names]
    for name, fid, *shown in rows:
        entry = names[name]
        assert all(entry in own for own in fids)
        assert fid == f"{np.mean([own[entry] for own in fids]):.3f}"
        for other, cell in zip(("base trained on", "base"), shown, strict=True):
            pair = pairs.get((entry, other))
            assert (pair is None) == (cell == "")
            if pair is not None:
                interval = f"({pair['low']:+.3f} … {pair['high']:+.3f})"
                assert cell.replace("−", "-") == f"{pair['mean']:+.3f} {interval}, {pair['better']} of {pair['bases']}"
    assert f"means over {COUNTED[len(fids) - 1]} bases" in text


def test_scale_names_the_recipes_and_their_sizes() -> None:
    for name in ("ddpm-cifar10", "imagenet64", "latent-dit"):
        (row,) = [line for line in SCALE.splitlines() if line.startswith(f"| `recipes/{name}.yaml`")]
        comment = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
        (million,) = re.findall(r"([\d.]+) M", row)
        assert f"{million} million parameters" in comment
    assert "H100" in GPUS


RATES = {
    ("uniform", "0.001"): "uniform, rate 0.001",
    ("uniform", "0.004"): "uniform, rate 0.004",
    ("MDLRC, as in public code", "0.004"): "MDLRC, rate 0.004",
    ("the same, momentum not below 0.4", "0.004"): "MDLRC, floor 0.4, rate 0.004",
}


def test_the_training_page_tells_what_was_measured_at_two_rates() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    report = (ROOT / "reports" / "digits-curriculum-rates" / "report" / "curriculum.md").read_text(encoding="utf-8")
    for (way, rate), entry in RATES.items():
        (row,) = [line for line in report.splitlines() if line.startswith(f"| {entry} |")]
        loss, fid = [cell.strip() for cell in row.split("|")][2:4]
        assert f"| {way} | {rate} | {loss} | {fid} |" in page
