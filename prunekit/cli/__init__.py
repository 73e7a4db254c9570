"""The command line: parse, call, print. The only floor that prints; heavy imports happen inside the commands."""

from prunekit.cli.app import main

__all__ = ["main"]
