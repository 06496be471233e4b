"""Damaged input for every reader: cases of fixed seeds, what counts as a failure, and that failures are found."""

from pathlib import Path

import pytest
import transformers

from model_card.evals.fuzz.cases import ACCEPTED, HOST, REFUSED, Bench, run
from model_card.evals.fuzz.folders import write_sound
from model_card.evals.fuzz.kinds import CHEAP, WHOLE

CASES = {name: 4 * share for name, (_, share) in CHEAP.items()} | {name: share for name, (_, share) in WHOLE.items()}
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
