"""A section's options from Python: as such, as a mapping with its keys, or refused in the recipe's words."""

from typing import Any

import pytest

from prunekit.errors import InputError
from prunekit.recipe import FinetuneOptions, PruneOptions, section_of
from prunekit.search import SearchOptions
from prunekit.training import TrainOptions


def test_a_mapping_gives_what_the_classes_give() -> None:
    assert section_of(FinetuneOptions, None) == FinetuneOptions()
    options = FinetuneOptions(overlap=5, train=TrainOptions(steps=7, learning_rate=1e-3))
    assert section_of(FinetuneOptions, options) is options
    assert section_of(FinetuneOptions, {"overlap": 5, "train": {"steps": 7, "learning_rate": 1e-3}}) == options
    prune = PruneOptions(samples=8, search=SearchOptions(rounds=1))
    assert section_of(PruneOptions, {"samples": 8, "search": {"rounds": 1}}) == prune


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (FinetuneOptions, {"train": {"step": 5}}, r"finetune\.train\.step: Unknown key `step`.*did you mean `steps`"),
        (FinetuneOptions, {"train": {"steps": "many"}}, r"finetune\.train\.steps: Got 'many'; expected"),
        (FinetuneOptions, PruneOptions(), "Got PruneOptions as options; expected FinetuneOptions or a mapping"),
        (PruneOptions, {"samples": 0}, r"prune\.samples: "),
        (
            PruneOptions,
            5,
            "Got int as options; expected PruneOptions or a mapping with the keys of a recipe's prune section",
        ),
    ],
)
def test_what_does_not_belong_is_one_sentence(kind: Any, given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        section_of(kind, given)
    assert "\n" not in str(caught.value)
