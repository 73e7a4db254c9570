"""Runs of a recipe's stages in a folder. A run can use several processes, and resumes where it was stopped."""
