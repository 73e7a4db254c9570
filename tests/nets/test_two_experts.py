import json
import subprocess
import sys

import pytest
import torch
from expert_pipelines import about, assert_alike, full_experts, pictures
from tiny_pipelines import saved_pipeline, tiny_pipeline

from prunekit.checkpoint import ModelSpec
from prunekit.cost import count_macs
from prunekit.errors import InputError, MissingFileError
from prunekit.graph import PruningPlan, apply, attributes, trace
from prunekit.groups import TimestepGroups
from prunekit.nets import TimestepExperts, write_two_experts
from prunekit.slim import SlimModel

TWO = TimestepGroups.from_cuts(1000, [700])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("wan")


@pytest.fixture(scope="module")
def folder(home):
    return saved_pipeline("wan", home)


@pytest.fixture(scope="module")
def transformer(home):
    return tiny_pipeline("wan", home).transformer


def narrowed(network, keep):
    """Experts of which the first is narrower in the channel groups that ``keep`` gives fewer channels."""
    spec = ModelSpec.of(network)
    graph = trace(network, spec.example_inputs())
    slims = []
    for group in TWO:
        chosen = {one.name: keep(one, number) for number, one in enumerate(graph)} if group.index == 0 else {}
        plan = PruningPlan({name: kept for name, kept in chosen.items() if kept}, graph.fingerprint)
        model = apply(network, graph, plan)
        macs, params = count_macs(model, spec.example_inputs()).macs, sum(one.numel() for one in model.parameters())
        sizes = attributes(network, graph, plan)
        slims.append(SlimModel(model, spec, plan, sizes, group, 1000, macs, params, about("wan")))
    return TimestepExperts(TWO, slims).eval()


def changed(experts):
    with torch.no_grad():
        for index, expert in enumerate(experts.experts):
            expert.proj_out.bias += 0.1 * (1 + index)
    return experts


def the_pipelines_own(folder):
    """Pictures of the written pipeline, loaded by a process that cannot import prunekit."""
    code = (
        "import sys, torch; sys.modules['prunekit'] = None; from diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(folder)!r})\n"
        "made = pipe('a cat', height=16, width=16, num_frames=5, max_sequence_length=16, num_inference_steps=4, "
        "output_type='np', generator=torch.Generator().manual_seed(0)).frames\n"
        f"torch.save(torch.as_tensor(made), {str(folder / 'made.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)  # noqa: S603
    return torch.load(folder / "made.pt", weights_only=True)


@pytest.mark.slow
def test_full_width_experts_run_where_prunekit_is_not_installed_and_make_the_same_pictures(
    folder, transformer, home, tmp_path
):
    experts = changed(full_experts(transformer, "wan", TWO))
    write_two_experts(experts, folder, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["transformer_2"] == ["diffusers", "WanTransformer3DModel"]
    assert index["boundary_ratio"] * 1000 == 700
    pipeline = tiny_pipeline("wan", home)
    pipeline.register_modules(transformer=experts)
    assert_alike(the_pipelines_own(tmp_path / "out"), pictures(pipeline, "wan"))


def test_a_width_that_all_blocks_share_is_written_as_a_config(folder, transformer, tmp_path):
    def keep(group, _):
        inner = any("ffn" in member.layer for member in group.members) and group.size == 32
        return tuple(range(0, 32, 2)) if inner and len(group.members) < 5 else ()

    experts = narrowed(transformer, keep)
    assert experts.params[0] < experts.params[1]
    write_two_experts(experts, folder, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "transformer_2" / "config.json").read_text())
    assert config["ffn_dim"] == 16
    assert json.loads((tmp_path / "out" / "transformer" / "config.json").read_text())["ffn_dim"] == 32


def test_widths_that_no_config_describes_are_refused(folder, transformer, tmp_path):
    def keep(group, number):
        inner = any("ffn" in member.layer for member in group.members) and group.size == 32 and len(group.members) < 5
        return tuple(range(32 - 2 * number - 2)) if inner else ()

    with pytest.raises(InputError, match="of the expert has shape"):
        write_two_experts(narrowed(transformer, keep), folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_pipelines_and_other_numbers_of_groups_are_refused(folder, transformer, tmp_path, home):
    experts = full_experts(transformer, "wan", TWO)
    with pytest.raises(MissingFileError, match=r"model_index\.json"):
        write_two_experts(experts, tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="expected two"):
        write_two_experts(full_experts(transformer, "wan"), folder, tmp_path / "out")
    with pytest.raises(InputError, match="has no two denoisers of its own"):
        write_two_experts(experts, saved_pipeline("dit", home), tmp_path / "out")


def test_the_command_writes_them_and_says_the_border(folder, transformer, tmp_path, monkeypatch, capsys):
    from prunekit.cli import main

    full_experts(transformer, "wan", TWO).save_pretrained(tmp_path / "experts")
    words = ["export", str(tmp_path / "experts"), "--into", str(folder), "--output", str(tmp_path / "out"), "--json"]
    monkeypatch.setattr(sys, "argv", ["prunekit", *words])
    try:
        main()
    except SystemExit as stop:
        assert not stop.code  # noqa: PT017 - the command's exit code
    assert json.loads(capsys.readouterr().out) == {"output": str(tmp_path / "out"), "boundary_timestep": 700}
    assert (tmp_path / "out" / "transformer_2" / "diffusion_pytorch_model.safetensors").is_file()
