"""Conditions by their paths, their rows, and how a denoiser is called with them."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunekit.conditions import Calling, flat, nested, rows_of
from prunekit.graph.streams import in_streams

NAMES = st.text("abc_", min_size=1, max_size=3)
VALUES = st.none() | st.integers() | st.lists(st.integers(), max_size=2)
ARGUMENTS = st.dictionaries(NAMES, st.recursive(VALUES, lambda inner: st.dictionaries(NAMES, inner, max_size=3)))


@given(ARGUMENTS)
def test_flat_and_nested_undo_each_other(arguments: dict[str, object]) -> None:
    paths = flat(arguments)
    assert nested(paths) == arguments
    assert flat(nested(paths)) == paths
    assert not any(isinstance(value, dict) and value for value in paths.values())


@st.composite
def structures(draw: st.DrawFn, batch: int) -> object:
    """Arguments of any form, with tensors with a row for each sample and others."""

    def tensor(rows: int, width: int) -> Tensor:
        return torch.arange(float(rows * width)).reshape(rows, width)

    tensors = st.builds(tensor, st.sampled_from([batch, batch + 1]), st.integers(0, 3)) | st.just(torch.tensor(3.0))
    return draw(
        st.recursive(
            tensors | st.none() | st.integers(),
            lambda inner: (
                st.dictionaries(NAMES, inner, max_size=2)
                | st.lists(inner, max_size=2)
                | st.lists(inner, max_size=2).map(tuple)
            ),
            max_leaves=6,
        )
    )


def check_rows(found: object, whole: object, rows: Tensor, batch: int) -> None:
    assert type(found) is type(whole)
    if isinstance(whole, Tensor):
        own = whole.ndim > 0 and len(whole) == batch
        assert torch.equal(found, whole[rows] if own else whole)  # type: ignore[arg-type]
    elif isinstance(whole, dict):
        assert found.keys() == whole.keys()  # type: ignore[attr-defined]
        for name in whole:
            check_rows(found[name], whole[name], rows, batch)  # type: ignore[index]
    elif isinstance(whole, list | tuple):
        assert len(found) == len(whole)  # type: ignore[arg-type]
        for one, other in zip(found, whole, strict=True):  # type: ignore[call-overload]
            check_rows(one, other, rows, batch)
    else:
        assert found == whole


@given(st.data(), st.integers(2, 5))
def test_rows_are_taken_wherever_there_is_one_for_each_sample(data: st.DataObject, batch: int) -> None:
    value = data.draw(structures(batch))
    rows = torch.tensor(data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=4)))
    check_rows(rows_of(value, rows, batch), value, rows, batch)
    assert rows_of(value, None, batch) is value
    check_rows(rows_of(value, slice(1, 2), batch), value, torch.tensor([1]), batch)


class Denoiser(nn.Module):
    """Takes its samples and timesteps by other names and in another order than most."""

    def forward(
        self, text: Tensor, hidden_states: Tensor, t: Tensor, extra: dict[str, Tensor], ids: Tensor
    ) -> tuple[Tensor]:
        assert ids.dtype == hidden_states.dtype
        told = text + extra["more"] + t
        return (hidden_states * told[:, None, None] + ids,)


def test_a_denoiser_is_called_by_its_own_names_and_in_streams_alike() -> None:
    batch, draws = 96, torch.Generator().manual_seed(0)
    noisy, times = torch.randn(batch, batch, 4, generator=draws), torch.arange(batch)
    conditions = {name: torch.randn(batch, generator=draws) for name in ("text", "extra.more")}
    ids = torch.randn(batch, 4, generator=draws, dtype=torch.float64)  # as many tokens as samples
    call = Calling("hidden_states", "t", {"ids": ids})
    told = (conditions["text"] + conditions["extra.more"] + times)[:, None, None]
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with torch.no_grad(), in_streams(Denoiser(), batch, call.fixed) as evaluated:
            found = call(evaluated, noisy, times, conditions)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(found, noisy * told + ids.float())
