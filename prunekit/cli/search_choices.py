"""How a search decides widths, as it is typed: the options of the search, and the endpoint of a language model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit._json import read_json
from prunekit.choices import ProposerName, ProxyName, RepairKind
from prunekit.cli.pruning_choices import CriterionOption, Samples, ShrinkOption
from prunekit.cli.shared_options import Seed
from prunekit.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from prunekit.allocation import Allocation, Sensitivity
    from prunekit.schedule import NoiseSchedule
    from prunekit.search import Endpoint

__all__ = ["LanguageModel", "Searching"]


@dataclass(frozen=True)
class Searching:
    """How channels are scored and widths decided."""

    criterion: CriterionOption = "taylor"
    proposer: Annotated[ProposerName, typer.Option(help="How the search decides widths.")] = "greedy"
    proxy: Annotated[ProxyName, typer.Option(help="How the search rates candidates.")] = "least-squares"
    repair: Annotated[
        RepairKind,
        typer.Option(help="Repair the layers that read pruned channels, in closed form, before fine-tuning."),
    ] = "least-squares"
    shrink: ShrinkOption = "width"
    floor: Annotated[float, typer.Option(help="Smallest share of every channel group that is kept.")] = 0.0
    samples: Samples = 256
    rounds: Annotated[int, typer.Option(help="Number of rounds in which the search approaches the target.")] = 12
    trials: Annotated[int, typer.Option(help="Number of candidates that evolution and tpe try.")] = 64
    negligible: Annotated[
        float,
        typer.Option(
            help="Rise of the loss that is too small to matter, as a share of the base's: a search ends early once it can gain no "
            "more."
        ),
    ] = 0.0
    sensitivity: Annotated[
        Path | None,
        typer.Option(
            help="With --negligible: file of `prunekit sensitivity`, so that it means an equal change of the sample in every "
            "group (default: the allocation's, if it has one)."
        ),
    ] = None
    study: Annotated[
        Path | None,
        typer.Option(help="Optuna journal that several processes share, for evolution and tpe (default: none)."),
    ] = None
    seed: Seed = 0

    def weighed_by(self, plan: "Allocation", model: "nn.Module", schedule: "NoiseSchedule") -> "Sensitivity | None":
        """What the sampler makes of an error in each group: the file's, or the allocation's.

        Raises:
            InputError: a file is given and nothing is negligible, or it is of other groups, another network or another
                noise schedule.
        """
        from prunekit.allocation import Sensitivity
        from prunekit.results.formats import SENSITIVITY
        from prunekit.training import weights_hash

        path = self.sensitivity
        if self.negligible == 0:
            if path is None:
                return None
            raise InputError(
                "Got --sensitivity without --negligible; expected both, since it says what is negligible in each group."
            )
        found = plan.sensitivity if path is None else Sensitivity.from_json(read_json(path, SENSITIVITY), path)
        if found is not None:
            found.check_groups(plan.timestep_groups)
            found.check_weights(weights_hash(model))
            found.check_schedule(schedule)
        return found


@dataclass(frozen=True)
class LanguageModel:
    """The endpoint of the proposer llm."""

    llm_endpoint: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible URL for llm, such as http://127.0.0.1:8000/v1 (default: none)."),
    ] = None
    llm_model: Annotated[str | None, typer.Option(help="Name of the model at the endpoint (default: none).")] = None
    llm_key_variable: Annotated[
        str | None, typer.Option(help="Environment variable that holds the endpoint's API key (default: no key).")
    ] = None

    @property
    def endpoint(self) -> "Endpoint | None":
        """What was typed, None where nothing was.

        Raises:
            InputError: one of endpoint and model is missing, or the variable holds no key.
        """
        from prunekit.search import Endpoint

        if (self.llm_endpoint is None) != (self.llm_model is None):
            raise InputError("Expected --llm-endpoint and --llm-model together.")
        if self.llm_endpoint is None or self.llm_model is None:
            return None
        made = Endpoint(self.llm_endpoint, self.llm_model, self.llm_key_variable)
        made.key()  # refused now rather than at the first request
        return made
