"""Checkpoints that `from_pretrained` cannot load because they name or pack tensors differently: recognized by their
headers, refused by name.

`small4 convert` reads them. Knows names of tensors only.
"""

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

# (what the name of a tensor says, what that is). The first that is met names the checkpoint.
_FOREIGN = (
    (re.compile(r"(^|\.)eagle_linear\."), "is an EAGLE draft, which drafts tokens for another model"),
    (re.compile(r"^(tok_embeddings\.|layers\.\d+\.attention\.)"), "has the names of Mistral's raw release"),
    (re.compile(r"\.switch_mlp\.|\.self_attn\.embed_q\."), "has the names of MLX"),
    (re.compile(r"\.(qweight|qzeros)$"), "is packed as GPTQ or AWQ"),
    (re.compile(r"\.mlp\.experts\.\d+\..*\.(absmax|quant_map|SCB)$"), "has experts quantized by bitsandbytes"),
    (re.compile(r"\.weight_scale_2$"), "is packed as ModelOpt's NVFP4"),
)
_DRAFT = 0


def refuse_unconverted(source: object) -> None:
    """Raise ValueError for a folder that transformers cannot load but `small4 convert` reads; the message has the
    command.
    """
    folder = Path(source) if isinstance(source, str | Path) else None
    if folder is None or not folder.is_dir() or (folder / "config.json").exists():
        return
    what = (
        "Mistral's raw release"
        if (folder / "params.json").exists()
        else "GGUF files"
        if any(folder.glob("*.gguf"))
        else None
    )
    if what:
        raise ValueError(f"{folder} holds {what} and no config.json. Convert it first: small4 convert {folder} DST")


def refuse_other_layouts(files: list[str] | None, name: str, draft: bool = False) -> None:
    """Raise ValueError if the files hold a checkpoint that has to be converted first, with the command. name: of the
    checkpoint; draft: whether a draft is what is loaded.
    """
    for file in files or ():
        if not file.endswith(".safetensors"):
            continue
        try:
            with safe_open(file, framework="pt", backend="pread") as opened:
                names = list(opened.keys())
        except (SafetensorError, OSError):
            continue  # a damaged file is reported when it is read
        for number, (pattern, what) in enumerate(_FOREIGN):
            if draft and number == _DRAFT:
                continue
            if any(pattern.search(tensor) for tensor in names):
                if number == _DRAFT:
                    raise ValueError(f"{name} {what}; give it to generate(draft=...) of the model.")
                raise ValueError(
                    f"{name} {what}, which from_pretrained does not read. Convert it first: small4 convert {name} DST"
                )
