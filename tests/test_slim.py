import contextlib
import json
import os
import re
import shutil
import stat
import sys
import time
import tracemalloc
from dataclasses import replace

import pytest
import torch
from examples import examples
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from networks import NETWORKS, Mlp, rows
from safetensors.torch import load_file, save_file
from tiny_denoisers import tiny
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from true_figures import figures

import prunekit
import prunekit.slim.rebuilding
import prunekit.slim.storing
from prunekit._files import sha256_file
from prunekit.checkpoint import ModelSpec
from prunekit.cli.app import main
from prunekit.errors import FileFormatError, InputError, LimitError, MissingFileError, PrunekitError
from prunekit.graph import PruningPlan, apply, attributes, trace
from prunekit.graph.forward_pass import run_once
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
    norms = attributes(tiny.model, tiny.graph, plan)
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
    ends = "=" + str(caught.value.found) if isinstance(caught.value, LimitError) else (".", ")")  # what can be typed
    assert message.endswith(ends)
    assert "\n" not in message
    return message


@pytest.mark.slow_but("unet-even", "unet-scale-shift-whole")
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
    assert dict(again.sizes) == dict(slim.sizes)
    assert slim.sizes


def test_the_folder_has_two_files_a_card_and_the_format(slim, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
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
        lambda c: c.update(sizes=[1]),
        lambda c: c.update(sizes={"conv_norm_out": {"num_groups": 0}}),
        lambda c: c.update(sizes={"conv_norm_out": {"num_groups": -4}}),
        lambda c: c.update(sizes={"conv_norm_out": {"num_groups": 5}}),
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
    slim = SlimModel(pruned, spec, plan, {}, TimestepGroup(0, 0, 100), 100, *figures(pruned, inputs), ABOUT)
    save_slim(slim, tmp_path / "slim")
    said = refused(tmp_path / "slim", InputError)
    assert "'Mlp'" in said
    assert said.endswith("Pass the unpruned network and its example inputs: load_slim(folder, network, inputs).")
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
    params = sum(parameter.numel() for parameter in model.parameters())
    slim = SlimModel(model, ModelSpec("Tied", {}), PruningPlan(), {}, TimestepGroup(0, 0, 100), 100, 1, params, ABOUT)
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

    monkeypatch.setattr(prunekit.slim.storing, function, fail)
    other = slim_of(bench("unet"), bench("unet").random_plan(9))
    with pytest.raises(KeyboardInterrupt):
        save_slim(other, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["slim"]


def test_a_folder_is_replaced_as_a_whole_unless_something_of_the_users_is_in_it(slim, folder, bench):
    other = slim_of(bench("unet"), bench("unet").random_plan(9))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"also notes\.txt, which is not part of it"):
        save_slim(other, folder)
    assert load_slim(folder).plan == slim.plan
    (folder / "notes.txt").unlink()
    save_slim(other, folder)
    assert load_slim(folder).plan == other.plan


def test_a_copied_folder_loads(folder, tmp_path, slim):
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert load_slim(str(tmp_path / "elsewhere")).plan == slim.plan


@examples(15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), name=st.sampled_from(UNETS), mode=st.sampled_from(["even", "whole"]))
def test_any_plan_comes_back_bit_equal(bench, tmp_path, seed, name, mode):
    tiny = bench(name, mode)
    slim = slim_of(tiny, tiny.random_plan(seed))
    save_slim(slim, tmp_path / "slim")
    again = load_slim(tmp_path / "slim")
    assert again.plan == slim.plan
    assert torch.equal(run_once(again.model, tiny.inputs).sample, run_once(slim.model, tiny.inputs).sample)


@pytest.mark.parametrize("name", ["conv", "mlp", "embedding", "two-norms", "products"])
def test_networks_outside_the_registry_come_back_bit_equal_by_a_factory(bench, tmp_path, name):
    tiny = bench(name, "whole")
    spec = ModelSpec(type(tiny.model).__name__, {})
    for seed in range(3):
        slim = slim_of(tiny, tiny.random_plan(seed), spec)
        save_slim(slim, tmp_path / "slim")
        again = load_slim(tmp_path / "slim", lambda config: NETWORKS[name]().model, tiny.inputs)
        assert torch.equal(run_once(again.model, tiny.inputs), run_once(slim.model, tiny.inputs))
        assert again.spec == spec
        assert again.spec.example_inputs() is tiny.inputs


def test_weights_may_be_read_by_whoever_may_read_the_config(slim, tmp_path):
    before = os.umask(0o027)
    try:
        save_slim(slim, tmp_path / "slim")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "slim").iterdir()}
    assert set(modes.values()) == {0o640}, modes


def resaved(folder, change):
    """Change the tensors and let config and hash agree with them, as somebody who knows the format would."""
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    shapes = {key: list(value.shape) for key, value in state.items()}
    edited(folder, lambda c: c.update(sha256=sha256_file(path), shapes=shapes))


def narrowed(*names):
    def change(state):
        for name in names:
            state[name] = state[name][:-1].clone()

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        # each layer is whole in itself, and the next one expects another width
        (narrowed("time_embedding.linear_1.weight", "time_embedding.linear_1.bias"), "contradict each other"),
        (narrowed("down_blocks.0.resnets.0.conv1.weight", "down_blocks.0.resnets.0.conv1.bias"), "contradict"),
        (lambda s: s.update({"conv_in.weight": torch.zeros(99, 1, 3, 3)}), r"more than its architecture's"),
        (lambda s: s.update({"conv_in.weight": s["conv_in.weight"].flatten()}), r"more than its architecture's"),
        (
            lambda s: s.update({"conv_in.weight": s["conv_in.weight"][..., :2].contiguous()}),
            "outputs of shape|contradict",
        ),
        (lambda s: s.update({"conv_in.bias": torch.zeros(0)}), "conv_in"),
    ],
)
def test_widths_that_disagree_between_layers_are_refused_when_loading(bench, tmp_path, change, said):
    tiny = bench("unet")
    save_slim(slim_of(tiny, PruningPlan({}, tiny.graph.fingerprint)), tmp_path / "slim")
    resaved(tmp_path / "slim", change)
    assert re.search(said, refused(tmp_path / "slim"))


def model_of(name, **config):
    return lambda c: c.update(model={"class": name, "config": config})


def with_config(**changes):
    return lambda c: c["model"]["config"].update(changes)


DEEP = [1]
for _ in range(50):
    DEEP = [DEEP]
HOSTILE = {
    "a million channels": with_config(block_out_channels=[10**6, 10**6]),
    "many wide blocks": with_config(
        block_out_channels=[2**20] * 60, down_block_types=["DownBlock2D"] * 60, up_block_types=["UpBlock2D"] * 60
    ),
    "a hundred thousand blocks": with_config(block_out_channels=[8] * 10**5),
    "a hundred thousand layers": with_config(layers_per_block=10**5),
    "a thousand million classes": with_config(num_class_embeds=10**9),
    "a million classes": with_config(num_class_embeds=10**6),
    "a huge image": with_config(sample_size=10**9),
    "a large image": with_config(sample_size=[10**5, 10**5]),
    "an image of a million channels": with_config(in_channels=10**6),
    "a number of many digits": with_config(norm_num_groups=10**300),
    "a float out of range": with_config(attention_head_dim=1e300),
    "deep lists": with_config(act_fn=DEEP),
    "a long text": with_config(act_fn="x" * 10**6),
    "wide time": with_config(time_embedding_dim=2**20),
    "an import for an activation": with_config(act_fn="os.system"),
    "a table of positions": model_of("DiTTransformer2DModel", sample_size=4096, patch_size=1, attention_head_dim=1000),
    "layers of a transformer": model_of("DiTTransformer2DModel", num_layers=10**6),
    "labels of a transformer": model_of("DiTTransformer2DModel", num_embeds_ada_norm=10**6, attention_head_dim=10**4),
    "layers in a block": model_of("UNet2DConditionModel", transformer_layers_per_block=10**6),
    "a wide condition": model_of("UNet2DConditionModel", cross_attention_dim=2**20),
    "many timesteps": lambda c: c.update(num_timesteps=10**12),
    "a long noise schedule": lambda c: c["noise_schedule"].update(num_timesteps=10**12),
    "a plan of many channels": lambda c: c["plan"]["kept"].update(a=list(range(3 * 10**6))),
    "norms of no layer": lambda c: c.update(sizes={f"a{i}": {"heads": 1} for i in range(10**5)}),
}


@pytest.mark.slow_cases("*layers*", "norms of no layer", "many wide blocks", "labels of*")
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_config_is_refused_before_it_takes_memory_or_time(folder, name, monkeypatch):
    load_slim(folder)  # what is imported once does not count
    monkeypatch.setattr("os.system", lambda *a: pytest.fail("ran"))
    edited(folder, HOSTILE[name])
    started, real = time.perf_counter(), torch.empty
    largest = []

    def watched(*size, **options):
        made = real(*size, **options)
        largest.append(0 if made.is_meta else made.numel())
        return made

    monkeypatch.setattr(torch, "empty", watched)
    tracemalloc.start()
    try:
        message = refused(folder, (FileFormatError, InputError))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(message) < 600
    assert peak < 300e6
    assert max(largest, default=0) < 10**6
    assert time.perf_counter() - started < 20  # under tracing, on a busy machine


@pytest.mark.parametrize(
    "key", ["downsample_type", "class_embed_type", "time_embedding_type", "act_fn", "_name_or_path"]
)
def test_no_text_of_a_config_is_imported(folder, key):
    edited(folder, with_config(**{key: "antigravity"}))
    with contextlib.suppress(PrunekitError):
        load_slim(folder)
    assert "antigravity" not in sys.modules


def test_a_factorys_network_is_bounded_too(bench, tmp_path):
    tiny = bench("mlp")
    save_slim(slim_of(tiny, tiny.random_plan(1), ModelSpec("Mlp", {"width": 12})), tmp_path / "slim")
    edited(tmp_path / "slim", with_config(width=2**20))
    with pytest.raises(FileFormatError, match="far larger than the file's own"):
        load_slim(tmp_path / "slim", lambda config: Mlp(**config))


def test_a_factorys_network_of_other_widths_is_refused_with_inputs(bench, tmp_path):
    tiny = bench("mlp")
    save_slim(slim_of(tiny, PruningPlan({}, tiny.graph.fingerprint), ModelSpec("Mlp", {})), tmp_path / "slim")
    resaved(tmp_path / "slim", lambda s: s.update({"wide.weight": s["wide.weight"][:, :5].clone()}))
    edited(tmp_path / "slim", lambda c: c.update(params=c["params"] - 70))
    load_slim(tmp_path / "slim", lambda config: Mlp(**config))
    with pytest.raises(FileFormatError, match="does not fit its architecture"):
        load_slim(tmp_path / "slim", lambda config: Mlp(**config), tiny.inputs)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (
            "UNet2DConditionModel",
            {
                "sample_size": 8,
                "in_channels": 2,
                "out_channels": 2,
                "layers_per_block": 1,
                "block_out_channels": [8, 8],
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
                "norm_num_groups": 4,
                "attention_head_dim": 2,
                "cross_attention_dim": 6,
            },
        ),
        (
            "DiTTransformer2DModel",
            {
                "num_attention_heads": 2,
                "attention_head_dim": 4,
                "in_channels": 2,
                "num_layers": 1,
                "sample_size": 8,
                "patch_size": 2,
                "num_embeds_ada_norm": 5,
                "norm_num_groups": 2,
            },
        ),
    ],
)
def test_every_architecture_of_the_registry_comes_back_with_its_buffers(tmp_path, name, config):
    model = ModelSpec(name, config).build().eval()
    spec = ModelSpec.of(model)
    told = figures(model, spec.example_inputs())
    slim = SlimModel(model, spec, PruningPlan(), {}, TimestepGroup(0, 0, 100), 100, *told, ABOUT)
    save_slim(slim, tmp_path / "slim")
    again = load_slim(tmp_path / "slim").model
    assert not any(tensor.is_meta for tensor in (*again.parameters(), *again.buffers()))
    inputs = {
        key: torch.randn(value.shape) if value.is_floating_point() else value
        for key, value in spec.example_inputs().items()
    }
    assert torch.equal(run_once(again, inputs).sample, run_once(model, inputs).sample)


def card_of(folder):
    return ModelCard.load(folder / "README.md")


def test_the_card_tells_the_figures_and_how_to_load(slim, tmp_path):
    about = {**ABOUT, "provenance": {"base_macs": 2 * slim.macs, "target_macs": slim.macs + 5, "criterion": "taylor"}}
    save_slim(replace(slim, about=about), tmp_path / "slim")
    card = card_of(tmp_path / "slim")
    assert card.data.library_name == "prunekit"
    assert card.data.tags == ["diffusion", "pruning", "structural-pruning"]
    assert card.data.base_model is None
    assert card.data.pipeline_tag is None  # it serves a part of the timesteps only
    assert f"{slim.macs:,} of {2 * slim.macs:,} before (50.0 %)" in card.text
    for said in (f"{slim.params:,}", f"{slim.macs + 5:,} MACs", "30 … 59 of 100", "criterion taylor", "digits"):
        assert said in card.text
    code = card.text.split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) == 3
    scope = {"noisy": torch.zeros(1, 1, 8, 8), "timestep": torch.tensor([3])}
    exec(code.replace("path/to/this/folder", str(tmp_path / "slim")), scope)  # noqa: S102 - the card's own words
    assert scope["prediction"].shape == (1, 1, 8, 8)


def test_the_card_invents_nothing(slim, tmp_path):
    save_slim(replace(slim, about={}), tmp_path / "slim")
    text = card_of(tmp_path / "slim").text
    for unknown in ("before (", "Target", "Predicts", "Trained on", "Pruned by", "Base's"):
        assert unknown not in text


def test_the_pipeline_tag_and_the_base_are_told_only_when_true(slim, tmp_path):
    whole = replace(slim, group=TimestepGroup(0, 0, 100), about={"provenance": {"base_model": "google/ddpm-x"}})
    save_slim(whole, tmp_path / "slim")
    assert card_of(tmp_path / "slim").data.pipeline_tag == "unconditional-image-generation"
    assert card_of(tmp_path / "slim").data.base_model == "google/ddpm-x"
    labelled = replace(whole, spec=replace(slim.spec, config={**slim.spec.config, "num_class_embeds": 3}))
    save_slim(labelled, tmp_path / "slim")
    assert card_of(tmp_path / "slim").data.pipeline_tag is None


WORDS = st.text(max_size=60) | st.sampled_from(
    ["a\nlicense: mit", "---", "x\n---\n# Hi", "<script>", "|", "a: [", "\u2028"]
)


@pytest.mark.slow
@examples(25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(word=WORDS)
def test_no_text_of_a_config_can_add_to_the_front_matter_or_the_page(slim, tmp_path, word):
    texts = dict.fromkeys(("base_model", "criterion", "proposer", "base_sha256"), word)
    about = {"data": {"source": word}, "prediction_type": word, "noise_schedule": {"kind": word}, "provenance": texts}
    spec = ModelSpec(word, {})
    save_slim(replace(slim, about=about, spec=spec), tmp_path / "slim")
    card = card_of(tmp_path / "slim")
    assert set(card.data.to_dict()) <= {"library_name", "tags", "base_model"}
    assert "<" not in card.text
    headings = [line for line in card.text.splitlines() if line.startswith("#")]
    assert len(headings) == 1


def test_only_files_that_the_hub_takes_as_data_are_written(folder):
    assert {path.suffix for path in folder.rglob("*")} == {".md", ".json", ".safetensors"}


@pytest.mark.slow_cases("layers in a block")
@pytest.mark.parametrize("name", ["layers in a block", "a large image", "an import for an activation"])
def test_the_command_line_refuses_a_hostile_folder_with_one_sentence(folder, name, monkeypatch, capsys):
    edited(folder, HOSTILE[name])
    monkeypatch.setattr(sys, "argv", ["prunekit", "cost", str(folder)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert err.startswith("prunekit: ")
    assert len(err.splitlines()) == 1


def test_tables_in_a_list_that_no_file_stores_have_their_values_before_weights_are_read():
    spec = ModelSpec("Lumina2Transformer2DModel", tiny("Lumina2Transformer2DModel"))
    skeleton = spec.skeleton({key: tuple(tensor.shape) for key, tensor in spec.build().state_dict().items()})
    assert next(skeleton.parameters()).is_meta
    assert not any(table.is_meta for table in skeleton.rope_embedder.freqs_cis)


def test_inputs_that_json_cannot_hold_are_given_again_by_who_loads_the_model():
    inputs = {"sample": torch.zeros(1, 3, 8, 8), "timestep": torch.zeros(1), "kv_cache": nn.Identity()}
    assert set(ModelSpec("UNet2DModel", {}, inputs=inputs).to_json()) == {"class", "config"}
    del inputs["kv_cache"]
    assert ModelSpec("UNet2DModel", {}, inputs=inputs).to_json()["inputs"]["sample"] == {"shape": [1, 3, 8, 8]}


def test_networks_of_the_same_shapes_are_run_once_and_their_macs_are_still_checked(slim, folder, tmp_path, monkeypatch):
    load_slim(folder)
    monkeypatch.setattr(prunekit.slim.rebuilding, "_check_run", lambda *_: pytest.fail("was run again"))
    assert load_slim(folder).macs == slim.macs
    save_slim(replace(slim, macs=slim.macs + 1), tmp_path / "wrong")
    with pytest.raises(FileFormatError, match="MACs; its tensors take"):
        load_slim(tmp_path / "wrong")


def test_a_run_is_shared_by_those_who_read_a_files_own_inputs(slim, tmp_path, monkeypatch):
    inputs, runs, check = slim.spec.example_inputs(), [], prunekit.slim.rebuilding._check_run
    save_slim(replace(slim, spec=slim.spec.with_inputs(inputs)), tmp_path / "told")
    monkeypatch.setattr(prunekit.slim.rebuilding, "_check_run", lambda *of: runs.append(of) or check(*of))
    for expected in (1, 1):
        load_slim(tmp_path / "told")
        assert len(runs) == expected
    for expected in (2, 3):
        load_slim(tmp_path / "told", inputs=inputs)
        assert len(runs) == expected


@pytest.mark.parametrize("training", [True, False])
def test_a_spectral_norm_is_the_same_after_saving(tmp_path, training):
    """A factory gives a network in train mode, in which reading its weight would change the norm's buffers."""

    def make(*_):
        normed = (spectral_norm(nn.Conv2d(1, 8, 3, padding=1)), nn.SiLU(), spectral_norm(nn.Conv2d(8, 8, 3, padding=1)))
        others = (nn.SiLU(), nn.Conv2d(8, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 1, 3, padding=1))
        return nn.Sequential(*normed, *others).train(training)

    torch.manual_seed(0)
    network = make()
    for _ in range(10):
        network(torch.randn(2, 1, 8, 8))
    inputs = (torch.zeros(1, 1, 8, 8),)
    pruned = prunekit.prune(network, inputs, target=0.6, config={})
    pruned.save(tmp_path / "slim")
    noise = torch.randn(2, 1, 8, 8)
    found = prunekit.load_slim(tmp_path / "slim", make, inputs).model
    assert torch.equal(run_once(found, (noise,)), run_once(pruned.model, (noise,)))
