"""Entry point of the command (`soma-native`, `python -m soma_native`). Small, so that Ctrl-C is caught early."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

_INTERRUPTED = 130


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"soma-native: interrupted\n")
    os._exit(_INTERRUPTED)  # an exception would be raised in the middle of an import


def run() -> NoReturn:
    """Run the command line of this process, and exit with its status."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # fills the numbers of closed standard streams: else the next open file would get one
    os.close(descriptor)
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, _leave)
    from soma_native.cli.main import main
    from soma_native.cli.starters import end_all

    try:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.exit(main())
    except SystemExit as error:
        if error.code:
            end_all(sys.argv[1:])
        raise
    except KeyboardInterrupt:  # outside the part of main that reports more
        _leave(signal.SIGINT, None)


if __name__ == "__main__":
    run()
