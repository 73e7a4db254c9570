"""Weights in the layouts of other people's trainers and folders: which are read, what is said of it, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from networks import NETWORKS
from safetensors.torch import save_file

from prunekit.checkpoint import ModelSpec, load_base, load_state, named_schedule, save_base
from prunekit.errors import FileFormatError, InputError, MissingFileError, UnsafeFileError
from prunekit.schedule import NoiseSchedule

CONFIG = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
WEIGHTS = "diffusion_pytorch_model"


def unet(seed: int) -> UNet2DModel:
    torch.manual_seed(seed)
    return UNet2DModel(**{key: value for key, value in CONFIG.items() if key != "_class_name"})


@pytest.fixture(scope="module")
def raw():
    return unet(1)


@pytest.fixture(scope="module")
def averaged():
    return unet(2)


def equal(one, other):
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def score_sde(raw, averaged):
    """``save_checkpoint`` of score_sde_pytorch: the network in DataParallel, and its ``ExponentialMovingAverage``."""
    ema = {
        "decay": 0.9999,
        "num_updates": 7,
        "shadow_params": [each.detach().clone() for each in averaged.parameters()],
    }
    return {"optimizer": {"state": {}}, "model": prefixed("module.", raw.state_dict()), "ema": ema, "step": 7}


def lit_ema(raw, averaged):
    """As latent diffusion's ``LitEma`` names its buffers."""
    ema = {f"diffusion_model.{key}".replace(".", ""): value.detach() for key, value in averaged.named_parameters()}
    ema |= {"decay": torch.tensor(0.9999), "num_updates": torch.tensor(7)}
    own = {**prefixed("model.diffusion_model.", raw.state_dict()), "betas": torch.zeros(3)}
    return {"state_dict": {**own, **prefixed("model_ema.", ema)}, "epoch": 2}


def k_diffusion(raw, averaged):
    """``save`` of k-diffusion's train.py."""
    return {
        "config": {"model": {"type": "image_v1"}},
        "model": prefixed("inner_model.", raw.state_dict()),
        "model_ema": prefixed("inner_model.", averaged.state_dict()),
        "opt": {"state": {}},
        "ema_sched": {"epoch": 1},
        "step": 7,
    }


def ema_pytorch(raw, averaged):
    """A checkpoint with the state of ema-pytorch's own class."""
    from ema_pytorch import EMA

    model = unet(1)
    ema = EMA(model, beta=0.9, update_every=1)
    ema.ema_model.load_state_dict(averaged.state_dict())
    return {"model": model.state_dict(), "ema": ema.state_dict()}


def averaged_model(raw, averaged):
    """torch's own ``AveragedModel`` beside the network, under a key that does not say so."""
    swa = torch.optim.swa_utils.AveragedModel(averaged)
    return {"model": raw.state_dict(), "swa": swa.state_dict()}


def diffusers_ema(raw, averaged):
    """The state of diffusers' own ``EMAModel`` beside the network."""
    return {"model": raw.state_dict(), "ema": EMAModel(averaged.parameters()).state_dict()}


def lightning(raw, averaged):
    """``on_save_checkpoint`` of Lightning's ``WeightAveraging``."""
    return {
        "state_dict": prefixed("net.", averaged.state_dict()),
        "current_model_state": prefixed("net.", raw.state_dict()),
        "averaging_state": {"n_averaged": torch.tensor(3)},
    }


def callback(raw, averaged):
    """An average that a callback keeps in its own state, four dicts deep."""
    ema = {"EMACallback": {"decay": 0.999, "state": prefixed("net.", averaged.state_dict())}}
    return {"state_dict": prefixed("net.", raw.state_dict()), "callbacks": ema}


def nemo(raw, averaged):
    """``state_dict`` of NeMo's ``EMAOptimizer`` in Lightning's list of optimizers."""
    parameters = tuple(each.detach().clone() for each in averaged.parameters())
    adam = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]}
    optimizer = {"opt": adam, "ema": parameters, "current_step": 7, "decay": 0.999, "every_n_steps": 1}
    return {"state_dict": prefixed("net.", raw.state_dict()), "optimizer_states": [optimizer]}


def after_a_config(raw, averaged):
    """A config of many sections before the average."""
    config = {f"section {number}": {"a": {"b": [number]}} for number in range(200)}
    return {"config": config, "model": raw.state_dict(), "ema": {"model": averaged.state_dict()}}


LAYOUTS = {
    "score_sde": (score_sde, "ema.shadow_params"),
    "LitEma": (lit_ema, "state_dict.model_ema.diffusion_model"),
    "k-diffusion": (k_diffusion, "model_ema.inner_model"),
    "ema-pytorch": (ema_pytorch, "ema.ema_model"),
    "AveragedModel": (averaged_model, "swa.module"),
    "EMAModel": (diffusers_ema, "ema.shadow_params"),
    "Lightning": (lightning, "state_dict.net, Lightning's WeightAveraging"),
    "callback": (callback, "callbacks.EMACallback.state.net"),
    "NeMo": (nemo, "optimizer_states.0.ema"),
    "after a config": (after_a_config, "ema.model"),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_moving_average_of_every_layout_is_read_and_reported_and_the_raw_weights_on_demand(
    kind, raw, averaged, tmp_path
):
    make, place = LAYOUTS[kind]
    path = tmp_path / "last.ckpt"
    torch.save(make(raw, averaged), path)
    for asked in (None, "ema"):
        base = load_base(path, CONFIG, weights=asked)
        assert equal(base.model, averaged)
        assert base.provenance["weights"] == "ema"
        assert base.notes[0].startswith(f"Reading the EMA weights of {path} ({place}")
    base = load_base(path, CONFIG, weights="raw")
    assert equal(base.model, raw)
    assert "weights" not in base.provenance
    assert "not its EMA weights" in base.notes[0]


def test_an_average_alone_in_a_list_needs_no_other_weights(averaged, tmp_path):
    torch.save(EMAModel(averaged.parameters()).state_dict(), tmp_path / "ema.pt")
    assert equal(load_base(tmp_path / "ema.pt", CONFIG).model, averaged)
    with pytest.raises(InputError, match="has no raw weights"):
        load_base(tmp_path / "ema.pt", CONFIG, weights="raw")


def test_a_list_of_a_foreign_network_leaves_out_frozen_parameters_and_buffers(tmp_path):
    """score_sde lists trained parameters only; what it leaves out comes from the raw weights."""
    network = NETWORKS["conv"]().model
    first = next(network.parameters())
    first.requires_grad_(False)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    shadow = [each.detach() + 1 for each in network.parameters() if each.requires_grad]
    torch.save({"model": state, "ema": {"shadow_params": shadow}}, tmp_path / "x.pt")
    found = load_base(tmp_path / "x.pt", factory=lambda config: network).model
    assert torch.equal(next(found.parameters()), state[next(iter(state))])
    trained = next(key for key, each in network.named_parameters() if each.requires_grad)
    assert torch.equal(found.state_dict()[trained], state[trained] + 1)


def test_a_list_of_another_network_is_refused_unless_the_raw_weights_are_asked_for(raw, averaged, tmp_path):
    score, optimizer = score_sde(raw, averaged), nemo(raw, averaged)
    score["ema"]["shadow_params"].pop()
    optimizer["optimizer_states"][0]["ema"] = (None, *optimizer["optimizer_states"][0]["ema"])
    for content, where in ((score, r"ema\.shadow_params"), (optimizer, r"optimizer_states\.0\.ema")):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(FileFormatError, match=rf"has EMA weights under {where}.*`weights` raw"):
            load_base(tmp_path / "x.pt", CONFIG)
        assert equal(load_base(tmp_path / "x.pt", CONFIG, weights="raw").model, raw)


def test_lightnings_average_of_another_network_is_refused_unless_the_raw_weights_are_asked_for(raw, averaged, tmp_path):
    content = lightning(raw, averaged)
    content["state_dict"].popitem()
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(FileFormatError, match="has EMA weights under state_dict"):
        load_base(tmp_path / "x.ckpt", CONFIG)
    assert equal(load_base(tmp_path / "x.ckpt", CONFIG, weights="raw").model, raw)


def test_weights_are_found_at_any_depth_of_dicts_and_lists(raw, tmp_path):
    content = raw.state_dict()
    for key in ("net", "model", "trainer"):
        content = {"losses": [0.5] * 9, key: content, "others": [{"a": {}}]}
    torch.save({"runs": [content, {"step": 3}]}, tmp_path / "x.pt")
    assert equal(load_base(tmp_path / "x.pt", CONFIG).model, raw)


def test_what_numpy_adds_to_a_checkpoint_is_passed_over(raw, tmp_path):
    """Scalars, arrays and random generators are common in trainers' files; the program's own allowed names stay as they were."""
    random = {"legacy": np.random.RandomState(0).get_state(), "generator": np.random.default_rng(0)}
    best = {"loss": np.float64(0.5), "done": [np.bool_(True), np.bool_(True)], "none": np.zeros(0), "type": np.float32}
    history = [np.arange(6.0).reshape(2, 3), np.array(["a", "bc"]), np.array([{"a": 1}, None])]
    content = {"state_dict": raw.state_dict(), "random": random, "best": best, "history": history, "raw": b"abc"}
    torch.save(content, tmp_path / "x.pt")
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    allowed = [np.ndarray, (np.dtype, "numpy.dtype")]  # as accelerate does
    with torch.serialization.safe_globals(allowed):
        before = set(torch.serialization.get_safe_globals())
        for name in ("x.pt", "old.pt"):
            assert equal(load_base(tmp_path / name, CONFIG).model, raw)
        assert set(torch.serialization.get_safe_globals()) == before


def test_an_average_of_numpy_arrays_is_not_passed_over(raw, averaged, tmp_path):
    arrays = {key: value.numpy() for key, value in averaged.state_dict().items()}
    torch.save({"model": raw.state_dict(), "ema": arrays}, tmp_path / "x.pt")
    with pytest.raises(FileFormatError, match="has EMA weights under ema, in an unknown layout"):
        load_base(tmp_path / "x.pt", CONFIG)
    assert equal(load_base(tmp_path / "x.pt", CONFIG, weights="raw").model, raw)


def test_an_average_in_an_unknown_layout_is_never_passed_over_in_silence(raw, averaged, tmp_path):
    odd = {key.upper(): value for key, value in averaged.state_dict().items()}
    for content in ({"model": raw.state_dict(), "ema": odd}, {**raw.state_dict(), **prefixed("ema/", odd)}):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(FileFormatError, match=r"`weights` raw|do not fit"):
            load_base(tmp_path / "x.pt", CONFIG)


def test_names_that_are_the_same_without_dots_are_not_guessed(tmp_path):
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.ModuleDict({"b": torch.nn.Linear(2, 2)})
            self.ab = torch.nn.Linear(2, 2)

    model = Twice()
    squashed = {name.replace(".", ""): each.detach() for name, each in model.named_parameters()}
    torch.save({**prefixed("model.", model.state_dict()), **prefixed("model_ema.", squashed)}, tmp_path / "x.pt")
    with pytest.raises(FileFormatError, match="EMA weights under model_ema"):
        load_base(tmp_path / "x.pt", factory=lambda config: Twice())


def test_the_state_of_an_unknown_network_is_not_the_raw_one_where_an_average_has_no_names(raw, averaged, tmp_path):
    torch.save(score_sde(raw, averaged), tmp_path / "x.pt")
    with pytest.raises(FileFormatError, match="a list without names"):
        load_state(tmp_path / "x.pt")


def test_files_of_improved_diffusion_are_told_apart_by_their_names(raw, averaged, tmp_path):
    torch.save(raw.state_dict(), tmp_path / "model000500.pt")
    torch.save(averaged.state_dict(), tmp_path / "ema_0.9999_000500.pt")
    base = load_base(tmp_path / "ema_0.9999_000500.pt", CONFIG)
    assert equal(base.model, averaged)
    assert base.provenance["weights"] == "ema"
    assert "EMA weights" in base.notes[0]
    base = load_base(tmp_path / "model000500.pt", CONFIG)
    assert equal(base.model, raw)
    assert "not its EMA weights in ema_0.9999_000500.pt" in base.notes[0]
    assert equal(load_base(tmp_path / "model000500.pt", CONFIG, weights="ema").model, averaged)
    assert equal(load_base(tmp_path / "ema_0.9999_000500.pt", CONFIG, weights="raw").model, raw)
    shutil.copy(tmp_path / "ema_0.9999_000500.pt", tmp_path / "ema_0.999_000500.pt")
    with pytest.raises(InputError, match="several EMA weights"):
        load_base(tmp_path / "model000500.pt", CONFIG, weights="ema")


def test_weights_that_are_not_there_are_refused(raw, tmp_path):
    torch.save(raw.state_dict(), tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"has no ema weights .* leave `weights` ema out"):
        load_base(tmp_path / "x.pt", CONFIG, weights="ema")
    raw.save_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match="no ema weights"):
        load_base(tmp_path / "m", weights="ema")
    with pytest.raises(InputError, match="expected ema or raw"):
        load_base(tmp_path / "m", weights="best")


def test_a_pickle_of_edm_is_refused_with_the_way_to_convert_it(tmp_path):
    # the head of network-snapshot.pkl: protocol 4, the module and the function that EDM's persistence writes
    head = b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}(\x8c\x03ema\x8c\x17torch_utils.persistence"
    (tmp_path / "edm.pkl").write_bytes(head + b"\x8c\x1b_reconstruct_persistent_obj\x93" + bytes(500))
    with pytest.raises(UnsafeFileError, match=r"of EDM or StyleGAN.*\['ema'\]\.state_dict\(\) with safetensors"):
        load_base(tmp_path / "edm.pkl", CONFIG)


def sharded(model, folder, size, **options):
    model.save_pretrained(folder, max_shard_size=size, **options)
    return sorted(Path(folder).glob("*-of-*"))


def test_shards_of_an_older_revision_are_not_read(raw, averaged, tmp_path):
    sharded(raw, tmp_path / "m", "30KB")
    for shard in sharded(averaged, tmp_path / "old", "15KB"):
        shutil.copy(shard, tmp_path / "m")
    base = load_base(tmp_path / "m")
    assert equal(base.model, raw)
    assert base.provenance["weights_file"] == f"{WEIGHTS}.safetensors.index.json"
    assert any("files that" in note and "index.json lists, not" in note for note in base.notes)


def test_an_index_comes_before_a_whole_file_as_in_diffusers(raw, averaged, tmp_path):
    sharded(raw, tmp_path / "m", "30KB")
    averaged.save_pretrained(tmp_path / "whole")
    shutil.copy(tmp_path / "whole" / f"{WEIGHTS}.safetensors", tmp_path / "m")
    base = load_base(tmp_path / "m")
    assert equal(base.model, raw)
    assert equal(base.model, UNet2DModel.from_pretrained(tmp_path / "m"))
    assert any(f"not {WEIGHTS}.safetensors" in note for note in base.notes)


def test_shards_of_a_variant_are_read_completely(raw, tmp_path):
    sharded(raw.half(), tmp_path / "m", "30KB", variant="fp16")
    raw.float()
    base = load_base(tmp_path / "m")
    assert all(torch.equal(each.half(), raw.state_dict()[key].half()) for key, each in base.model.state_dict().items())
    assert base.provenance["weights"] == "fp16"
    assert "fp16" in base.notes[0]


def test_shards_without_an_index_are_read_where_they_are_one_set(raw, averaged, tmp_path):
    sharded(raw, tmp_path / "m", "30KB")
    (tmp_path / "m" / f"{WEIGHTS}.safetensors.index.json").unlink()
    assert equal(load_base(tmp_path / "m").model, raw)
    first = sorted((tmp_path / "m").glob("*-of-*"))[0]
    first.rename(tmp_path / "kept")
    with pytest.raises(FileFormatError, match="no index that says which belong together"):
        load_base(tmp_path / "m")
    (tmp_path / "kept").rename(first)
    for shard in sharded(averaged, tmp_path / "old", "15KB"):
        shutil.copy(shard, tmp_path / "m")
    with pytest.raises(FileFormatError, match="no index that says which belong together"):
        load_base(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda found: {**found, "weight_map": {}}, FileFormatError, "has no weight_map"),
        (
            lambda found: {"weight_map": dict.fromkeys(found["weight_map"], "../m.safetensors")},
            FileFormatError,
            "beside it",
        ),
        (
            lambda found: {"weight_map": dict.fromkeys(found["weight_map"], "gone.safetensors")},
            MissingFileError,
            "is not there",
        ),
        (lambda found: {"weight_map": dict.fromkeys(found["weight_map"], 3)}, FileFormatError, "lists 3"),
    ],
)
def test_an_index_names_files_beside_it_that_are_there(raw, tmp_path, change, error, said):
    sharded(raw, tmp_path / "m", "30KB")
    index = tmp_path / "m" / f"{WEIGHTS}.safetensors.index.json"
    index.write_text(json.dumps(change(json.loads(index.read_text()))))
    with pytest.raises(error, match=said):
        load_base(tmp_path / "m")


def test_a_shard_of_another_revision_under_the_right_name_is_noticed(raw, tmp_path):
    shards = sharded(raw, tmp_path / "m", "30KB")
    shutil.copy(shards[0], shards[1])
    with pytest.raises(FileFormatError, match="copy all files of one revision"):
        load_base(tmp_path / "m")


def test_variants_that_say_so_are_averaged_or_not(raw, averaged, tmp_path):
    """The names of Stable Diffusion's repositories: plain files are averaged where ``non_ema`` ones lie beside."""
    averaged.save_pretrained(tmp_path / "m")
    raw.save_pretrained(tmp_path / "m", variant="non_ema")
    base = load_base(tmp_path / "m")
    assert equal(base.model, averaged)
    assert "EMA weights" in base.notes[0]
    base = load_base(tmp_path / "m", weights="raw")
    assert equal(base.model, raw)
    assert "non_ema" in base.notes[0]
    raw.save_pretrained(tmp_path / "o", variant="no_ema")
    averaged.save_pretrained(tmp_path / "o", variant="ema")
    assert equal(load_base(tmp_path / "o").model, averaged)
    assert equal(load_base(tmp_path / "o", weights="raw").model, raw)
    raw.save_pretrained(tmp_path / "n")
    averaged.save_pretrained(tmp_path / "n", variant="ema")
    assert equal(load_base(tmp_path / "n").model, averaged)
    assert equal(load_base(tmp_path / "n", weights="raw").model, raw)


@pytest.fixture
def checkpoint(raw, averaged, tmp_path):
    """As ``train_unconditional.py --use_ema`` leaves a folder: the checkpoint inside the output folder with its pipeline."""
    folder = tmp_path / "out" / "checkpoint-500"
    raw.save_pretrained(folder / "unet")
    ema = EMAModel(averaged.parameters(), use_ema_warmup=True, model_cls=UNet2DModel, model_config=averaged.config)
    ema.save_pretrained(folder / "unet_ema")
    return folder


def test_a_training_scripts_checkpoint_is_read_and_its_average_preferred(checkpoint, raw, averaged):
    base = load_base(checkpoint)
    assert equal(base.model, averaged)
    assert base.provenance["weights"] == "ema"
    assert f"Reading the EMA weights of {checkpoint / 'unet_ema'}, not the raw weights in unet." in base.notes
    assert "decay" not in base.spec.config
    assert equal(load_base(checkpoint, weights="raw").model, raw)
    alone = load_base(checkpoint / "unet_ema")
    assert equal(alone.model, averaged)
    assert not any("ignored" in note for note in alone.notes)
    named = load_base(checkpoint / "unet")
    assert equal(named.model, raw)
    assert "not the EMA weights in unet_ema" in named.notes[0]
    assert equal(load_base(checkpoint / "unet", weights="ema").model, averaged)
    assert equal(load_base(checkpoint / "unet_ema", weights="raw").model, raw)


def test_the_pipelines_scheduler_around_a_checkpoint_is_used_and_named(checkpoint):
    missing = load_base(checkpoint)
    assert "does not say its noise schedule and prediction type" in missing.notes[-1]
    scheduler = DDPMScheduler(100, prediction_type="v_prediction", clip_sample=False)
    scheduler.save_pretrained(checkpoint.parent / "scheduler")
    for place in (checkpoint, checkpoint / "unet", checkpoint / "unet_ema"):
        base = load_base(place)
        assert (base.prediction_type, base.schedule.num_timesteps) == ("v_prediction", 100)
        assert base.schedule.scheduler["clip_sample"] is False
        assert "scheduler_config.json" in base.notes[-1]


def test_a_folder_of_checkpoints_says_which_can_be_read(checkpoint):
    with pytest.raises(MissingFileError, match="it holds checkpoint-500: give one of them"):
        load_base(checkpoint.parent)


def test_accelerates_folders_are_read_with_a_config(raw, averaged, tmp_path):
    index, shards = {}, tmp_path / "checkpoint-9"
    shards.mkdir()
    state = raw.state_dict()
    for number, part in enumerate((list(state)[::2], list(state)[1::2]), start=1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file({key: state[key] for key in part}, shards / name)
        index |= dict.fromkeys(part, name)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "unet.json").write_text(json.dumps(CONFIG))
    assert equal(load_base(shards, tmp_path / "unet.json").model, raw)
    with pytest.raises(MissingFileError, match=r"no config\.json"):
        load_base(shards)
    whole = tmp_path / "whole"
    whole.mkdir()
    torch.save(state, whole / "pytorch_model.bin")
    torch.save(EMAModel(averaged.parameters()).state_dict(), whole / "custom_checkpoint_0.pkl")
    torch.save({"last_epoch": 3}, whole / "custom_checkpoint_1.pkl")
    assert equal(load_base(whole, tmp_path / "unet.json").model, averaged)
    assert equal(load_base(whole, tmp_path / "unet.json", weights="raw").model, raw)
    torch.save(averaged.state_dict(), whole / "pytorch_model_1.bin")
    with pytest.raises(FileFormatError, match="weights of several networks"):
        load_base(whole, tmp_path / "unet.json")


OLD = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def with_old_names(state):
    found = {}
    for key, value in state.items():
        for new, old in OLD.items():
            key = key.replace(new, old)
        found[key] = value
    return found


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_attention_under_its_old_names_is_read_as_diffusers_reads_it(raw, averaged, tmp_path, suffix):
    folder, old = tmp_path / "m", with_old_names(raw.state_dict())
    assert set(old) != set(raw.state_dict())
    raw.save_config(folder)
    path = folder / f"{WEIGHTS}.{suffix}"
    torch.save(old, path) if suffix == "bin" else save_file(old, path)
    assert equal(load_base(folder).model, raw)
    assert equal(UNet2DModel.from_pretrained(folder), raw)
    torch.save({"model": old, "ema": prefixed("module.", with_old_names(averaged.state_dict()))}, tmp_path / "x.pt")
    assert equal(load_base(tmp_path / "x.pt", CONFIG).model, averaged)


def test_config_keys_of_a_newer_diffusers_are_ignored_with_a_note(raw, tmp_path):
    raw.save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "an_option_of_tomorrow": None}))
    base = load_base(tmp_path / "m")
    assert equal(base.model, raw)
    assert any("an_option_of_tomorrow" in note and "ignored" in note for note in base.notes)
    save_base(base, tmp_path / "again.pt")
    assert equal(load_base(tmp_path / "again.pt").model, raw)


@pytest.mark.parametrize("name", ["BASE.SAFETENSORS", "Base.PT", "x.Ckpt"])
def test_suffixes_may_be_upper_case(raw, tmp_path, name):
    spec = ModelSpec.of(raw)
    base = load_base_of(raw, tmp_path, spec)
    save_base(base, tmp_path / name)
    assert equal(load_base(tmp_path / name).model, raw)


def load_base_of(model, folder, spec):
    model.save_pretrained(folder / "saved")
    found = load_base(folder / "saved")
    assert found.spec == spec
    return found


def test_a_model_without_a_scheduler_says_what_is_taken_for_granted_and_can_be_told(raw, tmp_path):
    raw.save_pretrained(tmp_path / "m")
    base = load_base(tmp_path / "m")
    assert base.notes == (
        f"{tmp_path / 'm'} does not say its noise schedule and prediction type: taking linear betas over 1,000 timesteps and "
        "epsilon. Give `noise_schedule` and `prediction_type` if it was trained otherwise.",
    )
    told = load_base(tmp_path / "m", noise_schedule="cosine:4000", prediction_type="v_prediction")
    assert told.schedule.to_config() == NoiseSchedule.cosine(4000).to_config()
    assert (told.prediction_type, told.notes) == ("v_prediction", ())
    half = load_base(tmp_path / "m", noise_schedule="scaled_linear")
    assert half.notes[0].startswith(
        f"{tmp_path / 'm'} does not say its prediction type: taking epsilon. Give `prediction"
    )


def test_what_is_asked_for_comes_before_what_the_pipeline_says_and_keeps_its_settings(raw, tmp_path):
    scheduler = DDPMScheduler(200, clip_sample=False, timestep_spacing="trailing")
    DDPMPipeline(raw, scheduler).save_pretrained(tmp_path / "p")
    base = load_base(tmp_path / "p", noise_schedule="cosine", prediction_type="sample")
    assert (base.schedule.to_config()["kind"], base.schedule.num_timesteps) == ("cosine", 200)
    assert base.schedule.scheduler.items() >= {"clip_sample": False, "prediction_type": "sample"}.items()
    assert "beta_start" not in base.schedule.scheduler
    assert ["asked for" in note for note in base.notes] == [True, True]


def test_a_pipeline_whose_scheduler_cannot_be_read_is_read_with_what_is_asked_for(raw, tmp_path):
    DDPMPipeline(raw, DDPMScheduler()).save_pretrained(tmp_path / "p")
    path = tmp_path / "p" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "SchedulerOfTomorrow"}))
    with pytest.raises(FileFormatError, match="give `noise_schedule` and `prediction_type`"):
        load_base(tmp_path / "p")
    base = load_base(tmp_path / "p", noise_schedule="linear", prediction_type="epsilon")
    assert equal(base.model, raw)


def test_noise_schedules_are_named_by_kind_or_by_file(tmp_path):
    DDPMScheduler(70, beta_schedule="squaredcos_cap_v2", clip_sample=False).save_pretrained(tmp_path / "scheduler")
    for name in (tmp_path / "scheduler", tmp_path / "scheduler" / "scheduler_config.json"):
        found = named_schedule(str(name))
        assert (found.num_timesteps, found.scheduler["clip_sample"]) == (70, False)
    (tmp_path / "own.json").write_text(json.dumps(NoiseSchedule.linear(30).to_config()))
    assert named_schedule(str(tmp_path / "own.json")).num_timesteps == 30
    assert named_schedule("cosine", 40).num_timesteps == 40
    for wrong in ("quadratic", "cosine:many", "cosine:1", "linear:" + "9" * 30):
        with pytest.raises(InputError):
            named_schedule(wrong)


def test_a_second_spelling_of_the_suffix_is_no_second_file(raw, tmp_path):
    raw.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / f"{WEIGHTS}.safetensors").rename(tmp_path / "m" / f"{WEIGHTS}.SAFETENSORS")
    assert equal(load_base(tmp_path / "m").model, raw)


@pytest.mark.parametrize("name", ["non_ema", "no-ema", "state_dict.without_ema", "nonema", "not_averaged"])
def test_what_says_that_it_is_no_average_is_not_taken_for_one(raw, averaged, tmp_path, name):
    torch.save({name: raw.state_dict(), "ema": averaged.state_dict()}, tmp_path / "x.ckpt")
    assert equal(load_base(tmp_path / "x.ckpt", CONFIG).model, averaged)
    assert equal(load_base(tmp_path / "x.ckpt", CONFIG, weights="raw").model, raw)
    torch.save(raw.state_dict(), tmp_path / f"model_{name}.pt")
    base = load_base(tmp_path / f"model_{name}.pt", CONFIG)
    assert "weights" not in base.provenance
    assert equal(base.model, raw)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.bool, torch.complex64])
def test_quantised_parameters_are_no_weights(raw, tmp_path, kind):
    state = {key: (tensor * 100).to(kind) for key, tensor in raw.state_dict().items()}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(FileFormatError, match=r"has numbers of type .*; expected floating point"):
        load_base(tmp_path / "x.pt", CONFIG)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"norm_eps": "1e-5"}, "the norm_eps '1e-5'; expected a number such as 1e-05"),
        ({"freq_shift": True}, "the freq_shift true; expected a number such as 0"),
        ({"center_input_sample": "false"}, "the center_input_sample 'false'; expected true or false"),
    ],
)
def test_a_network_whose_config_would_be_misread_is_refused(raw, tmp_path, change, said):
    raw.save_pretrained(tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises((FileFormatError, InputError), match=said):
        load_base(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rescale_betas_zero_snr": "false"}, "the rescale_betas_zero_snr 'false'; expected true or false"),
        ({"clip_sample_range": "abc"}, "the clip_sample_range 'abc'; expected a number such as 1.0"),
        ({"num_train_timesteps": "1000"}, "the num_train_timesteps '1000'; expected a number such as 1000"),
        ({"beta_start": True}, "the beta_start true; expected a number such as 0.0001"),
    ],
)
def test_a_scheduler_whose_config_would_be_misread_is_refused(raw, tmp_path, change, said):
    DDPMPipeline(raw, DDPMScheduler()).save_pretrained(tmp_path / "p")
    config = tmp_path / "p" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(FileFormatError, match=rf"scheduler_config\.json has {said}"):
        load_base(tmp_path / "p")


def test_of_several_networks_that_fit_the_other_ones_are_named(raw, averaged, tmp_path):
    torch.save({"teacher": raw.state_dict(), "student": averaged.state_dict()}, tmp_path / "x.pt")
    base = load_base(tmp_path / "x.pt", CONFIG)
    assert equal(base.model, raw)
    assert f"Reading the weights of {tmp_path / 'x.pt'} under teacher, not student, which fits as well." in base.notes
    torch.save({"teacher": raw.state_dict(), "copy": raw.state_dict()}, tmp_path / "x.pt")
    assert not any("fits as well" in note for note in load_base(tmp_path / "x.pt", CONFIG).notes)
