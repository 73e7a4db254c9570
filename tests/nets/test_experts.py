import copy
import gc
import json
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import UNET_CONFIG, unet_inputs

import prunekit.nets.experts_files
from prunekit.checkpoint import ModelSpec
from prunekit.errors import FileFormatError, InputError, MissingFileError, PrunekitError
from prunekit.graph import apply, attributes
from prunekit.graph.streams import in_streams
from prunekit.groups import TimestepGroups
from prunekit.nets import DropInOutput, TimestepExperts, load_experts, save_experts
from prunekit.sampling import make_sampler, make_scheduler, real_timesteps
from prunekit.schedule import NoiseSchedule, Parameterization, sampler_timesteps
from prunekit.slim import SlimModel

T = 100
GROUPS = TimestepGroups.from_cuts(T, [20, 50, 80])
SCHEDULE = NoiseSchedule.linear(T)
ABOUT = {"noise_schedule": SCHEDULE.to_config(), "prediction_type": "epsilon"}


def slim_models(tiny, groups=GROUPS):
    """One slim model for each group, pruned differently, with weights of its own."""
    spec = ModelSpec.of(tiny.model)
    slims = []
    for group in groups:
        plan = tiny.random_plan(group.index)
        model = apply(tiny.model, tiny.graph, plan)
        with torch.no_grad():
            model.conv_out.bias += group.index
        widths = plan.widths(tiny.graph)
        macs, params = int(tiny.cost.macs(widths)), int(tiny.cost.params(widths))
        norms = attributes(tiny.model, tiny.graph, plan)
        slims.append(SlimModel(model, spec, plan, norms, group, T, macs, params, ABOUT))
    return slims


@pytest.fixture(scope="module")
def slims(bench):
    return slim_models(bench("unet", "whole"))


@pytest.fixture(scope="module")
def experts(slims):
    return TimestepExperts(GROUPS, slims).eval()


@pytest.fixture(scope="module")
def folder(slims, tmp_path_factory):
    path = tmp_path_factory.mktemp("experts") / "experts"
    save_experts(slims, GROUPS, path, {"budget": 0.8})
    return path


def batch(size, seed=0):
    return torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def alone(experts, x, t):
    """Each sample through its own expert, one at a time."""
    parts = [experts.experts[i](x[k : k + 1], t[k]).sample for k, i in enumerate(GROUPS.index_of(t.numpy()).tolist())]
    return torch.cat(parts)


class TestRouting:
    def test_a_batch_of_no_samples_is_refused(self, experts):
        with pytest.raises(InputError, match="batch of no samples"):
            experts(batch(0), torch.zeros(0, dtype=torch.int64))

    @pytest.mark.parametrize("order", [None, 1, 2])
    def test_every_sample_of_a_mixed_batch_meets_its_own_expert(self, experts, order):
        t = torch.tensor([0, 19, 20, 49, 50, 79, 80, 99])
        if order is not None:
            t = t[torch.randperm(len(t), generator=torch.Generator().manual_seed(order))]
        x = batch(len(t))
        with torch.no_grad():
            found = experts(x, t).sample
        torch.testing.assert_close(found, alone(experts, x, t), rtol=1e-4, atol=1e-5)

    def test_the_experts_differ_so_that_a_wrong_route_would_show(self, experts):
        x = batch(1)
        with torch.no_grad():
            outputs = [experts.experts[i](x, 10).sample for i in range(4)]
        for i in range(3):
            assert not torch.allclose(outputs[i], outputs[i + 1], atol=0.1)

    def test_a_batch_of_one_group_is_that_expert_bit_for_bit(self, experts):
        x, t = batch(3), torch.tensor([60, 51, 79])
        with torch.no_grad():
            assert torch.equal(experts(x, t).sample, experts.experts[2](x, t).sample)

    @pytest.mark.parametrize(
        "timestep", [60, 60.0, torch.tensor(60), torch.tensor([60]), torch.tensor([60, 60, 60]), torch.tensor(60.0)]
    )
    def test_one_timestep_for_all_may_come_in_any_form(self, experts, timestep):
        x = batch(3)
        with torch.no_grad():
            expected = experts.experts[2](x, torch.tensor([60, 60, 60])).sample
            torch.testing.assert_close(experts(x, timestep).sample, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("timestep", [torch.tensor([70]), torch.tensor(70), 70])
    def test_a_batch_of_one(self, experts, timestep):
        x = batch(1)
        with torch.no_grad():
            assert torch.equal(experts(x, timestep).sample, experts.experts[2](x, 70).sample)

    @pytest.mark.parametrize(("timestep", "index"), [(19.99, 0), (20.0, 1), (49.5, 1), (79.999, 2), (80.25, 3)])
    def test_fractional_timesteps_belong_to_the_group_that_contains_them(self, experts, timestep, index):
        x = batch(2)
        timestep = torch.tensor(timestep, dtype=torch.float64)  # a Python number loses its fraction in diffusers' U-Net
        with torch.no_grad():
            expected = experts.experts[index](x, timestep).sample
            assert torch.equal(experts(x, timestep).sample, expected)
            both = experts(x, torch.stack([timestep, torch.zeros_like(timestep)])).sample
        torch.testing.assert_close(both[:1], expected[:1], rtol=1e-4, atol=1e-5)

    def test_a_tuple_on_request(self, experts):
        x = batch(2)
        for timestep in (5, torch.tensor([5, 90])):
            with torch.no_grad():
                (sample,) = experts(x, timestep, return_dict=False)
                output = experts(x, timestep)
            assert isinstance(output, DropInOutput)
            assert torch.equal(sample, output.sample)

    def test_keyword_arguments_of_each_sample_travel_with_it(self, slims):
        class Recorder(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.zeros(()))

            def forward(self, x, t, labels=None, scale=1.0, return_dict=True):
                assert len(x) == len(labels)
                return (x * 0 + labels.reshape(-1, 1, 1, 1) * scale + self.weight,)

        experts = TimestepExperts(GROUPS, [replace(slim, model=Recorder()) for slim in slims])
        labels = torch.tensor([1.0, 2.0, 3.0, 4.0])
        found = experts(batch(4), torch.tensor([90, 5, 95, 30]), labels=labels, scale=2.0).sample
        assert found[:, 0, 0, 0].tolist() == [2.0, 4.0, 6.0, 8.0]

    @pytest.mark.parametrize(
        "timesteps", [torch.tensor([1, 2]), torch.tensor([1, 2, 3, 4]), torch.tensor([[1], [2], [90]])]
    )
    def test_another_number_of_timesteps_than_samples_is_refused(self, experts, timesteps):
        with pytest.raises(InputError, match="for 3 samples"):
            experts(batch(3), timesteps)

    def test_gradients_reach_the_inputs_and_each_expert_that_took_part(self, slims):
        experts = TimestepExperts(GROUPS, [replace(slim, model=copy.deepcopy(slim.model)) for slim in slims])
        x = batch(4).requires_grad_(True)
        experts(x, torch.tensor([90, 5, 7, 85])).sample.square().sum().backward()
        assert (x.grad.flatten(1).abs().sum(1) > 0).all()
        taken = [any(p.grad is not None for p in expert.parameters()) for expert in experts.experts]
        assert taken == [True, False, False, True]
        full = experts.experts[3].conv_out.bias.grad.clone()
        experts.zero_grad()
        experts.experts[3](x[[0, 3]].detach(), torch.tensor([90, 85])).sample.square().sum().backward()
        torch.testing.assert_close(experts.experts[3].conv_out.bias.grad, full, rtol=1e-4, atol=1e-5)


class TestStanding:
    def test_has_what_diffusers_pipelines_ask_of_a_unet(self, experts):
        assert experts.dtype == torch.float32
        assert experts.device == torch.device("cpu")
        for key in ("sample_size", "in_channels", "out_channels"):
            assert getattr(experts.config, key) == experts.config[key] == experts.config.get(key) == UNET_CONFIG[key]
        assert experts.config.get("nothing", 3) == 3
        with pytest.raises(KeyError):
            experts.config["nothing"]

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_another_type_changes_the_weights_and_not_the_routes(self, slims, dtype):
        groups = TimestepGroups.from_cuts(1001, [20, 50, 801])  # bfloat16 has no 801
        about = {**ABOUT, "noise_schedule": NoiseSchedule.linear(1001).to_config()}
        slims = [
            replace(s, group=g, model=copy.deepcopy(s.model), about=about) for s, g in zip(slims, groups, strict=True)
        ]
        experts = TimestepExperts(groups, slims).to(dtype)
        assert experts.dtype == dtype
        assert all(parameter.dtype == dtype for parameter in experts.parameters())
        x = batch(2).to(dtype)
        with torch.no_grad():
            found = experts(x, torch.tensor([800, 801])).sample
            for k, (index, t) in enumerate([(2, 800), (3, 801)]):
                expected = experts.experts[index](x[k : k + 1], t).sample
                torch.testing.assert_close(found[k : k + 1], expected, rtol=0.05, atol=0.05)

    def test_mean_macs_weigh_each_expert_by_the_samplers_real_steps(self, experts, slims):
        macs = np.array([slim.macs for slim in slims], dtype=float)
        steps = sampler_timesteps(T, 10)  # 90, 80, … 0
        assert experts.mean_macs(steps) == pytest.approx(macs @ [0.2, 0.3, 0.3, 0.2])
        assert experts.mean_macs([99]) == macs[3]
        assert experts.mean_macs([0, 10, 85]) == pytest.approx((2 * macs[0] + macs[3]) / 3)
        heun = real_timesteps("heun", 5, SCHEDULE)
        expected = np.mean([macs[i] for i in GROUPS.index_of(heun)])
        assert experts.mean_macs(heun) == pytest.approx(expected)

    def test_knows_its_parts(self, experts, slims):
        assert experts.macs == tuple(slim.macs for slim in slims)
        assert experts.params == tuple(slim.params for slim in slims)
        assert experts.spec == slims[0].spec

    @pytest.mark.parametrize(
        "pick",
        [
            lambda s: s[:3],
            lambda s: [*s, s[3]],
            lambda s: [s[1], s[0], *s[2:]],
            lambda s: [s[0], s[1], s[1], s[3]],
            lambda s: [],
        ],
    )
    def test_missing_doubled_and_swapped_groups_are_refused(self, slims, pick):
        with pytest.raises(InputError, match="expected one for each"):
            TimestepExperts(GROUPS, pick(slims))

    def test_slim_models_of_other_ranges_are_refused(self, slims, tmp_path):
        other = TimestepGroups.from_cuts(T, [20, 50, 90])
        with pytest.raises(InputError, match="expected one for each"):
            TimestepExperts(other, slims)
        with pytest.raises(InputError):
            save_experts(slims, other, tmp_path / "experts")
        assert not (tmp_path / "experts").exists()

    def test_an_unknown_residency_is_refused(self, slims, folder):
        with pytest.raises(InputError, match="'all' or 'one'"):
            TimestepExperts(GROUPS, slims, "some")
        with pytest.raises(PrunekitError, match="'all' or 'one'"):
            load_experts(folder, "some")


class TestFiles:
    @pytest.mark.slow_but("all")
    @pytest.mark.parametrize("resident", ["all", "one"])
    def test_saving_and_loading_changes_no_bit(self, experts, folder, resident):
        again = load_experts(folder, resident)
        assert again.groups == GROUPS
        assert (again.macs, again.params, again.about) == (experts.macs, experts.params, experts.about)
        assert not again.training
        x, t = batch(5), torch.tensor([99, 3, 55, 20, 4])
        with torch.no_grad():
            assert torch.equal(again(x, t).sample, experts(x, t).sample)
            for timestep in (0, 30, 60, 90, 31):
                assert torch.equal(again(x, timestep).sample, experts(x, timestep).sample)

    @pytest.mark.slow
    def test_a_batch_is_shared_among_threads_unless_each_would_load_its_own_expert(self, folder):
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            for resident, shared in (("all", True), ("one", False)):
                experts = load_experts(folder, resident).eval()
                with torch.no_grad(), in_streams(experts, 256) as evaluated:
                    assert (evaluated is not experts) == shared
        finally:
            torch.set_num_threads(threads)

    def test_one_resident_expert_means_one(self, folder, monkeypatch):
        experts = load_experts(folder, "one")
        assert sum(parameter.numel() for parameter in experts.parameters()) == 0
        assert (experts.dtype, experts.device) == (torch.float32, torch.device("cpu"))
        read = []
        real = experts._shelf.loaders
        experts.read_from([lambda i=i: (read.append(i), real[i]())[1] for i in range(4)])
        with torch.no_grad():
            for timestep in (90, 85, 60, 55, 90):
                experts(batch(1), timestep)
        assert read == [3, 2, 3]
        experts.to(torch.float64)
        with torch.no_grad():
            assert experts(batch(1).double(), 90).sample.dtype == torch.float64
        assert experts.dtype == torch.float64

    @pytest.mark.slow
    def test_loading_one_resident_expert_holds_no_other(self, folder, monkeypatch):
        alive = []
        real = prunekit.nets.experts_files.load_slim

        def watched(path):
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 1
            slim = real(path)
            alive.append(weakref.ref(slim.model))
            return slim

        monkeypatch.setattr(prunekit.nets.experts_files, "load_slim", watched)
        experts = load_experts(folder, "one", prefetch=False)
        with torch.no_grad():
            for timestep in (90, 60, 30, 5):
                experts(batch(1), timestep)
        gc.collect()
        assert len(alive) == 8
        assert [ref() is not None for ref in alive] == [False] * 7 + [True]

    def test_one_resident_expert_works_without_a_folder_too(self, slims, experts):
        one = TimestepExperts(GROUPS, slims, "one").eval()
        with torch.no_grad():
            assert torch.equal(one(batch(2), 30).sample, experts(batch(2), 30).sample)

    def test_the_folder_has_one_slim_folder_per_group(self, folder):
        assert sorted(path.name for path in folder.iterdir()) == [
            "README.md",
            "experts.json",
            *(f"group-{i}" for i in range(4)),
        ]
        index = json.loads((folder / "experts.json").read_text())
        assert (index["format"], index["budget"]) == ("prunekit-experts/1", 0.8)

    def test_a_missing_folder_or_part_is_named(self, folder, tmp_path):
        with pytest.raises(MissingFileError, match=r"experts\.json"):
            load_experts(tmp_path)
        shutil.copytree(folder, tmp_path / "experts")
        shutil.rmtree(tmp_path / "experts" / "group-2")
        with pytest.raises(MissingFileError, match="group-2"):
            load_experts(tmp_path / "experts")

    @pytest.mark.parametrize(
        "change",
        [
            lambda i: i.update(format="prunekit-experts/9"),
            lambda i: i.pop("groups"),
            lambda i: i["groups"].pop(),
            lambda i: i["groups"][1].update(start=25),
            lambda i: i["groups"][1].update(stop=60),
            lambda i: (i["groups"][1].update(stop=55), i["groups"][2].update(start=55)),
        ],
    )
    def test_an_index_that_contradicts_the_parts_is_refused(self, folder, tmp_path, change):
        shutil.copytree(folder, tmp_path / "experts")
        index = json.loads((folder / "experts.json").read_text())
        change(index)
        (tmp_path / "experts" / "experts.json").write_text(json.dumps(index))
        with pytest.raises((FileFormatError, InputError)):
            load_experts(tmp_path / "experts")

    def test_swapped_parts_are_refused(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "experts")
        a, b = tmp_path / "experts" / "group-1", tmp_path / "experts" / "group-2"
        a.rename(tmp_path / "aside")
        b.rename(a)
        (tmp_path / "aside").rename(b)
        with pytest.raises(FileFormatError, match="inconsistent"):
            load_experts(tmp_path / "experts")


class TestStockPipelines:
    @pytest.mark.slow_but("all-DDIM")
    @pytest.mark.parametrize("name", ["DDPM", "DDIM"])
    @pytest.mark.parametrize("resident", ["all", "one"])
    def test_are_served_and_give_the_images_of_our_own_loop(self, folder, name, resident, monkeypatch):
        import diffusers

        experts = load_experts(folder, resident)
        scheduler = make_scheduler(name.lower(), Parameterization(SCHEDULE))
        pipeline = getattr(diffusers, f"{name}Pipeline")(unet=experts, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        module = __import__(type(pipeline).__module__, fromlist=["randn_tensor"])
        noise = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(7))
        monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: noise.clone())
        stepping = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
        monkeypatch.setattr(stepping, "randn_tensor", lambda shape, **k: torch.full(shape, 0.1))
        images = pipeline(batch_size=2, num_inference_steps=3, output_type="np").images
        own = make_sampler(name.lower(), 3, Parameterization(SCHEDULE), (1, 8, 8))(experts, 2, seed=7)
        assert np.isfinite(images).all()
        np.testing.assert_allclose(images, (own / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy(), atol=1e-5)
        assert images.std() > 0.01

    def test_take_the_experts_as_they_come(self, experts):
        from diffusers import DDPMPipeline

        pipeline = DDPMPipeline(unet=experts, scheduler=make_scheduler("ddpm", Parameterization(SCHEDULE))).to("cpu")
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images = pipeline(batch_size=1, generator=generator, num_inference_steps=2).images
        assert images[0].size == (8, 8)


def test_the_experts_of_a_single_group_are_that_network(bench, slims):
    groups = TimestepGroups.from_cuts(T, [])
    (slim,) = slim_models(bench("unet"), groups)
    experts = TimestepExperts(groups, [slim]).eval()
    inputs = unet_inputs()
    with torch.no_grad():
        assert torch.equal(experts(**inputs).sample, slim.model(**inputs).sample)
        assert torch.equal(
            experts(batch(2), torch.tensor([0, 99])).sample, slim.model(batch(2), torch.tensor([0, 99])).sample
        )
