import functools
import os
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

# Before torch is imported: sums over several threads differ in their last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# xdist sets it for its workers; tables are complete without it, as in a pipe.
os.environ.pop("COLUMNS", None)

import forking
import hypothesis
import pytest
import slow_cases
from benches import Bench
from networks import NETWORKS
from xdist.scheduler import LoadScopeScheduling

from prunekit.cost import CostModel
from prunekit.graph import trace

collect_ignore_glob = ["conftest.py", "*/conftest.py"]  # --doctest-modules would import them all as `conftest`

# `make test-all` asks for "thorough"; max_examples is in percent of the number that a test states (see examples.py)
hypothesis.settings.register_profile("quick", max_examples=25, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=100, deadline=None)
hypothesis.settings.load_profile("quick")

MOST_SECONDS = 20.0
"""Processor time that a test may take without the mark ``slow``; on a quiet machine they take less than three."""

SHARED_IN_FOLDER = {
    "tests/cli": r"journey|typed_once",
    "tests/pipeline": r"finished|finished_run|own_copy",
    "tests/report": r"full_run|reports",
    "tests/training": r"uninterrupted",
}
"""Expensive fixtures of a folder's conftest: the files that use them stay in one worker."""


@pytest.fixture(scope="session")
def bench():
    """``bench(name, norm_mode)``: each network is built and traced once for the whole session."""

    @functools.cache
    def make(name: str, norm_mode: str = "even") -> Bench:
        network = NETWORKS[name]()
        graph = trace(network.model, network.inputs, norm_mode)
        return Bench(network.model, network.inputs, graph, CostModel.of(network.model, graph, network.inputs))

    return make


@pytest.hookimpl(tryfirst=True)  # before ``-m "not slow"`` looks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what is listed, and the cases of parametrized tests that ``slow_but`` and ``slow_cases`` speak of."""
    slow = slow_cases.listed()
    for item in items:
        but, cases = item.get_closest_marker("slow_but"), item.get_closest_marker("slow_cases")
        if (
            (but and not _is_among(item, but.args))
            or (cases and _is_among(item, cases.args))
            or item.nodeid in slow
            or _waits(item)
        ):
            item.add_marker(pytest.mark.slow)


def _waits(item: pytest.Item) -> bool:
    """Whether a test uses an expensive fixture of its file."""
    return slow_cases.FIXTURES.get(item.nodeid.split("::")[0]) in getattr(item, "fixturenames", ())


def _is_among(item: pytest.Item, patterns: tuple[str, ...]) -> bool:
    """Whether the case of a test, which stands in brackets behind its name, matches one of some patterns."""
    callspec = getattr(item, "callspec", None)
    return callspec is not None and any(fnmatch(callspec.id, pattern) for pattern in patterns)


class _ByTest(LoadScopeScheduling):
    """Gives tests to whichever worker is free, one by one; files whose tests share what is expensive stay whole.

    xdist's own ``--dist loadgroup`` does nothing under pytest 9.2, whose node ids cannot be given a group's name.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::")[0]
        return _kept_together(self.config.rootpath / path, path) or nodeid


@pytest.hookimpl(optionalhook=True)  # without xdist, `-p no:xdist`, tests run in turn
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _ByTest(config, log)


@functools.cache
def _kept_together(file: Path, name: str) -> str:
    """What a file's tests share a worker for: its folder's fixtures, its own ones, its caches; empty if nothing."""
    text = file.read_text(encoding="utf-8") if name.startswith("tests/") else ""
    for folder, fixtures in SHARED_IN_FOLDER.items():
        if name.startswith(f"{folder}/") and re.search(rf"\b({fixtures})\b", text):
            return folder
    return name if re.search(r'scope="(module|session)"|@(functools\.)?cache\b', text) else ""


def _processor_seconds() -> float:
    """User and system time of this process and of the processes that it has waited for, or forked."""
    return sum(os.times()[:4]) + forking.processor_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """Note the processor time of a test; an unmarked test that takes too much fails."""
    before = _processor_seconds()
    result = yield
    seconds = _processor_seconds() - before
    item.user_properties.append(("processor seconds", round(seconds, 2)))
    if seconds > MOST_SECONDS and item.get_closest_marker("slow") is None:
        pytest.fail(
            f"Took {seconds:.1f} s of processor time; expected at most {MOST_SECONDS:g} s. "
            "Make it cheaper or mark it with @pytest.mark.slow.",
            pytrace=False,
        )
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The tests that took the most processor time; doctests, which are not below this folder, are not measured."""
    times = [
        (seconds, report.nodeid)
        for report in terminalreporter.getreports("passed")
        for key, seconds in report.user_properties
        if report.when == "call" and key == "processor seconds"
    ]
    if not times:
        return
    total = sum(seconds for seconds, _ in times)
    terminalreporter.write_sep("-", f"processor time: {total:.0f} s in tests; the most expensive")
    for seconds, name in sorted(times, reverse=True)[:15]:
        terminalreporter.write_line(f"{seconds:7.2f} s  {name}")
