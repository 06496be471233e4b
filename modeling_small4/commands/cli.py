"""The command line: `small4 generate`, `small4 chat`, the package's other commands, and those of `small4_conversion`
where it is installed.

Run: `small4 --help`, or `python -m modeling_small4 --help`. Parses arguments and prints; models and conversations are
in `session`. Must not know: tensors, token ids.
"""

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files_reading import shown
from ..reasoning import END_THINK, REASONING_MODES, THINK
from .env import PACKAGE, installed
from .terminal import DRAFT, add_expert_memory, debugging, run_command

if TYPE_CHECKING:
    from .session import Answer, Session

DIM, PLAIN = "\033[2m", "\033[0m"
OWN = {  # command -> what it does; its arguments are declared by the module of that name beside this one
    "plan": "say what fits on which machine, and how to lay it out",
    "check-data": "say which rows of training data are wrong, and why",
    "serve": "start an OpenAI-compatible server",
    "env": "print what a bug report needs: versions, devices, CPU instructions",
    "card": "render the model card from the stored results, in a clone",
}
CONVERSION = {  # command -> what it does; its arguments are declared by the module of that name
    "convert": "convert a checkpoint of any format to one of three layouts, or quantize it",
    "verify": "compare two checkpoints tensor by tensor, in real value",
    "check": "look for what may be wrong with a checkpoint: files, numbers, tokenizer, answers, speed",
    "manifest": "write what a checkpoint holds: a hash of the real value of every tensor",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns 0 when done, 1 when it could not be done, 2 for wrong usage."""
    argv = sys.argv[1:] if argv is None else argv
    command = next((word for word in argv if not word.startswith("-")), None)
    try:
        args = _parser(command).parse_args([word for word in argv if word != "--debug"])
    except SystemExit as stop:  # argparse has printed help or what is wrong
        return int(stop.code or 0)
    return run_command(command or "", partial(args.run, args), debugging(argv))


def _parser(command: str | None) -> argparse.ArgumentParser:
    """All commands; the arguments of another package's only when it is `command`, for that imports it."""
    parser = argparse.ArgumentParser(
        prog="small4", description="Mistral Small 4: generate, chat, serve, plan, convert."
    )
    parser.add_argument("--version", action="version", version=f"small4 {installed(PACKAGE) or '(not installed)'}")
    about = "show where an error was raised; as SMALL4_DEBUG=1 does"
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=about)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    generate = commands.add_parser("generate", help="answer a prompt", description="Answer a prompt, streaming.")
    generate.add_argument("prompt", metavar="PROMPT", help="what to say to the model")
    _add_model_arguments(generate)
    generate.set_defaults(run=_generate)
    about = "Talk in turns: one line, one answer; ends with the end of the input (Ctrl-D)."
    chat = commands.add_parser("chat", help="talk in turns", description=about)
    _add_model_arguments(chat)
    chat.set_defaults(run=_chat)
    for name, about in OWN.items():
        sub = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        if name == command:
            module = importlib.import_module(f"{__package__}.{name.replace('-', '_')}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    for name, about in CONVERSION.items():
        if importlib.util.find_spec("small4_conversion") and importlib.util.find_spec(f"small4_conversion.{name}"):
            sub = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
            if name == command:
                module = importlib.import_module(f"small4_conversion.{name}")
                module.add_arguments(sub)
                sub.set_defaults(run=module.run)
    return parser


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="DIR_OR_REPO", help="checkpoint folder or Hub repository (default: the demo checkpoint)"
    )
    parser.add_argument(
        "--image",
        metavar="PATH",
        type=Path,
        action="append",
        default=[],
        help="an image to show with the first message",
    )
    parser.add_argument(
        "--reasoning-mode", choices=REASONING_MODES, help="think first (high) or answer directly (none)"
    )
    parser.add_argument("--max-new-tokens", metavar="N", type=_whole(1), help="token limit, thinking included")
    parser.add_argument("--max-thinking-tokens", metavar="N", type=_whole(0), help="most tokens of thinking")
    parser.add_argument(
        "--preset", choices=("latency",), help="latency: answer as fast as possible, with drafts from the text so far"
    )
    parser.add_argument("--draft", metavar="DRAFT", help=DRAFT)
    add_expert_memory(parser)
    parser.add_argument("--seed", metavar="N", type=_whole(0), help="makes sampling repeatable")
    parser.add_argument(
        "--load-prefix",
        metavar="FILE",
        type=Path,
        help="do not read the beginning of the conversation again that this file holds",
    )
    parser.add_argument("--save-prefix", metavar="FILE", type=Path, help="save what was read to this file")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object for each answer, and nothing else on standard output"
    )


def _whole(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number, {least} or more")
        return int(text)

    return number


def _generate(args: argparse.Namespace) -> None:
    session = _session(args)
    _answer(session, args, args.prompt, args.image)
    _save_prefix(session, args)


def _save_prefix(session: "Session", args: argparse.Namespace) -> None:
    if args.save_prefix is not None:
        session.save_prefix(args.save_prefix)


def _chat(args: argparse.Namespace) -> None:
    session, images = _session(args), args.image
    prompt = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    while True:
        try:
            text = input(prompt)
        except EOFError:
            if session.messages:
                _save_prefix(session, args)
            return
        if text.strip():
            _answer(session, args, text, images)
            images = []


def _session(args: argparse.Namespace) -> "Session":
    import torch
    from transformers.utils import logging

    from ..registration import demo_checkpoint
    from .session import Session, load

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, processor = load(args.model or str(demo_checkpoint()), expert_memory=args.expert_memory)
    if args.seed is not None:
        torch.manual_seed(args.seed)
    session = Session(
        model, processor, args.reasoning_mode, args.max_new_tokens, args.max_thinking_tokens, args.preset, args.draft
    )
    if args.load_prefix is not None:
        session.load_prefix(args.load_prefix)
    return session


def _answer(session: "Session", args: argparse.Namespace, text: str, images: list[Path]) -> None:
    if args.json:
        print(json.dumps(_as_json(session.ask(text, images)), ensure_ascii=False), flush=True)
        return
    printer = Printer(sys.stdout.isatty())
    try:
        answer = session.ask(text, images, printer.show)
    finally:
        printer.end()
    if not answer.complete:
        print(f"(cut off after {answer.new_tokens} tokens; --max-new-tokens allows more)", file=sys.stderr)


def _as_json(answer: "Answer") -> dict[str, Any]:
    counts = {name: getattr(answer, name) for name in ("prompt_tokens", "thinking_tokens", "new_tokens", "seconds")}
    return answer.message | counts


class Printer:
    """Prints pieces as they arrive. A thought is dim on a terminal; elsewhere it stands between the model's special
    tokens.
    """

    def __init__(self, terminal: bool) -> None:
        self.opens, self.closes = (DIM, PLAIN) if terminal else (f"{THINK}\n", f"\n{END_THINK}")
        self.channel: str | None = None

    def show(self, channel: str, text: str) -> None:
        if channel != self.channel:
            self._change(channel)
            text = text.lstrip("\n")
        print(text, end="", flush=True)

    def _change(self, channel: str | None) -> None:
        if self.channel is not None:
            print(self.closes if self.channel == "thinking" else "", end="\n" if channel is None else "\n\n")
        if channel == "thinking":
            print(self.opens, end="")
        self.channel = channel

    def end(self) -> None:
        """Closes what is open and ends the line."""
        self._change(None)
        sys.stdout.flush()
