import copy
from dataclasses import replace

import pytest
import torch
from test_experts import GROUPS, batch

from prunekit._files import write_json
from prunekit._json import read_json
from prunekit.errors import FileFormatError, InputError
from prunekit.nets import TimestepExperts, load_experts, save_experts
from prunekit.nets.sharing import read_networks, shared, shared_networks
from prunekit.slim import save_slim


def test_equal_networks_are_found_and_a_changed_weight_or_record_is_another_network(half_whole):
    assert shared_networks(half_whole) == (0, 1, 0, 3)
    other = copy.deepcopy(half_whole[2].model)
    with torch.no_grad():
        next(iter(other.parameters())).view(-1)[0] += 1e-6
    assert shared_networks([*half_whole[:2], replace(half_whole[2], model=other), half_whole[3]]) == (0, 1, 2, 3)
    tuned = half_whole[2].with_weights(half_whole[2].model, finetuned_steps=5)
    assert shared_networks([*half_whole[:2], tuned, half_whole[3]]) == (0, 1, 2, 3)
    told = half_whole[0].with_weights(half_whole[0].model, finetuned_steps=5)  # one module, two records
    own = replace(told, group=half_whole[2].group)
    assert shared_networks([*half_whole[:2], own, half_whole[3]]) == (0, 1, 2, 3)


def test_a_shared_network_is_stored_and_held_once(half_whole, tmp_path):
    save_experts(half_whole, GROUPS, tmp_path / "experts")
    assert sorted(path.name for path in (tmp_path / "experts").glob("group-*")) == ["group-0", "group-1", "group-3"]
    experts = load_experts(tmp_path / "experts")
    assert experts.networks == (0, 1, 0, 3)
    assert experts.experts[0] is experts.experts[2]
    held = sum(parameter.numel() for parameter in experts.parameters())
    assert held == experts.stored_params == experts.resident_params == sum(half_whole[i].params for i in (0, 1, 3))
    assert [slim.group for slim in experts.slims] == list(GROUPS)
    apart = TimestepExperts(GROUPS, half_whole).eval()
    x, t = batch(8), torch.tensor([0, 19, 20, 49, 50, 79, 80, 99])
    with torch.no_grad():
        assert torch.equal(experts(x, t).sample, apart(x, t).sample)
    assert "shared with group 0" in (tmp_path / "experts" / "README.md").read_text()


def test_a_network_of_several_groups_is_not_replaced_by_one_of_them(half_whole, tmp_path):
    save_experts(half_whole, GROUPS, tmp_path / "experts")
    with pytest.raises(InputError, match="group-0 is the network of the timestep groups 0, 2; expected another output"):
        save_slim(half_whole[0], tmp_path / "experts" / "group-0")
    save_slim(half_whole[1], tmp_path / "experts" / "group-1")  # nobody else's
    load_experts(tmp_path / "experts")


def test_shared_experts_are_saved_again_to_the_same_bytes(half_whole, tmp_path):
    save_experts(half_whole, GROUPS, tmp_path / "a")
    load_experts(tmp_path / "a").save(tmp_path / "b")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_one_resident_network_serves_all_groups_that_share_it(half_whole, tmp_path):
    save_experts(half_whole, GROUPS, tmp_path / "experts")
    experts = load_experts(tmp_path / "experts", resident="one")
    assert experts.resident_params == max(experts.params)
    first = experts.expert(0)
    assert experts.expert(2) is first  # it was not read again
    x = batch(2)
    with torch.no_grad():
        for t in (5, 30, 60, 90):
            assert torch.equal(experts(x, t).sample, half_whole[int(GROUPS.index_of([t])[0])].model(x, t).sample)


def test_sharing_in_memory_frees_the_copies(half_whole):
    networks = shared_networks(half_whole)
    experts = TimestepExperts(GROUPS, shared(half_whole, networks))
    assert experts.networks == networks
    assert len({id(model) for model in experts.experts}) == 3


@pytest.mark.parametrize("networks", [[0, 1, 0], [1, 1, 0, 3], [0, 0, 1, 3], [0, 1, 4, 3], [0, 1, -1, 3], "0103"])
def test_networks_that_no_earlier_group_has_are_refused(half_whole, tmp_path, networks):
    save_experts(half_whole, GROUPS, tmp_path / "experts")
    data = read_json(tmp_path / "experts" / "experts.json")
    write_json(tmp_path / "experts" / "experts.json", {**data, "networks": networks})
    with pytest.raises(FileFormatError, match="networks"):
        load_experts(tmp_path / "experts")


def test_groups_without_a_word_have_networks_of_their_own():
    assert read_networks(None, 3, "experts.json") == (0, 1, 2)
