"""The command line: faiss-qama fit | build | search | eval | inspect | export | embed | demo."""

from __future__ import annotations

import sys
import warnings

import click

from faiss_qama._version import __version__
from faiss_qama.cli.embed import demo, embed
from faiss_qama.cli.evaluate import eval_command
from faiss_qama.cli.fit import fit
from faiss_qama.cli.search import build, export_command, inspect, search


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit status 2."""
    warnings.showwarning = lambda message, *_: click.echo(f"note: {message}", err=True)
    try:
        sys.exit(cli(standalone_mode=False) or 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"error: {where}{error.strerror or error}", err=True)
        sys.exit(2)
    except LookupError as error:  # what is mapped is not checked against its checksum
        click.echo(f"error: {error}; is the index damaged? faiss-qama inspect verifies it", err=True)
        sys.exit(2)
    except (ValueError, TypeError, ArithmeticError, RuntimeError, ImportError, MemoryError) as error:
        click.echo(f"error: {str(error) or 'out of memory'}", err=True)
        sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Compress text embeddings to learned codes of 0.5 to 2 bits per dimension, and search them."""


for command in (fit, build, search, eval_command, inspect, export_command, embed, demo):
    cli.add_command(command)
