"""`python -m soma_native.cli`, where the installed command is not on the path."""

from . import run

run()
