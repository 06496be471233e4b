"""How much each expert works during training: a `TrainerCallback` that logs it, warns of starving experts, and draws a
picture.

Counts what routers choose for tokens that are not padding, once per forward pass. Must not know: losses, the data.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..moe import Small4TopkRouter

logger = logging.get_logger(__name__)

LEAST_EXPECTED = 32  # assignments of an expert under equal load, below which a low count may be chance


class ExpertLoad:
    """Counts assignments per layer and expert while a model runs. Loads are relative: 1.0 is an equal share of the
    layer's tokens.

    Works on any model that holds Small 4 decoder layers, wrapped by adapters or shards too. Passes that gradient
    checkpointing repeats are counted once.

    Args:
        training_only: count only while the model is in training mode, so that evaluation in between does not show.

    Raises:
        ValueError: the model has no routers.
    """

    def __init__(self, model: nn.Module, training_only: bool = False) -> None:
        routers = [(name, module) for name, module in model.named_modules() if isinstance(module, Small4TopkRouter)]
        if not routers:
            raise ValueError(f"{type(model).__name__} has no routers of Small 4, so there is no expert load to count.")
        self.layers = [int(re.findall(r"layers\.(\d+)\.", name)[-1]) for name, _ in routers]
        self.top_k = routers[0][1].top_k
        self.counts = torch.zeros(len(routers), routers[0][1].num_experts, dtype=torch.long)
        self.padding: torch.Tensor | None = None
        self.running, self.training_only = False, training_only
        decoder = _decoder(model)
        self.hooks = [
            decoder.register_forward_pre_hook(self._begin, with_kwargs=True),
            decoder.register_forward_hook(self._end, always_call=True),
        ]
        for place, (_, router) in enumerate(routers):
            self.hooks.append(router.register_forward_hook(lambda m, i, out, place=place: self._count(place, out[2])))

    def _begin(self, module: nn.Module, args: TrainingArguments, kwargs: dict[str, Any]) -> None:
        mask, given = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
        given = kwargs.get("input_ids") if given is None else given
        self.padding = None
        if mask is not None and mask.ndim == 2 and given is not None:
            self.padding = mask[:, -given.shape[1] :].flatten().bool()  # a mask also covers what is cached
        self.running = module.training or not self.training_only

    def _end(self, *args: Any) -> None:
        self.running = False

    def _count(self, place: int, chosen: torch.Tensor) -> None:
        if not self.running:  # evaluation, or a pass repeated for its gradient
            return
        chosen = chosen.detach()
        if self.padding is not None and self.padding.shape[0] == chosen.shape[0]:
            chosen = chosen[self.padding.to(chosen.device)]
        self.counts[place] += chosen.flatten().bincount(minlength=self.counts.shape[1]).cpu()

    def take(self) -> torch.Tensor:
        """Assignments int64 [layers, experts] since the last call, summed over processes."""
        counts, self.counts = self.counts, torch.zeros_like(self.counts)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
            shared = counts.to(device)
            torch.distributed.all_reduce(shared)
            counts = shared.cpu()
        return counts

    def remove(self) -> None:
        """Stop counting."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []


def relative(counts: torch.Tensor) -> torch.Tensor:
    """Counts [..., layers, experts] -> float32 loads of the same shape, 1.0 for an equal share, 0 where nothing was
    counted.
    """
    total = counts.sum(dim=-1, keepdim=True)
    return counts * counts.shape[-1] / total.clamp(min=1)


def _decoder(model: nn.Module) -> nn.Module:
    """The module that runs once per pass and gets the attention mask: the parent of the decoder layers."""
    name = next(name for name, module in model.named_modules() if isinstance(module, Small4TopkRouter))
    return model.get_submodule(re.sub(r"\.?layers\.\d+\..*$", "", name))


class ExpertLoadCallback(TrainerCallback):
    """Logs the load of experts whenever the trainer logs, as `expert_load/layer_N/max` and `/min` (1.0 is an equal
    share).

    The values stand in `trainer.state.log_history` and in the logs of callbacks that come after this one; `history`
    keeps a tensor [layers, experts] of loads for each logged step in `steps`.

    Args:
        picture: file for a heatmap of layers, experts and time, drawn when training ends (needs matplotlib).
        starving: an expert with less than this part of an equal share draws a warning, once until it recovers.

    Raises:
        ValueError: a picture is asked for and matplotlib is missing.
    """

    def __init__(self, picture: str | Path | None = None, starving: float = 0.1) -> None:
        if picture is not None and importlib.util.find_spec("matplotlib") is None:
            raise ValueError('A picture of expert load needs matplotlib: pip install ".[train]", or leave picture out.')
        self.picture, self.starving = picture, starving
        self.load: ExpertLoad | None = None
        self.layers: list[int] = []
        self.steps: list[int] = []
        self.history: list[torch.Tensor] = []
        self.warned: set[tuple[int, int]] = set()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel = None,
        **kwargs: Any,
    ) -> None:
        self.load = ExpertLoad(model, training_only=True)
        self.layers = self.load.layers

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.load is None or logs is None or "loss" not in logs:
            return
        counts = self.load.take()
        loads = relative(counts)
        self.steps.append(state.global_step)
        self.history.append(loads)
        values: dict[str, float] = {}
        for layer, of_layer in zip(self.layers, loads, strict=True):
            values |= {
                f"expert_load/layer_{layer}/{name}": round(getattr(of_layer, name)().item(), 4)
                for name in ("max", "min")
            }
        logs.update(values)
        if state.log_history:
            state.log_history[-1].update(values)
        self._warn(counts, loads)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.load is not None:
            self.load.remove()
            self.load = None
        if self.picture is not None and self.history and state.is_world_process_zero:
            self.draw(self.picture)

    def _warn(self, counts: torch.Tensor, loads: torch.Tensor) -> None:
        expected = counts.sum(dim=-1) / counts.shape[-1]
        for place, layer in enumerate(self.layers):
            if expected[place] < LEAST_EXPECTED:
                continue
            low = {(layer, expert) for expert in (loads[place] < self.starving).nonzero().flatten().tolist()}
            new = sorted(expert for _, expert in low - self.warned)
            self.warned = {pair for pair in self.warned if pair[0] != layer} | low
            if new:
                logger.warning(
                    f"Layer {layer}: experts {new} get less than {self.starving:g} of an equal share of tokens and "
                    "hardly learn. "
                    "Raise text_config.router_aux_loss_coef (it works when output_router_logits is on), or mix the "
                    "data more evenly."
                )

    def draw(self, file: str | Path) -> None:
        """Write a heatmap: one panel per layer, experts upwards, logged steps along; blue below an equal share, red
        above.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        if not self.history:
            raise ValueError("There is no expert load to draw: nothing was logged yet.")
        shades = torch.stack(self.history).clamp(min=2**-4).log2()  # [steps, layers, experts]
        layers = shades.shape[1]
        columns = min(6, layers)
        rows = -(-layers // columns)
        figure = Figure(figsize=(2.6 * columns + 1.2, 2.4 * rows + 0.6), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
        picture: Any = None
        extent = (-0.5, len(self.steps) - 0.5, -0.5, shades.shape[2] - 0.5)
        for place, panel in enumerate(panels):
            if place >= layers:
                panel.axis("off")
                continue
            picture = panel.imshow(
                shades[:, place].T.numpy(), origin="lower", aspect="auto", cmap="RdBu_r", vmin=-3, vmax=3,
                    extent=extent, interpolation="nearest"
            )  # fmt: skip
            panel.set_title(f"layer {self.layers[place]}", fontsize=9)
            ticks = sorted({0, len(self.steps) - 1})
            panel.set_xticks(ticks, [str(self.steps[tick]) for tick in ticks])
        figure.supxlabel("step")
        figure.supylabel("expert")
        bar = figure.colorbar(picture, ax=panels.tolist(), ticks=range(-3, 4))
        bar.set_ticklabels(["1/8", "1/4", "1/2", "1", "2", "4", "8"])
        bar.set_label("load (1: equal share)")
        figure.savefig(Path(file))
