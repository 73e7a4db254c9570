import copy
import pickle

import pytest

from prunekit import errors
from prunekit.errors import (
    BudgetError,
    FileFormatError,
    GraphError,
    InputError,
    LimitError,
    MissingFileError,
    PlanError,
    PrunekitError,
    UnfinishedError,
    UnsafeFileError,
)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_in_the_one_tree(name):
    assert issubclass(getattr(errors, name), PrunekitError)


def test_the_list_of_errors_is_sorted_and_complete():
    defined = [name for name, value in vars(errors).items() if isinstance(value, type)]
    assert errors.__all__ == sorted(defined)


@pytest.mark.parametrize(
    ("error", "parents"),
    [
        (InputError, (ValueError,)),
        (BudgetError, (InputError, ValueError)),
        (PlanError, (InputError, ValueError)),
        (FileFormatError, (ValueError,)),
        (UnsafeFileError, (FileFormatError, ValueError)),
        (MissingFileError, (FileNotFoundError,)),
        (GraphError, (RuntimeError,)),
        (UnfinishedError, (RuntimeError,)),
    ],
)
def test_every_leaf_is_the_builtin_that_a_caller_would_have_caught(error, parents):
    assert all(issubclass(error, parent) for parent in parents)


def test_broken_files_and_wrong_arguments_are_told_apart():
    assert not issubclass(FileFormatError, InputError)
    assert not issubclass(MissingFileError, FileFormatError)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])  # noqa: S301
def test_a_budget_error_keeps_its_range_across_processes(duplicate):
    again = duplicate(BudgetError("A budget of 0.3 cannot be met.", (0.6, 1.0)))
    assert type(again) is BudgetError
    assert (str(again), again.feasible) == ("A budget of 0.3 cannot be met.", (0.6, 1.0))


def test_a_limit_error_keeps_its_limit_across_processes():
    again = pickle.loads(pickle.dumps(LimitError("Too large.", "json-bytes", 7)))  # noqa: S301
    assert (str(again), again.limit, again.found) == ("Too large.", "json-bytes", 7)
