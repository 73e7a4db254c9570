"""How many samples a search passes through networks, before it is run."""

from prunekit.search.proposers import MEASURING_NOTHING
from prunekit.search.proxies import proxy_samples
from prunekit.search.search import SearchOptions

__all__ = ["search_samples"]


def search_samples(options: SearchOptions, samples: int, batch_size: int) -> tuple[int, int]:
    """The largest number of samples that go forward for one timestep group, and how many of them go backward too.

    Every round is counted with its whole short list. Samples of a repair's first pass through the full network are left out: it
    takes one for each number of draws.

    Args:
        options: how to search.
        samples: number of draws of the calibration set.
        batch_size: number of draws in a batch.
    """
    if options.proposer in MEASURING_NOTHING:
        return 0, 0
    looks: dict[int, int] = {}
    if options.proposer in ("evolution", "tpe"):
        looks[samples] = options.trials
    elif 0 < options.screening < samples:
        looks[options.screening] = 1 + options.rounds * (1 + options.shortlist) + options.shortlist
        looks[samples] = 1 + min(options.finalists, options.shortlist)
    else:
        looks[samples] = 1 + (options.rounds + 1) * options.shortlist
    each = [(count, proxy_samples(options.proxy, draws, min(batch_size, draws))) for draws, count in looks.items()]
    return sum(count * forward for count, (forward, _) in each), sum(count * back for count, (_, back) in each)
