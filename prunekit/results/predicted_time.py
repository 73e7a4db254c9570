"""What a manifest says about an expert that was planned for a time."""

from prunekit._json import Amount, JsonDict, Positive
from prunekit.choices import TimedPrecision
from prunekit.results.model import Free, Model

__all__ = ["PredictedTime"]


class PredictedTime(Model):
    """The time that an expert was planned for, and how far such predictions are off.

    Args:
        target: seconds per batch that the plan may take.
        predicted: seconds per batch that it takes by the layer times.
        base: seconds per batch of the base by the layer times.
        batch_size: samples in a batch.
        machine: the machine that the layer times were measured on, torch's version and the number of threads.
        dtype: type of weights and activations.
        compiled: whether networks were compiled by ``torch.compile``.
        error: median of the relative errors of predictions for random plans; None if none was checked.
        worst_error: the largest of these errors.
    """

    target: Amount
    predicted: Amount
    base: Amount
    batch_size: Positive
    machine: Free
    dtype: TimedPrecision
    compiled: bool
    error: Amount | None = None
    worst_error: Amount | None = None

    @classmethod
    def from_provenance(cls, provenance: JsonDict, source: str = "A slim model's provenance") -> "PredictedTime | None":
        """What a slim model's provenance says; None if its target is no time.

        Args:
            provenance: its ``target``, ``spent`` and ``base`` are nanoseconds, and ``latency`` has the other keys.
            source: where it is from, for the error message.

        Raises:
            FileFormatError: a key is missing or of the wrong type.
        """
        about = provenance.get("latency")
        if provenance.get("target_of") != "latency" or not isinstance(about, dict):
            return None
        names = {"target": "target", "predicted": "spent", "base": "base"}
        seconds = {key: 1e-9 * value for key, name in names.items() if isinstance(value := provenance.get(name), int)}
        return cls.of({**about, **seconds}, source, "prune it again")
