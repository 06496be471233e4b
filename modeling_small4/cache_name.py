"""What transformers calls the cache in its arguments and outputs: `past_key_values` in 5.23, `cache` from 5.24 on.

The models and `generate` take either name, whichever transformers is installed. What they pass on and return has the name of the
installed one. Must not know: caches, versions.
"""

from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import MoeModelOutputWithPast

NAMES = ("cache", "past_key_values")
(CACHE,) = {field.name for field in fields(MoeModelOutputWithPast)} & {*NAMES}  # of the installed transformers


def one_cache(cache: Any, past_key_values: Any) -> Any:
    """The cache that was passed under one of its names, or None.

    Raises:
        ValueError: One was passed under each.
    """
    if cache is not None and past_key_values is not None:
        raise ValueError("cache and past_key_values are two names of one argument; pass one of them.")
    return past_key_values if cache is None else cache


def host_named(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with their cache, where they have one, under the name that transformers has for it.

    Raises:
        ValueError: There is one under each name.
    """
    cache = one_cache(*(arguments.get(name) for name in NAMES))
    rest = {name: value for name, value in arguments.items() if name not in NAMES}
    return rest if cache is None else rest | {CACHE: cache}
