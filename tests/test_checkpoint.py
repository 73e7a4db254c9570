import codecs
import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import NETWORKS, Mlp, rows
from safetensors.torch import save as safetensors_bytes

import prunekit
from prunekit.checkpoint import Base, ModelSpec, denoisers, load_base, load_state, save_base
from prunekit.errors import FileFormatError, InputError, MissingFileError, UnsafeFileError
from prunekit.schedule import NoiseSchedule, Parameterization

UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
CONDITIONED = {
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
}
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "in_channels": 2,
    "num_layers": 1,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 5,
    "norm_num_groups": 2,
}
SUFFIXES = (".pt", ".safetensors")


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    spec = ModelSpec("UNet2DModel", UNET)
    return Base(
        model=spec.build().eval(),
        spec=spec,
        parameterization=Parameterization(NoiseSchedule.cosine(100), "v_prediction"),
        data={"source": "digits", "resolution": 8},
        provenance={"steps": 3, "loss": 0.25},
    )


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory):
    """A diffusers model folder and a pipeline folder, as diffusers saves them."""
    import diffusers

    root = tmp_path_factory.mktemp("diffusers")
    base.model.save_pretrained(root / "model")
    scheduler = diffusers.DDPMScheduler(
        200, beta_start=0.001, beta_end=0.05, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    diffusers.DDPMPipeline(base.model, scheduler).save_pretrained(root / "pipeline")
    return root


def same_weights(one, other):
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


def torch_bytes(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_save_and_load_are_bit_equal(base, tmp_path, suffix):
    save_base(base, tmp_path / f"base{suffix}")
    again = load_base(tmp_path / f"base{suffix}")
    assert same_weights(again.model, base.model)
    assert again.about() == base.about()
    assert not again.model.training
    np.testing.assert_array_equal(again.schedule.log_snr, base.schedule.log_snr)
    assert len(again.sha256) == 64
    inputs = base.spec.example_inputs()
    with torch.no_grad():
        assert torch.equal(again.model(**inputs).sample, base.model(**inputs).sample)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_weights_are_equal_bytes_whatever_the_file_is_called(base, tmp_path, suffix):
    first, second, third = (tmp_path / f"{name}{suffix}" for name in ("first", "second", "third"))
    save_base(base, first)
    save_base(base, second)
    save_base(load_base(first), third)
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()
    assert load_base(first).sha256 == load_base(third).sha256


def test_both_forms_hold_the_same(base, tmp_path):
    for suffix in SUFFIXES:
        save_base(base, tmp_path / f"base{suffix}")
    about, state = load_state(tmp_path / "base.pt")
    about_again, state_again = load_state(tmp_path / "base.safetensors")
    assert about == about_again
    assert state.keys() == state_again.keys()
    assert all(torch.equal(state[key], state_again[key]) for key in state)


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def traps(sprung):
    trap = Trap(sprung)
    weights = {"weight": torch.zeros(3), "trap": trap}
    yield "in a torch archive", torch_bytes(weights)
    yield "in torch's old form", torch_bytes(weights, _use_new_zipfile_serialization=False)
    yield "in a torch archive of protocol 4", torch_bytes(weights, pickle_protocol=4)
    yield from ((f"as a pickle of protocol {p}", pickle.dumps(trap, protocol=p)) for p in (0, 2, 4, 5))
    yield "inside a prunekit checkpoint", torch_bytes({"format": "prunekit-base/1", "state_dict": weights})


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", [name for name, _ in traps("x")])
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, kind, suffix):
    sprung, path = tmp_path / "sprung", tmp_path / f"evil{suffix}"
    path.write_bytes(dict(traps(sprung))[kind])
    with pytest.raises(UnsafeFileError, match=r"needs to run code to be read .* safetensors") as caught:
        load_base(path)
    assert not sprung.exists()
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's own advice is to switch the guard off


def test_the_trap_would_spring(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))  # noqa: S301 - so that the test above could fail
    assert (tmp_path / "sprung").exists()


def test_a_pickled_module_is_refused_by_the_name_of_its_class(tmp_path):
    (tmp_path / "m.pt").write_bytes(torch_bytes(torch.nn.Linear(2, 2)))
    with pytest.raises(UnsafeFileError, match=r"\(torch\.nn\.modules\.linear\.Linear\)"):
        load_base(tmp_path / "m.pt")


def broken_files():
    weights = {"weight": torch.arange(1000.0)}
    zipped, old, tensors = (
        torch_bytes(weights),
        torch_bytes(weights, _use_new_zipfile_serialization=False),
        safetensors_bytes(weights),
    )
    noise = np.random.default_rng(0).bytes(200)
    return {
        "empty.pt": b"",
        "noise.pt": noise,
        "text.pt": b"hello world, this is no checkpoint",
        "page.pt": b"<!DOCTYPE html><html></html>",
        "half.pt": zipped[: len(zipped) // 2],
        "end.pt": zipped[:-10],
        "old-head.pt": old[:60],
        "old-half.pt": old[: len(old) // 2],
        "list.pt": torch_bytes([torch.zeros(2)]),
        "numbers.pt": torch_bytes({"steps": 3}),
        "empty.safetensors": b"",
        "noise.safetensors": noise,
        "half.safetensors": tensors[: len(tensors) // 2],
        "end.safetensors": tensors[:-1],
        "header.safetensors": tensors[:30],
        "pt.safetensors": zipped,
        "about.safetensors": safetensors_bytes(weights, metadata={"prunekit": "{"}),
    }


@pytest.mark.parametrize("name", broken_files())
def test_a_broken_file_is_refused_with_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(broken_files()[name])
    with pytest.raises(FileFormatError, match=name) as caught:
        load_base(tmp_path / name)
    assert not isinstance(caught.value, UnsafeFileError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["digits", "fashion"])
def test_a_shipped_base_is_read_by_its_name(name):
    path = Path(prunekit.__file__).parent / "assets" / f"{name}-base.safetensors"
    assert load_base(f"embedded:{name}").sha256 == load_base(path).sha256


def test_a_shipped_base_that_is_not_there_is_told():
    with pytest.raises(
        InputError, match="There is no embedded base 'cats'; expected embedded:digits, embedded:fashion"
    ):
        load_base("embedded:cats")


def test_a_file_that_is_not_there_is_told_with_the_way_to_make_one(tmp_path):
    with pytest.raises(MissingFileError, match=r"none\.pt does not exist; .*`prunekit train`"):
        load_base(tmp_path / "none.pt")


@pytest.mark.parametrize("content", [safetensors_bytes({"a": torch.zeros(1)}, metadata={"prunekit": "[1]"}), None])
def test_a_bare_state_dict_asks_for_its_config(tmp_path, content):
    path = tmp_path / "bare.safetensors"
    path.write_bytes(content or safetensors_bytes({"a": torch.zeros(1)}))
    with pytest.raises(FileFormatError, match=r"is a bare state dict; .* by `config`"):
        load_base(path)


@pytest.mark.parametrize("wrapped", [None, "state_dict", "model_state_dict", "ema", "model"])
def test_a_bare_state_dict_is_read_with_a_diffusers_config(base, tmp_path, wrapped):
    state = base.model.state_dict()
    torch.save(state if wrapped is None else {wrapped: state, "step": 3}, tmp_path / "bare.pt")
    (tmp_path / "config.json").write_text(
        json.dumps({"_class_name": "UNet2DModel", "_diffusers_version": "0.1", **UNET})
    )
    again = load_base(tmp_path / "bare.pt", tmp_path / "config.json")
    assert same_weights(again.model, base.model)
    assert again.spec == base.spec
    assert again.schedule.to_config() == NoiseSchedule.linear().to_config()
    assert again.prediction_type == "epsilon"


def test_a_bare_safetensors_file_is_read_with_the_short_config(base, tmp_path):
    (tmp_path / "bare.safetensors").write_bytes(safetensors_bytes(base.model.state_dict()))
    (tmp_path / "config.json").write_text(json.dumps(base.spec.to_json()))
    assert same_weights(load_base(tmp_path / "bare.safetensors", tmp_path / "config.json").model, base.model)


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        ("{", FileFormatError, "is not readable JSON"),
        ("{}", FileFormatError, "needs 'class' and 'config'"),
        ('{"class": "UNet2DModel", "config": 3}', FileFormatError, "needs 'class' and 'config'"),
        ('{"class": "UNet2DModel", "config": {"nonsense": 3}}', InputError, "UNet2DModel does not take this config"),
        ('{"class": "UNet2DModel", "config": {"norm_num_groups": 0}}', InputError, "does not take this config"),
        ('{"class": "UNet2DModel", "config": {"in_channels": -1}}', InputError, "does not take this config"),
        ('{"class": "UNet2DModel", "config": {"block_out_channels": [8]}}', InputError, "does not take this config"),
        ('{"class": "UNet2DModel", "config": {"down_block_types": ["A"]}}', InputError, "does not take this config"),
        ('{"class": "os.system", "config": {}}', InputError, "Unknown architecture 'os.system'; expected one of"),
        ('{"class": "DDPMScheduler", "config": {}}', InputError, "Unknown architecture 'DDPMScheduler'"),
        ('{"_class_name": "AutoencoderKL"}', InputError, "Unknown architecture 'AutoencoderKL'"),
        (
            json.dumps({"_class_name": "UNet2DModel", **UNET, "in_channels": 3}),
            FileFormatError,
            "do not fit UNet2DModel: .*conv_in",
        ),
        (json.dumps({"_class_name": "UNet2DModel", **UNET, "layers_per_block": 2}), FileFormatError, "Missing key"),
    ],
)
def test_a_wrong_config_is_refused(base, tmp_path, config, error, said):
    torch.save(base.model.state_dict(), tmp_path / "bare.pt")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(error, match=said) as caught:
        load_base(tmp_path / "bare.pt", tmp_path / "config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": 5}, "model is 5; expected an object"),
        ({"model": {"class": "torch.hub.load", "config": {}}}, "Unknown architecture 'torch.hub.load'"),
        ({"noise_schedule": {"kind": "quadratic"}}, "Unknown noise schedule 'quadratic'"),
        ({"noise_schedule": 5}, "noise_schedule is 5; expected an object"),
    ],
)
def test_a_checkpoint_with_wrong_metadata_is_refused(base, tmp_path, change, said):
    content = {"format": "prunekit-base/1", **base.about(), **change, "state_dict": base.model.state_dict()}
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises((FileFormatError, InputError), match=said):
        load_base(tmp_path / "x.pt")


def test_metadata_of_another_format_is_not_believed(base, tmp_path):
    torch.save({"format": "other/1", **base.about(), "state_dict": base.model.state_dict()}, tmp_path / "x.pt")
    with pytest.raises(FileFormatError, match="is a bare state dict"):
        load_base(tmp_path / "x.pt")


def test_a_diffusers_model_folder_is_read(base, folders):
    again = load_base(folders / "model")
    assert same_weights(again.model, base.model)
    assert again.spec.class_name == "UNet2DModel"
    assert again.spec.config.items() >= UNET.items()
    assert again.spec == ModelSpec.of(again.model)
    assert not again.model.training


def test_a_pipeline_folder_is_read_with_its_schedulers_schedule(base, folders):
    again = load_base(str(folders / "pipeline"))
    assert same_weights(again.model, base.model)
    assert again.prediction_type == "v_prediction"
    told = again.schedule.to_config()
    assert told.pop("scheduler")["_class_name"] == "DDPMScheduler"
    assert told == NoiseSchedule.scaled_linear(200, 0.001, 0.05).to_config()


def test_a_folder_with_bin_weights_is_read_and_a_malicious_one_is_not(base, folders, tmp_path):
    shutil.copytree(folders / "model", tmp_path / "model")
    (tmp_path / "model" / "diffusion_pytorch_model.safetensors").unlink()
    weights = tmp_path / "model" / "diffusion_pytorch_model.bin"
    torch.save(base.model.state_dict(), weights)
    assert same_weights(load_base(tmp_path / "model").model, base.model)
    weights.write_bytes(torch_bytes({"a": Trap(tmp_path / "sprung")}))
    with pytest.raises(UnsafeFileError):
        load_base(tmp_path / "model")
    assert not (tmp_path / "sprung").exists()


def test_weights_in_several_files_are_read_together(base, folders, tmp_path):
    base.model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    again = load_base(tmp_path / "model")
    assert same_weights(again.model, base.model)
    assert again.sha256 != load_base(folders / "model").sha256


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_class_name": "NoSuchScheduler"}, "names 'NoSuchScheduler'; expected a scheduler class"),
        ({"_class_name": "UNet2DModel"}, "names 'UNet2DModel'; expected a scheduler class"),
        ({"_class_name": "logging"}, "names 'logging'; expected a scheduler class"),
        ({"beta_schedule": "quadratic"}, "is no config that DDPMScheduler takes"),
        ({"num_train_timesteps": "many"}, "the num_train_timesteps .many.; expected a number"),
    ],
)
def test_a_scheduler_config_may_name_schedulers_only(folders, tmp_path, change, said):
    shutil.copytree(folders / "pipeline", tmp_path / "pipeline")
    path = tmp_path / "pipeline" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FileFormatError, match=said):
        load_base(tmp_path / "pipeline")


def test_a_flow_matching_pipeline_does_not_pass_for_a_noise_predictor(folders, tmp_path):
    import diffusers

    shutil.copytree(folders / "pipeline", tmp_path / "pipeline")
    diffusers.FlowMatchEulerDiscreteScheduler(50).save_pretrained(tmp_path / "pipeline" / "scheduler")
    again = load_base(tmp_path / "pipeline")
    assert again.prediction_type == "flow_prediction"
    assert again.schedule.num_timesteps == 50


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        (None, None, MissingFileError, r"has no config\.json or model_index\.json"),
        ("config.json", "{", FileFormatError, "is not readable JSON"),
        ("config.json", '{"_class_name": "AutoencoderKL"}', FileFormatError, "names 'AutoencoderKL'; expected one of"),
        ("config.json", '{"_class_name": "UNet2DModel"}', MissingFileError, r"has no diffusion_pytorch_model"),
        (
            "model_index.json",
            '{"vae": ["diffusers", "AutoencoderKL"]}',
            FileFormatError,
            "neither a unet nor a transformer",
        ),
        ("model_index.json", '{"unet": ["diffusers", "UNet2DModel"]}', MissingFileError, r"unet has no config\.json"),
    ],
)
def test_a_folder_that_is_no_diffusers_folder_is_refused(tmp_path, name, content, error, said):
    if name is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=said):
        load_base(tmp_path)


@pytest.mark.parametrize(
    ("name", "config", "arguments"),
    [
        ("UNet2DModel", UNET, {"sample", "timestep"}),
        ("UNet2DModel", UNET | {"num_class_embeds": 3}, {"sample", "timestep", "class_labels"}),
        ("UNet2DModel", UNET | {"class_embed_type": "timestep"}, {"sample", "timestep", "class_labels"}),
        ("UNet2DModel", UNET | {"sample_size": [8, 16]}, {"sample", "timestep"}),
        ("UNet2DModel", without(UNET, "sample_size", "in_channels", "out_channels"), {"sample", "timestep"}),
        ("UNet2DConditionModel", CONDITIONED, {"sample", "timestep", "encoder_hidden_states"}),
        (
            "UNet2DConditionModel",
            without(CONDITIONED, "cross_attention_dim"),
            {"sample", "timestep", "encoder_hidden_states"},
        ),
        ("DiTTransformer2DModel", DIT, {"hidden_states", "timestep", "class_labels"}),
        ("Transformer2DModel", DIT | {"norm_type": "ada_norm_zero"}, {"hidden_states", "timestep", "class_labels"}),
        ("Transformer2DModel", without(DIT, "patch_size", "num_embeds_ada_norm"), {"hidden_states", "timestep"}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*Transformer2DModelOutput.*:FutureWarning")
def test_example_inputs_run_through_the_network(name, config, arguments):
    spec = ModelSpec(name, config)
    inputs = spec.example_inputs()
    assert set(inputs) == arguments
    with torch.no_grad():
        output = spec.build().eval()(**inputs).sample
    assert output.shape[0] == 1
    assert output.shape[2:] == next(value for value in inputs.values() if value.ndim == 4).shape[2:]


@pytest.mark.parametrize("name", ["UNet2DModel", "DiTTransformer2DModel"])
def test_a_spec_of_a_model_builds_the_same_architecture(name):
    model = ModelSpec(name, UNET if name == "UNet2DModel" else DIT).build()
    spec = ModelSpec.of(model)
    again = ModelSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert {key: value.shape for key, value in again.build().state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }


def test_a_foreign_network_has_no_spec():
    with pytest.raises(InputError, match="Linear is not one of DiTTransformer2DModel"):
        ModelSpec.of(torch.nn.Linear(2, 2))


def test_only_networks_of_diffusers_can_be_named():
    import diffusers

    assert all(issubclass(getattr(diffusers, name), torch.nn.Module) for name in denoisers())
    for method in (ModelSpec("torch.nn.Linear", {}).build, ModelSpec("DDPMPipeline", {}).example_inputs):
        with pytest.raises(InputError, match="Unknown architecture"):
            method()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_save_leaves_the_old_checkpoint(base, tmp_path, suffix):
    path = tmp_path / f"base{suffix}"
    path.write_text("old")
    unserialisable = Base(base.model, base.spec, Parameterization(base.schedule), provenance={"made by": lambda: None})
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        save_base(unserialisable, path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def zip_with(content, change):
    """A torch archive with one of its entries changed on the way into a new one."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(torch_bytes(content))) as old, zipfile.ZipFile(made, "w") as new:
        for entry in old.infolist():
            change(new, entry, old.read(entry))
    return made.getvalue()


def test_a_flipped_bit_in_a_tensor_is_noticed(base, tmp_path):
    save_base(base, tmp_path / "base.pt")
    content = bytearray((tmp_path / "base.pt").read_bytes())
    tensor = base.model.conv_in.weight.detach().numpy().tobytes()
    content[bytes(content).index(tensor) + 5] ^= 1
    (tmp_path / "base.pt").write_bytes(bytes(content))
    torch.load(tmp_path / "base.pt", weights_only=True)  # torch does not look
    with pytest.raises(FileFormatError, match=r"base\.pt is damaged: the checksum of archive/data/\d+ differs"):
        load_base(tmp_path / "base.pt")


def test_compressed_entries_are_refused(tmp_path):
    def bomb(new, entry, content):
        new.writestr(entry.filename, content, zipfile.ZIP_DEFLATED)

    (tmp_path / "x.pt").write_bytes(zip_with({"a": torch.zeros(10**6)}, bomb))
    with pytest.raises(FileFormatError, match="compressed or overlapping"):
        load_state(tmp_path / "x.pt")


class Filling:
    """Unpickling it asks a builtin for memory; torch lets this one through."""

    def __reduce__(self):
        return bytearray, (10,)


def test_a_pickle_that_fills_memory_is_refused(tmp_path):
    (tmp_path / "x.pt").write_bytes(torch_bytes({"a": torch.zeros(1), "b": Filling()}))
    assert torch.load(tmp_path / "x.pt", weights_only=True)["b"] == bytearray(10)
    with pytest.raises(UnsafeFileError, match="makes a bytearray, or bytes in a way that can fill the memory"):
        load_state(tmp_path / "x.pt")


class Encoded:
    """Unpickling it encodes a text, which torch lets through."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return codecs.encode, self.arguments


TEXT = "a" * 100


@pytest.mark.parametrize(
    "made",
    [
        Encoded(TEXT, "utf-32"),
        Encoded(TEXT),
        Encoded(Encoded(TEXT, "latin1"), "hex"),
        [Encoded(TEXT, "latin1"), Encoded(TEXT, "latin1")],
        [np.float32(1), Encoded(TEXT, "unicode_escape")],
    ],
    ids=["longer", "another encoding", "twice", "again", "beside numpy"],
)
def test_bytes_that_could_be_more_than_the_file_stores_are_refused(tmp_path, made):
    (tmp_path / "x.pt").write_bytes(torch_bytes({"a": torch.zeros(1), "b": made}))
    with pytest.raises(UnsafeFileError, match="bytes in a way that can fill the memory"):
        load_state(tmp_path / "x.pt")


def test_bytes_as_python_pickles_them_are_read(tmp_path):
    torch.save({"a": torch.zeros(1), "b": [b"", b"a", b"a", b"abc", bytes(range(256))]}, tmp_path / "x.pt")
    assert set(load_state(tmp_path / "x.pt")[1]) == {"a"}


def test_a_generator_of_numpys_is_never_made(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(1), "b": np.random.default_rng(0)}, tmp_path / "x.pt")
    monkeypatch.setattr(np.random._pickle, "__generator_ctor", lambda *_: pytest.fail("NumPy was called"))
    assert set(load_state(tmp_path / "x.pt")[1]) == {"a"}


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(10**9), torch.zeros(9, device="meta"), torch.eye(3).to_sparse()],
    ids=["expanded", "meta", "sparse"],
)
def test_a_tensor_that_is_not_all_there_is_refused(tmp_path, tensor):
    torch.save({"a": tensor}, tmp_path / "x.pt")
    with pytest.raises(FileFormatError, match=r"claim 4,000,000,000 bytes|no plain tensor"):
        load_state(tmp_path / "x.pt")


def shifted(state, by):
    return {key: value + by for key, value in state.items()}


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def trainer(state):
    """As lucidrains' Trainer saves a diffusion wrapper around a network, and ema_pytorch's average of it."""
    last, betas = shifted(state, 1.0), {"betas": torch.zeros(3), "alphas_cumprod": torch.ones(3)}
    ema = {
        **prefixed("online_model.model.", last),
        **prefixed("online_model.", betas),
        **prefixed("ema_model.model.", state),
        **prefixed("ema_model.", betas),
        "initted": torch.tensor(True),
        "step": torch.tensor(9),
    }
    opt = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    model = {**prefixed("model.", last), **betas}
    return {"step": 9, "model": model, "opt": opt, "ema": ema, "scaler": None, "version": "1.8.0"}


WRAPPED = {
    "bare": (lambda s: s, ""),
    "state_dict": (lambda s: {"state_dict": s, "epoch": 3}, ""),
    "model_state_dict": (lambda s: {"model_state_dict": s}, ""),
    "model": (lambda s: {"model": s}, ""),
    "data parallel": (lambda s: prefixed("module.", s), ""),
    "compiled": (lambda s: {"state_dict": prefixed("_orig_mod.", s)}, ""),
    "lightning": (lambda s: {"state_dict": {**prefixed("model.diffusion_model.", s), "vae.w": torch.ones(2)}}, ""),
    "a wrapper of one's own": (lambda s: {"net": {**prefixed("deep.inside.", s), "sigma": torch.ones(2)}}, ""),
    "ema alone": (lambda s: {"ema": s}, "ema"),
    "ema beside the last": (lambda s: {"model": shifted(s, 1.0), "ema": s}, "ema"),
    "ema in a wrapper": (lambda s: {"state_dict": shifted(s, 1.0), "ema": prefixed("module.", s)}, "ema.module"),
    "lucidrains": (trainer, "ema.ema_model.model"),
    "lucidrains without ema": (lambda s: {"model": trainer(shifted(s, -1.0))["model"]}, ""),
    "an ema of another network": (lambda s: {"state_dict": s, "ema": {"other": torch.ones(3)}}, ""),
}


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [*((kind, ".pt") for kind in WRAPPED), *(("lucidrains", suffix) for suffix in (".pth", ".ckpt", ".bin"))],
)
def test_trainers_checkpoints_are_read_and_their_ema_preferred_with_a_word(base, tmp_path, kind, suffix, caplog):
    wrap, place = WRAPPED[kind]
    path = tmp_path / f"wrapped{suffix}"
    state = base.model.state_dict()
    torch.save(wrap(state), path)
    with caplog.at_level(logging.INFO, logger="prunekit"):
        again = load_base(path, {"_class_name": "UNet2DModel", **UNET})
    for key, value in again.model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=1e-6)
    assert again.provenance == ({"weights": "ema"} if place else {})
    assert list(again.notes) == caplog.messages
    assert "does not say its noise schedule and prediction type" in again.notes[-1]
    assert len(again.notes) == 1 + bool(place)
    if place:
        assert f"({place})" in again.notes[0]


def test_the_likeliest_state_dict_is_taken_where_the_network_is_not_known(base, tmp_path):
    state = base.model.state_dict()
    torch.save(trainer(state), tmp_path / "x.pt")
    _, found = load_state(tmp_path / "x.pt")
    assert {key.removeprefix("model.") for key in found} >= set(state)
    torch.save({"state_dict": prefixed("module.", state)}, tmp_path / "x.pt")
    assert set(load_state(tmp_path / "x.pt")[1]) == set(state)


def test_what_differs_is_told_of_the_part_that_is_nearest(base, tmp_path):
    state = base.model.state_dict()
    del state["conv_out.bias"]
    torch.save({"ema": prefixed("module.", state)}, tmp_path / "x.pt")
    with pytest.raises(
        FileFormatError, match=r"under ema\.module do not fit UNet2DModel: Missing .* conv_out\.bias\.$"
    ):
        load_base(tmp_path / "x.pt", {"_class_name": "UNet2DModel", **UNET})


@pytest.mark.parametrize("name", ["mlp", "conv", "embedding"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_networks_outside_the_registry_are_read_with_a_factory(tmp_path, name, suffix):
    network = NETWORKS[name]()
    path = tmp_path / f"foreign{suffix}"
    state = network.model.state_dict()
    path.write_bytes(safetensors_bytes(state) if suffix == ".safetensors" else torch_bytes({"ema": state}))
    for parameter in (other := NETWORKS[name]().model).parameters():
        parameter.data.zero_()
    again = load_base(path, {"seed": 3}, factory=lambda config: other, inputs=network.inputs)
    assert again.spec == ModelSpec(type(network.model).__name__, {"seed": 3})
    assert again.spec.example_inputs() is network.inputs
    assert torch.equal(again.model(*network.inputs), network.model(*network.inputs))
    save_base(again, tmp_path / "again.pt")
    with pytest.raises(InputError, match="or a factory that builds it"):
        load_base(tmp_path / "again.pt")
    assert load_base(tmp_path / "again.pt", factory=lambda config: other).spec == again.spec


def test_a_factory_that_builds_another_network_is_refused(tmp_path):
    torch.save(Mlp().state_dict(), tmp_path / "x.pt")
    with pytest.raises(FileFormatError, match=r"do not fit Mlp: first\.weight has shape \(12, 6\), expected \(9, 6\)"):
        load_base(tmp_path / "x.pt", factory=lambda config: Mlp(9), inputs=(rows(1, 6),))


@pytest.mark.parametrize(
    "config",
    [
        {"block_out_channels": [10**6, 10**6]},
        {"layers_per_block": 10**5},
        {"num_class_embeds": 10**9},
        {"num_class_embeds": 10**6},
        {"sample_size": 10**6},
        {"block_out_channels": [10**9, 8]},
        {"time_embedding_dim": 2**20},
    ],
    ids=str,
)
def test_a_config_that_asks_for_more_than_the_file_has_is_refused_before_it_is_built(base, tmp_path, config):
    made = []
    torch.save(base.model.state_dict(), tmp_path / "x.pt")
    with pytest.MonkeyPatch.context() as patch:
        real = torch.empty

        def watched(*args, **options):
            tensor = real(*args, **options)
            made.append(0 if tensor.is_meta else tensor.numel())
            return tensor

        patch.setattr(torch, "empty", watched)
        with pytest.raises((FileFormatError, InputError)):
            load_base(tmp_path / "x.pt", {"_class_name": "UNet2DModel", **UNET, **config})
    assert max(made, default=0) < 10**6


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"kind": "linear", "num_timesteps": 10**12}, "noise schedule"),
        pytest.param(
            *(
                {"kind": "explicit", "betas": [[0.1]] * 3_000_000},
                r"says of itself has 21,000,\d+ bytes; expected at most",
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_noise_schedule_without_end_is_refused(base, tmp_path, schedule, said):
    about = {"format": "prunekit-base/1", **base.about(), "noise_schedule": schedule}
    torch.save({**about, "state_dict": base.model.state_dict()}, tmp_path / "x.pt")
    with pytest.raises(FileFormatError, match=said):
        load_base(tmp_path / "x.pt")


def test_a_scheduler_of_a_folder_without_end_is_refused(folders, tmp_path):
    shutil.copytree(folders / "pipeline", tmp_path / "pipeline")
    path = tmp_path / "pipeline" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_train_timesteps": 10**12}))
    with pytest.raises(FileFormatError, match="1000000000000; expected at most"):
        load_base(tmp_path / "pipeline")


def test_a_config_file_without_end_is_refused(folders, tmp_path):
    shutil.copytree(folders / "model", tmp_path / "model")
    with (tmp_path / "model" / "config.json").open("wb") as handle:
        handle.truncate(2**34)  # a hole: it takes no disk
    with pytest.raises(FileFormatError, match="17,179,869,184 bytes; expected at most"):
        load_base(tmp_path / "model")


def test_a_variant_is_read_where_there_is_nothing_else(base, folders, tmp_path):
    shutil.copytree(folders / "model", tmp_path / "model")
    whole = tmp_path / "model" / "diffusion_pytorch_model.safetensors"
    half = whole.with_name("diffusion_pytorch_model.fp16.safetensors")
    half.write_bytes(safetensors_bytes({key: value.half() for key, value in base.model.state_dict().items()}))
    again = load_base(tmp_path / "model")
    assert same_weights(again.model, base.model)
    assert not any("fp16" in note for note in again.notes)
    whole.unlink()
    again = load_base(tmp_path / "model")
    assert next(again.model.parameters()).dtype == torch.float32
    assert "fp16" in again.notes[0]
    assert again.provenance["weights"] == "fp16"


def test_a_flat_pipeline_folder_is_read(base, folders, tmp_path):
    shutil.copytree(folders / "pipeline" / "unet", tmp_path / "flat")
    shutil.copy(folders / "pipeline" / "model_index.json", tmp_path / "flat")
    shutil.copy(folders / "pipeline" / "scheduler" / "scheduler_config.json", tmp_path / "flat")
    again = load_base(tmp_path / "flat")
    assert same_weights(again.model, base.model)
    assert again.prediction_type == "v_prediction"


HUB = """
import sys
from prunekit.checkpoint import load_base
from prunekit.errors import MissingFileError
base = load_base("tiny/ddpm-digits")
print(base.prediction_type, base.provenance["base_model"], sum(p.numel() for p in base.model.parameters()))
try:
    load_base("tiny/nowhere")
except MissingFileError as error:
    print(error)
sys.argv = ["prunekit", "cost", "tiny/nowhere"]
from prunekit.cli.app import main
main()
"""


@pytest.mark.slow
def test_a_hub_id_is_read_from_the_hubs_cache_and_told_when_it_cannot_be_fetched(base, folders, tmp_path):
    model = tmp_path / "hub" / "models--tiny--ddpm-digits"
    revision = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folders / "pipeline", model / "snapshots" / revision)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(revision)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(  # noqa: S603 - this very test's own words
        [sys.executable, "-c", HUB], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    params = sum(parameter.numel() for parameter in base.model.parameters())
    first, second = done.stdout.splitlines()
    assert first == f"v_prediction tiny/ddpm-digits {params}", done.stderr
    assert second.startswith(
        "tiny/nowhere is no file or folder here, and could not be fetched from the Hugging Face Hub"
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == f"prunekit: {second}"


@pytest.mark.parametrize("name", ["none/base.pt", "a/b/c", "../x", "./x", "models", "/none/x", "a b/c", "here/model"])
def test_what_reads_like_a_path_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, name):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(MissingFileError, match="does not exist"):
        load_base(name)
