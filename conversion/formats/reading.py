"""Which format a weight is stored in, told by the tensors that stand at its place, and the check that it is what was
announced.
"""

from ..checkpoint import CheckpointError
from ..naming import Leaf, Place
from . import bitsandbytes, fp8, gptq, int4, int8, nvfp4
from .finder import Finder
from .fp8 import Fp8
from .values import PLAIN, Plain, Values


def stands(finder: Finder, place: Place) -> bool:
    """Whether there is anything of a weight at `place`."""
    return any(finder.has(name) for name in (place.weight, place.on("packed"), place.beside("qweight")))


def take(finder: Finder, leaf: Leaf, place: Place) -> Values | None:
    """The numbers of `leaf`, which stands at `place`; None where something is wrong, which `finder` has noted."""
    matrix = len(leaf.shape) == 2
    if matrix and finder.has(place.on("packed")):
        return _take_packed(finder, place, leaf.shape)
    if matrix and finder.has(place.beside("qweight")):
        return gptq.take(finder, place, leaf.shape)
    if matrix and bitsandbytes.stands(finder, place):
        return bitsandbytes.take(finder, place, leaf.shape)
    if matrix and finder.has(place.on("scale_2")):
        return nvfp4.take_modelopt(finder, place, leaf.shape)
    dtype = finder.dtype(place.weight)
    if matrix and dtype == "I8":
        return int8.take(finder, place, leaf.shape)
    scaled = any(finder.has(name) for name in (place.on("scale"), place.on("scale_inv"), place.beside("qscale_weight")))
    if matrix and dtype == "F8_E4M3" and (leaf.linear or scaled):
        return fp8.take(finder, place, leaf.shape)
    body = finder.matrix(place.weight, place, leaf.shape)
    if body is None:
        return None
    if dtype not in PLAIN:
        known = f"but it must be one of {', '.join(PLAIN)} or FP8 with scales"
        why = "but this tensor is never quantized" if dtype == "F8_E4M3" else known
        finder.problem(body.tensor, body.file, f"is {dtype}, {why}")
        return None
    return Plain(leaf.shape, body)


def _take_packed(finder: Finder, place: Place, shape: tuple[int, ...]) -> Values | None:
    stored = finder.headers[place.on("packed")]
    if stored.dtype == "U8":
        return nvfp4.take(finder, place, shape)
    if stored.dtype == "I32":
        return int4.take(finder, place, shape)
    finder.problem(stored.tensor, stored.file, f"is {stored.dtype}, expected U8 (NVFP4) or I32 (4-bit groups)")
    return None


def check(finder: Finder, values: dict[str, Values]) -> None:
    """Refuse what concerns the whole: leftover tensors, two plain dtypes, formats that were not announced or are not
    there.

    Raises:
        CheckpointError: A format is announced and no tensor is stored so.
    """
    finder.finish()
    announced = finder.said
    parts = [part for value in values.values() for part in value.inner()]
    plain = next((v.body for v in parts if not v.quantized), None)
    found = {v.form: v for v in parts if v.quantized}
    for body in [v.body for v in parts if not v.quantized]:
        if plain and body.dtype != plain.dtype:
            reason = f"is {body.dtype}, but {plain.tensor} is {plain.dtype}; one dtype is expected"
            finder.problem(body.tensor, body.file, reason)
    for form, value in found.items():
        if form not in announced.forms:
            says = f"announces {announced.words}" if announced.forms else "announces no quantization"
            reason = f"is quantized ({form}), but {finder.config_file.name} {says}"
            finder.problem(value.body.tensor, value.body.file, reason)
    if announced.forms and not found:
        raise CheckpointError(f"{finder.config_file}: announces {announced.words}, but no tensor is stored so")
    _check_scales(finder, [v for v in values.values() if isinstance(v, Fp8)])


def _check_scales(finder: Finder, values: list[Fp8]) -> None:
    announced = finder.said
    for value in values:
        if value.arrangement not in announced.arrangements and announced.forms:
            reason = (
                f"has one FP8 scale for each {value.arrangement}, but {finder.config_file.name} announces "
                f"{announced.says()}"
            )
            finder.problem(value.body.tensor, value.body.file, reason)
    static = [v for v in values if v.activation is not None]
    lacking = next((v.body for v in values if v.activation is None), None)
    if static and lacking:
        finder.problem(lacking.tensor, lacking.file, "has no activation scale, but other tensors have one")
