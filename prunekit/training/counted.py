"""An objective that counts the samples it is evaluated on, for the ledger: criteria need different numbers of samples."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prunekit.ledger import Kind, LedgerRow
from prunekit.training.objective import DenoisingObjective

__all__ = ["CountedObjective", "Tally"]


@dataclass(eq=False)
class Tally:
    """Samples that a loss was evaluated on; ``backward`` counts those whose gradient can be taken."""

    forward: int = 0
    backward: int = 0

    def row(self, stage: str, kind: Kind, macs: int) -> LedgerRow:
        """A ledger row for a network with ``macs`` MACs per sample."""
        return LedgerRow(stage, kind, self.forward, (self.forward + 2 * self.backward) * macs, self.forward * macs)


@dataclass(frozen=True, eq=False)
class CountedObjective(DenoisingObjective):
    """An objective that counts the samples it is evaluated on."""

    tally: Tally = field(default_factory=Tally)

    def per_sample(
        self, model: nn.Module, clean: Tensor, noise: Tensor, timesteps: Tensor, *conditions: Tensor
    ) -> Tensor:
        """See :class:`DenoisingObjective`."""
        self.tally.forward += len(timesteps)
        self.tally.backward += len(timesteps) * torch.is_grad_enabled()
        return super().per_sample(model, clean, noise, timesteps, *conditions)
