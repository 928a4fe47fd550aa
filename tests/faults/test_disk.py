"""A full disk: each command says which file had no room; once there is room, the same command ends as if nothing had been.

Needs to be allowed to mount a small disk. `make test` fills it once in two commands, `make faults` at more sizes in all."""

import pytest
from commands import COMMANDS, MANY, contents, inputs, mounted, place, run  # noqa: F401, the last three are fixtures

SIZES = (0.15, 0.4, 0.7, 0.9) if MANY else (0.6,)


@pytest.mark.parametrize("name", COMMANDS if MANY else ["moco", "embed"])
def test_a_full_disk_costs_nothing(place, run, mounted, tmp_path, name):  # noqa: F811
    whole = inputs(place, tmp_path / "whole")
    assert run(COMMANDS[name], whole)["status"] == 0
    expected = contents(whole)
    used = sum(file.stat().st_size for file in (whole / "out").rglob("*") if file.is_file())
    full = 0
    for share in SIZES:
        folder = inputs(place, tmp_path / f"{share}")
        mounted(folder / "out", max(4096, int(share * used)))
        if used < 4096:  # less than the smallest disk: there is no room for even one byte
            (folder / "out/.other").write_bytes(bytes(4096))
        first = run(COMMANDS[name], folder)
        if first["status"] != 0:
            full += 1
            last = first["said"].strip().splitlines()[-1]
            assert first["status"] == 2 and "Traceback" not in first["said"] and "did not foresee" not in last, first
            assert "No space left on device" in last and (str(folder / "out") in last or "out/" in last), last
        (folder / "out/.other").unlink(missing_ok=True)
        mounted(folder / "out", 2**28)
        again = run(COMMANDS[name], folder)
        assert again["status"] == 0, (share, again["said"])
        assert contents(folder) == expected, share
    assert full
