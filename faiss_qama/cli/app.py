"""The command line: faiss-qama fit | build | search | eval | inspect | add | remove | compact | export | ..."""

from __future__ import annotations

import io
import re
import sys
import traceback
import warnings

import click

from faiss_qama._version import __version__
from faiss_qama.cli.change import add, compact, remove
from faiss_qama.cli.embed import demo, embed
from faiss_qama.cli.evaluate import eval_command
from faiss_qama.cli.fit import fit
from faiss_qama.cli.search import build, export_command, inspect, search
from faiss_qama.cli.warmup import warmup


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit status 2."""
    warnings.showwarning = lambda message, *_: click.echo(f"note: {_in_one_line(str(message))}", err=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files may be no text
    options: dict[str, bool] = {}
    try:
        sys.exit(cli(standalone_mode=False, obj=options) or 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        click.echo(f"error: {_in_one_line(error.format_message())}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stderr.close()
        sys.exit(0)
    except _MISTAKES as error:
        click.echo(
            traceback.format_exc() if options.get("debug") else f"error: {_in_one_line(_message(error))}", err=True
        )
        sys.exit(2)


_MISTAKES = (OSError, LookupError, ValueError, TypeError, ArithmeticError, RuntimeError, ImportError, MemoryError)


def _in_one_line(text: str) -> str:
    """Return a message in one line, with the option of the command line for the one of Python."""
    return re.sub(r"rescore='(\w+)'", r"--rescore \1", " ".join(line.strip() for line in text.splitlines()))


def _message(error: Exception) -> str:
    if isinstance(error, OSError):
        return (f"{error.filename}: " if error.filename else "") + (error.strerror or str(error))
    if isinstance(error, LookupError):  # what is mapped is not checked against its checksum
        return f"{error}; is the index damaged? faiss-qama inspect verifies it"
    return str(error) or "out of memory"


class _InOrder(click.Group):
    """Commands in the order in which people need them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, envvar="FAISS_QAMA_DEBUG", help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Compress text embeddings to learned codes of 0.5 to 2 bits per dimension, and search them."""
    context.ensure_object(dict)["debug"] = debug
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (fit, build, search, eval_command, inspect, add, remove, compact, export_command, embed, demo, warmup):
    cli.add_command(command)
