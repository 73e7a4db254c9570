"""Experts as a model of diffusers, without a pipeline."""

import copy
import json

import pytest
import torch
from expert_pipelines import GROUPS, about, full_experts, slim_experts
from peft import LoraConfig
from pipeline_checks import lora_of
from tiny_pipelines import tiny_pipeline

import prunekit
import prunekit.nets.residency
from prunekit.checkpoint import ModelSpec
from prunekit.cost import count_macs
from prunekit.errors import InputError
from prunekit.graph import PruningPlan, apply, trace
from prunekit.groups import TimestepGroups
from prunekit.nets import TimestepExperts, load_experts
from prunekit.nets.lora import cut_lora
from prunekit.schedule import TimeUnit
from prunekit.slim import SlimModel


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return tiny_pipeline("flux", tmp_path_factory.mktemp("words")).transformer


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return tiny_pipeline("sd", tmp_path_factory.mktemp("words")).unet


@pytest.fixture
def experts(sd):
    return full_experts(sd, "sd")


def inputs(batch=2, **changes):
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(batch, 4, 32, generator=generator)
    return {"sample": torch.randn(batch, 4, 8, 8, generator=generator), "encoder_hidden_states": text, **changes}


class TestTimeUnits:
    @torch.no_grad()
    @pytest.mark.parametrize(
        ("told", "index"), [(0.3, 1), (0.7, 2), (0.6999, 1), (0.2999, 0), (1.0, 2), (0.0, 0), (0.001, 0)]
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_pipeline_that_divides_by_1000_meets_the_right_expert_also_at_the_borders(self, flux, told, index, dtype):
        assert int(full_experts(flux, "flux")._router.index_of(torch.tensor([told], dtype=dtype))[0]) == index

    def test_one_that_counts_backwards(self, flux):
        router = full_experts(flux, "flux").with_time_unit(TimeUnit(-0.001, 1.0))._router
        assert router.index_of(torch.tensor([0.0, 0.3, 0.31, 0.7, 0.71, 1.0])).tolist() == [2, 2, 1, 1, 0, 0]

    def test_another_unit_than_the_stored_one_is_refused(self, flux):
        with pytest.raises(InputError, match="Got the timestep 800; expected a number from 0 to 1"):
            full_experts(flux, "flux")._router.index_of(torch.tensor([800.0]))

    def test_a_number_that_fits_two_units_is_refused_where_none_is_stored(self, sd):
        made = full_experts(sd, "sd")
        made = TimestepExperts(GROUPS, [_without_unit(slim) for slim in made.slims])
        with pytest.raises(InputError, match="may be in the unit 0 … 1 or 0 … 1000"):
            made(**inputs(), timestep=torch.tensor(0.826))

    def test_the_unit_is_stored_with_the_experts(self, flux, tmp_path):
        full_experts(flux, "sd").with_time_unit(TimeUnit(0.001)).save_pretrained(tmp_path / "experts")
        again = TimestepExperts.from_pretrained(tmp_path / "experts")
        assert int(again._router.index_of(torch.tensor([0.8]))[0]) == 2

    @torch.no_grad()
    def test_a_timestep_for_each_token_counts_by_the_noisiest(self, experts):
        tokens = torch.tensor([[0.0, 800.0], [0.0, 100.0]])
        assert [index for index, _ in experts._router.routes(tokens, 2)] == [0, 2]


class TestCalls:
    @torch.no_grad()
    @pytest.mark.parametrize("sample", ["sample", "hidden_states"])
    @pytest.mark.parametrize("time", ["timestep", "timesteps"])
    def test_the_sample_and_the_timestep_have_two_names(self, experts, sd, sample, time):
        own = inputs()
        expected = sd(own["sample"], 800, own["encoder_hidden_states"]).sample
        named = {sample: own.pop("sample"), time: 800, **own}
        assert torch.equal(experts(**named).sample, expected)

    def test_a_missing_or_doubled_argument_is_named(self, experts):
        with pytest.raises(InputError, match="timestep is missing"):
            experts(**inputs())
        with pytest.raises(InputError, match="sample is given twice"):
            experts(torch.zeros(1, 4, 8, 8), 3, **inputs())

    @torch.no_grad()
    def test_nested_conditions_are_split_by_row(self, tmp_path):
        unet = tiny_pipeline("sdxl", tmp_path).unet
        made = full_experts(unet, "sdxl")
        own = inputs(2, encoder_hidden_states=torch.randn(2, 4, 64))
        own["added_cond_kwargs"] = {"text_embeds": torch.randn(2, 16), "time_ids": torch.randn(2, 6)}
        found = made(**own, timestep=torch.tensor([900, 10])).sample
        torch.testing.assert_close(found, unet(**own, timestep=torch.tensor([900, 10])).sample, rtol=1e-4, atol=1e-5)


class TestDelegation:
    def test_values_and_modules_are_one_experts(self, experts):
        assert experts.time_embedding is experts.experts[0].time_embedding
        assert experts.config.cross_attention_dim == 32
        assert set(experts.attn_processors) == set(experts.experts[0].attn_processors)
        with pytest.raises(AttributeError):
            experts.nothing  # noqa: B018 - that it fails is the test

    def test_settings_reach_every_expert(self, experts):
        from diffusers.models.attention_processor import AttnProcessor

        experts.set_attn_processor(AttnProcessor())
        assert all(type(one) is AttnProcessor for own in experts.experts for one in own.attn_processors.values())
        experts.enable_gradient_checkpointing()
        assert all(own.is_gradient_checkpointing for own in experts.experts)
        experts.disable_gradient_checkpointing()
        assert not experts.is_gradient_checkpointing

    def test_settings_reach_an_expert_that_is_loaded_later(self, experts, tmp_path):
        from diffusers.models.attention_processor import AttnProcessor

        experts.save_pretrained(tmp_path / "experts")
        one = load_experts(tmp_path / "experts", "one")
        one.set_attn_processor(AttnProcessor())
        for index in (2, 0, 1):
            assert all(type(own) is AttnProcessor for own in one.expert(index).attn_processors.values())

    def test_a_copy_is_independent(self, experts):
        copied = copy.deepcopy(experts)
        assert torch.equal(copied.experts[0].conv_in.weight, experts.experts[0].conv_in.weight)
        assert copied.experts[0] is not experts.experts[0]


class TestResidency:
    def test_files_of_the_next_cleaner_expert_are_read_ahead(self, sd, tmp_path, monkeypatch):
        slim_experts(sd, "sd").save_pretrained(tmp_path / "experts")
        read = []
        monkeypatch.setattr(prunekit.nets.residency, "_read", lambda folder: read.append(folder.name))
        one = load_experts(tmp_path / "experts", "one")
        for index in (2, 2, 1, 0):
            one.expert(index)
            assert len(one.experts) == 1
        assert read == ["group-1", "group-0", "group-2"]
        quiet = load_experts(tmp_path / "experts", "one", prefetch=False)
        quiet.expert(2)
        assert len(read) == 3

    @pytest.mark.slow
    def test_reading_ahead_does_not_stop_torch_from_compiling(self, sd, tmp_path):
        from torch._dynamo import reset
        from torch._dynamo.testing import CompileCounter

        full_experts(sd, "sd").save_pretrained(tmp_path / "experts")
        counters = []
        for _ in range(3):
            one = load_experts(tmp_path / "experts", "one")
            one.expert(2)
            reset()
            counters.append(CompileCounter())
            torch.compile(lambda x: x + 1, backend=counters[-1])(torch.ones(2))
        assert [counter.frame_count for counter in counters] == [1, 1, 1]

    def test_experts_in_memory_go_back_to_the_cpu_when_another_is_used(self, sd):
        slims = full_experts(sd, "sd").slims
        one = TimestepExperts(GROUPS, slims, "one")
        one.expert(2)
        one.expert(0)
        assert [slim.model is one.experts[0] for slim in slims] == [True, False, False]
        assert all(parameter.device.type == "cpu" for parameter in slims[2].model.parameters())


class TestFiles:
    def test_a_half_type_keeps_layers_in_32_bits_that_the_class_wants_so(self, tmp_path):
        transformer = tiny_pipeline("wan", tmp_path).transformer
        full_experts(transformer, "wan").save_pretrained(tmp_path / "experts")
        half = TimestepExperts.from_pretrained(tmp_path / "experts", torch_dtype=torch.bfloat16)
        assert half.dtype == torch.bfloat16
        kept = {name for name, one in half.experts[0].named_parameters() if one.dtype == torch.float32}
        assert kept
        assert all(any(part in name for part in transformer._keep_in_fp32_modules) for name in kept)

    def test_a_pipeline_names_this_library_and_never_brings_code(self, tmp_path):
        pipeline = tiny_pipeline("dit", tmp_path)
        pipeline.register_modules(transformer=full_experts(pipeline.transformer, "dit"))
        pipeline.save_pretrained(tmp_path / "saved")
        index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
        assert index["transformer"] == ["prunekit", "TimestepExperts"]
        assert not list((tmp_path / "saved").rglob("*.py"))

    def test_what_cannot_be_stored_or_read_is_refused(self, experts, tmp_path):
        with pytest.raises(InputError, match="safetensors"):
            experts.save_pretrained(tmp_path / "experts", safe_serialization=False)
        experts.save_pretrained(tmp_path / "experts")
        with pytest.raises(InputError, match="quantise each expert"):
            TimestepExperts.from_pretrained(tmp_path / "experts", quantization_config=object())
        with pytest.raises(InputError, match="cannot be read with nothing"):
            TimestepExperts.from_pretrained(tmp_path / "experts", nothing=3)

    def test_a_multi_decoder_network_is_saved_with_its_pipeline(self, tmp_path):
        from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline
        from networks import UNET_CONFIG

        from prunekit.nets import MultiDecoderUNet

        net = MultiDecoderUNet(UNET_CONFIG, GROUPS, [[8, 16], [4, 8], [8, 8]]).eval()
        DDIMPipeline(net, DDIMScheduler()).save_pretrained(tmp_path / "saved")
        again = DiffusionPipeline.from_pretrained(tmp_path / "saved").unet
        assert type(again) is prunekit.MultiDecoderUNet
        sample = torch.randn(3, 1, 8, 8)
        times = torch.tensor([5, 400, 999])
        with torch.no_grad():
            assert torch.equal(again(sample, times).sample, net(sample, times).sample)


class TestLora:
    @torch.no_grad()
    def test_cutting_a_lora_equals_pruning_the_network_with_it(self, sd):
        spec, weights = ModelSpec.of(sd), lora_of(sd, "unet")
        graph = trace(sd, spec.example_inputs())
        kept = {
            one.name: tuple(range(one.size))[: one.size - one.step] for one in graph if one.size - one.step >= one.least
        }
        plan = PruningPlan(kept, graph.fingerprint)
        merged, own = copy.deepcopy(sd), {key.removeprefix("unet."): one for key, one in weights.items()}
        merged.load_lora_adapter(weights, prefix="unet")
        merged.fuse_lora()
        merged.unload_lora()
        expected = apply(merged, graph, plan).state_dict()
        cut, found = cut_lora(own, spec, plan), apply(sd, graph, plan)
        assert any(cut[key].shape != one.shape for key, one in own.items())
        found.load_lora_adapter(cut, prefix=None)
        found.fuse_lora()
        found.unload_lora()
        assert all(torch.equal(one, expected[key]) for key, one in found.state_dict().items())

    @torch.no_grad()
    @pytest.mark.slow
    @pytest.mark.parametrize(("ends", "left"), [(".attn1", True), (".transformer_blocks.0", False)])
    def test_a_lora_reaches_experts_that_lost_branches_with_its_layers(self, sd, ends, left):
        """As if the network with the LoRA had lost them, also where no layer of the LoRA is left; and it can be taken off again."""
        spec, weights = ModelSpec.of(sd), lora_of(sd, "unet")
        graph = trace(sd, spec.example_inputs(), shrink="both")
        gone = tuple(one.name for one in graph.switches if one.name.endswith(ends))
        plan = PruningPlan({}, graph.fingerprint, gone)
        merged = copy.deepcopy(sd)
        merged.load_lora_adapter(weights, prefix="unet")
        merged.fuse_lora()
        merged.unload_lora()
        slims, groups = [], TimestepGroups.from_cuts(1000, [500])
        for group in groups:
            own = plan if group.index else PruningPlan({}, graph.fingerprint)
            model = apply(sd, graph, own)
            macs, params = count_macs(model, spec.example_inputs()).macs, sum(one.numel() for one in model.parameters())
            slims.append(SlimModel(model, spec, own, {}, group, 1000, macs, params, about("sd")))
        made = TimestepExperts(groups, slims).eval()
        before = made(**inputs(timestep=torch.tensor([3, 900]))).sample
        made.load_lora_adapter(weights, prefix="unet")
        found = made(**inputs(timestep=torch.tensor([3, 900]))).sample
        for row, (network, t) in enumerate(zip((merged, apply(merged, graph, plan)), (3, 900), strict=True)):
            wanted = network(**inputs(timestep=torch.tensor([t, t]))).sample[row]
            torch.testing.assert_close(found[row], wanted, atol=1e-5, rtol=1e-4)
        assert torch.equal(found[1], before[1]) != left
        made.reach("unload_lora")
        torch.testing.assert_close(made(**inputs(timestep=torch.tensor([3, 900]))).sample, before)

    def test_a_lora_is_trained_on_a_network_that_lost_branches(self, sd):
        spec = ModelSpec.of(sd)
        graph = trace(sd, spec.example_inputs(), shrink="both")
        gone = tuple(one.name for one in graph.switches if one.name.endswith(".attn1"))
        network = apply(sd, graph, PruningPlan({}, graph.fingerprint, gone))
        network.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "to_out.0"]))
        trained = {name: one for name, one in network.named_parameters() if one.requires_grad}
        assert trained
        assert all(".attn2." in name or "up_blocks" in name or "mid_block" in name for name in trained)
        network(**inputs(timestep=torch.tensor([3, 900]))).sample.square().mean().backward()
        assert all(one.grad is not None for one in trained.values())

    def test_a_lora_that_cannot_be_cut_exactly_is_refused(self, sd):
        made = slim_experts(sd, "sd")
        weights = lora_of(sd, "unet")
        key = next(key for key in weights if key.endswith("to_q.lora_A.weight"))
        weights[key.replace("lora_A.weight", "lora_magnitude_vector")] = torch.ones(8)
        with pytest.raises(InputError, match="DoRA"):
            made.load_lora_adapter(weights, prefix="unet")
        with pytest.raises(InputError, match="other channel groups"):
            cut_lora({}, made.spec, PruningPlan({"x": (0,)}, "another"))


def _without_unit(slim):
    from dataclasses import replace

    return replace(slim, about={key: value for key, value in slim.about.items() if key != "time_unit"})
