"""The command line."""

from faiss_qama.cli.app import cli, main

__all__ = ["cli", "main"]
