"""How images are read: whether the processor's settings fit the model and are those of the release.

Looks at settings only; no image is read.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from modeling_small4.files_reading import read_json, shown
from modeling_small4.image_processing_small4 import MEAN, STD, Small4ImageProcessor

from ..against import Fault
from ..bundle import image_sizes
from ..checkpoint import CheckpointError
from ..source import Checkpoint
from ..tekken_file import read_tekken
from ..vocabulary import TEKKEN, TOKENIZER
from .rows import SKIPPED, Row, judged

_PROCESSOR, _IMAGES = "processor_config.json", "preprocessor_config.json"
_TEKKEN_NAMES = {"patch_size": "image_patch_size"}  # where they differ
_STEPS = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}


def image_row(source: Checkpoint, vision: Small4ImageProcessor | None, unread: list[Fault]) -> Row:
    """The row about how images are read.

    vision: the folder's image processor. unread: what is wrong with its file, where it cannot be read.
    """
    sizes = image_sizes(source)
    faults, told = [replace(each, kind="images") for each in unread], bool(unread)
    if sizes is None:
        return judged("images", faults, "") if faults else Row("images", SKIPPED, "the model has no vision")
    try:
        said = read_tekken(source.folder / TEKKEN).get("image") if (source.folder / TEKKEN).is_file() else None
    except CheckpointError:  # it is told where the tokenizer is
        said = None
    if isinstance(said, dict):
        told = True
        mine = {name: said.get(_TEKKEN_NAMES.get(name, name)) for name in sizes}
        faults += _misfits(TEKKEN, mine, sizes)
    if source.layout != "mistral" and (source.folder / TOKENIZER).is_file() and not unread:
        told = True
        faults += _processor_faults(source, vision, sizes)
    if not told:
        return Row("images", SKIPPED, "no file says how images are read")
    return judged("images", faults, f"read in patches of {sizes['patch_size']}, up to {sizes['max_image_size']} pixels")


def _processor_faults(source: Checkpoint, vision: Small4ImageProcessor | None, sizes: dict[str, int]) -> list[Fault]:
    if vision is None:
        return [Fault("images", _PROCESSOR, "holds no image processor, though the model has vision")]
    around, file = _content(source.folder / _PROCESSOR), _PROCESSOR
    given = around.get("image_processor")
    if not isinstance(given, dict):
        given, file = _content(source.folder / _IMAGES), _IMAGES
    mine = {name: getattr(vision, name) for name in sizes}
    faults = _misfits(file, mine, sizes)
    if not faults:  # transformers' Pixtral processor counts tokens by what stands around the image processor
        outer = {name: around[name] for name in ("patch_size", "spatial_merge_size") if name in around}
        faults = _misfits(_PROCESSOR, mine | outer, sizes)
    # Our image processor does not read these from settings of transformers' Pixtral image processor.
    steps = {name: given.get(name, getattr(vision, name)) for name in _STEPS}
    colors = {"image_mean": _three(vision.image_mean), "image_std": _three(vision.image_std)}
    return faults + _differ(file, steps | colors, {**_STEPS, "image_mean": MEAN, "image_std": STD}, "the release has")


def _misfits(file: str, mine: dict[str, Any], sizes: dict[str, int]) -> list[Fault]:
    """Sizes that are not the model's. Smaller images are a choice, as long as one token fits."""
    most = mine["max_image_size"]
    if isinstance(most, int) and sizes["patch_size"] * sizes["spatial_merge_size"] <= most <= sizes["max_image_size"]:
        mine = mine | {"max_image_size": sizes["max_image_size"]}
    return _differ(file, mine, sizes, "the model's configuration says")


def _content(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _differ(file: str, mine: dict[str, Any], wanted: dict[str, Any], who: str) -> list[Fault]:
    return [
        Fault("images", file, f"{name} is {shown(mine[name])}, {who} {shown(value)}")
        for name, value in wanted.items()
        if not _same(mine[name], value)
    ]


def _three(value: Any) -> tuple[float, ...]:
    return (float(value),) * 3 if isinstance(value, (int, float)) else tuple(value)


def _same(mine: object, wanted: object) -> bool:
    if isinstance(mine, tuple) and isinstance(wanted, tuple):
        return all(_same(one, other) for one, other in zip(mine, wanted, strict=True))
    if isinstance(mine, (int, float)) and isinstance(wanted, float):
        return math.isclose(mine, wanted, rel_tol=1e-4)
    return mine == wanted
