"""Bridges to other pruning libraries. Each module imports its library, so none of them is imported from here."""
