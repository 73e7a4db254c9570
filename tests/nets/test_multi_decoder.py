import copy
import json
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import UNET_CONFIG, unet
from safetensors.torch import load_file

from prunekit.cost import CostModel, count_macs
from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.graph import PruningPlan, apply, attributes, trace
from prunekit.groups import TimestepGroups
from prunekit.nets import MultiDecoderUNet, is_multi_decoder, load_multi_decoder, save_multi_decoder
from prunekit.schedule import NoiseSchedule
from prunekit.slim import SlimModel, save_tensors
from prunekit.steps.opening import open_model

T = 100
GROUPS = TimestepGroups.from_cuts(T, [30, 70])
TAILORED = ([4, 8], [8, 16], [12, 24])
ABOUT = {"noise_schedule": NoiseSchedule.linear(T).to_config(), "prediction_type": "epsilon"}


def multi(widths=TAILORED, seed=0, middle="shared"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MultiDecoderUNet(UNET_CONFIG, GROUPS, widths, middle).eval()


def batch(count=6, seed=1):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 8, generator=draws), torch.randint(0, T, (count,), generator=draws)


def pruned_stage(net, index, seed=0, removed=None):
    """A slim model of one stage, its decoder cut at random, and without some branches if they are named."""
    spec = net.stage_spec()
    stage = net.stage(index)
    shrink = "width" if removed is None else "both"
    graph = net.stage_graph(trace(stage, spec.example_inputs(), shrink=shrink))
    draws = torch.Generator().manual_seed(seed)
    kept = {}
    for group in graph:
        width = int(group.widths[int(torch.randint(len(group.widths), (1,), generator=draws))])
        if width < group.size and group.branch is None:
            kept[group.name] = tuple(
                group.select(torch.rand(group.size, generator=draws).double().numpy(), width).tolist()
            )
    plan = PruningPlan(kept, graph.fingerprint, tuple(f"branch:decoder.{name}" for name in removed or ()))
    cost = CostModel.of(stage, graph, spec.example_inputs())
    widths = plan.widths(graph)
    macs, params = int(cost.macs(widths)), int(cost.params(widths))
    model = apply(stage, graph, plan)
    return SlimModel(model, spec, plan, attributes(stage, graph, plan), GROUPS[index], T, macs, params, ABOUT)


class TestStartedFromABase:
    @pytest.mark.parametrize("changes", [{}, {"center_input_sample": True}, {"resnet_time_scale_shift": "scale_shift"}])
    @pytest.mark.parametrize("middle", ["shared", "own"])
    @torch.no_grad()
    def test_it_predicts_what_the_base_does(self, changes, middle):
        base = unet(**changes)
        net = MultiDecoderUNet.from_unet(base, GROUPS, middle)
        sample, timesteps = batch()
        assert torch.allclose(net(sample, timesteps).sample, base(sample, timesteps).sample, atol=1e-5)
        for timestep in (0, 29, 30, 99):
            assert torch.equal(net(sample, timestep).sample, base(sample, timestep).sample)

    @torch.no_grad()
    def test_class_labels_reach_every_decoder(self):
        base = unet(num_class_embeds=3)
        net = MultiDecoderUNet.from_unet(base, GROUPS)
        sample, timesteps = batch()
        labels = torch.tensor([0, 1, 2, 0, 1, 2])
        expected = base(sample, timesteps, labels).sample
        assert torch.allclose(net(sample, timesteps, class_labels=labels).sample, expected, atol=1e-5)
        with pytest.raises(InputError, match="needs class_labels"):
            net(sample, timesteps)
        with pytest.raises(InputError, match="takes no class labels"):
            MultiDecoderUNet.from_unet(unet(), GROUPS)(sample, timesteps, labels)

    def test_the_base_is_left_as_it_was_and_shares_nothing(self):
        base = unet()
        before = copy.deepcopy(base.state_dict())
        net = MultiDecoderUNet.from_unet(base, GROUPS)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(1)
        assert all(torch.equal(tensor, before[key]) for key, tensor in base.state_dict().items())
        pointers = [parameter.data_ptr() for parameter in net.parameters()]
        assert len(pointers) == len(set(pointers))

    def test_another_network_is_refused(self):
        with pytest.raises(InputError, match="expected a diffusers UNet2DModel"):
            MultiDecoderUNet.from_unet(torch.nn.Linear(1, 1), GROUPS)
        with pytest.raises(InputError, match="SkipDownBlock2D"):
            MultiDecoderUNet(
                {**UNET_CONFIG, "down_block_types": ["SkipDownBlock2D"] * 2, "up_block_types": ["SkipUpBlock2D"] * 2},
                GROUPS,
            )


class TestRouting:
    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.floats(0, T - 0.01), min_size=2, max_size=7))
    @torch.no_grad()
    def test_every_sample_goes_to_its_own_decoder(self, times):
        net = multi()
        sample, _ = batch(len(times))
        timesteps = torch.tensor(times, dtype=torch.float64)
        found = net(sample, timesteps.float() if len(set(times)) == 1 else timesteps).sample
        for i, index in enumerate(GROUPS.index_of(timesteps.numpy())):
            alone = net.stage(int(index))(sample[i : i + 1], timesteps[i : i + 1]).sample
            assert torch.allclose(found[i : i + 1], alone, atol=1e-5)

    def test_a_batch_of_no_samples_is_refused(self):
        with pytest.raises(InputError, match="batch of no samples"):
            multi()(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64))

    def test_the_encoder_runs_once_for_a_mixed_batch(self):
        net, calls = multi(), []
        net.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
        for index, decoder in enumerate(net.decoders):
            decoder.register_forward_hook(lambda *_, index=index: calls.append(index))
        net(*batch(12))
        assert calls == ["encoder", 0, 1, 2]

    def test_gradients_reach_the_encoder_and_the_decoders_of_the_batch_only(self):
        net = multi()
        sample, _ = batch(4)
        net(sample, torch.tensor([5, 5, 80, 90])).sample.square().mean().backward()
        assert all(parameter.grad is not None for parameter in net.encoder.parameters())
        touched = [all(p.grad is not None for p in decoder.parameters()) for decoder in net.decoders]
        none = [all(p.grad is None for p in decoder.parameters()) for decoder in net.decoders]
        assert (touched, none) == ([True, False, True], [False, True, False])

    def test_timesteps_that_are_neither_one_nor_one_each_are_refused(self):
        sample, _ = batch(4)
        with pytest.raises(InputError, match=r"shape \(3,\) for 4 samples"):
            multi()(sample, torch.tensor([1, 2, 3]))


class TestWidths:
    @pytest.mark.parametrize("widths", [TAILORED, ([16, 16], [4, 32], [8, 16]), ([6, 10], [8, 8], [20, 4])])
    @pytest.mark.parametrize("middle", ["shared", "own"])
    @torch.no_grad()
    def test_decoders_of_any_width_read_the_same_encoder(self, widths, middle):
        net = multi(widths, middle=middle)
        sample, timesteps = batch()
        assert net(sample, timesteps).sample.shape == sample.shape
        for index, own in enumerate(widths):
            ups = net.decoders[index].up_blocks
            assert [block.resnets[-1].out_channels for block in ups] == own[::-1]

    def test_wider_decoders_cost_more(self):
        macs = multi().stage_macs()
        assert macs[0] < macs[1] < macs[2]

    def test_a_stage_of_the_encoders_widths_costs_what_the_unet_does(self):
        assert (
            multi([[8, 16]] * 3).stage_macs() == (count_macs(unet(), multi().stage_spec().example_inputs()).macs,) * 3
        )

    def test_the_middle_block_is_in_one_half(self):
        """Shared: once, at the encoder's width, for every stage. Own: once in each decoder, at the decoder's."""
        shared, own = multi(), multi(middle="own")
        blocks = [decoder.mid_block for decoder in shared.decoders]
        assert blocks == [None] * 3
        assert shared.encoder.mid_block.resnets[-1].out_channels == UNET_CONFIG["block_out_channels"][-1]
        assert own.encoder.mid_block is None
        assert [decoder.mid_block.resnets[-1].out_channels for decoder in own.decoders] == [
            wide[-1] for wide in TAILORED
        ]
        stages = [shared.stage(index).encoder.mid_block for index in range(3)]
        assert all(block is shared.encoder.mid_block for block in stages)
        with pytest.raises(InputError, match="Got middle 'both'; expected one of shared, own"):
            multi(middle="both")

    def test_the_mean_is_over_the_samplers_steps(self):
        net = multi()
        first, second, third = net.stage_macs()
        assert net.mean_macs([0, 10, 50, 80]) == pytest.approx((2 * first + second + third) / 4)

    @pytest.mark.parametrize("widths", [[[8, 16]] * 2, [[8]] * 3, [[8, 0]] * 3])
    def test_widths_that_do_not_fit_are_refused(self, widths):
        with pytest.raises(InputError, match="expected"):
            MultiDecoderUNet(UNET_CONFIG, GROUPS, widths)


class TestPruning:
    @pytest.mark.slow_but("None")
    @pytest.mark.parametrize(("widths", "middle"), [(None, "shared"), (TAILORED, "shared"), (TAILORED, "own")])
    @torch.no_grad()
    def test_decoders_are_pruned_and_the_encoder_stays(self, widths, middle):
        net = multi(widths, middle=middle)
        slims = [pruned_stage(net, 0), pruned_stage(net, 2, seed=4)]
        pruned = net.with_pruned(slims)
        encoder = net.encoder.state_dict()
        assert all(torch.equal(tensor, encoder[key]) for key, tensor in pruned.encoder.state_dict().items())
        assert pruned.stage_macs() == (slims[0].macs, net.stage_macs()[1], slims[1].macs)
        sample, _ = batch()
        for slim in slims:
            timestep = slim.group.start
            assert torch.equal(pruned(sample, timestep).sample, slim.model(sample, timestep).sample)

    @torch.no_grad()
    def test_decoders_without_some_of_their_branches_are_stored_and_read_again(self, tmp_path):
        net = multi(middle="own")
        slims = [
            pruned_stage(net, 0, removed=("mid_block.attentions.0",)),
            pruned_stage(net, 2, removed=("up_blocks.0.attentions.0", "up_blocks.1.resnets.1")),
        ]
        pruned = net.with_pruned(slims)
        assert pruned.stage_macs() == (slims[0].macs, net.stage_macs()[1], slims[1].macs)
        save_multi_decoder(pruned, tmp_path / "net", ABOUT)
        again, slim = load_multi_decoder(tmp_path / "net")
        removed = (
            "decoders.0.mid_block.attentions.0",
            "decoders.2.up_blocks.0.attentions.0",
            "decoders.2.up_blocks.1.resnets.1",
        )
        assert again.removed == slim.plan.removed == tuple(f"branch:{name}" for name in removed)
        sample, _ = batch()
        for slim in slims:
            timestep = slim.group.start
            assert torch.equal(again(sample, timestep).sample, slim.model(sample, timestep).sample)
        anew = again.with_pruned([pruned_stage(net, 2, removed=("up_blocks.1.resnets.0",))])
        assert anew.removed == tuple(f"branch:{name}" for name in (removed[0], "decoders.2.up_blocks.1.resnets.0"))

    def test_branches_of_the_shared_encoder_stay(self):
        net = multi()
        graph = net.stage_graph(trace(net.stage(0), net.stage_spec().example_inputs(), shrink="both"))
        stay = {group.name: len(group.widths) == 1 for group in graph.switches}
        assert {name.startswith("branch:encoder.") for name in stay} == {True, False}
        assert all(stays == name.startswith("branch:encoder.") for name, stays in stay.items())

    @pytest.mark.slow
    def test_a_plan_that_cuts_the_encoder_is_refused(self):
        net = multi()
        stage, inputs = net.stage(0), net.stage_spec().example_inputs()
        whole = trace(stage, inputs)
        shared = [group for group in whole if len(group.widths) > 1 and group.name.startswith("encoder.")]
        plan = PruningPlan({g.name: tuple(range(int(g.widths[1]))) for g in shared[:1]}, whole.fingerprint)
        with pytest.raises(ValueError, match="expected"):
            apply(stage, net.stage_graph(whole), plan)
        slim = replace(pruned_stage(net, 0), model=apply(stage, whole, plan))
        with pytest.raises(InputError, match="encoder whole"):
            net.with_pruned([slim])


@pytest.fixture(scope="module")
def net():
    whole = multi()
    return whole.with_pruned([pruned_stage(whole, 1), pruned_stage(whole, 2)])


class TestFolder:
    @pytest.fixture
    def folder(self, net, tmp_path):
        save_multi_decoder(net, tmp_path / "net", ABOUT)
        return tmp_path / "net"

    @torch.no_grad()
    def test_what_is_read_is_what_was_written(self, net, folder, tmp_path):
        assert is_multi_decoder(folder)
        read, slim = load_multi_decoder(folder)
        sample, timesteps = batch()
        assert torch.equal(read(sample, timesteps).sample, net(sample, timesteps).sample)
        assert (read.groups, read.widths, read.kept, read.sizes) == (net.groups, net.widths, net.kept, net.sizes)
        assert slim.params == sum(parameter.numel() for parameter in net.parameters())
        save_multi_decoder(read, tmp_path / "again", ABOUT)
        for name in ("config.json", "model.safetensors", "README.md"):
            assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()

    def test_folders_say_where_the_middle_block_is_and_older_ones_mean_their_own(self, tmp_path):
        for middle in ("shared", "own"):
            folder = tmp_path / middle
            save_multi_decoder(multi(middle=middle), folder, ABOUT)
            assert load_multi_decoder(folder)[0].middle == middle
        path = tmp_path / "own" / "config.json"
        config = json.loads(path.read_text())
        assert config["model"]["config"].pop("middle") == "own"
        tensors = load_file(tmp_path / "own" / "model.safetensors")
        save_tensors(tensors, config, tmp_path / "own")
        assert load_multi_decoder(tmp_path / "own")[0].middle == "own"
        config["model"]["config"]["middle"] = "both"
        save_tensors(tensors, config, tmp_path / "own")
        with pytest.raises(InputError, match="expected one of shared, own"):
            load_multi_decoder(tmp_path / "own")

    def test_the_card_says_how_to_load_it(self, folder):
        assert 'load_multi_decoder("path/to/this/folder")' in (folder / "README.md").read_text()

    @pytest.mark.parametrize(
        "change",
        [
            lambda config: config["model"]["config"].update(widths=[[8, 16]] * 2),
            lambda config: config["model"]["config"].update(widths="wide"),
            lambda config: config["model"]["config"].update(cuts=list(range(1, 90))),
            lambda config: config["model"]["config"].pop("unet"),
            lambda config: config["model"]["config"]["unet"].update(layers_per_block=2),
            lambda config: config["model"]["config"]["unet"].update(block_out_channels=[2**19, 2**19]),
            lambda config: config.update(sizes={}),
            lambda config: config.update(sha256="0" * 64),
        ],
    )
    def test_a_folder_that_contradicts_itself_is_refused(self, folder, change):
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises((FileFormatError, InputError)):
            load_multi_decoder(folder)

    def test_what_is_no_such_folder_is_named(self, tmp_path):
        with pytest.raises(MissingFileError):
            load_multi_decoder(tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        with pytest.raises(MissingFileError):
            load_multi_decoder(tmp_path / "empty")

    def test_a_diffusers_pipeline_takes_it_for_its_unet(self, folder):
        net, _ = load_multi_decoder(folder)
        pipeline = DDIMPipeline(net, DDIMScheduler(num_train_timesteps=T))
        pipeline.set_progress_bar_config(disable=True)
        made = pipeline(
            batch_size=2, num_inference_steps=5, output_type="np", generator=torch.Generator().manual_seed(0)
        )
        assert made.images.shape == (2, 8, 8, 1)


def test_commands_open_its_folder_with_shared_parameters_counted_once(net, tmp_path):
    save_multi_decoder(net, tmp_path / "net", ABOUT)
    opened = open_model(str(tmp_path / "net"))
    assert isinstance(opened.model, MultiDecoderUNet)
    assert list(opened.parts()) == ["stage-0", "stage-1", "stage-2"]
    counted = {name: count_macs(part, opened.inputs) for name, part in opened.parts().items()}
    cost = opened.mean_cost(counted, steps=T)
    assert cost["params"] == sum(parameter.numel() for parameter in net.parameters())
    assert cost["macs"] == pytest.approx(opened.mean_macs("ddim", T))
    assert [count.macs for count in counted.values()] == list(net.stage_macs())
