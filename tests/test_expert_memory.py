"""How much memory experts may take: what `expert_memory` may say, what is free, and when experts stay on disk."""

from pathlib import Path
from typing import Any

import pytest
import stored_folder
from stored_folder import Folders

from modeling_small4 import Small4ForCausalLM, experts_memory
from modeling_small4.experts_memory import affordable, free_memory, parse_memory
from modeling_small4.experts_offloaded import Small4OffloadedExperts


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return stored_folder.write(tmp_path_factory.mktemp("plain"), "fp8")


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


def test_too_little_memory_for_one_token(plain: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    import modeling_small4.loading_offloaded as loading

    monkeypatch.setattr(loading, "free_memory", lambda: loading.SPARE)
    with pytest.raises(ValueError, match=r"Too little memory is left: a token needs \d+ experts of [\d,]+ bytes"):
        Small4ForCausalLM.from_pretrained(plain.stored)


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


def test_a_name_that_is_given_twice() -> None:
    with pytest.raises(ValueError, match="names 'cpu' twice"):
        parse_memory("cpu=1GB, cpu=2GB")
