"""Reports: turn a finished run folder into tables, pictures and one self-contained HTML page.

Everything is made from the run's ``manifest.json``, and can be made again at any time. Only this package uses matplotlib, pandas
and jinja2.
"""

from typing import TYPE_CHECKING

from prunekit._lazy import at_need

if TYPE_CHECKING:
    from prunekit.report.claims import claim
    from prunekit.report.consistency import curves_png, describe_consistency, pairs_png
    from prunekit.report.groupings import describe_grouping, grouping_png
    from prunekit.report.heatmap import heatmap_png
    from prunekit.report.kinds import kind_of, report_writer, write_any_report
    from prunekit.report.overview import write_all_reports, write_overview
    from prunekit.report.page import write_report
    from prunekit.report.run import RunResults, read_run
    from prunekit.report.samples import grid_png
    from prunekit.report.sensitivities import describe_sensitivity, sensitivity_png
    from prunekit.report.tables import summary_rows
    from prunekit.report.wording import metric_lines

__all__ = [
    "RunResults",
    "claim",
    "curves_png",
    "describe_consistency",
    "describe_grouping",
    "describe_sensitivity",
    "grid_png",
    "grouping_png",
    "heatmap_png",
    "kind_of",
    "metric_lines",
    "pairs_png",
    "read_run",
    "report_writer",
    "sensitivity_png",
    "summary_rows",
    "write_all_reports",
    "write_any_report",
    "write_overview",
    "write_report",
]

_HOMES = {
    "claims": ("claim",),
    "consistency": ("curves_png", "describe_consistency", "pairs_png"),
    "groupings": ("describe_grouping", "grouping_png"),
    "heatmap": ("heatmap_png",),
    "kinds": ("kind_of", "report_writer", "write_any_report"),
    "overview": ("write_all_reports", "write_overview"),
    "page": ("write_report",),
    "run": ("RunResults", "read_run"),
    "samples": ("grid_png",),
    "sensitivities": ("describe_sensitivity", "sensitivity_png"),
    "tables": ("summary_rows",),
    "wording": ("metric_lines",),
}
__getattr__ = at_need(__name__, _HOMES)
