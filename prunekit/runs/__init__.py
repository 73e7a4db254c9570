"""Runs: a recipe's stages in a folder, resumed where they were stopped, in one process or several."""
