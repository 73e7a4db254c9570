"""The finding of a run of experts, in sentences made from its numbers, with its limits."""

from dataclasses import dataclass

from prunekit.ledger import making_macs
from prunekit.report.doubts import doubt_of, doubt_sentence
from prunekit.report.run import RunResults
from prunekit.report.wording import (
    clear,
    estimate_text,
    large_text,
    mean_losses,
    number_text,
    short_ratio,
    unpaired,
    verdict,
)
from prunekit.results.estimate import Estimate
from prunekit.results.expert_results import MetricRow

__all__ = ["claim", "contradiction", "fid_doubt", "loss_difference", "training_caveat"]

_FAR = 0.1  # a better FID is not believed if the loss rises by this share of the base's


@dataclass(frozen=True)
class _Compared:
    """A lower-is-better number of the experts, compared with the base's."""

    name: str
    new: Estimate
    old: Estimate
    difference: Estimate
    paired: bool

    @property
    def text(self) -> str:
        found = verdict(self.difference, self.old, self.paired)
        return f"{self.name} is {self._number(self.new)} against the base's {self._number(self.old)}: {found}"

    @staticmethod
    def _number(estimate: Estimate) -> str:
        return number_text(estimate.mean) if estimate.se is None else estimate_text(estimate)


def claim(results: RunResults) -> str:
    """The run's finding, made from its numbers: the quality compared with the base, and the fraction of the base's compute.

    Quality is FID if it was measured on enough images with features that know them, otherwise KID, otherwise the held-out denoising
    loss. The loss is added if it clearly disagrees with FID. Further sentences say why FID is not used, and how much training the
    experts had on top of the base's.
    """
    row = results.metrics.judged if results.metrics else None
    ratio = row.mac_ratio if row is not None else None
    if ratio is None and results.assembled is not None:
        ratio = results.assembled.mean_mac_ratio
    scope = "With the experts" if ratio is None else f"At {short_ratio(ratio)} of the base's MACs per sampling step"
    doubt = fid_doubt(results)
    metric, loss = None if doubt else _metric(results, row), _loss(results)
    sentences = [f"{scope}, {_finding(metric, loss)}."]
    if results.metrics is not None:
        sentences.append(doubt_sentence(results.metrics.label("FID"), results.metrics, doubt))
    if metric is not None or loss is not None:
        sentences.append(training_caveat(results))
    return " ".join(filter(None, sentences))


def contradiction(metric: Estimate, loss: Estimate, base_loss: float) -> str:
    """How the held-out loss disagrees with FID: ``far``, ``other``, or empty if it does not.

    Args:
        metric: difference of FID from the base; lower is better.
        loss: difference of the held-out loss from the base.
        base_loss: the base's held-out loss.

    Returns:
        ``far`` if FID is lower and the loss higher by a tenth or more; ``other`` if the loss clearly changed and FID did not
        clearly change the same way, or if the loss has no error and changed the other way.
    """
    same = (metric.mean < 0) == (loss.mean < 0)
    if loss.mean == 0 or (same if loss.se is None else not clear(loss)):
        return ""
    if metric.mean < 0 and loss.mean > _FAR * base_loss:
        return "far"
    return "" if clear(metric) and same else "other"


def training_caveat(results: RunResults) -> str:
    """A sentence about the training on top of the base's, from the ledger; empty if there was none."""
    base, made = making_macs(results.ledger)
    base = base or _known_training(results)
    if not made:
        return ""
    if base:
        took = f"an additional {short_ratio(made / base)} of the base's training MACs"
    else:
        took = f"{large_text(made)} MACs in addition to the base's training, which has no recorded cost"
    return f"Making the experts took {took}, so this is not a comparison at equal training cost."


def _known_training(results: RunResults) -> int:
    """MACs of the base's training, as the manifest records them; 0 if it does not."""
    return int(results.base.training.macs) if results.base.training else 0


def loss_difference(results: RunResults) -> Estimate | None:
    """Mean paired difference of the held-out loss over the sampler's steps; None if a timestep group has none.

    The groups share their images, so their errors may be correlated: the weighted sum of the errors is an upper bound.
    """
    by_group = {loss.group: loss.difference for loss in results.losses}
    mean, error = 0.0, 0.0
    for group in results.allocation.groups:
        difference = by_group.get(group.index)
        if difference is None or difference.se is None:
            return None
        mean += group.share * difference.mean
        error += group.share * difference.se
    return Estimate(mean=mean, se=error)


def _finding(metric: _Compared | None, loss: _Compared | None) -> str:
    if metric is None:
        return loss.text if loss else "the quality was not measured"
    against = contradiction(metric.difference, loss.difference, loss.old.mean) if loss else ""
    if loss is None or not against:
        return metric.text
    if against == "far":
        return f"two measures contradict each other, so no gain is claimed: {loss.text}; but {metric.text}"
    return f"{metric.text}; {loss.text}"


def fid_doubt(results: RunResults) -> str:
    """Why the claim must not rest on FID and KID; empty if it may, or if there are no metrics."""
    if results.metrics is None:
        return ""
    return doubt_of(results.metrics, results.base.data or results.manifest.settings.data or {})


def _metric(results: RunResults, row: MetricRow | None) -> _Compared | None:
    metrics = results.metrics
    base = metrics.row("base") if metrics else None
    if metrics is None or base is None or row is None:
        return None
    for name, new, old, difference in (
        ("FID", row.fid, base.fid, row.fid_difference),
        ("KID", row.kid, base.kid, row.kid_difference),
    ):
        if new is not None and old is not None:
            return _Compared(metrics.label(name), new, old, difference or unpaired(new, old), difference is not None)
    return None


def _loss(results: RunResults) -> _Compared | None:
    losses = mean_losses(results)
    base, expert = losses["base"], losses["expert"]
    if base is None or expert is None:
        return None
    name = "the held-out denoising loss, averaged over the sampler's steps,"
    difference = loss_difference(results)
    known = difference or Estimate(mean=expert - base)
    return _Compared(name, Estimate(mean=expert), Estimate(mean=base), known, difference is not None)
