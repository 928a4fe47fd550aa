"""SIGKILL at random moments, then the same command again: the same bits, no process left behind, no temporary file.

DILO_FAULTS says how often each command is killed: `make faults` all of them 30 times, `make test` some once."""

import os
import random
import time

import pytest
from commands import COMMANDS, MANY, contents, inputs, of, place, run  # noqa: F401, the last two are fixtures

KILLS = int(os.environ.get("DILO_FAULTS", 1))


@pytest.mark.parametrize("name", COMMANDS if MANY else ["saliency", "moco", "lewel", "transfer"])
def test_a_kill_costs_nothing(place, run, tmp_path, name):  # noqa: F811
    arguments = COMMANDS[name]
    whole = inputs(place, tmp_path / "whole")
    done = run(arguments, whole)
    assert done["status"] == 0, done["said"]
    expected, seconds = contents(whole), done["seconds"]
    assert expected
    moments = random.Random(f"{name} {KILLS}")
    killed = tried = 0
    while killed < KILLS:
        tried += 1
        assert tried <= 3 * KILLS + 5, f"{killed} of {tried} runs were killed before their end"
        folder = inputs(place, tmp_path / str(tried))
        after = moments.uniform(0, 0.9 * seconds)
        first = run(arguments, folder, after)
        if first["status"] != -9:  # it was faster than those before
            seconds = min(seconds, first["seconds"])
            continue
        killed += 1
        deadline = time.monotonic() + 10
        while of(first["session"]):
            assert time.monotonic() < deadline, f"killed after {after:.3f} s: processes {of(first['session'])} are left"
            time.sleep(0.1)
        again = run(arguments, folder)
        assert again["status"] == 0, f"killed after {after:.3f} s:\n{again['said']}"
        found = contents(folder)
        assert set(found) == set(expected), f"killed after {after:.3f} s: {set(found) ^ set(expected)}"
        assert found == expected, f"killed after {after:.3f} s: {[n for n in found if found[n] != expected[n]]} differ"
    print(f"{name}: killed {killed} times, in runs of {seconds:.1f} s")
