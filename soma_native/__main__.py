"""`python -m soma_native`, where the installed command is not on the path."""

from .cli import run

run()
