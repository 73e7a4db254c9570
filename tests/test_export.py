import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from networks import NETWORKS, rows
from tiny_pipelines import tiny_pipeline
from torch import nn
from true_figures import figures

import prunekit.export
from prunekit.checkpoint import ModelSpec
from prunekit.cli.app import main
from prunekit.errors import GraphError, InputError
from prunekit.export import export_onnx
from prunekit.graph import PruningPlan, apply
from prunekit.groups import TimestepGroup, TimestepGroups
from prunekit.nets import TimestepExperts, save_experts
from prunekit.slim import SlimModel

EXPORTED = ["unet", "unet-one-head", "unet-scale-shift", "conv", "mlp", "two-norms", "products"]


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", EXPORTED)
def test_onnxruntime_gives_the_networks_outputs_at_any_batch_size(tmp_path, name):
    network = NETWORKS[name]()
    made = export_onnx(network.model, network.inputs, tmp_path / "model.onnx")
    assert made.difference <= 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    inputs = network.inputs if isinstance(network.inputs, dict) else dict(zip(made.inputs, network.inputs, strict=True))
    generator = torch.Generator().manual_seed(1)
    five = {
        key: torch.randn((5, *value.shape[1:]), generator=generator) if value.is_floating_point() else torch.arange(5)
        for key, value in inputs.items()
    }
    with torch.no_grad():
        expected = network.model(**five) if isinstance(network.inputs, dict) else network.model(*five.values())
    found = session(made.path).run(None, {key: value.numpy() for key, value in five.items()})[0]
    np.testing.assert_allclose(found, getattr(expected, "sample", expected).numpy(), atol=1e-4)


def test_a_pruned_network_is_exported_with_its_own_widths(bench, tmp_path):
    tiny = bench("unet", "whole")
    slim = apply(tiny.model, tiny.graph, tiny.plan(tiny.smallest))
    for name, model in (("slim", slim), ("base", tiny.model)):
        export_onnx(model, tiny.inputs, tmp_path / f"{name}.onnx")
    assert (tmp_path / "slim.onnx").stat().st_size < (tmp_path / "base.onnx").stat().st_size
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 900])
    with torch.no_grad():
        expected = slim(x, t).sample.numpy()
    found = session(tmp_path / "slim.onnx").run(None, {"sample": x.numpy(), "timestep": t.numpy()})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


class Forgetful(nn.Module):
    """What it does depends on its input's values, which a traced file cannot repeat."""

    def forward(self, x):
        return x * float(x.sum())


def test_a_file_that_is_not_the_network_is_not_written(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with pytest.raises(GraphError, match=r"outputs differ from the network's by .* Nothing was written"):
        export_onnx(Forgetful(), (rows(1, 6),), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_network_that_cannot_be_traced_is_a_sentence(tmp_path):
    class Broken(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x @ x.T).abs()

    with pytest.raises(GraphError, match="cannot be exported to ONNX") as caught:
        export_onnx(Broken(), (rows(1, 6),), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_export_leaves_the_model_as_it_was(bench, tmp_path):
    model = bench("unet").copy().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export_onnx(model, bench("unet").inputs, tmp_path / "model.onnx")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_experts_are_refused_as_one_file(bench, tmp_path):
    tiny = bench("unet")
    groups = TimestepGroups.from_cuts(10, [])
    slim = SlimModel(tiny.model, ModelSpec.of(tiny.model), PruningPlan(), {}, TimestepGroup(0, 0, 10), 10, 1, 2)
    with pytest.raises(InputError, match="export each expert on its own"):
        export_onnx(TimestepExperts(groups, [slim]), tiny.inputs, tmp_path / "model.onnx")


def test_what_is_no_tensor_or_too_large_is_refused(bench, tmp_path, monkeypatch):
    tiny = bench("unet")
    with pytest.raises(InputError, match="as a tensor"):
        export_onnx(tiny.model, {**tiny.inputs, "timestep": 7}, tmp_path / "model.onnx")
    monkeypatch.setattr(prunekit.export, "_MAX_BYTES", 1000)
    with pytest.raises(InputError, match="bytes of weights"):
        export_onnx(tiny.model, tiny.inputs, tmp_path / "model.onnx")


def test_without_the_extra_it_is_named(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(prunekit.export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"prunekit\[onnx\]"):
        export_onnx(bench("unet").model, bench("unet").inputs, tmp_path / "model.onnx")


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["prunekit", "export", *words])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


def test_the_command_writes_a_base_and_never_over_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(monkeypatch, capsys, "embedded:digits", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["output"] == "model.onnx"
    assert json.loads(out)["difference"] <= 1e-4
    assert [value.name for value in session("model.onnx").get_inputs()] == ["sample", "timestep"]
    before = (tmp_path / "model.onnx").read_bytes()
    code, out, err = command(monkeypatch, capsys, "embedded:digits")
    assert (code, out) == (2, "")
    assert "--overwrite" in err
    assert (tmp_path / "model.onnx").read_bytes() == before


@pytest.mark.slow
def test_the_command_writes_one_file_per_expert(bench, tmp_path, monkeypatch, capsys):
    tiny, groups = bench("unet"), TimestepGroups.from_cuts(10, [4])
    about = {"noise_schedule": {"kind": "linear", "num_timesteps": 10}}
    spec = ModelSpec.of(tiny.model)
    slims = [
        SlimModel(tiny.model, spec, PruningPlan(), {}, group, 10, *figures(tiny.model, tiny.inputs), about)
        for group in groups
    ]
    save_experts(slims, groups, tmp_path / "experts")
    code, out, _ = command(monkeypatch, capsys, str(tmp_path / "experts"), "--output", str(tmp_path / "e.onnx"))
    assert code == 0
    assert sum(line.startswith("Written to") for line in out.splitlines()) == 2
    assert sorted(path.name for path in tmp_path.glob("*.onnx")) == ["e-group-0.onnx", "e-group-1.onnx"]


class Told(nn.Module):
    """A denoiser with conditions in a mapping, a table that is the same for every sample, and a plain value."""

    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(4, 4), nn.Linear(3, 4)

    def forward(self, hidden_states, timestep, added_cond_kwargs, img_ids, scale):
        told = self.text(added_cond_kwargs["text_embeds"])[:, None]
        places = img_ids.sum(-1)[None, :, None]
        return (scale * self.image(hidden_states) + told + places * timestep[:, None, None],)


def test_conditions_are_inputs_by_their_paths(tmp_path):
    model = Told().eval()
    inputs = {
        "hidden_states": torch.zeros(1, 6, 4),
        "timestep": torch.zeros(1),
        "added_cond_kwargs": {"text_embeds": torch.zeros(1, 3), "resolution": None},
        "img_ids": torch.zeros(6, 2),
        "scale": 3.0,
    }
    made = export_onnx(model, inputs, tmp_path / "told.onnx")
    assert made.inputs == ("hidden_states", "timestep", "added_cond_kwargs.text_embeds", "img_ids")
    draws = torch.Generator().manual_seed(0)
    shapes = {"hidden_states": (5, 6, 4), "timestep": (5,), "added_cond_kwargs.text_embeds": (5, 3), "img_ids": (6, 2)}
    given = {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    found = session(made.path).run(None, {name: value.numpy() for name, value in given.items()})[0]
    with torch.no_grad():
        text = {"text_embeds": given["added_cond_kwargs.text_embeds"]}
        (expected,) = model(given["hidden_states"], given["timestep"], text, given["img_ids"], 3.0)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_the_denoisers_of_text_pipelines_are_exported(tmp_path):
    unet = tiny_pipeline("sdxl", tmp_path).unet
    made = export_onnx(unet, ModelSpec.of(unet).example_inputs(), tmp_path / "sdxl.onnx")
    assert set(made.inputs) >= {"encoder_hidden_states", "added_cond_kwargs.text_embeds", "added_cond_kwargs.time_ids"}
