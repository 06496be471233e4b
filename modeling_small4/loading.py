"""Loading that never guesses: a checkpoint whose tensors do not match the model is refused, with the list of what is wrong.

transformers only warns and leaves missing weights random. This file knows names of tensors, not their meaning.
"""

from typing import Any

from transformers.modeling_utils import PreTrainedModel

from .loading_experts import choose_experts_implementation
from .loading_fp8 import finish_loading, prepare_loading
from .loading_stages import distribute

SHOWN = 8


class Small4LoadingMixin:
    """`from_pretrained` for all Small 4 models."""

    @classmethod
    def from_pretrained(
        cls, *args: Any, output_loading_info: bool = False, ignore_mismatched_sizes: bool = False, **kwargs: Any
    ) -> Any:
        """As transformers' `from_pretrained`.

        Raises:
            ValueError: Tensors are missing from the checkpoint, have another shape than the model's (unless
                `ignore_mismatched_sizes`), or have no place in the model.
        """
        # Mismatched shapes are let through here, to be reported by name below.
        options = {"output_loading_info": True, "ignore_mismatched_sizes": True} | kwargs
        model, info = super().from_pretrained(*args, **options)  # type: ignore[misc]
        refuse_mismatch(model, info, ignore_mismatched_sizes)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As transformers' `save_pretrained`. `auto_map` is written only with the code it names, FP8 announced only where it is held."""
        if not self.is_remote_code():  # type: ignore[attr-defined]
            self.config.auto_map = {}  # type: ignore[attr-defined]
        if getattr(self, "hf_quantizer", None) is None and hasattr(self.config, "quantization_config"):  # type: ignore[attr-defined]
            del self.config.quantization_config  # type: ignore[attr-defined]
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]

    @classmethod
    def maybe_distribute_model(cls, model: Any, distributed_config: Any, mesh_manager: Any) -> Any:
        """transformers' cut of a model over processes, pipeline stages included."""
        return distribute(super().maybe_distribute_model, model, distributed_config, mesh_manager)  # type: ignore[misc]

    @staticmethod
    def _load_pretrained_model(
        model: Any, state_dict: Any, checkpoint_files: list[str] | None, load_config: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """transformers' reading of the tensors, with the published names and FP8 layouts added for this one load."""
        prepare_loading(model, checkpoint_files, load_config)
        out = PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs)
        finish_loading(model)
        choose_experts_implementation(model, load_config.hf_quantizer)
        return out


def refuse_mismatch(model: Any, info: dict[str, Any], ignore_mismatched_sizes: bool = False) -> None:
    """Raise unless every tensor found its place. A new task head may start fresh, and a model without head ignores the head."""
    missing = sorted(info.get("missing_keys", ()))
    head = {name for name, _ in model.named_parameters() if name.startswith("score.")}
    if head and head <= set(missing):
        missing = [name for name in missing if name not in head]
    unexpected = sorted(info.get("unexpected_keys", ()))
    if head or not hasattr(model, "lm_head"):
        unexpected = [name for name in unexpected if name.split(".")[0] not in ("lm_head", "score")]
    shapes = [] if ignore_mismatched_sizes else sorted(info.get("mismatched_keys", ()))
    wrong = [f"{name} is {list(given)}, the model's is {list(wanted)}" for name, given, wanted in shapes]
    problems = {"missing": missing, "of another shape": wrong, "without a place in the model": unexpected}
    if any(problems.values()):
        raise ValueError(
            f"{model.config._name_or_path or 'The checkpoint'} does not match {type(model).__name__}: "
            + "; ".join(f"{len(names)} tensors {kind} ({_listed(names)})" for kind, names in problems.items() if names)
            + ". Check that config.json belongs to these weights and that no file is incomplete."
        )


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
