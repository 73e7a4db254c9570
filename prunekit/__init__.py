"""prunekit: structural pruning and importance for diffusion models, timestep group by timestep group."""

__version__ = "0.1.0"
__all__ = ["__version__"]
