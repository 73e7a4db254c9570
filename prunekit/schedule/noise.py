r"""Noise schedules: the one place where a signal-to-noise ratio is computed.

A schedule states, for every training timestep t (0 = cleanest), the two coefficients of

.. math:: x_t = a_t x_0 + b_t \varepsilon, \qquad snr(t) = a_t^2 / b_t^2 .

Variance-preserving diffusion has a² + b² = 1 (a² = ᾱ), EDM has a = 1 and b = σ, rectified flow a = 1 − b.
Everything is numpy float64: no torch is needed to plan a budget.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np

from prunekit._json import JsonDict
from prunekit._messages import did_you_mean
from prunekit._types import FloatArray
from prunekit.choices import ScheduleName
from prunekit.errors import InputError
from prunekit.schedule.diffusers import of_scheduler
from prunekit.schedule.steps import check_count

__all__ = ["NAMED_KINDS", "NoiseSchedule"]

NAMED_KINDS: tuple[str, ...] = get_args(ScheduleName)
"""Kinds of noise schedules that are fully described by a name and a number of timesteps."""
_KINDS = (*NAMED_KINDS, "explicit")
_LISTS = ("betas", "signal", "noise", "sigmas")  # options with a number for each timestep


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Signal and noise coefficients of every training timestep.

    Args:
        signal: a_t, shape (num_timesteps,), float64, positive.
        noise: b_t, shape (num_timesteps,), float64, positive; the SNR must fall strictly with t.
        config: how the schedule was made, JSON-able; :meth:`from_config` makes it again.
        scheduler: config of the diffusers scheduler that came with the network, as diffusers writes it. Samplers keep its
            settings (spacing, clipping, variance); empty for a network without one.

    Raises:
        InputError: the arrays differ in shape, are not positive and finite, or their SNR does not fall.

    Example:
        >>> schedule = NoiseSchedule.linear(1000)
        >>> schedule.num_timesteps, bool(schedule.snr_db[0] > 30 > -30 > schedule.snr_db[-1])
        (1000, True)
    """

    signal: FloatArray
    noise: FloatArray
    config: JsonDict = field(default_factory=dict)
    scheduler: JsonDict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.signal.ndim != 1 or self.signal.shape != self.noise.shape or len(self.signal) < 2:
            raise InputError(
                f"A noise schedule needs two 1-D arrays of one length ≥ 2; got shapes {self.signal.shape} and {self.noise.shape}."
            )
        if not (np.isfinite(self.signal).all() and np.isfinite(self.noise).all()):
            raise InputError("A noise schedule must be finite; got NaN or infinity in its coefficients.")
        if (self.signal <= 0).any() or (self.noise <= 0).any():
            raise InputError("A noise schedule needs positive signal and noise at every timestep; clip its two ends.")
        if (np.diff(self.log_snr) >= 0).any():
            raise InputError(
                "A noise schedule's SNR must fall strictly with t (0 = cleanest); reverse or mend the arrays."
            )
        for name in ("signal", "noise"):
            own = getattr(self, name).copy()  # the caller's stays as it is
            own.setflags(write=False)
            object.__setattr__(self, name, own)

    @property
    def num_timesteps(self) -> int:
        """Number of training timesteps T."""
        return len(self.signal)

    @property
    def log_snr(self) -> FloatArray:
        """Natural logarithm of the SNR, shape (T,)."""
        return 2.0 * (np.log(self.signal) - np.log(self.noise))

    def is_close(self, other: "NoiseSchedule") -> bool:
        """Whether the SNR of every timestep is another schedule's, within 0.1 %."""
        own, others = self.log_snr, other.log_snr
        return own.shape == others.shape and np.allclose(own, others, rtol=1e-3, atol=1e-3)

    @property
    def snr(self) -> FloatArray:
        """a²/b², shape (T,)."""
        return np.exp(self.log_snr)

    @property
    def snr_db(self) -> FloatArray:
        """SNR in decibels, 10·log10(snr), shape (T,) (TDC, arXiv:2312.13307)."""
        return self.log_snr * (10.0 / math.log(10.0))

    @property
    def sigma(self) -> FloatArray:
        """b/a = √((1−ᾱ)/ᾱ), shape (T,)."""
        return self.noise / self.signal

    @property
    def alphas_cumprod(self) -> FloatArray:
        """ᾱ = a²/(a² + b²) = sigmoid(log snr), shape (T,)."""
        return 1.0 / (1.0 + np.exp(-self.log_snr))

    @classmethod
    def from_betas(cls, betas: FloatArray, config: JsonDict | None = None) -> "NoiseSchedule":
        """Variance-preserving schedule with ᾱ_t = Π_{s≤t} (1 − β_s) (DDPM, arXiv:2006.11239, eq. 4).

        Args:
            betas: shape (T,), each in (0, 1).
            config: kept for :meth:`to_config`; the betas themselves if missing.

        Raises:
            InputError: the betas are not 1-D, or not in (0, 1).
        """
        betas = np.asarray(betas, dtype=np.float64)
        if betas.ndim != 1 or not ((betas > 0) & (betas < 1)).all():
            raise InputError("Betas must be a 1-D array with every value between 0 and 1, both excluded.")
        log_alpha_bar = np.cumsum(np.log1p(-betas))
        return cls(
            signal=np.exp(0.5 * log_alpha_bar),
            noise=np.sqrt(-np.expm1(log_alpha_bar)),
            config=config if config is not None else {"kind": "explicit", "betas": betas.tolist()},
        )

    @classmethod
    def linear(
        cls, num_timesteps: int = 1000, beta_start: float | None = None, beta_end: float | None = None
    ) -> "NoiseSchedule":
        """Betas linear in t: 1e-4 to 0.02 at T = 1000, scaled by 1000/T elsewhere (DDPM; improved DDPM's scaling).

        Args:
            num_timesteps: T.
            beta_start: β of the cleanest timestep; 0.1/T if missing.
            beta_end: β of the noisiest timestep; 20/T if missing.
        """
        start, end = _beta_range(num_timesteps, beta_start, beta_end, (0.1, 20.0))
        config = {"kind": "linear", "num_timesteps": num_timesteps, "beta_start": start, "beta_end": end}
        return cls.from_betas(np.linspace(start, end, num_timesteps), config)

    @classmethod
    def scaled_linear(
        cls, num_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> "NoiseSchedule":
        """√β linear in t (latent diffusion, arXiv:2112.10752)."""
        start, end = _beta_range(num_timesteps, beta_start, beta_end, (0.85, 12.0))
        config = {"kind": "scaled_linear", "num_timesteps": num_timesteps, "beta_start": start, "beta_end": end}
        return cls.from_betas(np.linspace(math.sqrt(start), math.sqrt(end), num_timesteps) ** 2, config)

    @classmethod
    def cosine(cls, num_timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> "NoiseSchedule":
        """ᾱ = cos²(((t/T + s)/(1 + s))·π/2), betas clipped (improved DDPM, arXiv:2102.09672, eq. 17)."""
        check_count(num_timesteps)
        edges = np.cos((np.arange(num_timesteps + 1) / num_timesteps + offset) / (1 + offset) * math.pi / 2) ** 2
        config = {"kind": "cosine", "num_timesteps": num_timesteps, "offset": offset, "max_beta": max_beta}
        return cls.from_betas(np.minimum(1 - edges[1:] / edges[:-1], max_beta), config)

    @classmethod
    def sigmoid(
        cls, num_timesteps: int = 1000, beta_start: float | None = None, beta_end: float | None = None
    ) -> "NoiseSchedule":
        """Betas on a sigmoid over [−6, 6] (GeoDiff, arXiv:2203.02923; diffusers' ``sigmoid``)."""
        start, end = _beta_range(num_timesteps, beta_start, beta_end, (0.1, 20.0))
        config = {"kind": "sigmoid", "num_timesteps": num_timesteps, "beta_start": start, "beta_end": end}
        ramp = 1.0 / (1.0 + np.exp(-np.linspace(-6, 6, num_timesteps)))
        return cls.from_betas(ramp * (end - start) + start, config)

    @classmethod
    def from_sigmas(cls, sigmas: Sequence[float] | FloatArray) -> "NoiseSchedule":
        """Variance-exploding schedule x = x0 + σε from rising sigmas (EDM, arXiv:2206.00364, table 1).

        Args:
            sigmas: shape (T,), strictly rising, positive.
        """
        sigma = np.array(sigmas, dtype=np.float64)
        return cls(np.ones_like(sigma), sigma, {"kind": "edm", "sigmas": sigma.tolist()})

    @classmethod
    def edm(
        cls, num_timesteps: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
    ) -> "NoiseSchedule":
        """Variance-exploding x0 + σε with σ^(1/ρ) evenly spaced from σ_min to σ_max (EDM, arXiv:2206.00364, eq. 5, cleanest first).

        Args:
            num_timesteps: T.
            sigma_min: σ of the cleanest timestep, in units of the data.
            sigma_max: σ of the noisiest timestep.
            rho: 7 in the paper; large values make log σ even.

        Raises:
            InputError: the sigmas do not rise from above 0, or rho is not positive.
        """
        check_count(num_timesteps)
        if not (0 < sigma_min < sigma_max < math.inf and 0 < rho < math.inf):
            raise InputError(
                f"Got sigmas from {sigma_min!r} to {sigma_max!r} with rho {rho!r}; expected rising ones above 0, and rho above 0."
            )
        sigma = np.linspace(sigma_min ** (1 / rho), sigma_max ** (1 / rho), num_timesteps) ** rho
        config = {
            "kind": "edm",
            "num_timesteps": num_timesteps,
            "sigma_min": sigma_min,
            "sigma_max": sigma_max,
            "rho": rho,
        }
        return cls(np.ones_like(sigma), sigma, config)

    @classmethod
    def rectified_flow(cls, num_timesteps: int = 1000, shift: float = 1.0) -> "NoiseSchedule":
        """Mix (1 − u)·x0 + u·ε at the T midpoints of (0, 1), shifted u ← s·u/(1 + (s−1)u) (arXiv:2403.03206, eq. 23)."""
        check_count(num_timesteps)
        u = (np.arange(num_timesteps) + 0.5) / num_timesteps
        u = shift * u / (1 + (shift - 1) * u)
        return cls(1 - u, u, {"kind": "rectified_flow", "num_timesteps": num_timesteps, "shift": shift})

    @classmethod
    def from_diffusers(cls, scheduler: object) -> "NoiseSchedule":
        """The schedule that a diffusers scheduler was trained with, and the scheduler's settings.

        Args:
            scheduler: any diffusers scheduler object with ``alphas_cumprod``, or with ``sigmas`` (EDM, flow matching);
                it may have been used: ``set_timesteps`` does not change the answer.

        Raises:
            InputError: it has neither.
        """
        return of_scheduler(cls, scheduler)

    def to_config(self) -> dict[str, object]:
        """JSON from which :meth:`from_config` makes an equal schedule."""
        config = dict(self.config)
        if not config:
            config = {"kind": "explicit", "signal": self.signal.tolist(), "noise": self.noise.tolist()}
        return {**config, "scheduler": dict(self.scheduler)} if self.scheduler else config

    @classmethod
    def from_config(cls, config: JsonDict) -> "NoiseSchedule":
        """Make the schedule that :meth:`to_config` described.

        Raises:
            InputError: the kind is unknown or its parameters do not fit.
        """
        if not isinstance(config, Mapping):
            raise InputError(f"A noise schedule needs a mapping with its kind; got {config!r}.")
        options = dict(config)
        scheduler = options.pop("scheduler", {})
        if not isinstance(scheduler, Mapping):
            raise InputError(
                f"A noise schedule's scheduler is {scheduler!r:.80}; expected the config of one of diffusers."
            )
        return replace(cls._of_kind(options), scheduler=scheduler)

    @classmethod
    def _of_kind(cls, config: JsonDict) -> "NoiseSchedule":
        """The schedule that a config without a scheduler describes."""
        options = dict(config)
        kind = options.pop("kind", None)
        options = {name: _number_or_list(value, kind, name) for name, value in options.items()}
        try:
            match kind:
                case "edm" if "sigmas" in options:
                    return cls.from_sigmas(**options)
                case str() if kind in NAMED_KINDS:
                    _check_options(getattr(cls, kind), kind, options)
                    schedule: NoiseSchedule = getattr(cls, kind)(**options)
                    return schedule
                case "explicit" if options.keys() == {"betas"}:
                    return cls.from_betas(options["betas"])
                case "explicit" if options.keys() == {"signal", "noise"}:
                    return cls(options["signal"], options["noise"], dict(config))
                case "explicit":
                    found = ", ".join(map(str, options))[:80] or "neither"
                    raise InputError(f"Noise schedule 'explicit' needs betas, or signal and noise; got {found}.")
        except InputError:
            raise
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(f"Noise schedule {kind!r} does not take {sorted(options)}: {error}.") from error
        raise InputError(
            f"Unknown noise schedule {kind!r}{did_you_mean(kind, _KINDS)}; expected one of {', '.join(_KINDS)}."
        )


def _number_or_list(value: Any, kind: object, name: str) -> Any:
    """An option of a noise schedule as it is, or as an array if it has a number for each timestep."""
    if name not in _LISTS:
        if isinstance(value, bool | str):
            raise InputError(f"Noise schedule {kind!r} has the {name} {value!r:.80}; expected a number.")
        return value
    found = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(found, list | tuple) or not all(type(one) in (int, float) for one in found):
        raise InputError(f"Noise schedule {kind!r} has the {name} {str(value)[:80]}; expected a list of numbers.")
    return np.array(found, dtype=np.float64)


def _check_options(constructor: Callable[..., object], kind: str, options: JsonDict) -> None:
    known = list(inspect.signature(constructor).parameters)
    if unknown := [name for name in options if name not in known]:
        meant = did_you_mean(unknown[0], known)
        raise InputError(f"Noise schedule {kind!r} does not take {unknown[0]!r}{meant}; expected {', '.join(known)}.")


def _beta_range(
    num_timesteps: int, start: float | None, end: float | None, per_unit_time: tuple[float, float]
) -> tuple[float, float]:
    """Fill in missing ends with the rate per unit time divided by T, below 1; refuse ends outside (0, 1)."""
    check_count(num_timesteps)
    first = per_unit_time[0] / num_timesteps if start is None else start
    last = per_unit_time[1] / num_timesteps if end is None else end
    last = min(last, 0.999) if end is None else last
    if not (0 < first < 1 and 0 < last < 1):
        raise InputError(f"Got betas from {first!r} to {last!r}; expected both between 0 and 1, both excluded.")
    return first, last
