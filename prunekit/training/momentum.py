"""Momentum decay with learning-rate compensation (MDLRC, arXiv:2404.07946), for torch optimizers with ``betas`` or ``momentum``.

Diffusion losses are smooth, so a large momentum may slow training and make it oscillate; the paper lets β fall from β0. The effect
on the steps, and thus the compensation, depends on the optimizer:

- *Heavy ball* (groups with ``momentum``: SGD, RMSprop), m ← βm + g and θ ← θ − lr·m. A constant gradient g moves a weight by
  lr·g/(1 − β) per step, and the newest gradient contributes lr·g of it. A falling β shrinks the steps.
- *Normalised average* (groups with ``betas``: Adam and its kin), m ← βm + (1 − β)g. A constant gradient moves a weight by the
  same amount for any β, and the newest gradient contributes a share 1 − β of it. A falling β leaves the mean step unchanged and
  gives more weight to the newest, noisy gradient.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, get_args

from prunekit._chosen import check_choice
from prunekit.choices import Compensation
from prunekit.errors import InputError

__all__ = ["Compensation", "ExponentialMomentum", "FallingMomentum", "MomentumDecay", "RationalMomentum"]


class FallingMomentum(Protocol):
    """β as a pure function of the train step."""

    @property
    def initial(self) -> float:
        """β0."""
        ...

    def at(self, train_step: int) -> float:
        """β after ``train_step`` steps, in [0, 1)."""
        ...


@dataclass(frozen=True)
class RationalMomentum:
    """β_t = β0(1 − τ)/((1 − β0) + β0(1 − τ)) with τ = i/steps: β/(1 − β) falls linearly to 0.

    This is Demon's rule (arXiv:1910.04952), which public code uses for MDLRC; the published form is not known.

    Args:
        steps: train steps until β is 0.
        initial: β0.
        minimum: β does not fall below it; some public code stops near 0.4.

    Raises:
        InputError: steps are below 1, or a momentum is out of its range.
    """

    steps: int
    initial: float = 0.9
    minimum: float = 0.0

    def __post_init__(self) -> None:
        _check_momentum(self.initial)
        if self.steps < 1:
            raise InputError(f"Got a momentum that falls for {self.steps} train steps; expected at least 1.")
        if not 0 <= self.minimum <= self.initial:
            raise InputError(
                f"Got a momentum that falls from {self.initial!r} to {self.minimum!r}; expected a minimum between 0 and where it "
                "starts."
            )

    def at(self, train_step: int) -> float:
        """See :class:`FallingMomentum`."""
        left = self.initial * (1 - min(1.0, train_step / self.steps))
        return max(left / ((1 - self.initial) + left), self.minimum)


@dataclass(frozen=True)
class ExponentialMomentum:
    """β_i = max(β0·d^i, β_min) after i train steps, another reading of MDLRC in public code.

    Args:
        factor: d in (0, 1].
        minimum: β_min; 0.4 in public code.
        initial: β0.

    Raises:
        InputError: the factor or a momentum is out of its range.
    """

    factor: float
    minimum: float = 0.4
    initial: float = 0.9

    def __post_init__(self) -> None:
        _check_momentum(self.initial)
        if not 0 < self.factor <= 1 or not 0 <= self.minimum <= self.initial:
            raise InputError(
                f"Got a momentum that falls by the factor {self.factor!r} from {self.initial!r} to {self.minimum!r}; expected a "
                "factor in (0, 1] and a minimum between 0 and where it starts."
            )

    def at(self, train_step: int) -> float:
        """See :class:`FallingMomentum`."""
        return max(self.initial * self.factor**train_step, self.minimum)


def _check_momentum(initial: float) -> None:
    if not 0 < initial < 1:
        raise InputError(f"Got an initial momentum of {initial!r}; expected a number between 0 and 1, both excluded.")


@dataclass(frozen=True)
class MomentumDecay:
    """Sets β and scales the learning rates during an optimizer's step; nothing is kept between steps.

    So it resumes from the train step alone. Any schedule may set the learning rates, separately for each parameter group: the
    values that it set are restored after the step, and ``optimizer.state_dict()`` stores these.

    ============  =======================  ====================  ==========================================
    compensation  factor for ``momentum``  factor for ``betas``  unchanged compared with β0
    ============  =======================  ====================  ==========================================
    ``step``      (1 − β)/(1 − β0)         1                     the step under a constant gradient
    ``gradient``  1                        (1 − β0)/(1 − β)      the newest gradient's contribution
    ``code``      (1 − β0)/(1 − β)         (1 − β0)/(1 − β)      the latter for ``betas``, neither for ``momentum``
    ``none``      1                        1                     the learning rate
    ============  =======================  ====================  ==========================================

    ``step`` is the default and this project's choice: it changes only how past gradients are averaged. For Adam this means no
    compensation. Public code calls lr·(1 − β0)/(1 − β) MDLRC; this is ``code``, and with Adam it equals ``gradient``. Its learning
    rate falls to a tenth for β0 = 0.9, and AdamW's weight decay, which is in units of the rate, falls with it. Use ``none`` for an
    optimizer with a ``momentum`` that is a normalised average (Muon).

    torch's Adam corrects its bias by 1 − β_i^i with the current β; 1 − Πβ would be exact. For :class:`RationalMomentum` with
    β0 = 0.9 this makes early steps too small by a fraction of at most 2.8/steps (0.3 % for 1,000 steps), and by less than 1e-5
    after a hundred steps, so torch's correction is kept.

    Args:
        momentum: β by train step.
        compensation: see the table.

    Raises:
        InputError: the compensation is unknown.

    Example:
        >>> import torch
        >>> decay = MomentumDecay(RationalMomentum(steps=100))
        >>> weights = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([weights], lr=0.1, momentum=0.9)
        >>> with decay.applied(optimizer, train_step=100):
        ...     print(optimizer.param_groups[0]["momentum"], round(optimizer.param_groups[0]["lr"], 6))
        0.0 1.0
        >>> optimizer.param_groups[0]["momentum"], optimizer.param_groups[0]["lr"]
        (0.9, 0.1)
    """

    momentum: FallingMomentum
    compensation: Compensation = "step"

    def __post_init__(self) -> None:
        check_choice("compensation", self.compensation, get_args(Compensation))

    def at(self, train_step: int, averages: bool) -> tuple[float, float]:
        """β and the learning rate's factor at a train step, counted from 0.

        Args:
            train_step: how many train steps came before.
            averages: whether the optimizer's momentum is a normalised average (``betas``) and not a heavy ball (``momentum``).
        """
        beta = self.momentum.at(train_step)
        shrunk = (1 - self.momentum.initial) / (1 - beta)
        match self.compensation:
            case "step":
                return beta, 1.0 if averages else 1 / shrunk
            case "gradient":
                return beta, shrunk if averages else 1.0
            case "code":
                return beta, shrunk
            case "none":
                return beta, 1.0

    @contextmanager
    def applied(self, optimizer: Any, train_step: int) -> Iterator[None]:
        """Within the block, ``optimizer.step()`` uses this train step's β and scaled learning rates; afterwards they are restored.

        Args:
            optimizer: a torch optimizer, or a wrapper with its ``param_groups``.
            train_step: how many train steps came before.

        Raises:
            InputError: a parameter group has neither ``betas`` nor ``momentum``.
        """
        before: list[tuple[dict[str, Any], dict[str, Any]]] = []
        try:
            for group in optimizer.param_groups:
                averages = "betas" in group
                if not averages and "momentum" not in group:
                    raise InputError(
                        f"Got {type(optimizer).__name__}, which has neither betas nor momentum; expected one such as AdamW."
                    )
                beta, factor = self.at(train_step, averages)
                changed = {"betas": (beta, *group["betas"][1:])} if averages else {"momentum": beta}
                before.append((group, {key: group[key] for key in (*changed, "lr")}))
                group.update(changed, lr=group["lr"] * factor)
            yield
        finally:
            for group, kept in before:
                group.update(kept)

    def describe(self) -> dict[str, object]:
        """The settings, JSON-able, for a checkpoint's fingerprint."""
        fields = asdict(self)
        return {**fields, "momentum": [type(self.momentum).__qualname__, fields["momentum"]]}
