"""The kinds of experiments: the sections of a recipe that ask for each, and the manifest's entry with its results.

Recipes, runs and reports use the members of this one table as keys: for the recipe's model in :mod:`prunekit.recipe`, the run in
:mod:`prunekit.runs` or :mod:`prunekit.studies`, and the page in :mod:`prunekit.report`.
"""

from collections.abc import Mapping
from enum import Enum

__all__ = ["Experiment"]


class Experiment(Enum):
    """A kind of experiment. Order matters: a recipe or manifest is of the first kind for which it has all sections or the entry.

    Attributes:
        title: its name in a list of runs.
        sections: the recipe's sections that together ask for it.
        entry: the manifest's entry that its report shows; None if there is nothing to show but the manifest.
    """

    title: str
    sections: tuple[str, ...]
    entry: str | None

    EVIDENCE = ("experts beside baselines", ("evidence",), "evidence")
    MULTISTAGE = ("networks for stages", ("multistage",), "multistage")
    CURRICULUM = ("ways to train", ("curriculum",), "curriculum")
    EXPERTS = ("timestep experts", ("groups", "allocation"), "allocation")
    BASE = ("a base", (), None)

    def __init__(self, title: str, sections: tuple[str, ...], entry: str | None) -> None:
        self.title, self.sections, self.entry = title, sections, entry

    @classmethod
    def asked_for(cls, recipe: Mapping[str, object]) -> "Experiment":
        """The kind that a recipe asks for; a section that is null counts as missing.

        Example:
            >>> Experiment.asked_for({"name": "mine", "base": {}, "multistage": {}, "evidence": None}).name
            'MULTISTAGE'
        """
        return next(kind for kind in cls if all(recipe.get(section) is not None for section in kind.sections))

    @classmethod
    def shown_by(cls, manifest: Mapping[str, object]) -> "Experiment":
        """The kind of run that wrote a manifest."""
        return next(kind for kind in cls if kind.entry is None or kind.entry in manifest)
