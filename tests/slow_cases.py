"""Which tests ``make test`` leaves out because of what they took in a whole run: ``slow_cases.txt``, made by ``make slow-cases``.

A case is listed if it took more than a fifth of a second or so. The quickest case of every test function is kept if it took less
than 0.8 s, so that little is left out altogether. Tests that are known to be slow have the mark in their files instead.
"""

import re
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

LIST = Path(__file__).with_name("slow_cases.txt")
KEPT = (
    "tests/test_slim.py::test_any_plan_comes_back_bit_equal",
    "tests/importance/test_without_loss.py::test_criteria_without_a_loss_are_those_that_are_listed",
    "tests/graph/test_flow.py::test_programs_of_operations_are_pruned_rightly",
    "tests/cli/test_interrupts.py::test_the_command_that_goes_on_does_not_start_anew",
    "tests/cli/test_consistency_command.py::test_a_folder_with_figures_and_pictures_is_written",
    "tests/nets/test_experts.py::TestFiles::test_saving_and_loading_changes_no_bit",
    "tests/nets/test_experts.py::TestStockPipelines::test_are_served_and_give_the_images_of_our_own_loop",
    "tests/nets/test_multi_decoder.py::TestPruning::test_decoders_are_pruned_and_the_encoder_stays",
    "tests/pipeline/test_runner.py::test_a_second_run_keeps_every_stage",
    "tests/search/test_multiples.py::test_whatever_target_some_widths_meet_is_met",
    "tests/search/test_targets.py::test_no_target_is_exceeded_and_the_miss_is_said_whatever_is_asked",
    "tests/test_docs.py::test_every_criterion_works_there",
    "tests/test_readme.py::test_the_importance_example_runs",
    "tests/test_slim.py::test_saving_and_loading_changes_no_bit",
)
"""Functions whose quickest case stays in ``make test`` whatever it takes: nothing else there shows that behaviour."""
FIXTURES = {
    "tests/cli/test_single_commands.py": "run_folder",
    "tests/pipeline/test_conditions.py": "conditional",
    "tests/pipeline/test_curriculum_run.py": "folder",
    "tests/pipeline/test_evidence_run.py": "ran",
    "tests/pipeline/test_multistage.py": "folder",
    "tests/pipeline/test_privacy.py": "home",
    "tests/pipeline/test_unknown_pictures.py": "experts",
    "tests/report/test_comparison_report.py": "reports",
    "tests/report/test_overview.py": "reports",
}
"""Fixtures that take five seconds or more. The tests that use them count as slow."""
QUICK, QUICKEST = 0.2, 0.8  # seconds: of any case, and of the quickest case of a function


def listed() -> frozenset[str]:
    """The node ids in the list."""
    return frozenset(LIST.read_text(encoding="utf-8").splitlines())


def slow(seconds: dict[str, float]) -> list[str]:
    """Node ids of those that take too long."""
    functions: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for name, took in seconds.items():
        functions[name.split("[")[0]].append((took, name))
    found = []
    for function, cases in functions.items():
        quickest, *others = sorted(cases)
        found += [name for took, name in others if took >= QUICK]
        found += [quickest[1]] if quickest[0] >= QUICKEST and function not in KEPT else []
    return sorted(found)


def times(report: Path) -> dict[str, float]:
    """Seconds by node id, from a report in JUnit's format."""
    found = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - see above
        place = re.sub(r"\.(?=Test[A-Z])", "::", case.attrib["classname"])
        module, *classes = place.split("::")
        name = "::".join([module.replace(".", "/") + ".py", *classes, case.attrib["name"]])
        found[name] = float(case.attrib["time"])
    return {name: took for name, took in found.items() if name.startswith("tests/")}


if __name__ == "__main__":
    LIST.write_text("".join(f"{name}\n" for name in slow(times(Path(sys.argv[1])))), encoding="utf-8")
