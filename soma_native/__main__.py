"""`python -m soma_native`, where the installed command is not on the path."""

from soma_native.cli.main import run

run()
