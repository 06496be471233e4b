"""`python -m small4_conversion SRC DST ...`: the same as `small4 convert`."""

import argparse
import sys
from functools import partial

from modeling_small4.commands.terminal import run_command

from .convert import add_arguments, run


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments and convert; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m small4_conversion", description="Convert a Small 4 checkpoint.")
    add_arguments(parser)
    return run_command("convert", partial(run, parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
