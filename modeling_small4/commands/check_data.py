"""`small4 check-data`: which rows of a file cannot be trained on, and why. Must not know: how rows are encoded."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `small4 check-data`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="JSON lines, a row each: messages, tools, images")
    parser.add_argument(
        "--model", metavar="DIR_OR_REPO", help="whose processor encodes them (default: the demo checkpoint)"
    )
    parser.add_argument("--max-length", metavar="N", type=int, help="most tokens of a row")
    parser.add_argument(
        "--images", metavar="DIR", type=Path, help="the folder that images may be read from (default: that of FILE)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    """Print what is wrong, row by row, and what training would read.

    Raises:
        ValueError: Rows are wrong.
        OSError: The file cannot be read.
    """
    from .. import demo_checkpoint
    from ..image_sources import ImageAccess
    from ..processing_small4 import Small4Processor
    from ..training.collator import Small4DataCollator
    from ..training.data_check import check_rows, read_rows

    processor = Small4Processor.from_pretrained(args.model or demo_checkpoint())
    access = ImageAccess(paths=(args.images or args.file.parent,))
    collator = Small4DataCollator(processor, max_length=args.max_length, image_access=access)
    report = check_rows(read_rows(args.file), collator)
    if args.json:
        print(json.dumps(asdict(report)))
    else:
        for number, reason in report.wrong:
            print(f"row {number}: {reason}")
        print(
            f"{report.rows - len(report.wrong)} of {report.rows} rows can be trained on: {report.tokens:,} tokens, "
            f"{report.trained_tokens:,} of them with a loss, at most {report.longest:,} in a row, "
            f"{report.images:,} images"
        )
    if report.wrong or not report.rows:
        raise ValueError(f"{args.file}: {len(report.wrong)} of {report.rows} rows cannot be trained on.")
