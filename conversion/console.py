"""What both commands share on the terminal: `--json` and a progress bar. One-line errors are in
`modeling_small4.commands.terminal`.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


def add_json(parser: argparse.ArgumentParser) -> None:
    """Declare `--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on standard output")


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A function that shows the bytes done, and of how many, on standard error if that is a terminal. The bar
    disappears at the end.
    """
    with tqdm(desc=label, unit="B", unit_scale=True, leave=False, file=sys.stderr, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
