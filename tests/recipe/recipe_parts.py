"""Sections that the tests of recipes put together."""

from typing import Any

CHECKPOINT: dict[str, Any] = {"checkpoint": "embedded:digits"}
MODEL: dict[str, Any] = {"model": {"class": "UNet2DModel", "config": {"in_channels": 1}}}
SECTIONS: dict[str, dict[str, Any]] = {"groups": {}, "allocation": {}, "prune": {}, "finetune": {}, "evaluation": {}}
CURRICULUM: dict[str, Any] = {"entries": {"a": {}, "b": {"loss_weight": "p2"}}}
MULTISTAGE: dict[str, Any] = {"widths": [[8], [8], [8]]}
EVIDENCE: dict[str, Any] = {"headline": "a", "entries": {"a": {}}}
