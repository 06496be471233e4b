"""Conversion between the three layouts: logits against transformers' own classes, and round trips bit by bit."""

import copy
import json
import math
import random
from pathlib import Path

import pytest
import raw_checkpoint as rc
import torch
from conversion_cases import CASES, check_logits, equal, published_folder, raw_case, run
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small4_conversion.__main__ import main as convert_main
from small4_conversion.checkpoint import Reader, width
from small4_conversion.convert import Options, convert
from small4_conversion.naming import fused_shape, leaves
from small4_conversion.plan import Output, Piece
from small4_conversion.raw import config_from_params, params_from_config, same_model
from small4_conversion.shards import split, write
from small4_conversion.steps import Literal
from small4_conversion.transformers_layout import transformers_config
from transformers import AutoModelForCausalLM, AutoProcessor, Mistral3ForConditionalGeneration, Mistral4ForCausalLM

from modeling_small4 import Small4Config, Small4ForCausalLM
from tests.chat_options import PROMPT

# Every case plain; in FP8 what changes which weights there are, for all else is the same with scales beside it.
FORMS = [(name, False) for name in CASES] + [(name, True) for name in ("released", "experts", "dense first", "tied")]


@pytest.mark.parametrize(("name", "fp8"), FORMS)
def test_raw_to_ours_gives_the_logits_of_transformers(tmp_path: Path, name: str, fp8: bool) -> None:
    p, raw = raw_case(tmp_path / "raw", name, seed=1, fp8=fp8)
    run(tmp_path / "raw", tmp_path / "ours")
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32), p, raw)


@pytest.mark.parametrize(("name", "fp8"), FORMS)
def test_raw_to_ours_to_raw_is_bit_exact(tmp_path: Path, name: str, fp8: bool) -> None:
    _p, raw = raw_case(tmp_path / "raw", name, seed=2, fp8=fp8, shards=3)
    run(tmp_path / "raw", tmp_path / "ours", shard_size=150_000)
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
    run(tmp_path / "ours", tmp_path / "back", to="mistral", shard_size=200_000)
    rc.same_bits(rc.read_all(tmp_path / "back"), raw)
    for file in ("params.json", "tekken.json", "SYSTEM_PROMPT.txt"):
        assert (tmp_path / "back" / file).read_bytes() == (tmp_path / "raw" / file).read_bytes()
    assert equal(tmp_path / "raw", tmp_path / "ours")


@pytest.mark.parametrize("name", CASES)
def test_ours_to_transformers_loads_in_its_own_classes(tmp_path: Path, name: str) -> None:
    p, raw = raw_case(tmp_path / "raw", name, seed=3, fp8=name == "experts")
    run(tmp_path / "raw", tmp_path / "ours")
    run(tmp_path / "ours", tmp_path / "hf", to="transformers", dtype="bfloat16")
    kind = Mistral3ForConditionalGeneration if "vision_encoder" in p else Mistral4ForCausalLM
    model, info = kind.from_pretrained(tmp_path / "hf", dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    check_logits(model, p, raw)
    rule = "transformers" if p["yarn"]["apply_scale"] else None
    run(tmp_path / "hf", tmp_path / "again", softmax_scale=rule)
    run(tmp_path / "ours", tmp_path / "plain", dtype="bfloat16")
    rc.same_bits(rc.read_all(tmp_path / "again"), rc.read_all(tmp_path / "plain"))
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "again"), p, raw)


@pytest.mark.parametrize("name", ["released", "text only", "tied", "tower"])
def test_folders_saved_by_transformers_convert(tmp_path: Path, name: str) -> None:
    p = rc.params(**CASES[name])
    raw = rc.weights(p, seed=4)
    rc.host_model(p, raw).bfloat16().save_pretrained(tmp_path / "hf", max_shard_size="200KB")
    run(tmp_path / "hf", tmp_path / "ours")
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "ours"), p, raw)
    run(tmp_path / "hf", tmp_path / "raw", to="mistral")
    rc.same_bits(rc.read_all(tmp_path / "raw"), raw)
    written = json.loads((tmp_path / "raw" / "params.json").read_text())
    for key in ("dim", "n_layers", "n_heads", "norm_eps", "yarn", "llama_4_scaling", "tied_embeddings", "v_head_dim"):
        assert written[key] == p[key], key


@pytest.mark.parametrize("name", ["released", "text only"])
def test_published_plain_folder(tmp_path: Path, name: str) -> None:
    p = rc.params(**CASES[name])
    raw = rc.weights(p, seed=5)
    folder = published_folder(tmp_path / "hf", p, raw)
    check_logits(Small4ForCausalLM.from_pretrained(folder, dtype=torch.float32), p, raw)
    run(folder, tmp_path / "raw", to="mistral")
    rc.same_bits(rc.read_all(tmp_path / "raw"), raw)


@pytest.mark.parametrize(("shards", "index"), [(1, False), (1, True), (3, True)])
def test_raw_files_with_and_without_index(tmp_path: Path, shards: int, index: bool) -> None:
    _, raw = raw_case(tmp_path / "raw", shards=shards, index=index)
    (tmp_path / "raw" / "consolidated-old.safetensors").mkdir()  # a folder, which is no shard
    run(tmp_path / "raw", tmp_path / "out", to="mistral")
    rc.same_bits(rc.read_all(tmp_path / "out"), raw)


def test_a_text_model_by_the_names_of_its_own_class(tmp_path: Path) -> None:
    """Without `language_model`, though config.json is that of a model that could have a tower."""
    _, raw = raw_case(tmp_path / "raw", "text only")
    run(tmp_path / "raw", tmp_path / "ours")
    tensors = rc.read_all(tmp_path / "ours")
    renamed = {name.replace("model.language_model.", "model."): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / "ours" / "model.safetensors", metadata={"format": "pt"})
    run(tmp_path / "ours", tmp_path / "back", to="mistral")
    rc.same_bits(rc.read_all(tmp_path / "back"), raw)


def test_params_follow_a_changed_configuration(tmp_path: Path) -> None:
    """What a folder once came with is used only as long as it is true."""
    p, _ = raw_case(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    config["text_config"]["softmax_scale_rule"] = "transformers"
    config["text_config"]["rms_norm_eps"] = 1e-5
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
    run(tmp_path / "ours", tmp_path / "back", to="mistral")
    written = json.loads((tmp_path / "back" / "params.json").read_text())
    assert written["yarn"]["apply_scale"] is True
    assert written["norm_eps"] == 1e-5
    assert written["moe"]["renorm_strategy"] == "WEIGHTS"
    assert written["vision_encoder"]["max_image_size"] == 98
    assert written | {"yarn": p["yarn"], "norm_eps": p["norm_eps"]} == p


def test_each_key_of_params_follows_the_configuration() -> None:
    """Written over the params.json of a model that differs in one key, or in two that have to agree."""
    old, file = rc.params(moe={"num_experts": 8, "num_expert_groups": 2}), Path("params.json")
    flat = {(key,) for key, value in old.items() if not isinstance(value, dict)}
    flat |= {(outer, key) for outer, inner in old.items() if isinstance(inner, dict) for key in inner}
    kept = {"head_dim", "expert_parallel", "renorm_strategy", "max_image_size"}  # the configuration has no field
    kept |= {"image_break_token_id", "image_end_token_id"}
    fixed = {"route_every_n", "mm_projector_id", "add_pre_mm_projector_layer_norm"}
    agreeing = {"n_heads", "n_kv_heads"}, {"original_max_position_embeddings"}
    groups = [[path] for path in flat if path[-1] not in kept | fixed | set().union(*agreeing)]
    groups += [[path for path in flat if path[-1] in keys] for keys in agreeing]
    for group in groups:
        wanted = copy.deepcopy(old)
        for *outer, key in group:
            inner = wanted[outer[0]] if outer else wanted
            inner[key] = not inner[key] if isinstance(inner[key], bool) else inner[key] * 2 or 1
        config = config_from_params(wanted, file)
        assert params_from_config(config, old, file) == wanted, group
        assert not same_model(config, config_from_params(old, file))


def test_params_without_an_original_are_those_of_the_release() -> None:
    p, file = rc.params(), Path("params.json")
    made = params_from_config(config_from_params(p, file), None, file)
    p["vision_encoder"]["max_image_size"] = p["vision_encoder"]["image_size"]
    del p["moe"]["expert_parallel"], p["moe"]["renorm_strategy"]  # of the engine that trained it
    assert made == p


def test_queries_that_are_not_scaled_are_written_as_scaled_by_nothing() -> None:
    file = Path("params.json")
    config = config_from_params(rc.params(), file)
    config.text_config.rope_parameters["llama_4_scaling_beta"] = None
    assert params_from_config(config, None, file)["llama_4_scaling"]["beta"] == 0.0
    written = transformers_config(config, "bfloat16")["text_config"]["rope_parameters"]
    assert written["llama_4_scaling_beta"] == 0.0


def test_unsaid_vision_settings_are_those_of_pixtral(tmp_path: Path) -> None:
    p = rc.params(tower={"patch_size": 16})
    raw = rc.weights(p, seed=12)
    published_folder(tmp_path / "hf", p, raw)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    for key in ("hidden_act", "patch_size", "image_size"):
        del config["vision_config"][key]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    run(tmp_path / "hf", tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "config.json").read_text())["vision_config"]
    assert (written["hidden_act"], written["patch_size"], written["image_size"]) == ("gelu", 16, 1024)


def test_the_table_counts_the_release_exactly() -> None:
    sizes = [math.prod(leaf.shape) for leaf in leaves(Small4Config())]
    assert sum(sizes) == 119_401_298_944
    text_only = [math.prod(leaf.shape) for leaf in leaves(Small4Config(vision_config=None))]
    assert sum(text_only) == 118_972_826_624
    fused: dict[str, int] = {}
    for leaf in leaves(Small4Config()):
        fused.setdefault(leaf.name, math.prod(fused_shape(leaf, 128)))
    assert sum(fused.values()) == 119_401_298_944
    assert len({leaf.raw for leaf in leaves(Small4Config())}) == len(sizes)


def test_softmax_scale_of_transformers_folders_is_chosen_and_told(tmp_path: Path) -> None:
    p, raw = raw_case(tmp_path / "raw", "scaled", seed=10)
    run(tmp_path / "raw", tmp_path / "hf", to="transformers")
    for rule in ("released", "transformers"):
        notes: list[str] = []
        convert(tmp_path / "hf", tmp_path / rule, Options(softmax_scale=rule), notes.append)
        assert any(note.startswith(f"softmax scale: {rule}") and "mscale_all_dim 1.0" in note for note in notes)
        config = json.loads((tmp_path / rule / "config.json").read_text())
        assert config["text_config"]["softmax_scale_rule"] == rule
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "transformers"), p, raw)
    p["yarn"]["apply_scale"] = False
    check_logits(Small4ForCausalLM.from_pretrained(tmp_path / "released"), p, raw)


def test_loads_with_auto_classes_generation_defaults_included(tmp_path: Path) -> None:
    raw_case(tmp_path / "raw", seed=11)
    run(tmp_path / "raw", tmp_path / "ours")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    settings = model.generation_config
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (1, 2, 11)
    assert settings.reasoning_token_ids["think"] == 34
    assert processor.image_processor.max_image_size == 98
    batch = processor.apply_chat_template([{"role": "user", "content": "hi"}], reasoning_mode="high", **PROMPT)
    assert model.generate(**batch, max_new_tokens=3, reasoning_mode="high").shape[1] == batch["input_ids"].shape[1] + 3
    names = {entry.name for entry in (tmp_path / "ours").iterdir()}
    assert not any(name.endswith(".py") for name in names)
    assert "auto_map" not in (tmp_path / "ours" / "config.json").read_text()


@pytest.mark.parametrize("seed", range(30))
def test_shards_are_filled_in_order(seed: int) -> None:
    """Up to their size, which only tensors that are computed together go beyond."""
    rng, groups = random.Random(seed), []
    for number in range(rng.randint(1, 12)):
        step = Literal(b"")
        kinds = [(rng.choice(["F32", "BF16", "U8"]), (rng.randint(1, 4),)) for _ in range(rng.randint(1, 3))]
        groups.append([Output(f"{number}.{at}", *kind, (Piece(step, 0),)) for at, kind in enumerate(kinds)])
    limit, expected = rng.randint(1, 40), [groups[0]]
    for group in groups[1:]:
        if sum(output.nbytes for output in expected[-1] + group) <= limit:
            expected[-1] = expected[-1] + group
        else:
            expected.append(group)
    found = split([output for group in groups for output in group], limit, "model")
    assert [sorted(output.name for output in shard.outputs) for shard in found] == [
        sorted(output.name for output in shard) for shard in expected
    ]
    for number, shard in enumerate(found, 1):
        several = f"model-{number:05d}-of-{len(found):05d}.safetensors"
        assert shard.name == (several if len(found) > 1 else "model.safetensors")
        widths = [width(output.dtype) for output in shard.outputs]
        assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("files", [1, 2, 3])
def test_several_files_have_an_index(tmp_path: Path, files: int) -> None:
    outputs = [Output(f"t{n}", "U8", (4,), (Piece(Literal(bytes(4)), 4),)) for n in range(files)]
    with Reader() as reader:
        write(tmp_path, split(outputs, 4, "model"), "model", reader, lambda _: None)
    places = {name: file.name for file in tmp_path.glob("*.safetensors") for name in load_file(file)}
    assert len(places) == files
    index = tmp_path / "model.safetensors.index.json"
    found = json.loads(index.read_text()) if index.exists() else None
    assert found == ({"metadata": {"total_size": 4 * files}, "weight_map": places} if files > 1 else None)


def test_bodies_start_at_multiples_of_their_width(tmp_path: Path) -> None:
    raw_case(tmp_path / "raw", "heads", fp8=True)
    run(tmp_path / "raw", tmp_path / "ours")
    data = (tmp_path / "ours" / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % {"BF16": 2, "F8_E4M3": 1}[entry["dtype"]] == 0
    with safe_open(tmp_path / "ours" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_command_prints_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, raw = raw_case(tmp_path / "raw")
    assert convert_main([str(tmp_path / "raw"), str(tmp_path / "a")]) == 0
    shown = capsys.readouterr()
    assert "72 tensors" in shown.out or "tensors, " in shown.out
    assert "softmax scale: released" in shown.out
    assert "peak memory" in shown.out
    assert not shown.err
    assert convert_main([str(tmp_path / "raw"), str(tmp_path / "b"), "--to", "mistral", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary.keys() == {"tensors", "bytes", "seconds", "peak_rss_bytes"}
    assert summary["tensors"] == len(raw)
    assert summary["bytes"] == sum(t.numel() * t.element_size() for t in raw.values())


@pytest.mark.parametrize(
    "arguments",
    [[], ["only-one"], ["a", "b", "--to", "gguf"], ["a", "b", "--dtype", "int3"], ["a", "b", "--shard-size", "big"]],
)
def test_wrong_usage_is_status_two(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as status:
        convert_main(arguments)
    assert status.value.code == 2
