"""Measurements for a machine with a GPU, in commands of a few minutes that resume; README.md in this folder says which."""
