import json
import shutil
from pathlib import Path

import pytest
import torch
from json_mutations import mutated
from safetensors.torch import load_file, save_file
from true_figures import figures

import prunekit.features
from prunekit._files import sha256_file
from prunekit._json import parse_json, read_json
from prunekit.allocation import Allocation, read_frontier
from prunekit.checkpoint import ModelSpec, load_base
from prunekit.checkpoint.scheduler import read_scheduler
from prunekit.cost import LatencyTable
from prunekit.errors import PrunekitError
from prunekit.features import read_features
from prunekit.graph import PruningPlan
from prunekit.groups import Grouping, TimestepGroups
from prunekit.importance import ImportanceMap
from prunekit.nets import load_experts, save_experts
from prunekit.report import summary_rows
from prunekit.report.kinds import kind_of
from prunekit.report.overview import write_overview
from prunekit.report.run import read_importance
from prunekit.runs.jobs import Reader
from prunekit.runs.observing import Silent
from prunekit.runs.records import read_record
from prunekit.search.endpoint import EndpointError, _content
from prunekit.search.journal import Journal
from prunekit.slim import SlimModel, load_slim

ROOT = Path(__file__).parents[2]
SMALL = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [4, 8],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 2,
}
ABOUT = {"noise_schedule": {"kind": "linear", "num_timesteps": 100}, "prediction_type": "epsilon"}
TIMES = {
    "kind": {"op": "linear", "size": [1]},
    "inner": [1, 2],
    "outer": [1, 2],
    "seconds": [[1e-3, 2e-3], [2e-3, 3e-3]],
}
TABLE = {
    "format": "prunekit-latency/1",
    "machine": {"torch": "2"},
    "batch_size": 1,
    "fingerprint": "ab",
    "base_seconds": 0.1,
    "rest": {"layer_scale": 1.0, "seconds": 0.0, "seconds_per_value": 0.0},
    "times": [TIMES],
    "layers": {"a": {"table": 0, "calls": 1, "positions": 1}},
    "checks": [{"mac_ratio": 0.5, "predicted": 0.1, "measured": 0.1}],
}
STAGE = {
    "format": "prunekit-stage/1",
    "name": "base",
    "key": "a",
    "seconds": 1.0,
    "threads": 1,
    "facts": {"ledger": []},
}
LINES = [
    {"round": 0, "steps": [0, 0], "macs": 100, "loss": 1.0},
    {"round": 1, "chosen": "a", "steps": [0, 1], "macs": 60, "loss": 1.2},
    {"round": 2, "ratios": {"a": 0.5}},
]
DIARY = [
    {"stage": "base", "kept": False},
    {"label": "a", "done": 1, "total": 2, "note": ""},
    {"failed": "x", "again": True},
]
SCHEDULER = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
SCHEDULER |= {"num_train_timesteps": 100, "prediction_type": "epsilon", "trained_betas": None}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Experts with networks of their own, a base and a feature extractor, each a few kilobytes."""
    folder = tmp_path_factory.mktemp("models")
    model = ModelSpec("UNet2DModel", SMALL).build().eval()
    spec, groups = ModelSpec.of(model), TimestepGroups.from_cuts(100, [40])
    told = figures(model, spec.example_inputs())
    models = [model, ModelSpec("UNet2DModel", SMALL).build().eval()]
    plan, sizes = PruningPlan({}, "ab"), dict[str, dict[str, int]]()
    slims = [
        SlimModel(own, spec, plan, sizes, group, 100, *told, ABOUT) for own, group in zip(models, groups, strict=True)
    ]
    save_experts(slims, groups, folder / "experts")
    return folder


def manifest(path):
    """Read a manifest as its page and the overview do, without drawing."""
    data = read_json(path, "prunekit-manifest/1")
    kind = kind_of(data)
    if kind is not None:
        kind.claim(data)
    if "allocation" in data:
        summary_rows(data)
    write_overview(path.parents[1])


def in_metadata(read, format_key="prunekit"):
    """A reader of JSON that stands in the metadata of a safetensors file."""

    def reader(path, tensors):
        save_file(tensors, path.with_suffix(".safetensors"), {format_key: path.read_bytes().decode("utf-8", "replace")})
        return read(path.with_suffix(".safetensors"))

    return reader


def slim_of(path, models):
    folder = path.parent / "slim"
    shutil.copytree(models / "experts" / "group-0", folder, dirs_exist_ok=True)
    shutil.copy(path, folder / "config.json")
    return load_slim(folder)


def experts_of(path, models):
    folder = path.parent / "experts"
    shutil.copytree(models / "experts", folder, dirs_exist_ok=True)
    shutil.copy(path, folder / "experts.json")
    return load_experts(folder)


def journal_of(path):
    """Lines that are appended to the header of a search's own journal."""
    lines = (
        json.dumps({"format": "prunekit-search/1", "key": "k"}).encode()
        + b"\n"
        + path.read_bytes().replace(b"\n", b" ")
    )
    path.write_bytes(lines + b"\n")
    journal = Journal.open(path, "k")
    journal.losses()
    journal.answer(2)


def frontier_of(path):
    entries = [json.dumps(LINES[0]).encode(), path.read_bytes(), json.dumps(LINES[1]).encode()]
    path.write_bytes(b"\n".join(entries) + b"\n")
    read_frontier(path)


def diary_of(path):
    path.write_bytes(path.read_bytes().replace(b"\n", b" ") + b"\n")
    Reader(path).tell(Silent())


def answer_of(path):
    try:
        _content(path.read_bytes())
    except EndpointError:
        return


def run_file(name, run="digits-demo"):
    return json.loads((ROOT / "reports" / run / name).read_text())


def short_evidence():
    """The comparison with few of its hundreds of rows, whose reading would take most of the time."""
    data = run_file("manifest.json", "fashion-tdc")
    data["ledger"] = data["ledger"][:3]
    data["evidence"] = data["evidence"][:6]
    data["method"]["ledger"] = data["method"]["ledger"][:3]
    for row in data["evidence"]:
        row["experts"] = row["experts"][:1]
    return data


def importance_of(path):
    ImportanceMap.load(path)
    shutil.copy(path, path.with_name("importance.json"))
    read_importance(path.parent)


READERS = {
    "groups": (lambda: run_file("groups.json"), lambda p: Grouping.from_json(read_json(p), p)),
    "allocation": (lambda: run_file("allocation.json"), lambda p: Allocation.from_json(read_json(p), p)),
    "importance": (lambda: run_file("importance.json"), importance_of),
    "run": (lambda: run_file("manifest.json"), manifest),
    "evidence": (short_evidence, manifest),
    "multistage": (lambda: run_file("manifest.json", "fashion-multistage"), manifest),
    "curriculum": (lambda: run_file("manifest.json", "fashion-curriculum"), manifest),
    "latency": (lambda: TABLE, lambda p: LatencyTable.from_json(read_json(p), p)),
    "stage": (lambda: STAGE, read_record),
    "journal": (lambda: LINES[0], journal_of),
    "choice": (lambda: LINES[1], frontier_of),
    "answer": (lambda: {"choices": [{"message": {"content": "a"}}]}, answer_of),
    "diary": (lambda: DIARY[1], diary_of),
    "scheduler": (lambda: SCHEDULER, read_scheduler),
    "plan": (lambda: {"kept": {"a": [0, 2]}, "fingerprint": "ab"}, lambda p: PruningPlan.from_json(read_json(p), p)),
}


def hold(read, path, content, *more):
    """Reading works, or is refused in one sentence."""
    path.write_bytes(content)
    try:
        read(path, *more)
    except PrunekitError as error:
        said = str(error)
        assert said, content[:200]
        assert "\n" not in said, said
        assert len(said) < 1500, said
        said.encode()


def fuzz(name, tmp_path, seeds):
    make, read = READERS[name]
    document, folder = make(), tmp_path / "run"
    folder.mkdir()
    for seed in seeds:
        hold(
            read, folder / ("importance-in.json" if name == "importance" else "manifest.json"), mutated(document, seed)
        )


def fuzz_models(models, tmp_path, seeds):
    config = json.loads((models / "experts" / "group-0" / "config.json").read_text())
    index = json.loads((models / "experts" / "experts.json").read_text())
    tensors = load_file(models / "experts" / "group-0" / "model.safetensors")
    about = {"format": "prunekit-base/1", **{k: config[k] for k in ("model", *ABOUT)}, "data": {}, "provenance": {}}
    features = prunekit.features._ASSETS / "features-digits-cnn.safetensors"
    with prunekit.features.safe_open(features, framework="pt") as handle:
        header = parse_json(handle.metadata()["prunekit"].encode(), "header")
    path = tmp_path / "x.json"
    for seed in seeds:
        hold(slim_of, path, mutated(config, seed), models)
        hold(experts_of, path, mutated(index, seed), models)
        hold(in_metadata(load_base), path, mutated(about, seed), tensors)
        hold(in_metadata(read_features), path, mutated(header, seed), load_file(features))


@pytest.mark.parametrize("name", READERS)
def test_damaged_json_is_read_or_refused_in_one_sentence(name, tmp_path):
    fuzz(name, tmp_path, range(12))


def test_damaged_configs_of_models_are_read_or_refused_in_one_sentence(models, tmp_path):
    fuzz_models(models, tmp_path, range(6))


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_much_damaged_json_is_read_or_refused_in_one_sentence(name, tmp_path):
    fuzz(name, tmp_path, range(1000, 1100))


@pytest.mark.slow
def test_many_damaged_configs_of_models_are_read_or_refused_in_one_sentence(models, tmp_path):
    fuzz_models(models, tmp_path, range(1000, 1060))


def changed(models, tmp_path, change):
    folder = tmp_path / "slim"
    shutil.copytree(models / "experts" / "group-1", folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder, config


EDITS = {
    "was changed after": lambda c: c["noise_schedule"].update(num_timesteps=100, beta_end=0.5),
    "prediction_type 'nonsense'": lambda c: c.update(prediction_type="nonsense"),
    "is for timesteps 100 to 40": lambda c: c["timestep_group"].update(start=100, stop=40),
    "macs is -5": lambda c: c.update(macs=-5),
    "says that an evaluation takes": lambda c: c.update(macs=c["macs"] - 1),
    "says that the model has": lambda c: c.update(params=c["params"] + 1),
    "a plan that keeps": lambda c: c["plan"]["kept"].update(conv_in=[0, 2]),
    "which makes none": lambda c: c["plan"]["kept"].update(nothing=[0, 1]),
    "must be rising": lambda c: c["plan"]["kept"].update(conv_in=[1, 0]),
}


@pytest.mark.parametrize("said", EDITS)
def test_a_config_that_is_not_its_weights_is_refused(models, tmp_path, said):
    folder, _ = changed(models, tmp_path, EDITS[said])
    with pytest.raises(PrunekitError, match=said):
        load_slim(folder)


def test_a_folder_of_before_configs_were_bound_loads_with_a_warning(models, tmp_path, caplog):
    folder, config = changed(models, tmp_path, lambda c: None)
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    config["sha256"] = sha256_file(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    load_slim(folder)
    assert "did not bind" in caplog.text


def test_experts_of_different_diffusions_are_refused(models, tmp_path):
    model = ModelSpec("UNet2DModel", SMALL).build().eval()
    spec, groups = ModelSpec.of(model), TimestepGroups.from_cuts(100, [40])
    told = figures(model, spec.example_inputs())
    kinds = ("epsilon", "sample")
    slims = [
        SlimModel(model, spec, PruningPlan({}, "ab"), {}, group, 100, *told, {**ABOUT, "prediction_type": kind})
        for group, kind in zip(groups, kinds, strict=True)
    ]
    save_experts(slims, groups, tmp_path / "experts")
    with pytest.raises(PrunekitError, match="another prediction type"):
        load_experts(tmp_path / "experts")


FALSE_ALLOCATIONS = {
    "at most 1": lambda a: a["groups"][0].update(mac_ratio=5),
    "above 0": lambda a: a["groups"][0].update(mac_ratio=-1),
    "sum to": lambda a: a["groups"][0].update(share=0.9),
    "mean_mac_ratio is": lambda a: a.update(mean_mac_ratio=0.3),
    "expected the budget": lambda a: a.update(budget=0.95),
    "the target of group 0": lambda a: a["groups"][0].update(target_macs=7),
    "expected a non-empty range": lambda a: a["groups"][0].update(stop=300),
}


@pytest.mark.parametrize("said", FALSE_ALLOCATIONS)
def test_an_allocation_that_contradicts_itself_is_refused(said):
    data = run_file("allocation.json")
    FALSE_ALLOCATIONS[said](data)
    with pytest.raises(PrunekitError, match=said):
        Allocation.from_json(data)


@pytest.mark.parametrize("path", sorted((ROOT / "reports").glob("*/manifest.json")), ids=lambda p: p.parent.name)
def test_manifests_that_were_published_stay_readable(path):
    data = read_json(path, "prunekit-manifest/1")
    assert kind_of(data).claim(data)


def test_a_base_with_what_is_no_json_beside_its_weights_is_refused(models, tmp_path):
    state = load_file(models / "experts" / "group-0" / "model.safetensors")
    spec = {"class": "UNet2DModel", "config": SMALL}
    for odd in ({"data": {"a": float("nan")}}, {"provenance": [1]}, {"prediction_type": "x"}, {"data": {1: {2, 3}}}):
        torch.save({"format": "prunekit-base/1", "model": spec, "state_dict": state, **odd}, tmp_path / "base.pt")
        with pytest.raises(PrunekitError) as caught:
            load_base(tmp_path / "base.pt")
        assert "\n" not in str(caught.value)
