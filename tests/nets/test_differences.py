import copy
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_experts import GROUPS, batch, slim_models

from prunekit._files import write_json
from prunekit._json import read_json
from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.nets import load_experts, save_experts
from prunekit.nets.differences import FILE, differs_by
from prunekit.slim import WEIGHTS, load_slim, save_slim


@pytest.fixture
def tuned(half_whole):
    """The third group keeps the whole base and was trained a little, by a change of rank 2 in every matrix."""
    model, generator = copy.deepcopy(half_whole[0].model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                rows, columns = len(parameter), parameter[0].numel()
                left, right = (torch.randn(shape, generator=generator) for shape in ((rows, 2), (2, columns)))
                parameter += 1e-3 * (left @ right).reshape(parameter.shape)
    return [*half_whole[:2], half_whole[2].with_weights(model, finetuned_steps=3), half_whole[3]]


def test_differences_are_stored_in_little_space_and_come_back(tuned, tmp_path):
    save_experts(tuned, GROUPS, tmp_path / "whole")
    save_experts(tuned, GROUPS, tmp_path / "shared", share=1e-3)
    whole, shared = load_experts(tmp_path / "whole"), load_experts(tmp_path / "shared")
    assert shared.networks == whole.networks == (0, 1, 2, 3)
    assert shared.stored_params < 0.8 * whole.stored_params
    assert not (tmp_path / "shared" / "group-2" / "model.safetensors").exists()
    x, t = batch(8), torch.tensor([0, 19, 20, 49, 50, 79, 80, 99])
    with torch.no_grad():
        torch.testing.assert_close(shared(x, t).sample, whole(x, t).sample, rtol=1e-4, atol=1e-4)


def test_equal_tensors_are_in_memory_once(tuned, tmp_path):
    save_experts(tuned, GROUPS, tmp_path / "shared", share=1e-3)
    experts = load_experts(tmp_path / "shared")
    assert experts.experts[0].conv_in.bias is experts.experts[2].conv_in.bias
    assert experts.resident_params < sum(experts.params)


def test_a_saved_copy_of_shared_experts_is_whole_again(tuned, tmp_path):
    save_experts(tuned, GROUPS, tmp_path / "shared", share=1e-3)
    experts = load_experts(tmp_path / "shared")
    experts.save(tmp_path / "again")
    again = load_experts(tmp_path / "again")
    x, t = batch(4), torch.tensor([5, 30, 60, 90])
    with torch.no_grad():
        assert torch.equal(again(x, t).sample, experts(x, t).sample)


def test_one_resident_network_is_rebuilt_when_it_is_needed(tuned, tmp_path):
    save_experts(tuned, GROUPS, tmp_path / "shared", share=1e-3)
    all_of_them, one = (load_experts(tmp_path / "shared", resident=kind) for kind in ("all", "one"))
    x = batch(2)
    with torch.no_grad():
        for t in (5, 30, 60, 90):
            assert torch.equal(one(x, t).sample, all_of_them(x, t).sample)


@pytest.mark.parametrize("share", [None, 1e-3])
def test_inputs_without_a_factory_are_used(tuned, tmp_path, share):
    save_experts(tuned, GROUPS, tmp_path / "experts", share=share)
    inputs = tuned[0].spec.example_inputs()
    assert load_experts(tmp_path / "experts", inputs=inputs).spec.inputs is inputs


def damage(kind, folder):
    """Change a folder of a shared network, and say what the error says."""
    place = folder / "group-2"
    if kind == "missing":
        (place / FILE).unlink()
        return MissingFileError, FILE
    if kind == "swapped":
        (place / FILE).write_bytes((folder / "group-1" / FILE).read_bytes())
        return FileFormatError, "SHA-256 differs"
    if kind == "config":
        config = read_json(place / "config.json")
        write_json(place / "config.json", {**config, "macs": config["macs"] + 1})
        return FileFormatError, "was changed after it was written"
    about = read_json(folder / "experts.json")
    write_json(folder / "experts.json", {**about, "reference": 7 if kind == "nowhere" else 1})
    return FileFormatError, "names the reference 7" if kind == "nowhere" else "group-1"


@pytest.mark.parametrize("kind", ["missing", "swapped", "config", "nowhere", "another"])
def test_a_damaged_difference_is_refused(tuned, tmp_path, kind):
    save_experts(tuned, GROUPS, tmp_path / "shared", share=1e-3)
    error, said = damage(kind, tmp_path / "shared")
    with pytest.raises((error, MissingFileError), match=said):
        load_experts(tmp_path / "shared")


def test_the_network_that_others_are_differences_from_is_not_replaced(tuned, tmp_path):
    folder = tmp_path / "shared"
    save_experts(tuned, GROUPS, folder, share=1e-3)
    reference = folder / f"group-{read_json(folder / 'experts.json')['reference']}"
    slim, before = load_slim(reference), (reference / WEIGHTS).read_bytes()
    with torch.no_grad():
        next(iter(slim.model.parameters())).add_(1)
    with pytest.raises(
        InputError, match=f"{reference.name} is the network from which the others are stored as differences"
    ):
        save_slim(slim, reference)
    assert (reference / WEIGHTS).read_bytes() == before
    save_slim(slim, tmp_path / "other")
    shutil.rmtree(reference)
    (tmp_path / "other").rename(reference)
    with pytest.raises(FileFormatError, match=f"{reference.name} has been replaced.*assemble the experts again"):
        load_experts(folder)
    about = read_json(folder / "experts.json")
    del about["reference_sha256"]  # as earlier versions wrote it
    write_json(folder / "experts.json", about)
    load_experts(folder)


@pytest.mark.parametrize("tolerance", [-0.1, 1.5, float("nan")])
def test_a_tolerance_is_from_0_to_1(tuned, tmp_path, tolerance):
    with pytest.raises(InputError, match="expected a number from 0 to 1"):
        save_experts(tuned, GROUPS, tmp_path / "shared", share=tolerance)
    assert not (tmp_path / "shared").exists()


@given(
    st.integers(1, 6), st.integers(2, 40), st.integers(2, 40), st.floats(0.01, 0.9), st.sampled_from([(1, 1), (3, 3)])
)
def test_no_difference_is_stored_with_more_than_the_tolerance(rank, rows, columns, tolerance, kernel):
    base, own = torch.nn.Conv2d(columns, rows, kernel), torch.nn.Conv2d(columns, rows, kernel)
    values, generator = columns * kernel[0] * kernel[1], torch.Generator().manual_seed(rank)
    change = torch.randn((rows, rank), generator=generator) @ torch.randn((rank, values), generator=generator)
    with torch.no_grad():
        own.weight.copy_(base.weight + change.reshape(base.weight.shape))
        own.bias.copy_(base.bias)
    found = differs_by(own, base, tolerance)
    assert "bias" not in str(found.keys())
    if "weight.whole" in found:
        assert torch.equal(found["weight.whole"], own.weight)
        return
    change = (own.weight - base.weight).detach().reshape(rows, -1)
    error = (found["weight.left"] @ found["weight.right"] - change).norm() / change.norm()
    assert error <= tolerance + 1e-4
    assert sum(part.numel() for part in found.values()) < change.numel()


def test_pruned_networks_without_a_whole_one_are_still_read(bench, tmp_path):
    slims = slim_models(bench("unet", "whole"))
    save_experts(slims, GROUPS, tmp_path / "shared", share=0.1)
    experts, x = load_experts(tmp_path / "shared"), batch(4)
    with torch.no_grad():
        experts(x, torch.tensor([5, 30, 60, 90]))
    assert experts.stored_params <= sum(experts.params)
