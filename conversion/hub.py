"""Finds the folder of a source that is named on the command line: a local one, or one downloaded from the Hub, with
only the files that are needed.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    logging,
    validate_repo_id,
)

from modeling_small4.files_reading import one_line, shown
from modeling_small4.files_saving import MANIFEST

from .checkpoint import CheckpointError

# The main release holds two layouts of 119 GB each: never download everything.
_RAW = (
    MANIFEST,
    "params.json",
    "tekken.json",
    "SYSTEM_PROMPT.txt",
    "consolidated*.safetensors",
    "consolidated.safetensors.index.json",
)
_FUSED = (
    *(
        MANIFEST,
        "config.json",
        "raw_params.json",
        "tekken.json",
        "SYSTEM_PROMPT.txt",
        "model*.safetensors",
        "model.safetensors.index.json",
    ),
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "generation_config.json",
    ),
    *("processor_config.json", "preprocessor_config.json"),
)


def resolve(source: str, note: Callable[[str], None], revision: str | None = None, as_loaded: bool = False) -> Path:
    """The folder of `source`. A path takes precedence over a repository of the same name.

    revision: branch, tag or commit of a repository; None: its main branch.
    as_loaded: of a repository with both released layouts, download the one that `from_pretrained` loads, not the raw
        one.

    Raises:
        CheckpointError: `source` is neither a folder nor a repository, holds no checkpoint in a known layout, has no
            such revision, or the network fails.
    """
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise CheckpointError(f"{source}: is a folder here; --revision {revision} is for repositories on the Hub")
        return path
    try:
        validate_repo_id(source)
    except HFValidationError:
        raise CheckpointError(f"{source}: no such folder, and no name of a Hub repository") from None
    if source.startswith((".", "/")) or source.count("/") != 1:
        raise CheckpointError(f"{source}: no such folder (a Hub repository is written owner/name)")
    try:
        with _quiet():
            return _download(source, note, revision, as_loaded)
    except CheckpointError:
        raise
    except RevisionNotFoundError:
        raise CheckpointError(f"{source}: the repository has no branch, tag or commit {shown(revision)}") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{source}: no such folder, and no such repository on the Hub (or it is private)"
        ) from None
    except Exception as error:  # the client and its HTTP library raise their own classes
        raise CheckpointError(f"{source}: not read from the Hub ({one_line(error)})") from None


def _download(source: str, note: Callable[[str], None], revision: str | None, as_loaded: bool) -> Path:
    try:
        files = set(HfApi().list_repo_files(source, revision=revision))
    except OfflineModeIsEnabled:
        return _cached(source, note, revision)
    raw = "params.json" in files and any(f.startswith("consolidated") and f.endswith(".safetensors") for f in files)
    if not raw and "config.json" not in files and any(f.endswith(".gguf") for f in files):
        raise CheckpointError(f"{source}: the repository holds GGUF files; download one of them and give its path")
    if not raw and "config.json" not in files:
        raise CheckpointError(
            f"{source}: the repository holds neither params.json with consolidated weights nor config.json"
        )
    both = raw and "config.json" in files and any(fnmatchcase(f, "model*.safetensors") for f in files)
    raw = raw and not (both and as_loaded)
    name = source if revision is None else f"{source} at {revision}"
    unread = f"; its weights in the {'config.json' if raw else 'raw'} layout are not read" if both else ""
    note(f"source: {name} on the Hub, {'raw' if raw else 'config.json'} layout, only its files are downloaded{unread}")
    return Path(snapshot_download(source, revision=revision, allow_patterns=_wanted(files, _RAW if raw else _FUSED)))


def _wanted(files: Iterable[str], patterns: tuple[str, ...]) -> list[str]:
    """The names that are downloaded: only files of the top folder, because a star in the client's patterns also matches
    "/".
    """
    return sorted(f for f in files if "/" not in f and "\\" not in f and any(fnmatchcase(f, p) for p in patterns))


def _cached(source: str, note: Callable[[str], None], revision: str | None) -> Path:
    """In offline mode: the cached download. Files that it lacks are reported when they are read."""
    try:
        folder = Path(snapshot_download(source, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise CheckpointError(f"{source}: not among the cached downloads, and HF_HUB_OFFLINE forbids others") from None
    note(f"source: {source}, as it was downloaded before (offline mode)")
    return folder


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the client's retry messages and, where there is no terminal, its progress bars."""
    level, hidden = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not hidden:
            enable_progress_bars()
