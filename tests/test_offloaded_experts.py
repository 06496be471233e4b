"""Experts that are read from disk as needed: the same bits as with all of them in memory, within the memory allowed,
and errors that say why.
"""

import copy
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import stored_folder
import torch
from forked import python
from oracle import Case, image_inputs
from stored_folder import Folders

from modeling_small4 import Small4ForCausalLM, Small4Model, experts_memory
from modeling_small4.experts_files import LayerFiles, WatchedFile, read_header
from modeling_small4.experts_memory import affordable, free_memory, parse_memory
from modeling_small4.experts_offloaded import Small4OffloadedExperts, expert_store
from modeling_small4.experts_pool import Pool, Usage

GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 11}
FORMS = ("fp8", "nvfp4", "bfloat16", "float32")


@pytest.fixture(scope="module", params=FORMS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    plain = request.param in ("bfloat16", "float32")
    folders = stored_folder.write(tmp_path_factory.mktemp("stored"), "fp8" if plain else request.param)
    return (folders.expanded if plain else folders.stored), getattr(torch, request.param if plain else "bfloat16")


@pytest.fixture(scope="module")
def whole(folder: tuple[Path, Any]) -> Any:
    return Small4ForCausalLM.from_pretrained(folder[0], dtype=folder[1])


def slots(folder: Path, count: int) -> int:
    """Bytes for so many experts."""
    return count * offloaded(folder, "1GB").store.pool.memory.shape[1]


class offloaded:
    """A model of a folder with few experts in memory, and its store."""

    def __init__(self, folder: Path, memory: Any, **options: Any) -> None:
        self.model: Any = Small4ForCausalLM.from_pretrained(folder, expert_memory=memory, **options)
        store = expert_store(self.model)
        assert store is not None
        self.store = store


@pytest.fixture(scope="module", params=[2, 5])
def moving(folder: tuple[Path, Any], request: pytest.FixtureRequest) -> Any:
    """Of 8 experts in two layers, `param` fit."""
    made = offloaded(folder[0], {"cpu": slots(folder[0], request.param)}, dtype=folder[1])
    assert made.store.pool.count == request.param
    return made.model


def padded() -> dict[str, torch.Tensor]:
    ids = torch.randint(1000, 1100, (2, 40), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    return {"input_ids": ids, "attention_mask": mask}


def seen() -> dict[str, torch.Tensor]:
    return image_inputs(Case(seed=3), [(56, 84), (28, 56)])


OPTIONS: dict[str, dict[str, Any]] = {
    "absorbed": {},
    "no cache": {"use_cache": False},
    "chunks": {"prefill_chunk_size": 16},
    "static": {"cache_implementation": "static"},
    "8-bit cache": {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}},
    "beams": {"num_beams": 2},
    "sampled": {"do_sample": True, "num_return_sequences": 2},
    "lookup": {"prompt_lookup_num_tokens": 3},
}


CASES = [(padded, name) for name in OPTIONS] + [(seen, name) for name in ("absorbed", "chunks", "beams")]


Answer = tuple[torch.Tensor, torch.Tensor]


def answered(model: Any, inputs: Callable[[], dict[str, torch.Tensor]], name: str) -> Answer:
    """Tokens and their logits."""
    given, options = inputs(), OPTIONS[name]
    if "prompt_lookup_num_tokens" in options:
        given = {n: value[-1:] if n in ("input_ids", "attention_mask") else value for n, value in given.items()}
    torch.manual_seed(0)
    found = model.generate(**given, **(GREEDY | options), return_dict_in_generate=True, output_logits=True)
    return found.sequences, torch.stack(found.logits)


@pytest.fixture(scope="module")
def expected(whole: Any) -> Callable[..., Answer]:
    """What the whole model answers, found once for each case."""
    return cache(partial(answered, whole))


@pytest.mark.parametrize(("inputs", "name"), CASES)
def test_the_same_tokens_and_logits(moving: Any, expected: Callable[..., Answer], inputs: Any, name: str) -> None:
    ours, theirs = answered(moving, inputs, name), expected(inputs, name)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_of_long_prompts(moving: Any, whole: Any, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    ids = torch.randint(1000, 1100, (1, 700), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        ours, theirs = (model(ids).logits for model in (moving, whole))
    torch.set_num_threads(before)
    assert torch.equal(ours, theirs)


def test_two_threads(moving: Any, whole: Any) -> None:
    """Each with a prompt of its own, in a pool that has not room for both."""
    prompts = [torch.randint(1000, 1100, (1, 9 + n), generator=torch.Generator().manual_seed(n)) for n in range(4)]
    expected = [whole.generate(ids, **GREEDY) for ids in prompts]
    found: dict[int, Any] = {}

    def answer(number: int) -> None:
        found[number] = moving.generate(prompts[number], **GREEDY)

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert all(torch.equal(found[number], expected[number]) for number in range(4))


def test_nothing_is_held_whole(folder: tuple[Path, Any]) -> None:
    made = offloaded(folder[0], slots(folder[0], 3))
    assert not any(".experts." in name for name in made.model.state_dict())
    assert made.store.pool.memory.nbytes == slots(folder[0], 3)
    assert "slots=3" in repr(made.model)


def test_a_prompt_reads_each_expert_of_a_layer_once(folder: tuple[Path, Any]) -> None:
    for count in (2, 3, 8):
        made = offloaded(folder[0], slots(folder[0], count))
        made.model.generate(padded()["input_ids"], **(GREEDY | {"max_new_tokens": 1}))
        experts = sum(int((row > 0).sum()) for row in made.store.usage.scores)
        assert made.store.pool.misses == experts > 5
        each = sum(piece.nbytes for piece in made.store.layers[0].pieces.values())
        assert made.store.disk.bytes_read == experts * each


def test_all_fit_and_are_read_once(folder: tuple[Path, Any]) -> None:
    made = offloaded(folder[0], "1GB")
    for _ in range(3):
        made.model.generate(**padded(), **GREEDY)
    assert made.store.pool.misses <= 8 < made.store.pool.hits


def test_the_model_without_a_head(folder: tuple[Path, Any], whole: Any) -> None:
    made: Any = Small4Model.from_pretrained(folder[0], dtype=folder[1], expert_memory="1GB")
    with torch.no_grad():
        assert torch.equal(made(**padded()).last_hidden_state, whole.model(**padded()).last_hidden_state)


def test_casts_and_copies(folder: tuple[Path, Any]) -> None:
    made = offloaded(folder[0], "1GB").model
    twin = copy.deepcopy(made)
    assert expert_store(twin) is expert_store(made)
    reference = Small4ForCausalLM.from_pretrained(folder[0], dtype=torch.bfloat16).float()
    with torch.no_grad():
        assert torch.equal(twin.float()(**padded()).logits, reference(**padded()).logits)
        assert made.to("meta")(padded()["input_ids"].to("meta")).logits.is_meta
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(twin)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return stored_folder.write(tmp_path_factory.mktemp("plain"), "fp8")


def test_gradients_and_saving_are_refused(plain: Folders, tmp_path: Path) -> None:
    model = offloaded(plain.stored, "1GB").model
    output = model(**padded(), labels=padded()["input_ids"])
    with pytest.raises(ValueError, match="has no gradients"):
        output.loss.backward()
    with pytest.raises(ValueError, match="copy that folder"):
        model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ({"cpu": 1000}, "give at least"),
        ({"gpu": "1GB", "cpu": "1GB"}, "names .gpu., and there is no CUDA"),
        ({"tpu": "1GB"}, "names 'tpu'"),
        ({}, "names nothing"),
        ("much", "not an amount of memory"),
        ({"cpu": True}, "not an amount of memory"),
    ],
)
def test_memory_that_cannot_be(plain: Folders, memory: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Small4ForCausalLM.from_pretrained(plain.stored, expert_memory=memory)


@pytest.mark.parametrize("options", [{"dequantize": True}, {"weight": "missing"}, {"weight": "short"}])
def test_checkpoints_that_cannot_be(plain: Folders, tmp_path: Path, options: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    shutil.copytree(plain.stored, tmp_path / "copy")
    name = "model.language_model.layers.1.mlp.experts.down_proj"
    tensors = dict(plain.tensors)
    if options.pop("weight", None) == "missing":
        del tensors[name], tensors[name + "_scale_inv"]
    elif not options:
        tensors[name] = tensors[name][:3].clone()
    save_file(tensors, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"expanded while loading|down_proj"):
        Small4ForCausalLM.from_pretrained(tmp_path / "copy", expert_memory="1GB", **options)


@pytest.mark.parametrize("accident", ["cut", "replaced", "changed", "deleted"])
def test_files_that_change_under_a_running_model(plain: Folders, tmp_path: Path, accident: str) -> None:
    shutil.copytree(plain.stored, tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    model = offloaded(tmp_path / "copy", slots(plain.stored, 2)).model
    model.generate(**padded(), **GREEDY)
    if accident == "cut":
        os.truncate(file, 10_000)
    elif accident == "replaced":
        shutil.copy(file, tmp_path / "other")
        os.replace(tmp_path / "other", file)
    elif accident == "changed":
        with file.open("r+b") as opened:
            opened.seek(-100, os.SEEK_END)
            opened.write(bytes(100))
        os.utime(file)
    else:
        file.unlink()
    for _ in range(2):  # and again: nothing is left half read
        with pytest.raises(OSError, match=r"model\.safetensors") as raised:
            model.generate(**padded(), **GREEDY)
        assert "\n" not in str(raised.value)
    pool = expert_store(model).pool  # type: ignore[union-attr]
    assert not pool._holders.any()


def test_a_disk_that_fails_once(plain: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    made, whole = offloaded(plain.stored, slots(plain.stored, 2)), Small4ForCausalLM.from_pretrained(plain.stored)
    real, calls = LayerFiles.read, [0]

    def read(self: Any, expert: int, slot: torch.Tensor) -> int:
        calls[0] += 1
        if calls[0] == 5:
            raise OSError("Input/output error")
        return real(self, expert, slot)

    monkeypatch.setattr(LayerFiles, "read", read)
    with pytest.raises(OSError, match="Input/output error"):
        made.model.generate(**padded(), **GREEDY)
    assert torch.equal(made.model.generate(**padded(), **GREEDY), whole.generate(**padded(), **GREEDY))


def test_nothing_is_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that reads ahead has to be told, before the first read; what was read is dropped from its cache."""
    (tmp_path / "x").write_bytes(bytes(100_000))
    said: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *given: said.append(given), raising=False)
    file = WatchedFile(str(tmp_path / "x"))
    assert said == [(0, 0, os.POSIX_FADV_RANDOM)]
    file.read(50_000, memoryview(bytearray(10_000)))
    assert said[1:] == [(50_000, 10_000, os.POSIX_FADV_DONTNEED)]
    monkeypatch.delattr(os, "posix_fadvise")
    WatchedFile(str(tmp_path / "x")).read(0, memoryview(bytearray(10)))


def test_a_damaged_header(tmp_path: Path) -> None:
    for content in (b"", b"\x05\0\0\0\0\0\0\0[1,2]", b"\xff" * 100):
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="not a safetensors file"):
            read_header(str(tmp_path / "x.safetensors"))


class _Counted:
    """A source that writes an expert's number into its slot."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def load(self, expert: tuple[int, int], slot: torch.Tensor, after: Any, old: Any) -> None:
        self.asked.append(expert)
        slot.fill_(10 * expert[0] + expert[1])


def test_what_is_used_most_stays() -> None:
    source, usage = _Counted(), Usage(1, 8)
    pool = Pool(4, 64, source, usage, torch.device("cpu"))

    def use(*experts: int) -> None:
        usage.used(0, [int(n in experts) for n in range(8)], 1)
        with pool.held([(0, n) for n in experts]) as held:
            assert [int(held.slot((0, n))[0]) for n in experts] == list(experts)

    for _ in range(20):
        use(0, 1)
    for cold in (2, 3, 4, 5, 6, 7):
        use(0, cold)
        use(1, cold)
    assert [asked[1] for asked in source.asked] == [0, 1, 2, 3, 4, 5, 6, 7] or len(source.asked) == 8
    assert (0, 0) in pool
    assert (0, 1) in pool


def test_a_prompt_counts_as_its_tokens() -> None:
    one, many = Usage(2, 3), Usage(2, 3)
    for _ in range(2000):
        one.used(0, [1, 1, 0], 1)
    many.used(0, [2000, 2000, 0], 2000)
    scale = 2.0 ** -one._clock[0], 2.0 ** -many._clock[0]
    assert one.scores[0] * scale[0] == pytest.approx(many.scores[0] * scale[1], rel=0.01)


def test_scores_stay_finite() -> None:
    usage = Usage(2, 2)
    for _ in range(300):
        usage.used(0, [1000, 0], 1000)
        usage.used(1, [0, 1000], 1000)
    assert torch.tensor(usage.scores).isfinite().all()
    assert usage.scores[0][0] > 0 < usage.scores[1][1]


@pytest.mark.parametrize(
    ("asked", "parsed"),
    [
        ("48GiB", {"cpu": 48 * 2**30}),
        ("1.5 gb", {"cpu": 1_500_000_000}),
        (1000, {"cpu": 1000}),
        ("gpu=18GiB, cpu=48GiB", {"gpu": 18 * 2**30, "cpu": 48 * 2**30}),
        ({"gpu": "18GiB", "cpu": 5}, {"gpu": 18 * 2**30, "cpu": 5}),
    ],
)
def test_amounts_of_memory(asked: Any, parsed: dict[str, int]) -> None:
    assert parse_memory(asked) == parsed


def test_memory_that_is_left() -> None:
    assert 0 < free_memory() < 2**45
    assert affordable(10**9, 2 * 10**9) == 0
    assert 0 < affordable(10**10, 10**9) < 9 * 10**9


def test_the_automatic_choice(plain: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    import modeling_small4.loading_offloaded as loading

    assert not _moves(Small4ForCausalLM.from_pretrained(plain.stored))
    monkeypatch.setattr(loading, "free_memory", lambda: loading.SPARE + 1_000_000)
    monkeypatch.setattr(loading, "affordable", lambda free, others: 500_000)
    for options in ({}, {"device_map": "auto"}):
        assert _moves(Small4ForCausalLM.from_pretrained(plain.stored, **options))
    for options in (
        {"device_map": "cpu"},
        {"expert_memory": False},
        {"device_map": "auto", "max_memory": {"cpu": "1GB"}},
    ):
        assert not _moves(Small4ForCausalLM.from_pretrained(plain.stored, **options))


def _moves(model: Any) -> bool:
    return any(isinstance(module, Small4OffloadedExperts) for module in model.modules())


def cgroup(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)


def test_the_smallest_limit_of_the_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2: the process is in `jobs/mine`; a parent's limit counts as its own does, and file cache is free."""
    monkeypatch.setattr(experts_memory, "MEMBERSHIP", tmp_path / "membership")
    (tmp_path / "membership").write_text("0::/jobs/mine\n")
    root = tmp_path / "root"
    assert experts_memory._left_of_cgroup(root) == 2**63
    stat = "anon 5\ninactive_file 300\nactive_file 200\n"
    cgroup(root / "jobs" / "mine", memory_max="max\n", memory_current="700\n", memory_stat=stat)
    assert experts_memory._left_of_cgroup(root) == 2**63
    cgroup(root / "jobs" / "mine", memory_max="10000\n")
    assert experts_memory._left_of_cgroup(root) == 10000 - 700 + 500
    cgroup(root / "jobs", memory_max="2000\n", memory_current="900\n", memory_stat=stat)
    assert experts_memory._left_of_cgroup(root) == 2000 - 900 + 500
    cgroup(tmp_path, memory_max="1\n", memory_current="1\n", memory_stat=stat)  # outside the root
    assert experts_memory._left_of_cgroup(root) == 2000 - 900 + 500


def test_limits_of_control_groups_of_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts_memory, "MEMBERSHIP", tmp_path / "membership")
    (tmp_path / "membership").write_text("5:cpu,cpuacct:/a\n3:memory:/docker/x\n0::/\n")
    stat = "cache 100\ninactive_file 60\nactive_file 40\n"
    folder = tmp_path / "root" / "memory" / "docker" / "x"
    cgroup(folder, memory_stat=stat)
    (folder / "memory.limit_in_bytes").write_text("5000\n")
    (folder / "memory.usage_in_bytes").write_text("4000\n")
    assert experts_memory._left_of_cgroup(tmp_path / "root") == 5000 - 4000 + 100


def test_no_tokens(moving: Any) -> None:
    mlp = next(module for name, module in moving.named_modules() if name.endswith("layers.0.mlp"))
    none = torch.empty(1, 0, moving.config.text_config.hidden_size, dtype=moving.dtype)
    assert mlp(none).shape == none.shape


def test_a_name_that_is_given_twice() -> None:
    with pytest.raises(ValueError, match="names 'cpu' twice"):
        parse_memory("cpu=1GB, cpu=2GB")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_forked_reads_experts_too(plain: Folders) -> None:
    """As servers do that load a model and then start their workers."""
    made = offloaded(plain.stored, slots(plain.stored, 2))
    script = f"""
import os, signal, torch
torch.set_num_threads(1)
from modeling_small4 import Small4ForCausalLM
model = Small4ForCausalLM.from_pretrained({str(plain.stored)!r}, expert_memory={made.store.pool.memory.nbytes})
ids = [torch.arange(1000 + n, 1020 + n)[None] for n in (0, 50)]
expected = [model(each).logits for each in ids]
child = os.fork()
if not child:
    signal.alarm(100)
    os._exit(0 if all(torch.equal(model(each).logits, want) for each, want in zip(ids, expected)) else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = python("-c", script)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_model_that_is_cast(folder: tuple[Path, Any], whole: Any) -> None:
    made = offloaded(folder[0], slots(folder[0], 2), dtype=folder[1])
    ids = padded()["input_ids"]
    other = copy.deepcopy(whole).to(torch.float32)
    with torch.no_grad():
        assert torch.equal(made.model.to(torch.float32)(ids).logits, other(ids).logits)


def test_experts_in_memory_are_multiplied_while_others_are_read(
    folder: tuple[Path, Any], whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read comes once the expert that is there was multiplied, or not at all."""
    made = offloaded(folder[0], slots(folder[0], 8), dtype=folder[1])
    ids = torch.randint(1000, 1100, (1, 30), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        made.model(ids[:, :1])
    multiplied = threading.Event()
    real_read, real_multiplied, both = LayerFiles.read, Small4OffloadedExperts.multiplied, [0]

    def read(self: LayerFiles, expert: int, slot: torch.Tensor) -> int:
        if not multiplied.wait(60):
            raise OSError("nothing was multiplied meanwhile")
        return real_read(self, expert, slot)

    def multiplying(self: Small4OffloadedExperts, held: Any, *rest: Any) -> Any:
        found = real_multiplied(self, held, *rest)
        both[0] += not multiplied.is_set()
        multiplied.set()
        return found

    monkeypatch.setattr(LayerFiles, "read", read)
    monkeypatch.setattr(Small4OffloadedExperts, "multiplied", multiplying)
    with torch.no_grad():
        assert torch.equal(made.model(ids).logits, whole(ids).logits)
    assert both == [1]
