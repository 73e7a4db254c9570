"""What model cards say of what was removed, and how a slim model is loaded and called."""

import pytest

from prunekit.card import experts_card, slim_card

CONFIG = {
    "model": {"class": "UNet2DModel", "config": {}},
    "timestep_group": {"index": 0, "start": 0, "stop": 10},
    "num_timesteps": 10,
    "macs": 70,
    "params": 7,
    "provenance": {"base_macs": 100},
}


def config(kept, removed):
    return {**CONFIG, "plan": {"kept": {name: [0] for name in kept}, **({"removed": removed} if removed else {})}}


@pytest.mark.parametrize(
    ("kept", "removed", "said"),
    [
        (["conv"], [], "with channels removed"),
        (["conv"], ["branch:mid"], "with channels and 1 residual branch removed"),
        ([], ["branch:mid", "branch:up.0"], "with 2 residual branches removed"),
    ],
)
def test_a_card_says_what_was_removed(kept, removed, said):
    card = slim_card(config(kept, removed))
    assert said in card
    assert ("| Residual branches removed | " in card) == bool(removed)
    assert all(name.removeprefix("branch:") in card for name in removed)


def test_a_card_of_a_whole_network_says_that_nothing_was_removed():
    card = slim_card(config([], []))
    assert "The whole network of a diffusion model; nothing was removed." in card
    assert "with channels" not in card


def test_the_call_on_a_card_gives_a_tensor():
    known, own = (
        slim_card({**config(["conv"], []), "model": {"class": name, "config": {}}}) for name in ("UNet2DModel", "Mine")
    )
    assert "slim.model(noisy, timestep).sample\n" in known
    assert "slim.model(noisy, timestep)\n" in own
    assert 'load_slim("path/to/this/folder", network)' in own


def test_names_of_branches_cannot_add_markup_to_a_card():
    card = slim_card(config([], ["branch:a|b](http://x)<i>"]))
    assert "](http" not in card
    assert "<i>" not in card


def test_cards_of_experts_count_the_branches_that_each_is_without():
    card = experts_card([config([], ["branch:mid"]), config(["conv"], [])])
    assert "| timesteps | MACs per sample per evaluation | target | parameters | branches removed |" in card
    rows = [line for line in card.splitlines() if line.startswith("| 0 …")]
    assert [row.split("|")[-2].strip() for row in rows] == ["1", "0"]
    assert "branches" not in experts_card([config(["conv"], [])] * 2)


@pytest.mark.parametrize("plan", [None, 3, {"removed": 5}, {"removed": [3]}])
def test_configs_without_a_plan_have_cards(plan):
    assert "with channels removed" in slim_card({**CONFIG, "plan": plan})
