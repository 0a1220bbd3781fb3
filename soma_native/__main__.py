"""The command as a program: `soma-native` or `python -m soma_native`. Small, so that Ctrl-C is caught early."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

_INTERRUPTED = 130


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"soma-native: interrupted\n")
    os._exit(_INTERRUPTED)  # an exception would end up in the middle of somebody's import


def run() -> NoReturn:
    """Run the command line of this process, and exit with its status."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a standard stream that was closed: its number would go to the next file that is opened
    os.close(descriptor)
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, _leave)
    from soma_native.cli.main import main

    try:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.exit(main())
    except KeyboardInterrupt:  # beside the part of main that says more
        _leave(signal.SIGINT, None)


if __name__ == "__main__":
    run()
