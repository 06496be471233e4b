"""DFlash drafts in every published form guess what transformers' own loop, or a plain version, guesses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dflash_checkpoint import BLOCK, DIM, GROUPS, HEADS, LAYERS, SORTS, WIDTH, WINDOW, config, plain, tensors, write
from hub_client import hub_client
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, MuseGlimmerAssistantConfig, MuseGlimmerAssistantModel
from transformers.generation.candidate_generator import DFlashTokenCandidateGenerator

from model_card.evals.fuzz.small_hub import Hub
from modeling_small4 import Small4Config, Small4ForCausalLM, demo_checkpoint, demo_draft, drafts_sources
from modeling_small4.commands.cli import main
from modeling_small4.drafts_loading import drafting_for
from modeling_small4.drafts_pace import AnswerPace
from modeling_small4.drafts_reading import draft_bytes
from modeling_small4.drafts_sources import DFlashDrafting

SIZE = 128  # of the demo


class Bold(AnswerPace):
    """Drafts as much as it can, however wrong."""

    def wants_draft(self, unread: int) -> bool:
        return True

    def worth_checking(self, drafted: int, sure: float) -> bool:
        return True


@pytest.fixture(autouse=True)
def bold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts_sources, "AnswerPace", Bold)


@pytest.fixture(scope="module")
def model() -> Small4ForCausalLM:
    return Small4ForCausalLM.from_pretrained(demo_checkpoint(), dtype=torch.float32).eval()


def of_transformers(seed: int = 0) -> MuseGlimmerAssistantModel:
    torch.manual_seed(seed)
    return MuseGlimmerAssistantModel(
        MuseGlimmerAssistantConfig(
            hidden_size=SIZE, intermediate_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            num_key_value_heads=GROUPS, head_dim=DIM, sliding_window=WINDOW, layer_types=SORTS, block_size=BLOCK,
            mask_token_id=9, target_layer_ids=[1, 3], bos_token_id=1, eos_token_id=2, pad_token_id=11,
        )
    ).eval()  # fmt: skip


def guesses(drafting: DFlashDrafting, model: Small4ForCausalLM, ids: torch.Tensor, steps: list[int]) -> list[list[int]]:
    """What is drafted behind the first of each of these lengths, the text between being read by the model."""
    cache, out, done = model.cache_for(0, None), [], 0
    drafting.begin(1, steps[0], 1.0)
    for length in steps:
        model(input_ids=ids[:, done:length], cache=cache, use_cache=True, draft_view=drafting.view)
        done = length
        out.append(drafting.draft(ids[:, : length + 1], None, torch.ones(1), 20)[0].tolist())
    return out


def test_guesses_are_those_of_transformers_own_loop(model: Small4ForCausalLM) -> None:
    """Over a prompt, then over as many tokens as were accepted, beyond the window of a layer."""
    theirs, ids, steps = of_transformers(), torch.randint(1000, 1200, (1, 40)), [12, 13, 17, 20, 25]
    drafting = drafting_for(model, theirs)
    assert isinstance(drafting, DFlashDrafting)
    with torch.no_grad():
        ours = guesses(drafting, model, ids, steps)
        generator = DFlashTokenCandidateGenerator(
            theirs, model.get_input_embeddings(), model.get_output_embeddings(), GenerationConfig(max_length=100)
        )
        done = 0
        for length, guessed in zip(steps, ours, strict=True):
            read = model(input_ids=ids[:, :length], output_hidden_states=True)
            read.hidden_states = [state[:, done:] for state in read.hidden_states]
            kwargs = {"position_ids": torch.arange(length + 1)[None], "attention_mask": torch.ones(1, length + 1)}
            candidates, _ = generator.get_candidates(
                ids[:, : length + 1], kwargs, read, is_first_iteration=False, n_last_matches=length - done - 1
            )
            done = length
            assert guessed == candidates[0, length + 1 :].tolist()
            assert len(guessed) == BLOCK - 1


@pytest.mark.parametrize("form", ["z-lab", "speculators"])
def test_guesses_are_those_of_a_plain_version(model: Small4ForCausalLM, tmp_path: Path, form: str) -> None:
    vocab = model.config.text_config.vocab_size
    folder = write(tmp_path, form, SIZE, vocab, seed=3)
    given, ids, steps = tensors(form, SIZE, vocab, 40, 3), torch.randint(1000, 1200, (1, 30)), [9, 10, 14]
    drafting = drafting_for(model, str(folder))
    with torch.no_grad():
        ours = guesses(drafting, model, ids, steps)  # type: ignore[arg-type]
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
        states = torch.cat((hidden[1], hidden[3]), dim=-1)[0]
        embed = given.get("embed_tokens.weight", model.get_input_embeddings().weight)
        head = given.get("lm_head.weight", model.get_output_embeddings().weight)
        for length, guessed in zip(steps, ours, strict=True):
            block = embed[[int(ids[0, length]), *[9] * (BLOCK - 1)]]
            wanted = (plain(form, given, states[:length], block, 0)[1:] @ head.T).argmax(-1)
            if form == "speculators":
                wanted = wanted + given["d2t"][wanted]
            assert guessed == wanted.tolist()


@pytest.mark.parametrize("form", ["z-lab", "speculators", "transformers"])
def test_answers_are_those_without_a_draft(model: Small4ForCausalLM, tmp_path: Path, form: str) -> None:
    if form == "transformers":
        of_transformers(5).save_pretrained(tmp_path)
    else:
        write(tmp_path, form, SIZE, model.config.text_config.vocab_size)
    ids = torch.randint(1000, 1200, (3, 20))
    mask = torch.ones_like(ids)
    mask[0, :7], mask[2, :2] = 0, 0
    for more in ({}, {"do_sample": True}, {"cache_implementation": "latent_8bit"}, {"prefill_chunk_size": 6}):
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 20} | more
        torch.manual_seed(0)
        expected = model.generate(**given)
        torch.manual_seed(0)
        assert torch.equal(expected, model.generate(**given, draft=str(tmp_path)))
    assert drafting_for(model, str(tmp_path)).pace.drafted > 0


def test_padded_rows_get_the_guesses_of_the_row_alone(model: Small4ForCausalLM, tmp_path: Path) -> None:
    folder = str(write(tmp_path, "speculators", SIZE, model.config.text_config.vocab_size))
    ids = torch.randint(1000, 1200, (1, 13))
    padded = torch.cat((torch.full((1, 6), 11), ids), dim=1)
    mask = (torch.arange(19) >= 6)[None].long()
    alone, beside = drafting_for(model, folder), drafting_for(model, folder)
    with torch.no_grad():
        for each, text, shown in ((alone, ids, None), (beside, padded, mask)):
            each.begin(1, 12, 1.0)
            read = None if shown is None else shown[:, :-1]
            positions = torch.arange(12)[None] if read is None else (read.cumsum(-1) - 1).clamp(min=0)
            model(input_ids=text[:, :-1], attention_mask=read, position_ids=positions, draft_view=each.view)
        ours = [
            each.draft(text, shown, torch.ones(1), 9)
            for each, text, shown in ((alone, ids, None), (beside, padded, mask))
        ]
    assert torch.equal(*ours)


def test_other_kinds_are_refused_by_name(model: Small4ForCausalLM, tmp_path: Path) -> None:
    vocab = model.config.text_config.vocab_size
    ids = torch.randint(1000, 1200, (1, 5))

    def refused(change: dict[str, Any], what: str, form: str = "speculators") -> None:
        folder = write(tmp_path / str(len(list(tmp_path.iterdir()))), form, SIZE, vocab)
        (folder / "config.json").write_text(json.dumps(config(form, SIZE, vocab, 40) | change))
        with pytest.raises(ValueError, match=what):
            model.generate(input_ids=ids, max_new_tokens=2, draft=str(folder))

    refused({"speculators_model_type": "dspark"}, "kind 'dspark'.*give an EAGLE draft")
    refused({"speculators_model_type": "eagle3", "architectures": []}, "kind 'eagle3'")
    refused({"speculators_model_type": "other", "architectures": []}, "kind 'other'")
    refused({"architectures": ["DFlash2DraftModel"]}, "kind 'dflash2'", "z-lab")
    refused({"dflash_config": {"projector_type": "domino"}}, "kind 'domino'", "z-lab")
    refused({"dflash_config": {"mask_token_id": 9}}, "without target_layer_ids", "z-lab")
    refused({"block_size": None}, "without block_size", "z-lab")
    refused({"dflash_config": {"mask_token_id": 9, "target_layer_ids": [0, 7]}}, r"layers \[0, 7\]", "z-lab")
    refused({"mask_token_id": 10**6}, "token ids up to 1000000")
    refused({"hidden_size": 64}, "of another shape", "z-lab")
    refused({"attention_bias": True}, "biases", "z-lab")


def test_damaged_files_are_told(model: Small4ForCausalLM, tmp_path: Path) -> None:
    folder = write(tmp_path, "z-lab", SIZE, model.config.text_config.vocab_size)
    whole = load_file(folder / "model.safetensors")
    for change, what in (
        ({"fc.weight": None}, "missing: encoder.fc"),
        ({"markov_head.w": torch.ones(1)}, "unknown: markov"),
    ):
        kept = {name: tensor for name, tensor in (whole | change).items() if tensor is not None}
        save_file(kept, folder / "model.safetensors")
        with pytest.raises(ValueError, match=what):
            drafting_for(model, str(folder))


def test_the_planner_counts_a_dflash_draft_and_convert_leaves_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "draft", "speculators", 64, 500)
    floats = sum(
        tensor.numel() for tensor in load_file(folder / "model.safetensors").values() if tensor.is_floating_point()
    )
    assert draft_bytes(str(folder), 100, 2) == 2 * (floats + 2 * LAYERS * GROUPS * DIM * 100 * 2)
    zlab = write(tmp_path / "zlab", "z-lab", 64, 500)
    assert draft_bytes(str(zlab), 0, 1) == 2 * sum(t.numel() for t in load_file(zlab / "model.safetensors").values())
    assert main(["plan", "--devices", "4xH100", "--draft", str(folder)]) == 0
    capsys.readouterr()
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 1
    assert "DFlash draft" in capsys.readouterr().err


def test_drafts_of_the_hub_are_planned_by_their_configuration_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub, vocab = Hub(), Small4Config.from_pretrained(demo_checkpoint()).text_config.vocab_size
    for name, folder in (
        ("lab/dflash", write(tmp_path / "draft", "speculators", SIZE, vocab)),
        ("lab/eagle", demo_draft()),
    ):
        hub.commit(name, "main", {file.name: file.read_bytes() for file in folder.iterdir()})

    def small4(*line: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*line, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    with hub_client(hub, tmp_path / "home"):
        plan = ["plan", "--devices", "4xH100", "--context", "1000"]
        used = [small4(*plan, *more)["devices"][0]["used"] for more in ([], ["--draft", "lab/dflash"])]
        assert used[1] == used[0] + draft_bytes(str(tmp_path / "draft"), 1000, 1)
        assert not any("safetensors" in path for path, _ in hub.downloads)
        assert small4(*plan, "--draft", "lab/eagle")["devices"][0]["used"] > used[0]
        asked = ["generate", "What is 48 + 75?", "--reasoning-mode", "high"]
        for name in ("lab/dflash", "lab/eagle"):
            assert small4(*asked, "--draft", name)["content"] == "123"
    hub.close()
