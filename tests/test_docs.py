"""What docs/ says is true: its examples run in three other people's codebases, and its tables list what there is."""

import re
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pytest
import torch
from networks import unet, unet_inputs

from prunekit.graph import Constraints, PruningPlan, apply, trace
from prunekit.groups import METHODS, TimestepGroups
from prunekit.importance import CRITERIA, ImportanceMap
from prunekit.recipe import MEASURED_METHODS
from prunekit.search import PROPOSERS, PROXIES, SearchOptions

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "importance.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^## ([^\n]+)\n[^#]*?```python\n(.*?)```", PAGE, flags=re.MULTILINE | re.DOTALL))
IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def diffusers() -> dict[str, Any]:
    from diffusers import DDPMScheduler

    return {"unet": unet(in_channels=3, out_channels=3), "scheduler": DDPMScheduler()}


def lucidrains() -> dict[str, Any]:
    with peers.stand_ins():
        diffusion = peers.library("denoising_diffusion_pytorch").GaussianDiffusion
        return {"diffusion": diffusion(peers.lucid().model, image_size=8)}


def smalldiffusion() -> dict[str, Any]:
    return {"model": peers.small_unet(ch=64).model, "schedule": peers.library("smalldiffusion").ScheduleDDPM()}


CODEBASES = {
    "Plain diffusers": diffusers,
    "lucidrains' denoising-diffusion-pytorch": lucidrains,
    "smalldiffusion": smalldiffusion,
}


EXAMPLE_INPUTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    name: lambda names: (IMAGES[:1], torch.tensor([0])) for name in CODEBASES
} | {"smalldiffusion": lambda names: (IMAGES[:1], names["schedule"][:1])}


def network_of(names: dict[str, Any]) -> torch.nn.Module:
    """The network of an example, by whatever name it has there."""
    model = next(names[key] for key in ("unet", "model", "diffusion") if key in names)
    network: torch.nn.Module = getattr(model, "model", model)
    return network


def execute(name: str, **changes: str) -> dict[str, Any]:
    """Execute an example as it stands in the page, with options added to its call; all its names."""
    given = CODEBASES[name]()
    options = "".join(f", {key}={value}" for key, value in {"samples": 8, **changes}.items())
    source = re.sub(r"\)\n$", f"{options})\n", EXAMPLES[name])
    names: dict[str, Any] = {"images": IMAGES, **given}
    exec(compile(source, "importance.md", "exec"), names)  # noqa: S102 - the example is the test
    return names


def run(name: str, **changes: str) -> ImportanceMap:
    """The scores of an example."""
    scores: ImportanceMap = execute(name, **changes)["scores"]
    return scores


def test_there_are_three_examples_of_ten_lines_at_most() -> None:
    assert list(EXAMPLES) == list(CODEBASES)
    for example in EXAMPLES.values():
        assert len([line for line in example.splitlines() if line.strip()]) <= 10
        assert max(map(len, example.splitlines())) <= 132


@pytest.mark.slow_but("Plain*")
@pytest.mark.parametrize("name", CODEBASES)
def test_the_example_scores_nearly_all_of_the_network(name: str) -> None:
    scores = run(name)
    assert [(g.start, g.stop) for g in scores.timestep_groups] == [(0, 250), (250, 500), (500, 750), (750, 1000)]
    assert len(scores.sizes) >= 8
    assert len(scores.left_whole) <= 3
    for by_name in scores.scores:
        assert all((values > 0).any() and np.isfinite(values).all() for values in by_name.values())
    first, last = (np.concatenate(list(scores.of(group).values())) for group in (0, 3))
    assert not np.allclose(first, last, rtol=0.05)


@pytest.mark.slow_but("Plain diffusers-taylor", "*-magnitude")
@pytest.mark.parametrize("by", sorted(set(CRITERIA) - {"proxy"}))
@pytest.mark.parametrize("name", CODEBASES)
def test_every_criterion_works_there(name: str, by: str) -> None:
    scores = run(name, by=repr(by), chunk="4")
    for by_name in scores.scores:
        assert all(values.any() and np.isfinite(values).all() for values in by_name.values())


@pytest.mark.slow_but("Plain diffusers")
@pytest.mark.parametrize("name", CODEBASES)
def test_the_loss_measures_the_network_that_it_is_given(name: str) -> None:
    """One that held on to the full network would see no rise when channels are removed."""
    names = execute(name, by="'random'")
    model = network_of(names)
    graph = trace(model, EXAMPLE_INPUTS[name](names))
    smallest = [group.widths[-1] for group in graph]
    plan = PruningPlan.from_widths(graph, np.array(smallest), names["scores"].of(0))
    timesteps = torch.arange(4) * 250
    whole, pruned = (
        names["loss"](network, timesteps, torch.Generator().manual_seed(1)).item()
        for network in (model, apply(model, graph, plan))
    )
    assert abs(pruned - whole) > 1e-3 * whole


def test_the_table_lists_the_criteria() -> None:
    for part in PAGE.split("\n## Residual branches"):  # what a channel is worth, and what a branch is
        rows = [re.findall(r"`([a-z0-9-]+)`", row.split("|")[1]) for row in part.splitlines() if row.startswith("| `")]
        assert sorted(name for row in rows for name in row) == sorted(CRITERIA)


SEARCH_PAGE = (Path(__file__).resolve().parents[1] / "docs" / "search.md").read_text(encoding="utf-8")


def listed(title: str) -> list[str]:
    """Names in the first column of a section's table."""
    section = SEARCH_PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    return sorted(name for row in rows for name in re.findall(r"`([a-z-]+)`", row))


def test_the_pages_tables_list_proposers_and_proxies_and_their_defaults() -> None:
    assert listed("Proposers") == sorted(PROPOSERS)
    assert listed("Proxies") == sorted(PROXIES)
    options = SearchOptions()
    assert f"| `{options.proposer}` (default) |" in SEARCH_PAGE
    assert f"| `{options.proxy}` (default) |" in SEARCH_PAGE


@pytest.mark.slow_but("Plain diffusers")
@pytest.mark.parametrize("name", CODEBASES)
def test_the_search_page_prunes_other_peoples_networks_to_the_target(name: str) -> None:
    names = execute(name, by="'magnitude'")
    given = {
        "model": network_of(names),
        "example_inputs": EXAMPLE_INPUTS[name](names),
        "loss": names["loss"],
        "timestep_groups": TimestepGroups.from_cuts(1000, [250, 500, 750]),
    }
    (source,) = re.findall(r"```python\n(.*?)```", SEARCH_PAGE, flags=re.DOTALL)
    source = source.replace("Probe(loss, group)", "Probe(loss, group, samples=8)")
    source = source.replace("graph=graph)", "graph=graph, samples=8)")
    exec(compile(source, "search.md", "exec"), given)  # noqa: S102 - the example is the test
    found, whole = given["found"], int(given["cost"].macs(given["graph"].full_widths))
    assert 0 <= int(0.6 * whole) - found.macs <= 0.01 * whole
    timesteps = torch.arange(500, 750, 30)
    repaired, cut = (
        given["loss"](network, timesteps, torch.Generator().manual_seed(5)).item()
        for network in (given["pruned"], apply(given["model"], given["graph"], found.plan))
    )
    assert np.isfinite([repaired, cut]).all()
    assert repaired != cut


def test_the_constraints_example_holds_and_its_table_lists_the_words() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "engine.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    given: dict[str, Any] = {"model": unet(), "example_inputs": unet_inputs()}
    exec(compile(source, "engine.md", "exec"), given)  # noqa: S102 - the example is the test
    graph, left = given["graph"], given["left"]
    assert left["conv_in"] == graph["conv_in"].size
    assert all(2 * width >= graph[name].size for name, width in left.items() if name.startswith("up_blocks"))
    assert "mid_block.resnets.1.conv1" not in left
    assert not graph["mid_block.attentions.0.to_q"].whole
    words = re.findall(r"^\| `([a-z_]+)` \|.*`--([a-z-]+) ", page, flags=re.MULTILINE)
    assert [word for word, _ in words] == [field.name for field in fields(Constraints)]
    assert all(option == word.replace("_", "-") for word, option in words)


def test_the_multistage_page_builds_runs_and_prunes_a_network_of_its_own() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "multistage.md").read_text(encoding="utf-8")
    building, pruning = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    widths = re.search(r"\[\[.*?\]\]", building)
    assert widths is not None
    given: dict[str, Any] = {
        "unet": unet(),
        "noisy": torch.randn(3, 1, 8, 8),
        "timesteps": torch.tensor([0, 500, 999]),
    }
    source = building.replace(widths[0], "[[12, 24], [8, 16], [4, 8]]")
    exec(compile(source + pruning, "multistage.md", "exec"), given)  # noqa: S102 - the example is the test
    assert given["prediction"].shape == (3, 1, 8, 8)
    assert given["fresh"](given["noisy"], given["timesteps"]).sample.shape == (3, 1, 8, 8)
    free = [group.name for group in given["graph"] if len(group.widths) > 1]
    assert free
    assert all(name.startswith("decoder.") for name in free)


def test_the_grouping_example_runs_and_its_table_lists_the_methods(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "groups.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    images = np.random.default_rng(0).integers(0, 256, (30, 1, 4, 4), dtype=np.uint8)
    names: dict[str, Any] = {"images": images}
    exec(compile(example, "groups.md", "exec"), names)  # noqa: S102 - the example is the test
    assert len(names["grouping"].groups) == 4
    assert "(64, 64)" in capsys.readouterr().out
    listed = re.findall(r"^\| `([a-z]+)` \|", page, flags=re.MULTILINE)
    assert sorted(listed) == sorted([*METHODS, *MEASURED_METHODS])


def test_the_consistency_page_compares_two_networks() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "consistency.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    given: dict[str, Any] = {"model": unet(), "other": unet(block_out_channels=(4, 8))}
    exec(compile(source, "consistency.md", "exec"), given)  # noqa: S102 - the example is the test
    assert len(given["found"].steps) == 10
    assert set(given["found"].steps[0].to_json()) - {"timestep", "groups"} == listed_keys(page)


def listed_keys(page: str) -> set[str]:
    return set(re.findall(r"^\| `([a-z]+)` \|", page, flags=re.MULTILINE))


def test_every_word_of_the_glossary_has_the_class_that_it_names() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "glossary.md").read_text(encoding="utf-8")
    names = re.findall(r"`(prunekit\.[\w.]+)\.(\w+)`", page)
    words = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(names) == len(words) == len(set(words)) > 15
    assert [(module, name) for module, name in names if not hasattr(import_module(module), name)] == []
