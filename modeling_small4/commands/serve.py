"""`small4 serve`: arguments of the server. Must not know: the server itself, which needs packages of the extra
`serve`.
"""

import argparse
import importlib.util
import os
import sys
from contextlib import suppress

from ..reasoning import REASONING_MODES
from .terminal import DRAFT, add_expert_memory

NEEDED = ("fastapi", "uvicorn", "openai", "pydantic", "llguidance")
INSTALL = f'The server needs {", ".join(NEEDED)}: pip install ".[serve]".'
KEY = "SMALL4_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `small4 serve`."""
    add = parser.add_argument
    add("--model", metavar="DIR_OR_REPO", help="checkpoint folder or Hub repository (default: the demo checkpoint)")
    add(
        "--served-name", metavar="NAME", help="what clients call the model (default: the folder's or repository's name)"
    )
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add("--port", metavar="N", type=int, default=8000, help="port to listen on (default: 8000)")
    add(
        "--api-key",
        metavar="KEY",
        help=f"key that clients have to send (default: the environment variable {KEY}, else none)",
    )
    add(
        "--allowed-host",
        metavar="NAME",
        action="append",
        default=[],
        help="another host name under which clients reach the server",
    )
    add(
        "--allowed-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="another origin whose pages may send requests (CORS)",
    )
    add("--image-host", metavar="NAME", action="append", default=[], help="host from which images may be fetched")
    add(
        "--reasoning-mode",
        choices=REASONING_MODES,
        help="reasoning mode of requests that do not set one (default: the checkpoint's)",
    )
    add("--device", default="auto", help="cpu, cuda:0, ... (default: all GPUs, else the CPU)")
    add_expert_memory(parser)
    add("--draft", metavar="DRAFT", help=f"{DRAFT}; for answers that run alone")
    add("--max-batch", metavar="N", type=int, default=32, help="how many answers are decoded at once (default: 32)")
    add("--max-queue", metavar="N", type=int, default=256, help="how many requests may wait (default: 256)")
    add("--max-n", metavar="N", type=int, default=16, help="how many answers one request may ask for (default: 16)")
    add("--max-images", metavar="N", type=int, default=32, help="how many images one request may hold (default: 32)")
    add("--max-body", metavar="MIB", type=int, default=64, help="largest request (default: 64 MiB)")
    add("--prefix-cache", metavar="GIB", type=float, default=2.0,
        help="memory for the KV cache of earlier prompts (default: 2 GiB; 0: none)")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Serve until interrupted.

    Raises:
        ValueError: A package is missing, a limit is not positive, or the model cannot be served.
    """
    from transformers.utils import logging

    from ..registration import demo_checkpoint

    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        raise ValueError(INSTALL)
    for name in ("max_batch", "max_queue", "max_n", "max_images", "max_body"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, but is {getattr(args, name)}.")
    from ..server.app import make_server

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    key = args.api_key or os.environ.get(KEY) or None
    server = make_server(
        os.path.expanduser(args.model or str(demo_checkpoint())), args.host, args.port, args.reasoning_mode,
            args.device,
        expert_memory=args.expert_memory, draft=args.draft,
        name=args.served_name, key=key, hosts=tuple(args.allowed_host), origins=tuple(args.allowed_origin),
        image_hosts=tuple(args.image_host), rows=args.max_batch, waiting=args.max_queue, answers=args.max_n,
        images=args.max_images, body=args.max_body * 2**20, prefix_bytes=int(args.prefix_cache * 2**30),
    )  # fmt: skip
    if key is None and args.host not in ("127.0.0.1", "::1", "localhost"):
        print(f"small4 serve: whoever reaches {args.host} may ask; --api-key or {KEY} asks for a key", file=sys.stderr)
    where = f"http://{args.host}:{args.port}"
    print(
        f"serving {server.api.options.name} at {where}/v1, with a page to chat at {where}; Ctrl-C ends it",
        file=sys.stderr,
        flush=True,
    )
    with suppress(KeyboardInterrupt):  # the usual end
        server.run()
