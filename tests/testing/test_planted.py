"""The planted miscompiles: every one can be planted, and a few of each stage are found here (`make mutants` hunts
all of them)."""
from __future__ import annotations

from collections import Counter

import pytest

from minicompile.testing import mutants

# those that few programs kill; the numbers are seeds of the fuzzer
SLICE = {"guards: missing guard on a number or string": range(48, 54),
         "guards: missing guard on a tensor's geometry": range(0, 3)}


def test_there_are_enough_of_every_stage() -> None:
    stages = Counter(m.stage for m in mutants.MUTANTS)
    assert len(mutants.MUTANTS) >= 60 and len({m.name for m in mutants.MUTANTS}) == len(mutants.MUTANTS)
    assert all(stages[s] >= 5 for s in ("guards", "capture", "aten", "joint", "prims", "loops", "plan", "executable"))


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name)
def test_can_be_planted_and_taken_back(mutant: mutants.Mutant) -> None:
    with mutants.planted(mutant):
        pass
    with mutants.planted(mutant):           # only where everything is as the table says
        pass


@pytest.mark.parametrize("name", SLICE)
def test_is_killed(name: str) -> None:
    mutant = next(m for m in mutants.MUTANTS if m.name == name)
    killed = mutants.hunt(mutant, SLICE[name], blame=False)
    assert killed.killed, killed
