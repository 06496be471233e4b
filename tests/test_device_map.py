"""A model spread over devices answers as on one: automatic, explicit and limited maps, offload to disk, tied or not,
text and images.

A machine without GPUs has the CPU, the disk, and torch's "meta" device, which computes shapes and places but no values.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model, infer_auto_device_map
from oracle import Case, image_inputs, text_ids

from modeling_small4 import Small4Config, Small4ForCausalLM
from modeling_small4.planner.layout import plan

torch.set_num_threads(1)
CASE = Case(seed=21)
INNER = "model.language_model"
HOMES = {
    "model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", f"{INNER}.embed_tokens": "cpu",
    **{f"{INNER}.layers.{i}": "cpu" for i in range(3)}, f"{INNER}.norm": "cpu", "lm_head": "cpu",
}  # fmt: skip
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 11}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = CASE.models()[0]
    if request.param:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder, max_shard_size="500KB")
    return folder


@pytest.fixture(scope="module")
def whole(saved: Path) -> Small4ForCausalLM:
    return Small4ForCausalLM.from_pretrained(saved)


@pytest.mark.parametrize(
    "options",
    [
        {"device_map": "auto"},
        {"device_map": "cpu"},
        {"device_map": {**HOMES, f"{INNER}.layers.1": "disk"}},
        {"device_map": dict.fromkeys(HOMES, "disk")},
        {"device_map": {**HOMES, "model.vision_tower": "disk", "lm_head": "disk", f"{INNER}.embed_tokens": "disk"}},
        {"device_map": "auto", "max_memory": {"cpu": 1_200_000}},
        {"device_map": "sequential", "max_memory": {"cpu": 700_000}},
    ],
    ids=[
        "auto",
        "cpu",
        "one layer on disk",
        "all on disk",
        "vision and both ends on disk",
        "limited",
        "hardly anything fits",
    ],
)
def test_answers_as_on_one_device(
    saved: Path, whole: Small4ForCausalLM, tmp_path: Path, options: dict[str, Any]
) -> None:
    spread = Small4ForCausalLM.from_pretrained(saved, offload_folder=tmp_path, **options)
    for inputs in ({"input_ids": text_ids(CASE, 2, 30)}, image_inputs(CASE, [(56, 84), (28, 56)])):
        with torch.no_grad():
            torch.testing.assert_close(spread(**inputs).logits, whole(**inputs).logits, atol=1e-5, rtol=0)
        assert torch.equal(spread.generate(**inputs, **GREEDY), whole.generate(**inputs, **GREEDY))


def test_absorbed_decoding_where_the_weights_are_and_only_there(
    saved: Path, whole: Small4ForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer whose weights lie there absorbs; one whose weights visit expands, because they are elsewhere outside its
    linears.
    """
    spread = Small4ForCausalLM.from_pretrained(
        saved, offload_folder=tmp_path, device_map={**HOMES, f"{INNER}.layers.1": "disk"}
    )
    attention = type(spread.model.language_model.layers[0].self_attn)
    absorbed: set[int] = set()
    original = attention.absorbed

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        absorbed.add(self.layer_idx)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(attention, "absorbed", spy)
    ids = text_ids(CASE, 1, 60)
    answer = spread.generate(ids, **GREEDY)
    assert absorbed == {0, 2}
    assert torch.equal(answer, whole.generate(ids, **GREEDY))
    assert absorbed == {0, 1, 2}


def test_everything_follows_the_layers_to_a_second_device() -> None:
    """Layers 1 and 2 and the head on another device: whatever they are handed, and their cache, must be there too."""
    model = Small4ForCausalLM(CASE.config()).to(torch.bfloat16).eval()
    second = (f"{INNER}.layers.1", f"{INNER}.layers.2", f"{INNER}.norm", "lm_head")
    model = dispatch_model(model, device_map=HOMES | dict.fromkeys(second, "meta"), main_device="cpu", force_hooks=True)
    mask = torch.ones(2, 40, dtype=torch.int64)
    mask[0, :5] = 0
    for inputs in ({"input_ids": text_ids(CASE, 2, 40), "attention_mask": mask}, image_inputs(CASE, [(56, 84)])):
        with torch.no_grad():
            out = model.model(**inputs, use_cache=True)
            more = model.model(text_ids(CASE, inputs["input_ids"].shape[0], 1), past_key_values=out.past_key_values)
        for output in (out, more):
            assert output.last_hidden_state.device.type == "meta"
        homes = [layer.keys.device.type for layer in more.past_key_values.layers]
        assert homes == ["cpu", "meta", "meta"]


def test_layers_are_never_split() -> None:
    """The full model over two GPUs and main memory: maps cut between layers of decoder and tower only."""
    with torch.device("meta"):
        model = Small4ForCausalLM(Small4Config()).to(torch.bfloat16)
    for first in (10**10, 2 * 10**10, 5 * 10**10):
        found = infer_auto_device_map(
            model, {0: first, 1: 3 * 10**10, "cpu": 10**12}, no_split_module_classes=model._no_split_modules
        )
        inside = [name for name in found if ".layers." in name and not name.rsplit(".", 1)[1].isdigit()]
        assert not inside
        assert {0, 1, "cpu"} == set(found.values())


def test_the_planned_map_covers_the_model(saved: Path, whole: Small4ForCausalLM, tmp_path: Path) -> None:
    """A plan's device_map is one that `from_pretrained` takes, and each device holds the planned bytes."""
    config = whole.config
    made = plan(config, "1.6MB-gpu+1MB-ram+1GB-disk", "float32", context=64, chunk=16, images=1)
    assert set(made.device_map.values()) >= {"cpu", "disk"}
    homes = {name: "cpu" if home == 0 else home for name, home in made.device_map.items()}
    spread = Small4ForCausalLM.from_pretrained(saved, device_map=homes, offload_folder=tmp_path)
    ids = text_ids(CASE, 1, 30)
    with torch.no_grad():
        torch.testing.assert_close(spread(ids).logits, whole(ids).logits, atol=1e-5, rtol=0)
    held = {load.device.name: sum(load.weights.values()) for load in made.loads}
    real: dict[Any, int] = {}
    names = dict(whole.named_parameters())
    for name, parameter in names.items():
        home = next(home for prefix, home in made.device_map.items() if name.startswith(prefix + "."))
        real[home] = real.get(home, 0) + parameter.numel() * parameter.element_size()
    assert {name: size for name, size in held.items() if size} == real
