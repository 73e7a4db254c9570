"""Writes numbers as text, and makes sentences from them."""

import math

from prunekit.report.run import RunResults
from prunekit.results.estimate import Estimate
from prunekit.results.expert_results import Metrics

__all__ = [
    "ABSENT",
    "clear",
    "count_text",
    "decibel_text",
    "error_note",
    "estimate_text",
    "interval_text",
    "large_text",
    "mean_losses",
    "metric_lines",
    "number_text",
    "ratio_text",
    "short_ratio",
    "short_verdict",
    "si_text",
    "timestep_text",
    "unclear",
    "unpaired",
    "verdict",
    "warnings_of",
]

ABSENT = "–"
_PREFIXES = ("", "k", "M", "G", "T", "P")
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def _minus(text: str) -> str:
    """Replace hyphens by minus signs, which screen readers read aloud."""
    return text.replace("-", "−")


def count_text(value: float | None) -> str:
    """A count in full with thousands separators, e.g. ``12,345,678``; a mean of counts with one decimal."""
    if value is None:
        return ABSENT
    return f"{round(value):,}" if value == round(value) else f"{value:,.1f}"


def ratio_text(value: float | None) -> str:
    """A ratio with three decimals, for a column."""
    return ABSENT if value is None else _minus(f"{value:.3f}")


def short_ratio(value: float) -> str:
    """A ratio in a sentence: at most three decimals, no trailing zeros."""
    return _minus(f"{round(value, 3):g}")


def number_text(value: float | None, digits: int = 4) -> str:
    """A number with ``digits`` significant digits, plain between 1e-4 and 1e6."""
    if value is None:
        return ABSENT
    if not math.isfinite(value) or value == 0:
        return _minus(f"{value:g}")
    exponent = math.floor(math.log10(abs(value)))
    if -5 < exponent < 6:
        return _minus(f"{value:.{max(0, digits - 1 - exponent)}f}")
    return _power_of_ten(value, digits)


def large_text(value: float | None) -> str:
    """A number that is too long to read in full, e.g. ``1.235 × 10¹⁵``; in full below a million."""
    if value is None:
        return ABSENT
    return count_text(value) if abs(value) < 1e6 else _power_of_ten(value, 4)


def si_text(value: float) -> str:
    """A large number with three digits and k, M, G, T or P, for a picture or a line.

    Example:
        >>> si_text(11_491_328), si_text(2.353e12), si_text(950)
        ('11.5 M', '2.35 T', '950')
    """
    power = min(max(int(math.log10(abs(value)) // 3), 0), 5) if value else 0
    scaled = number_text(value / 1000**power, 3)
    return f"{scaled} {_PREFIXES[power]}" if power else f"{round(value, 1):g}"


def _power_of_ten(value: float, digits: int) -> str:
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{_minus(mantissa)} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def estimate_text(estimate: Estimate | None) -> str:
    """``mean ± se``, rounded to the error's digits; without an error, the mean with four significant digits.

    Example:
        >>> [estimate_text(Estimate(mean=4.2137, se=error)) for error in (0.052, 0.0138, None)]
        ['4.21 ± 0.05', '4.214 ± 0.014', '4.214']
    """
    if estimate is None:
        return ABSENT
    if estimate.se is None:
        return number_text(estimate.mean)
    if not (math.isfinite(estimate.se) and estimate.se > 0):
        return f"{number_text(estimate.mean)} ± {number_text(estimate.se)}"
    decimals = _decimals(estimate.se)
    if decimals > 7:
        return f"{_power_of_ten(estimate.mean, 4)} ± {_power_of_ten(estimate.se, 2)}"
    return _minus(f"{estimate.mean:.{decimals}f} ± {estimate.se:.{decimals}f}")


def _decimals(error: float) -> int:
    """The Particle Data Group's rule: two digits of the error when they are below 35, else one."""
    exponent = math.floor(math.log10(error))
    return max(0, -exponent + (error / 10.0**exponent < 3.55))


def interval_text(difference: Estimate) -> str:
    """``95 % interval −0.11 … +0.23``; empty without an error.

    Example:
        >>> interval_text(Estimate(mean=0.06, se=0.04, df=2)), interval_text(Estimate(mean=0.06, se=0.014))
        ('95 % interval −0.11 … +0.23', '95 % interval +0.033 … +0.087')
    """
    half = difference.half_width
    if half is None or difference.se is None or not (math.isfinite(half) and half > 0):
        return ""
    low, high, decimals = difference.mean - half, difference.mean + half, _decimals(difference.se)
    if decimals > 7:
        return f"95 % interval {_power_of_ten(low, 2)} … {_power_of_ten(high, 2)}"
    return _minus(f"95 % interval {low:+.{decimals}f} … {high:+.{decimals}f}")


def decibel_text(value: float | None) -> str:
    """A level in decibels, one decimal."""
    return ABSENT if value is None else _minus(f"{value:.1f}")


def timestep_text(start: int, stop: int) -> str:
    """Timesteps of a half-open range, both ends included, e.g. ``0–199``."""
    return f"{start}–{stop - 1}"


def verdict(difference: Estimate, base: Estimate, paired: bool = True) -> str:
    """Whether a lower-is-better number got better or worse, in words; unclear if the 95 % interval contains zero.

    Args:
        difference: new − base.
        base: the value that the new one is compared with.
        paired: whether the difference was measured pair by pair; otherwise the two errors were combined as independent.
    """
    if difference.mean == 0:
        return "the same"
    if difference.se is None:
        return "unclear, the error of the difference is not known"
    if unclear(difference):
        kind = "paired difference" if paired else "difference"
        return f"unclear, the {kind} {estimate_text(difference)} may be chance ({interval_text(difference)})"
    kind = "paired difference" if paired else "difference, not paired,"
    return f"{_change_text(difference, base)} ({kind} {estimate_text(difference)})"


def _change_text(difference: Estimate, base: Estimate) -> str:
    """``worse by 4.7 %``, ``better by 0.3 %`` or ``the same``, for a lower-is-better number."""
    if difference.mean == 0:
        return "the same"
    return f"{'worse' if difference.mean > 0 else 'better'} by {_size(difference.mean, base.mean)}"


def short_verdict(new: Estimate, base: Estimate, difference: Estimate | None = None) -> str:
    """:func:`verdict` for a table's cell.

    Args:
        new: the value to judge.
        base: the value to compare it with.
        difference: new − base if measured as a pair; if missing, the two errors are combined as independent.
    """
    difference = difference or unpaired(new, base)
    if clear(difference) or difference.mean == 0:
        return _change_text(difference, base)
    signed = f"{'+' if difference.mean > 0 else '−'}{_size(difference.mean, base.mean)}"
    return f"no clear difference ({signed})" if difference.se is not None else f"no error known ({signed})"


def unpaired(new: Estimate, base: Estimate) -> Estimate:
    """Difference new − base with the two errors combined as independent; no error if one of them is unknown.

    Degrees of freedom are combined as Welch and Satterthwaite do (Biometrics Bulletin 2, 1946).
    """
    mean = new.mean - base.mean
    if new.se is None or base.se is None:
        return Estimate(mean=mean)
    se = math.hypot(new.se, base.se)
    lost = sum((each.se / se) ** 4 / each.df for each in (new, base) if each.se and each.df)
    return Estimate(mean=mean, se=se, df=1 / lost if lost else None)


def unclear(difference: Estimate) -> bool:
    """Whether the 95 % interval of a difference contains zero; false without an error."""
    return difference.mean != 0 and difference.half_width is not None and abs(difference.mean) < difference.half_width


def clear(difference: Estimate) -> bool:
    """Whether a difference has an error and its 95 % interval does not contain zero."""
    return difference.mean != 0 and difference.se is not None and not unclear(difference)


def _size(change: float, base: float) -> str:
    """A change as a percentage of the base; as a number if the base is not positive (KID can be negative)."""
    if base <= 0:
        return number_text(abs(change), 3)
    percent = 100 * abs(change) / base
    return "<0.1 %" if percent < 0.05 else f"{percent:.1f} %"


def error_note(results: RunResults) -> str:
    """A note on what the metrics' errors mean, or on metrics without one."""
    metrics = results.metrics
    if metrics is None:
        return ""
    rows = [e for row in metrics.rows for e in (row.fid, row.kid) if e is not None]
    if not rows:
        return ""
    if all(estimate.se is not None for estimate in rows):
        return (
            f"± is one standard error over {len(metrics.seeds)} seeds of the samples' noise; each network was trained once."
            if metrics.seeds
            else "± is one standard error."
        )
    return "One seed, no error." if len(metrics.seeds or ()) <= 1 else "Numbers without ± have no error stated."


def mean_losses(results: RunResults) -> dict[str, float | None]:
    """Losses of ``base``, ``pruned`` and ``expert``, averaged with the sampler's shares; None if a group has no loss.

    They have no error, since the groups share their images and their errors are correlated.
    """
    by_group = {loss.group: loss for loss in results.losses}
    means: dict[str, float | None] = {}
    for model in ("base", "pruned", "expert"):
        found = [getattr(by_group.get(group.index), model, None) for group in results.allocation.groups]
        known = [loss.mean for loss in found if loss is not None]
        shares = [group.share for group in results.allocation.groups]
        complete = len(known) == len(found)
        means[model] = sum(s * mean for s, mean in zip(shares, known, strict=True)) if complete else None
    return means


def metric_lines(metrics: Metrics | None) -> list[str]:
    """One line per model with its FID and KID, with features and count; or the reason why there are none."""
    if metrics is None:
        return []
    lines = []
    for row in metrics.rows:
        found = [
            f"{metrics.label(name)} {estimate_text(value)}"
            for name, value in (("FID", row.fid), ("KID", row.kid))
            if value is not None
        ]
        lines.append(f"{row.model}: {', '.join([*found, f'{number_text(row.seconds_per_image, 3)} s per image'])}")
    return [*lines, *([f"No FID or KID: {metrics.no_features}"] if metrics.no_features else [])]


def warnings_of(results: RunResults) -> list[str]:
    """Sentences about numbers of the run that do not agree with each other or with the targets."""
    found = []
    for expert in results.experts.values():
        if expert.target_macs is not None and expert.macs > expert.target_macs:
            found.append(
                f"The expert of timestep group {expert.group} has {count_text(expert.macs)} MACs, "
                f"more than its target of {count_text(expert.target_macs)}."
            )
    assembled, groups = results.assembled, results.allocation.groups
    if assembled is not None and all(group.index in results.experts for group in groups):
        mean = sum(group.share * results.experts[group.index].macs for group in groups)
        if not math.isclose(mean, assembled.mean_macs, rel_tol=1e-6):
            found.append(
                f"The assembled model was measured at {count_text(assembled.mean_macs)} MACs per sampling step; "
                f"the experts weighted by their shares give {count_text(mean)}."
            )
    judged = results.metrics.judged if results.metrics else None
    ratio = judged.mac_ratio if judged is not None and judged.model == "experts" else None
    if assembled is not None and ratio is not None and not math.isclose(ratio, assembled.mean_mac_ratio, rel_tol=1e-3):
        found.append(
            f"Quality was measured at {short_ratio(ratio)} of the base's MACs and the assembled model keeps "
            f"{short_ratio(assembled.mean_mac_ratio)}: the two used different sampling steps."
        )
    return found
