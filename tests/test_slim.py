import json
import shutil
from dataclasses import replace

import pytest
import torch
from networks import Mlp, rows
from safetensors.torch import load_file, save_file
from torch import nn

import prunekit.slim
from prunekit._files import sha256_file
from prunekit.checkpoint import ModelSpec
from prunekit.errors import FileFormatError, InputError, MissingFileError, PrunekitError
from prunekit.graph import PruningPlan, apply, norm_groups, trace
from prunekit.graph.surgery import run_once
from prunekit.groups import TimestepGroup
from prunekit.slim import SlimModel, load_slim, save_slim

ABOUT = {
    "noise_schedule": {"kind": "linear", "num_timesteps": 100},
    "prediction_type": "epsilon",
    "data": {"source": "digits"},
    "provenance": {"seed": 3},
}
UNETS = ["unet", "unet-one-head", "unet-resnet-resampling", "unet-scale-shift"]


def slim_of(tiny, plan, spec=None):
    pruned = apply(tiny.model, tiny.graph, plan)
    norms = norm_groups(tiny.model, tiny.graph, plan)
    widths = plan.widths(tiny.graph)
    macs, params = int(tiny.cost.macs(widths)), int(tiny.cost.params(widths))
    group = TimestepGroup(1, 30, 60)
    return SlimModel(pruned, spec or ModelSpec.of(tiny.model), plan, norms, group, 100, macs, params, ABOUT)


@pytest.fixture(scope="module")
def slim(bench):
    return slim_of(bench("unet", "whole"), bench("unet", "whole").random_plan(3))


@pytest.fixture
def folder(slim, tmp_path):
    save_slim(slim, tmp_path / "slim")
    return tmp_path / "slim"


def edited(folder, change):
    """Change the config as somebody with an editor would."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def refused(folder, kind=FileFormatError):
    with pytest.raises(kind) as caught:
        load_slim(folder)
    assert isinstance(caught.value, PrunekitError)
    message = str(caught.value)
    assert message.endswith((".", ")"))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("mode", ["even", "whole"])
@pytest.mark.parametrize("name", UNETS)
def test_saving_and_loading_changes_no_bit(bench, tmp_path, name, mode):
    tiny = bench(name, mode)
    for plan in (tiny.random_plan(4), tiny.plan(tiny.smallest), PruningPlan({}, tiny.graph.fingerprint)):
        slim = slim_of(tiny, plan)
        save_slim(slim, tmp_path / "slim")
        again = load_slim(tmp_path / "slim")
        expected = slim.model.state_dict()
        assert list(again.model.state_dict()) == list(expected)
        assert all(torch.equal(value, expected[key]) for key, value in again.model.state_dict().items())
        outputs = [run_once(model, tiny.inputs).sample for model in (slim.model, again.model)]
        assert torch.equal(*outputs)
        assert not again.model.training
        assert not any(tensor.is_meta for tensor in (*again.model.parameters(), *again.model.buffers()))


def test_all_that_describes_a_slim_model_comes_back(slim, folder):
    again = load_slim(folder)
    for key in ("spec", "plan", "group", "num_timesteps", "macs", "params", "about"):
        assert getattr(again, key) == getattr(slim, key), key
    assert dict(again.norm_groups) == dict(slim.norm_groups)
    assert slim.norm_groups


def test_the_folder_has_two_files_and_the_format(slim, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == "prunekit-slim/1"
    assert config["model"]["class"] == "UNet2DModel"
    assert config["shapes"] == {key: list(value.shape) for key, value in slim.model.state_dict().items()}
    assert config["sha256"] == sha256_file(folder / "model.safetensors")


def test_loading_needs_neither_the_base_nor_random_numbers(folder):
    rng = torch.get_rng_state()
    load_slim(folder)
    assert torch.equal(torch.get_rng_state(), rng)


def test_gradients_flow_through_a_loaded_model(folder, bench):
    model = load_slim(folder).model
    inputs = bench("unet").inputs
    model(**inputs).sample.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_richer_provenance_keeps_the_old_one(slim):
    fuller = slim.with_weights(slim.model, finetuned_steps=10)
    assert fuller.about["provenance"] == {"seed": 3, "finetuned_steps": 10}
    assert slim.about["provenance"] == {"seed": 3}


def test_changed_weights_are_noticed_by_their_hash(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    assert "SHA-256" in refused(folder)


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, -1])
def test_truncated_weights_are_refused(folder, keep):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert "safetensors" in refused(folder)


def test_weights_of_other_shapes_are_refused_even_under_a_hash_that_fits(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    state["conv_in.bias"] = torch.zeros(99)
    save_file(state, path)
    edited(folder, lambda c: c.update(sha256=sha256_file(path)))
    assert "names or shapes" in refused(folder)
    edited(folder, lambda c: c["shapes"].update({"conv_in.bias": [99]}))
    assert "conv_in" in refused(folder)


def test_weights_under_other_names_are_refused(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    state["conv_on.bias"] = state.pop("conv_in.bias")
    save_file(state, path)
    shapes = {key: list(value.shape) for key, value in state.items()}
    edited(folder, lambda c: c.update(sha256=sha256_file(path), shapes=shapes))
    assert "conv_in.bias" in refused(folder)


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "AutoModel", "torch.nn.Linear", "", "__import__"])
def test_a_config_cannot_name_anything_but_a_known_architecture(folder, name, monkeypatch):
    monkeypatch.setattr("os.system", lambda *a: pytest.fail("ran"))
    edited(folder, lambda c: c["model"].update({"class": name}))
    assert repr(name) in refused(folder, (FileFormatError, InputError))
    edited(folder, lambda c: c.update(model={"_class_name": name, "command": "true"}))
    assert repr(name) in refused(folder, (FileFormatError, InputError))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["model"]["config"].update(block_out_channels=[0, 0]),
        lambda c: c["model"]["config"].update(block_out_channels="wide"),
        lambda c: c["model"]["config"].update(block_out_channels=[8]),
        lambda c: c["model"]["config"].update(norm_num_groups=3),
        lambda c: c["model"]["config"].update(norm_num_groups=0),
        lambda c: c["model"]["config"].update(layers_per_block=3),
        lambda c: c["model"]["config"].update(down_block_types=["os.system", "DownBlock2D"]),
        lambda c: c["model"]["config"].update(attention_head_dim=0),
        lambda c: c["model"]["config"].update(in_channels=-1),
        lambda c: c["model"].update(config=7),
        lambda c: c.update(model=None),
        lambda c: c.pop("model"),
        lambda c: c.pop("plan"),
        lambda c: c.pop("sha256"),
        lambda c: c.pop("shapes"),
        lambda c: c.update(plan=[1]),
        lambda c: c.update(macs="many"),
        lambda c: c.update(timestep_group={"index": 0}),
        lambda c: c.update(norm_groups=[1]),
        lambda c: c.update(norm_groups={"conv_norm_out": 0}),
        lambda c: c.update(norm_groups={"conv_norm_out": -4}),
        lambda c: c.update(norm_groups={"conv_norm_out": 5}),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder, change):
    edited(folder, change)
    refused(folder, (FileFormatError, InputError))


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '{"format": "prunekit-slim/2"}', "\x00\x01", '{"a": NaN}'])
def test_a_config_that_is_no_slim_json_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json" in refused(folder)


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors"])
def test_missing_files_are_named(folder, gone):
    (folder / gone).unlink()
    assert gone in refused(folder, MissingFileError)


def test_a_missing_folder_is_named_and_how_to_make_one(tmp_path):
    assert "prunekit prune" in refused(tmp_path / "nowhere", MissingFileError)


def test_other_architectures_need_a_factory(bench, tmp_path):
    model = Mlp().eval()
    inputs = (rows(1, 6),)
    graph = trace(model, inputs)
    plan = PruningPlan({"first": (0, 3, 5), "wide": (1, 2)}, graph.fingerprint)
    pruned = apply(model, graph, plan)
    spec = ModelSpec("Mlp", {"width": 12})
    slim = SlimModel(pruned, spec, plan, {}, TimestepGroup(0, 0, 100), 100, 1, 2, ABOUT)
    save_slim(slim, tmp_path / "slim")
    assert "'Mlp'" in refused(tmp_path / "slim", InputError)
    asked = []

    def factory(config):
        asked.append(config)
        return Mlp(**config)

    again = load_slim(tmp_path / "slim", factory)
    assert asked == [{"width": 12}]
    assert torch.equal(again.model(*inputs), pruned(*inputs))
    assert again.plan == plan


def test_weights_that_are_shared_can_be_saved_and_are_shared_again(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

    model = Tied()
    slim = SlimModel(model, ModelSpec("Tied", {}), PruningPlan(), {}, TimestepGroup(0, 0, 10), 10, 1, 2, ABOUT)
    save_slim(slim, tmp_path / "slim")
    again = load_slim(tmp_path / "slim", lambda config: Tied()).model
    assert again.first.weight is again.second.weight
    assert torch.equal(again.first.weight, model.first.weight)


def test_half_precision_weights_stay_half(slim, tmp_path, bench):
    half = replace(slim, model=apply(*whole(bench)).half())
    save_slim(half, tmp_path / "slim")
    assert {p.dtype for p in load_slim(tmp_path / "slim").model.parameters()} == {torch.float16}


def whole(bench):
    tiny = bench("unet", "whole")
    return tiny.model, tiny.graph, tiny.random_plan(3)


@pytest.mark.parametrize("function", ["save_file", "write_json", "sha256_file"])
def test_a_save_that_fails_leaves_the_old_folder_as_it_was(slim, folder, bench, monkeypatch, function):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(prunekit.slim, function, fail)
    other = slim_of(bench("unet"), bench("unet").random_plan(9))
    with pytest.raises(KeyboardInterrupt):
        save_slim(other, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["slim"]


def test_a_folder_is_replaced_as_a_whole(slim, folder, bench):
    (folder / "stale.txt").write_text("from before")
    other = slim_of(bench("unet"), bench("unet").random_plan(9))
    save_slim(other, folder)
    assert load_slim(folder).plan == other.plan
    assert not (folder / "stale.txt").exists()


def test_a_copied_folder_loads(folder, tmp_path, slim):
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert load_slim(str(tmp_path / "elsewhere")).plan == slim.plan
