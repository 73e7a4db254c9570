"""What a comparison's page shows beside its table and curves."""

from collections.abc import Callable
from pathlib import Path

import pytest
from comparison_manifest import make_multistage

from prunekit.report.multistage import write_multistage_report


def test_networks_for_stages_are_set_against_what_they_cost(reports: Path) -> None:
    report = reports / "stages" / "report"
    page = (report / "index.html").read_text()
    assert "Quality against cost" in page
    assert "FID against the fraction of the unified network&#39;s MACs while sampling: unified 0.50" in page
    assert "tailored decoders, uniform 0.620 ± 0.010 at 0.75" in page
    assert {path.name for path in report.glob("pareto_*")} == {"pareto_fid.png", "pareto_loss.png"}


@pytest.mark.parametrize("kind", ["stages", "curricula"])
def test_nothing_is_set_against_costs_that_are_all_the_same(
    kind: str, reports: Path, write_run: Callable[..., Path]
) -> None:
    report = reports / "curricula" / "report"
    if kind == "stages":
        manifest = make_multistage()
        manifest["multistage"] = [row for row in manifest["multistage"] if row["network"] != "tailored"]
        report = write_multistage_report(write_run(manifest)).parent
    assert "Quality against cost" not in (report / "index.html").read_text()
    assert list(report.glob("pareto_*")) == []
