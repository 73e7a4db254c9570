"""Reports: a finished run folder becomes tables, pictures and one self-contained HTML page.

The run's ``manifest.json`` is the truth; everything here is made from it again at any time. matplotlib, pandas and jinja2
are used on this floor only.
"""

from prunekit.report.consistency import curves_png, describe_consistency, pairs_png
from prunekit.report.curriculum import curriculum_claim
from prunekit.report.evidence import evidence_claim
from prunekit.report.groupings import describe_grouping, grouping_png
from prunekit.report.heatmap import heatmap_png
from prunekit.report.index import published_runs, write_index
from prunekit.report.kinds import report_writer, write_any_report
from prunekit.report.multistage import multistage_claim
from prunekit.report.page import write_report
from prunekit.report.run import MANIFEST_FORMAT, Metrics, RunResults, read_run
from prunekit.report.samples import grid_png
from prunekit.report.tables import summary_rows
from prunekit.report.wording import claim, metric_lines

__all__ = [
    "MANIFEST_FORMAT",
    "Metrics",
    "RunResults",
    "claim",
    "curriculum_claim",
    "curves_png",
    "describe_consistency",
    "describe_grouping",
    "evidence_claim",
    "grid_png",
    "grouping_png",
    "heatmap_png",
    "metric_lines",
    "multistage_claim",
    "pairs_png",
    "published_runs",
    "read_run",
    "report_writer",
    "summary_rows",
    "write_any_report",
    "write_index",
    "write_report",
]
