"""params.json, config.json, generation_config.json, the image processor's settings and adapter_config.json.

What is right: the value that stands in the file is the value that is used, and what was written from it reads the same.
"""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from small4_conversion import adapters
from small4_conversion.checkpoint import read_json
from small4_conversion.formats.announced import announced
from small4_conversion.manifest import MANIFEST, Manifest
from small4_conversion.manifest import read as read_manifest
from small4_conversion.raw import config_from_params, params_from_config, same_model
from small4_conversion.transformers_layout import config_from_transformers
from transformers import AutoConfig, GenerationConfig

from modeling_small4 import Small4Config, Small4ImageProcessor
from modeling_small4.loading import check_generation_config

from .cases import Bench, Case
from .damage import at, damaged, places, write

# Which release wrote a file, and what other engines read: nothing here depends on them. A head that is tied is so
# wherever that is said.
_UNREAD = (
    "tie_word_embeddings",
    "transformers_version",
    "head_dim",
    "max_image_size",
    "image_break_token_id",
    "image_end_token_id",
)


def _file(bench: Bench, draw: random.Random, source: str) -> tuple[Path, str]:
    file = bench.work / source.split("/")[-1]
    change = damaged(file.name, bench.text(source), draw)
    write(file, change)
    return file, change.what


def params(bench: Bench, draw: random.Random) -> Case:
    file, what = _file(bench, draw, "raw/params.json")

    def read() -> Small4Config:
        given = read_json(file)
        config = config_from_params(given, file)
        announced(given, file)
        return config

    def check(config: object) -> str | None:
        assert isinstance(config, Small4Config)
        written = params_from_config(config, None, file)
        if not same_model(config_from_params(written, file), config):
            return "written and read again it is another model"
        return unlike(json.loads(file.read_bytes()), written)

    return Case(what, read, check, (str(file),))


def config(bench: Bench, draw: random.Random) -> Case:
    file, what = _file(bench, draw, "ours/config.json")
    reader = draw.choice((Small4Config, AutoConfig))

    def check(found: object) -> str | None:
        if not isinstance(found, Small4Config):
            return f"read as {type(found).__name__}"
        if Small4Config.from_dict(found.to_dict()).to_dict() != found.to_dict():
            return "written and read again it is another configuration"
        return unlike(json.loads(file.read_bytes()), found.to_dict())

    return Case(
        f"{reader.__name__}: {what}",
        lambda: reader.from_pretrained(bench.work),
        check,
        (str(bench.work),),
        auto=reader is AutoConfig,
    )


def foreign_config(bench: Bench, draw: random.Random) -> Case:
    """config.json in transformers' layout, as conversion reads it."""
    file, what = _file(bench, draw, "hf/config.json")

    def read() -> Small4Config:
        given = read_json(file)
        found, _ = config_from_transformers(given, "released", True, file)
        announced(given, file)
        return found

    def check(found: object) -> str | None:
        assert isinstance(found, Small4Config)
        same = Small4Config.from_dict(found.to_dict()).to_dict() == found.to_dict()
        return None if same else "written and read again it is another configuration"

    return Case(what, read, check, (str(file),))


def generation(bench: Bench, draw: random.Random) -> Case:
    file, what = _file(bench, draw, "ours/generation_config.json")

    def check(_: object) -> str | None:
        if not file.exists():
            return None
        found = GenerationConfig.from_pretrained(bench.work).to_dict()
        return unlike(json.loads(file.read_bytes()), found)

    return Case(what, lambda: check_generation_config(file), check, (str(file),))


def image_settings(bench: Bench, draw: random.Random) -> Case:
    what = _file(bench, draw, "ours/processor_config.json")[1]

    def check(found: object) -> str | None:
        assert isinstance(found, Small4ImageProcessor)
        image = Image.new("RGB", (20, 31), (9, 90, 200))
        try:
            out = found.preprocess(image)
        except ValueError as error:
            return f"settings that cannot be used: {error}"
        rows, columns = found.token_grid(20, 31)
        size = [rows * found.unit, columns * found.unit]
        if out["image_sizes"].tolist() != [size] or list(out["pixel_values"].shape) != [1, 3, *size]:
            return "another size than that of the settings"
        return None if torch.isfinite(out["pixel_values"]).all() else "values that are not finite"

    return Case(what, lambda: Small4ImageProcessor.from_pretrained(bench.work), check, (str(bench.work),))


def adapter(bench: Bench, draw: random.Random) -> Case:
    """adapter_config.json, as the commands for adapters read it."""
    what = _file(bench, draw, "adapter/adapter_config.json")[1]
    (bench.work / "adapter_model.safetensors").hardlink_to(bench.sound / "adapter/adapter_model.safetensors")
    return Case(what, lambda: adapters.read_adapter(bench.work), names=(str(bench.work),))


def manifest(bench: Bench, draw: random.Random) -> Case:
    file, what = _file(bench, draw, f"ours/{MANIFEST}")

    def check(found: Manifest) -> str | None:
        sound = read_manifest(bench.sound / "ours" / MANIFEST)
        return None if found.weights == sound.weights else "other weights than those of the checkpoint"

    return Case(what, lambda: read_manifest(file), check, (str(file),))


def unlike(given: dict[str, Any], found: dict[str, Any]) -> str | None:
    """A value that stands in a file and is another one in what was read from it; `null` leaves a choice."""
    for place in places(given):
        if any(part in _UNREAD for part in place):
            continue
        try:
            one, other = at(given, place), at(found, place)
        except (KeyError, IndexError, TypeError):
            continue
        if one is None or isinstance(one, (dict, list)) or _equal(one, other):
            continue
        if place[-1] in ("beta_fast", "beta_slow", "alpha", "beta") and one == 0 and not isinstance(one, bool):
            continue  # stands for the default, as in transformers
        return f"{'/'.join(map(str, place))} is {str(one)[:40]!r} in the file and {str(other)[:40]!r} in what was read"
    return None


def _equal(one: object, other: object) -> bool:
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return one == other or float(one) == float(other) or (math.isnan(one) and math.isnan(other))
    return bool(np.all(one == other))
