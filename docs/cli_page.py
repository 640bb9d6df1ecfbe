"""Write docs/cli.md, every command with every option, from the commands themselves: python docs/cli_page.py."""

from __future__ import annotations

import textwrap
from pathlib import Path

import click

from faiss_qama.cli import cli

PAGE = Path(__file__).parent / "cli.md"
HEAD = """\
# Command line

Every command with every option. `faiss-qama COMMAND --help` prints the same. A mistake gives one line on standard error
and exit status 2. Options of `faiss-qama` itself stand before the command:
"""


def page() -> str:
    """Return the text of docs/cli.md."""
    return "\n".join([HEAD, entries(cli), *(section(name, command) for name, command in cli.commands.items())])


def section(name: str, command: click.Command) -> str:
    """Return a command's heading, its usage, its purpose and its options."""
    usage = " ".join(command.collect_usage_pieces(click.Context(command)))
    purpose = [fill(paragraph) for paragraph in (command.help or "").split("\n\n")]
    parts = [f"## {name}", f"```\nUsage: faiss-qama {name} {usage}\n```", *purpose, entries(command)]
    return "\n\n".join(parts).rstrip() + "\n"


def entries(command: click.Command) -> str:
    """Return the options of a command, one item each."""
    return "".join(entry(option) + "\n" for option in command.params if isinstance(option, click.Option))


def entry(option: click.Option) -> str:
    """Return an option, its value, its meaning and its default as an item of a list."""
    value = "" if option.is_flag else option.metavar or option.type.name.removesuffix(" range").upper()
    if isinstance(option.type, click.Choice):
        value = "|".join(option.type.choices)
    notes = [f"[default: {option.default}]" if option.show_default else "", "[required]" if option.required else ""]
    notes.append(f"The environment variable {option.envvar} does the same." if option.envvar else "")
    names = f"{', '.join(option.opts)} {value}".strip()
    return fill(" ".join([f"- `{names}`:", option.help or "", *notes]), indent="  ")


def fill(text: str, indent: str = "") -> str:
    """Return a paragraph in lines that are not too long."""
    words = " ".join(text.split())
    return textwrap.fill(words, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(page())
