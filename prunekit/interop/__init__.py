"""Bridges to other pruning libraries. Each module imports its library, so this package imports none of them."""
