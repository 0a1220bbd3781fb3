"""`soma-native plan`: says what `train` would do with a corpus, and why; trains nothing."""

from __future__ import annotations

import argparse
from typing import Any

from soma_native.cli.arguments import add_command, positive_type
from soma_native.cli.corpus import add_corpus, check_not_empty, corpus_files
from soma_native.cli.output import print_json
from soma_native.data.documents import documents_of
from soma_native.planning.corpus import survey
from soma_native.planning.plan import choose
from soma_native.planning.speed import measure_speed
from soma_native.training.memory import free_memory

_NOTES = """\
Takes some seconds, in which it measures how fast this machine trains. `train` with the same texts and minutes does
what the plan says. Options of `train` that fix a part are not taken here; `train` says its plan before it begins."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands, "plan", run, "say what train would do, and why", "plan my_texts/ --minutes 4", _NOTES
    )
    add_corpus(parser)
    parser.add_argument(
        "--minutes",
        type=positive_type,
        metavar="M",
        help="time of the whole run (default: what the corpus is worth, at most 10)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Plan, and print the plan."""
    files = corpus_files(arguments.corpus)
    check_not_empty(files)
    plan = choose(survey(documents_of(files, arguments.split)), measure_speed(), arguments.minutes, free=free_memory())
    if arguments.json:
        print_json(plan.to_dict())
    else:
        print(plan)
