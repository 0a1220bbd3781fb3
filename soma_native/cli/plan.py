"""`soma-native plan`: says what `train` would do with a corpus, and why; trains nothing."""

from __future__ import annotations

import argparse
from typing import Any

from soma_native.cli.arguments import add_command
from soma_native.cli.corpus import add_corpus, check_not_empty, corpus_files
from soma_native.cli.new_run import planned
from soma_native.cli.output import print_json
from soma_native.cli.run_options import add_run_options

_NOTES = """\
Takes some seconds, in which it measures how fast this machine trains. `train` with the same texts and options does what
the plan says. Nothing is written."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands, "plan", run, "say what train would do, and why", "plan my_texts/ --minutes 4", _NOTES
    )
    add_corpus(parser)
    add_run_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Plan, and print the plan."""
    files = corpus_files(arguments.corpus)
    check_not_empty(files)
    plan = planned(arguments, files)
    if arguments.json:
        print_json(plan.to_dict())
    else:
        print(plan)
