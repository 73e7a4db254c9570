"""Networks whose residual branches were removed: on disk, exported, compiled, among experts, with a LoRA, as students."""

import copy
import json

import numpy as np
import onnxruntime
import pytest
import torch
from benches import Bench
from networks import NETWORKS
from safetensors.torch import load_file, save_file

from prunekit._files import json_hash, sha256_file, write_json
from prunekit.checkpoint import ModelSpec
from prunekit.cost import CostModel
from prunekit.errors import FileFormatError, PrunekitError
from prunekit.export import export_onnx
from prunekit.graph import PruningPlan, apply, attributes, trace
from prunekit.graph.stubs import stubs_in
from prunekit.groups import TimestepGroup, TimestepGroups
from prunekit.nets import load_experts, save_experts
from prunekit.nets.lora import cut_lora
from prunekit.slim import SlimModel, load_slim, save_slim

GROUPS = TimestepGroups.from_cuts(100, [50])
REMOVED = ("branch:down_blocks.0.resnets.0", "branch:mid_block.attentions.0", "branch:up_blocks.0.resnets.1")


@pytest.fixture(scope="module")
def deep():
    network = NETWORKS["unet"]()
    graph = trace(network.model, network.inputs, shrink="both")
    return Bench(network.model, network.inputs, graph, CostModel.of(network.model, graph, network.inputs))


def slim_of(deep, removed=REMOVED, group=GROUPS.groups[0]):
    kept = deep.random_plan(4).kept
    plan = PruningPlan(kept, deep.graph.fingerprint, removed)
    plan = deep.plan(plan.widths(deep.graph))
    widths = plan.widths(deep.graph)
    macs, params = int(deep.cost.macs(widths)), int(deep.cost.params(widths))
    pruned, sizes = apply(deep.model, deep.graph, plan), attributes(deep.model, deep.graph, plan)
    return SlimModel(pruned, ModelSpec.of(deep.model), plan, sizes, group, 100, macs, params)


@torch.no_grad()
def output(model, inputs):
    return model(**inputs).sample


@pytest.fixture
def folder(deep, tmp_path):
    save_slim(slim_of(deep), tmp_path / "slim")
    return tmp_path / "slim"


def test_saving_and_loading_changes_no_bit(deep, folder, tmp_path):
    slim, again = slim_of(deep), load_slim(folder)
    assert again.plan == slim.plan
    assert len(stubs_in(again.model)) == len(REMOVED)
    assert stubs_in(again.model) == stubs_in(slim.model)
    assert torch.equal(output(again.model, deep.inputs), output(slim.model, deep.inputs))
    assert {key: t.shape for key, t in again.model.state_dict().items()} == {
        key: t.shape for key, t in slim.model.state_dict().items()
    }
    save_slim(again, tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert sha256_file(folder / name) == sha256_file(tmp_path / "again" / name)


OUTPUT = {"argument": "input", "place": 0, "through": [], "scale": 1.0, "shape": None}


def _stub(**changes):
    def change(config):
        config["stubs"][0].update(changes)

    return change


def _first_output(**changes):
    def change(config):
        config["stubs"][0]["outputs"][0].update(changes)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("stubs"),
        lambda config: config.update(stubs=[]),
        lambda config: config.update(stubs="all"),
        lambda config: config["stubs"].pop(),
        lambda config: config["stubs"].append(config["stubs"][0]),
        lambda config: config["plan"].pop("removed"),
        lambda config: config["plan"]["removed"].append(7),
        _stub(module=""),
        _stub(module="."),
        _stub(module="forward"),
        _stub(module="__class__"),
        _stub(module="conv_in.weight"),
        _stub(module="no.such.module"),
        _stub(module="conv_in\nAll is well"),
        _stub(kind="eval"),
        _stub(kind="void"),
        _stub(outputs=[]),
        _stub(nested=True),
        _first_output(argument="__class__", place=10**9),
        _first_output(argument=""),
        _first_output(through=["__dict__"]),
        _first_output(through=["conv1.weight"]),
        _first_output(through=["conv1"]),
        _first_output(scale="1"),
        _first_output(scale=float("inf")),
        _first_output(shape=[10**12, 10**12]),
    ],
)
def test_changed_stubs_are_refused_in_a_sentence(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PrunekitError) as caught:
        load_slim(folder)
    assert isinstance(caught.value, FileFormatError)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", ")"))


def bound(folder, config):
    """Write a config, and weights that are bound to it, so that nothing but its content can be refused."""
    told = {key: value for key, value in config.items() if key != "sha256"}
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights, {"config_sha256": json_hash(json.loads(json.dumps(told)))})
    write_json(folder / "config.json", {**told, "sha256": sha256_file(weights)})


def test_a_config_that_is_bound_again_is_read(folder):
    bound(folder, json.loads((folder / "config.json").read_text()))
    assert len(stubs_in(load_slim(folder).model)) == len(REMOVED)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("stubs"),
        lambda config: config["stubs"].pop(),
        lambda config: config["stubs"].append(config["stubs"][0]),
        lambda config: config["stubs"].extend([config["stubs"][0]] * 20_000),
        lambda config: config["stubs"].extend({**config["stubs"][0], "module": f"m{i}"} for i in range(20_000)),
        lambda config: config["stubs"].append({**config["stubs"][0], "module": "conv_norm_out"}),
        lambda config: config["stubs"].append({**config["stubs"][0], "module": "down_blocks.0.resnets.0.conv1"}),
        lambda config: config["plan"].update(removed=["branch:no.such"]),
        lambda config: config["plan"]["removed"].append("branch:mid_block.resnets.0"),
        _stub(module=""),
        _stub(module="conv_in"),
        _stub(module="down_blocks"),
        _stub(module="down_blocks.-1"),
        _stub(module="a." * 10_000),
        _stub(nested=True),
        _first_output(argument="temb", place=1),
        _first_output(argument="no such", place=10**6),
        _first_output(through=["conv1"]),
        _first_output(through=["forward"]),
        _first_output(through=[".."]),
        _first_output(through=["dropout"] * 100_000),
        _first_output(through=["dropout"]),
        _first_output(scale=1.5),
        _first_output(scale=0.0),
        _stub(kind="void"),
        *(
            lambda config, name=name, kind=kind: config["stubs"].append(
                {**config["stubs"][0], "module": name, "kind": kind, "outputs": [{**OUTPUT, "argument": "input"}]}
            )
            for name in ("conv_act", "mid_block.resnets.0.nonlinearity", "up_blocks.0.attentions.0.to_out.1")
            for kind in ("shortcut", "void")
        ),
    ],
)
def test_stubs_that_do_not_fit_are_refused_in_a_sentence_though_they_are_bound(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    bound(folder, config)
    with pytest.raises(FileFormatError) as caught:
        load_slim(folder)
    assert "was changed after it was written" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_zeros_never_take_more_memory_than_what_they_are_added_to(folder):
    config = json.loads((folder / "config.json").read_text())
    config["stubs"][0].update(kind="void")
    config["stubs"][0]["outputs"][0]["shape"] = [2, 2, 2, 2]
    write_json(folder / "config.json", config)
    with pytest.raises(FileFormatError, match="shape"):
        load_slim(folder)


def test_onnxruntime_gives_the_networks_outputs(deep, tmp_path):
    slim = slim_of(deep)
    made = export_onnx(slim.model, deep.inputs, tmp_path / "model.onnx")
    assert made.difference <= 1e-4
    inputs = {"sample": np.ones((3, 1, 8, 8), np.float32), "timestep": np.arange(3)}
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    wanted = output(slim.model, {key: torch.from_numpy(value) for key, value in inputs.items()})
    np.testing.assert_allclose(session.run(None, inputs)[0], wanted.numpy(), atol=1e-4)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same(deep):
    slim = slim_of(deep)
    compiled = torch.compile(slim.model, backend="eager")
    torch.testing.assert_close(output(compiled, deep.inputs), output(slim.model, deep.inputs))


def test_experts_of_several_depths_are_stored_and_a_shared_one_once(deep, tmp_path):
    slims = [slim_of(deep), slim_of(deep, (), GROUPS.groups[1])]
    save_experts(slims, GROUPS, tmp_path / "experts")
    experts = load_experts(tmp_path / "experts")
    x = deep.inputs["sample"].expand(2, -1, -1, -1)
    found = output(experts, {"sample": x, "timestep": torch.tensor([3, 90])})
    for row, (slim, t) in enumerate(zip(slims, (3, 90), strict=True)):
        wanted = output(slim.model, {"sample": x[:1], "timestep": torch.tensor([t])})
        torch.testing.assert_close(found[row : row + 1], wanted)
    alike = [slim_of(deep), slim_of(deep, group=GROUPS.groups[1])]
    save_experts(alike, GROUPS, tmp_path / "alike")
    assert load_experts(tmp_path / "alike").networks == (0, 0)


def test_a_lora_loses_the_layers_that_are_gone(deep):
    slim = slim_of(deep)
    layers = ("mid_block.attentions.0.to_q", "up_blocks.0.attentions.0.to_q")
    weights = {}
    for layer in layers:
        rows, columns = deep.model.get_submodule(layer).weight.shape
        weights[f"{layer}.lora_A.weight"] = torch.randn(2, columns)
        weights[f"{layer}.lora_B.weight"] = torch.randn(rows, 2)
    cut = cut_lora(weights, slim.spec, slim.plan)
    assert {key.split(".lora")[0] for key in cut} == {layers[1]}
    own = slim.model.get_submodule(layers[1]).weight
    assert (cut[f"{layers[1]}.lora_B.weight"] @ cut[f"{layers[1]}.lora_A.weight"]).shape == own.shape


def test_gradients_flow_past_a_removed_branch(deep):
    student = copy.deepcopy(slim_of(deep).model).train()
    student(**deep.inputs).sample.square().mean().backward()
    without = [name for name, parameter in student.named_parameters() if parameter.grad is None]
    assert without == []


def test_a_group_is_read_by_its_name(folder):
    assert load_slim(folder).group == TimestepGroup(0, 0, 50)
