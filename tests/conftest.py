import functools
import os
from fnmatch import fnmatch

# Before torch is imported: sums over several threads differ in their last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
from benches import Bench
from networks import NETWORKS

from prunekit.cost import CostModel
from prunekit.graph import trace

collect_ignore_glob = ["conftest.py", "*/conftest.py"]  # --doctest-modules would import them all as `conftest`

# `make test-all` asks for "thorough"; max_examples is in percent of the number that a test states (see examples.py)
hypothesis.settings.register_profile("quick", max_examples=25, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=100, deadline=None)
hypothesis.settings.load_profile("quick")

MOST_SECONDS = 10.0
"""Processor time that a test may take without the mark ``slow``; on a quiet machine, such tests take less than three seconds."""

SHARED_BY_ALL = {"bench", "tmp_path_factory", "worker_id", "testrun_uid"}
"""Fixtures of the session that are cheap to make in every worker."""


@pytest.fixture(scope="session")
def bench():
    """``bench(name, norm_mode)``: each network is built and traced once for the whole session."""

    @functools.cache
    def make(name: str, norm_mode: str = "even") -> Bench:
        network = NETWORKS[name]()
        graph = trace(network.model, network.inputs, norm_mode)
        return Bench(network.model, network.inputs, graph, CostModel.of(network.model, graph, network.inputs))

    return make


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture of their module or session stay in one worker; all others go to whichever is free.

    ``slow_but(*patterns)`` marks the cases of a test as slow whose ids match none of the patterns.
    """
    for item in items:
        if (but := item.get_closest_marker("slow_but")) and not any(fnmatch(_case(item), each) for each in but.args):
            item.add_marker(pytest.mark.slow)
        if (shared := _shared_fixture(item)) and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(shared))


def _case(item: pytest.Item) -> str:
    """What stands in brackets behind a test's name."""
    callspec = getattr(item, "callspec", None)
    return "" if callspec is None else callspec.id


def _shared_fixture(item: pytest.Item) -> str:
    """The fixture of the widest scope that a test uses, with the place that defines it; empty if there is none."""
    found = getattr(item, "_fixtureinfo", None)
    if found is None:  # a doctest
        return ""
    for scope in ("session", "package", "module", "class"):
        for name, definitions in sorted(found.name2fixturedefs.items()):
            if definitions[-1].scope == scope and name not in SHARED_BY_ALL:
                return f"{definitions[-1].baseid}::{name}"
    return ""


def _processor_seconds() -> float:
    """User and system time of this process and of the processes that it has waited for."""
    return sum(os.times()[:4])


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
