"""Which safetensors files of a folder make up a checkpoint: by its index, or by their names. Opens headers only, never
a pickle.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from modeling_small4.files_reading import LONGEST_NAME, shown

from .checkpoint import MISSING, CheckpointError, read_headers, read_json, wrong_tensor

RAW_INDEX, RAW_PATTERN = "consolidated.safetensors.index.json", "consolidated*.safetensors"
INDEX, PATTERN = "model.safetensors.index.json", "model*.safetensors"
SETS = "several sets of weights"
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")


def weight_files(folder: Path, index: str, pattern: str) -> list[Path]:
    """The safetensors files of a layout, by its index if it has one, otherwise by name; sorted.

    Raises:
        CheckpointError: None, a shard that is missing, shards of two sets, shards that are found through an index
            alone without one, an index that leads out of the folder or to a pickle.
    """
    names = {entry.name for entry in folder.iterdir()}
    whole = pattern.replace("*", "")  # the file that holds all tensors
    if index in names:
        mapping = read_json(folder / index).get("weight_map")
        return _indexed(folder, folder / index, mapping, whole)
    found = sorted(name for name in names if Path(name).match(pattern) and (folder / name).is_file())
    if not found:
        raise no_weights(folder, names, pattern)
    sets = {m[1] for name in found if (m := re.search(r"-of-(\d+)\.safetensors$", name))}
    if len(found) > 1 and (len(sets) != 1 or any("-of-" not in name for name in found)):
        raise CheckpointError(f"{folder}: holds weights of several sets ({', '.join(found[:4])}) and no {index}", SETS)
    if sets:
        total = int(sets.pop())
        stem = found[0].rsplit("-", 3)[0]
        digits = len(found[0].rsplit("-", 1)[1].split(".")[0])
        for i in range(1, total + 1):
            name = f"{stem}-{i:0{digits}d}-of-{total:0{digits}d}.safetensors"
            if name not in names:
                raise CheckpointError(f"{folder / name}: missing shard", MISSING)
        if len(found) != total:
            raise CheckpointError(f"{folder}: holds {len(found)} shards of {total}", SETS)
    if pattern == PATTERN and found != [whole]:  # a save that was broken off leaves shards of two models without one
        raise CheckpointError(f"{folder / index}: is missing, and {found[0]} is found through it alone", MISSING)
    return [folder / name for name in found]


def _indexed(folder: Path, index: Path, mapping: object, whole: str) -> list[Path]:
    if not isinstance(mapping, dict) or not mapping:
        raise CheckpointError(f"{index}: weight_map is missing or empty", "damaged file")
    for tensor, name in mapping.items():
        if (
            not isinstance(name, str)
            or name in ("", ".", "..")
            or Path(name).name != name
            or "\\" in name
            or "\0" in name
        ):
            raise wrong_tensor(index, tensor, f"points outside the folder ({shown(name)})")
        if len(name.encode()) > LONGEST_NAME:
            raise wrong_tensor(index, tensor, f"is in {shown(name)}, a name too long for a file")
        if not name.endswith(".safetensors"):
            raise wrong_tensor(index, tensor, f"is in {shown(name)}; only safetensors files are opened")
    files = sorted(set(mapping.values()))
    if files != [whole] and (folder / whole).is_file():
        raise CheckpointError(
            f"{folder}: holds weights of several sets, {whole} and the files that {index.name} names; keep one of them",
            SETS,
        )
    for name in files:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: missing shard, named by {index.name}", MISSING)
    headers = read_headers([folder / name for name in files])
    for tensor, name in mapping.items():
        if tensor not in headers or headers[tensor].file.name != name:
            raise wrong_tensor(folder / name, tensor, f"is missing, {index.name} says it is there", "index")
    for tensor, stored in headers.items():
        if tensor not in mapping:
            raise wrong_tensor(stored.file, tensor, f"is not named by {index.name}", "index")
    return [folder / name for name in files]


def no_weights(folder: Path, names: Iterable[str], pattern: str) -> CheckpointError:
    """The error for a folder without weights in safetensors files; a pickle in their place is named."""
    pickle = next((name for name in sorted(names) if name.endswith(_PICKLES)), None)
    if pickle:
        return CheckpointError(
            f"{folder / pickle}: a pickle, which is never opened; save the weights as safetensors", "pickle"
        )
    return CheckpointError(f"{folder}: holds no {pattern}", MISSING)
