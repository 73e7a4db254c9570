"""What an interactive session shows of a result: one short line, however large the network is."""

import pytest

from prunekit import CostModel, importance, load_base, load_slim, prune, save_slim
from prunekit.checkpoint import Base, ModelSpec, save_base
from prunekit.groups import TimestepGroup
from prunekit.schedule import NoiseSchedule, Parameterization
from tests.networks import unet, unet_inputs


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder, model, inputs = tmp_path_factory.mktemp("shown"), unet(), unet_inputs()
    pruned = prune(model, inputs, target=0.6)
    graph = pruned.graph
    scores = importance(model, inputs, None, [TimestepGroup(0, 0, 1000)], by="magnitude", graph=graph)
    save_slim(pruned.slim, folder / "slim")
    base = Base(model, ModelSpec.of(model), Parameterization(NoiseSchedule.linear(1000)))
    save_base(base, folder / "base.pt")
    return {
        "pruned": pruned,
        "result": pruned.result,
        "graph": graph,
        "cost": CostModel.of(model, graph, inputs),
        "scores": scores,
        "slim": load_slim(folder / "slim"),
        "base": load_base(folder / "base.pt"),
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pruned", "<Pruned: "),
        ("result", "<SearchResult: macs "),
        ("graph", "<ChannelGraph: channel groups "),
        ("cost", "<CostModel: rows of MACs "),
        ("scores", "<ImportanceMap by 'magnitude': timestep groups 1, "),
        ("slim", "<SlimModel: UNet2DModel for timesteps 0 to 999, MACs "),
        ("base", "<Base: UNet2DModel that predicts epsilon, timesteps 1000>"),
    ],
)
def test_it_is_one_short_line(shown: dict[str, object], name: str, words: str) -> None:
    text = repr(shown[name])
    assert text.startswith(words)
    assert text.endswith(">")
    assert "\n" not in text
    assert len(text) < 250


def test_its_numbers_are_those_of_the_result(shown: dict[str, object]) -> None:
    pruned, scores = shown["pruned"], shown["scores"]
    assert f"MACs {pruned.macs:,}, parameters {pruned.params:,}" in repr(shown["slim"])
    assert f"{pruned.result.spent:,} of {pruned.result.base:,}" in repr(shown["result"])
    channels = sum(group.size for group in pruned.graph)
    assert f"channels {channels}, " in repr(shown["graph"])
    assert f"channels {channels}, " in repr(scores)
