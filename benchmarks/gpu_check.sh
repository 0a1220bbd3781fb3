#!/bin/sh
# Checks a machine with a GPU in at most eight minutes and prints a table: tools/check_gpu.py, which has the options.
exec "${PYTHON:-python}" "$(dirname "$0")/../tools/check_gpu.py" "$@"
