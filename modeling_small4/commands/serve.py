"""`small4 serve`: arguments of the server. Must not know: the server itself, which needs packages of the extra `serve`."""

import argparse
import os
import sys
from contextlib import suppress

from ..reasoning import REASONING_MODES

INSTALL = 'The server needs fastapi, uvicorn and openai: pip install ".[serve]".'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `small4 serve`."""
    parser.add_argument(
        "--model", metavar="DIR_OR_REPO", help="checkpoint folder or Hub repository (default: the demo checkpoint)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", metavar="N", type=int, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument(
        "--reasoning-mode", choices=REASONING_MODES, help="for requests that do not say (default: the checkpoint's)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda:0, ... (default: all GPUs there are, else the CPU)")


def run(args: argparse.Namespace) -> None:
    """Serve until interrupted.

    Raises:
        ValueError: A package is missing, or the model cannot be served.
    """
    from transformers.utils import logging
    from transformers.utils.import_utils import is_serve_available

    from ..registration import demo_checkpoint

    if not is_serve_available():
        raise ValueError(INSTALL)
    from .server import make_server, served_name

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = os.path.expanduser(args.model or str(demo_checkpoint()))
    server = make_server(model, args.host, args.port, args.reasoning_mode, args.device)
    where = f"http://{args.host}:{args.port}/v1"
    print(
        f"serving {served_name(model)} at {where} (chat/completions, responses, models); Ctrl-C ends it",
        file=sys.stderr,
        flush=True,
    )
    with suppress(KeyboardInterrupt):  # the usual end
        server.run()
