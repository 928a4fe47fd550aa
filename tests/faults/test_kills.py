"""SIGKILL at random moments, then the same command again: the same bits, no process left behind, no temporary file.

DILO_FAULTS says how often each command is killed: `make faults` 30 times, `make test` once."""

import os
import random
import time

import pytest
from commands import COMMANDS, contents, inputs, of, place, run  # noqa: F401, the last two are fixtures

KILLS = int(os.environ.get("DILO_FAULTS", 1))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_costs_nothing(place, run, tmp_path, name):  # noqa: F811
    arguments = COMMANDS[name]
    whole = inputs(place, tmp_path / "whole")
    done = run(arguments, whole)
    assert done["status"] == 0, done["said"]
    expected, seconds = contents(whole), done["seconds"]
    assert expected
    moments = random.Random(f"{name} {KILLS}")
    killed = 0
    for number in range(KILLS):
        folder = inputs(place, tmp_path / str(number))
        after = moments.uniform(0, (0.8 if KILLS > 1 else 0.5) * seconds)  # a second run may be faster
        first = run(arguments, folder, after)
        killed += first["status"] == -9
        deadline = time.monotonic() + 10
        while of(first["session"]):
            assert time.monotonic() < deadline, f"killed after {after:.3f} s: processes {of(first['session'])} are left"
            time.sleep(0.1)
        again = run(arguments, folder)
        assert again["status"] == 0, f"killed after {after:.3f} s:\n{again['said']}"
        found = contents(folder)
        assert set(found) == set(expected), f"killed after {after:.3f} s: {set(found) ^ set(expected)}"
        assert found == expected, f"killed after {after:.3f} s: {[n for n in found if found[n] != expected[n]]} differ"
    print(f"{name}: {killed} of {KILLS} runs of {seconds:.1f} s were killed before their end")
    assert killed >= max(1, KILLS // 2)
