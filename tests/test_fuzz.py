"""Damaged input for every reader: cases of fixed seeds, what counts as a failure, and that failures are found."""

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from model_card.evals.fuzz import __main__ as command
from model_card.evals.fuzz import kills, processes
from model_card.evals.fuzz.cases import ACCEPTED, HOST, REFUSED, Bench, Case, Tally, run
from model_card.evals.fuzz.damage import NEAR, VALUES, changed, dump
from model_card.evals.fuzz.folders import write_sound
from model_card.evals.fuzz.kinds import CHEAP, WHOLE
from model_card.evals.fuzz.processes import run_blocks

CASES = {name: max(3 * share, 20) for name, (_, share) in CHEAP.items()}
CASES |= {name: share for name, (_, share) in WHOLE.items()}
KINDS = {name: make for name, (make, _) in (CHEAP | WHOLE).items()}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sound(tmp_path_factory.mktemp("sound"))


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()


@pytest.mark.parametrize("kind", CASES)
def test_every_case_is_refused_clearly_or_read_right(sound: Path, tmp_path: Path, kind: str) -> None:
    bench = Bench(sound, tmp_path / "work")
    outcomes = [run(kind, KINDS[kind], seed, bench) for seed in range(CASES[kind])]
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert {outcome.how for outcome in outcomes} <= {REFUSED, ACCEPTED, HOST}
    assert len({outcome.how for outcome in outcomes}) > 1 or kind == "served"


def test_failures_are_found(sound: Path, tmp_path: Path) -> None:
    """Each thing that counts as a failure is one."""

    def fault(read: Callable[[], object], **options: Any) -> str:
        return str(run("x", lambda bench, draw: Case("damage", read, **options), 0, Bench(sound, tmp_path / "w")).fault)

    def fail(error: BaseException) -> Callable[[], object]:
        def read() -> object:
            raise error

        return read

    assert fault(fail(ValueError("params.json: a is wrong"))) == "None"
    assert fault(lambda: 1) == "None"
    assert "another kind of error" in fault(fail(KeyError("a")))
    assert "another kind of error" in fault(fail(MemoryError()))
    assert "another kind of error" in fault(fail(SystemExit(1)))
    assert "several lines" in fault(fail(ValueError("a\nb")))
    assert "no message" in fault(fail(ValueError()))
    assert "letters" in fault(fail(ValueError("x" * 601)))
    assert "cannot be printed" in fault(fail(ValueError("a\0b")))
    assert "names none of" in fault(fail(ValueError("a is wrong")), names=("params.json",))
    assert "another number" in fault(lambda: 1, check=lambda result: "another number")
    assert "KeyError afterwards" in fault(lambda: {}, check=lambda result: str(result["a"]))  # type: ignore[index]


def spin() -> None:
    while True:
        pass


def test_a_crash_and_a_hang_are_one_failed_case_each(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case hangs that computes without end, or waits without end."""

    def make(bench: Bench, draw: random.Random) -> Case:
        number = draw.randrange(4)
        act = (lambda: os.kill(os.getpid(), signal.SIGSEGV), lambda: None, spin, lambda: signal.pause())[number]
        return Case(str(number), act)

    monkeypatch.setattr(processes, "ASLEEP", 5)
    numbers = [random.Random(f"x {seed}").randrange(4) for seed in range(9)]
    assert {*numbers} == {0, 1, 2, 3}
    found = Tally()
    for _, tally in run_blocks({"x": (make, 9)}, sound, 0, 2, 1, 4):
        found.counts += tally.counts
        found.faults += tally.faults
    assert found.counts == Counter({"crashed": 9 - numbers.count(1), "accepted": numbers.count(1)})
    assert sum("SIGSEGV" in fault for fault in found.faults) == numbers.count(0)
    ended = [fault for fault in found.faults if "no end within the time" in fault]
    assert len(ended) == numbers.count(2) + numbers.count(3)
    assert sum("SIGALRM" in fault for fault in ended) >= numbers.count(3)


def test_damage_is_repeatable_and_of_every_way() -> None:
    tree = {"a": [1, 2, {"b": "text"}], "c": {"d": 0.5, "e": None}, "f": True}
    before = dump(tree)
    whats = set()
    for seed in range(3000):
        one, two = (changed(tree, random.Random(seed), VALUES) for _ in range(2))
        assert dump(one[0]) == dump(two[0])
        whats.add(one[1].split(" at ")[0].split(":")[0])
    assert whats >= {*VALUES, "exchanged", *NEAR} - {"one item less"}
    assert dump(tree) == before


@pytest.mark.parametrize("name", kills.RUNS)
def test_killed_runs(sound: Path, tmp_path: Path, name: str) -> None:
    outcome = run(name, kills.kind(name), 3, Bench(sound, tmp_path / "work"))
    assert outcome.fault is None


def test_counts_are_shared_out() -> None:
    found = command.counts_of({"a": (CHEAP["images"][0], 1), "b": (CHEAP["images"][0], 2)}, 100)
    assert {name: count for name, (_, count) in found.items()} == {"a": 34, "b": 66}
    assert sum(count for _, count in command.counts_of(CHEAP, 1_000_000).values()) == 1_000_000
