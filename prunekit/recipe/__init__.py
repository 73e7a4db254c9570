"""Recipes: whole experiments as YAML, checked before anything runs; an unknown key is refused with its line."""

from prunekit.recipe.base_sections import BaseOptions, DataOptions
from prunekit.recipe.bounds import check_inner_name
from prunekit.recipe.comparisons import CurriculumOptions, EntryOptions, EvidenceOptions, MultistageOptions, slug
from prunekit.recipe.endpoints import Confirmation
from prunekit.recipe.models import (
    BaseRecipe,
    CurriculumRecipe,
    EntryRecipe,
    EvidenceRecipe,
    ExpertsRecipe,
    MultistageRecipe,
)
from prunekit.recipe.planning_sections import MEASURED_METHODS, AllocationOptions, GroupOptions, PruneOptions
from prunekit.recipe.recipe import Recipe
from prunekit.recipe.sections import section_of
from prunekit.recipe.tuning_sections import DistillationOptions, EvaluationOptions, FinetuneOptions
from prunekit.recipe.yaml_reading import load_recipe

__all__ = [
    "MEASURED_METHODS",
    "AllocationOptions",
    "BaseOptions",
    "BaseRecipe",
    "Confirmation",
    "CurriculumOptions",
    "CurriculumRecipe",
    "DataOptions",
    "DistillationOptions",
    "EntryOptions",
    "EntryRecipe",
    "EvaluationOptions",
    "EvidenceOptions",
    "EvidenceRecipe",
    "ExpertsRecipe",
    "FinetuneOptions",
    "GroupOptions",
    "MultistageOptions",
    "MultistageRecipe",
    "PruneOptions",
    "Recipe",
    "check_inner_name",
    "load_recipe",
    "section_of",
    "slug",
]
