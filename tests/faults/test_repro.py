"""A pipeline that is killed again and again: no process stays, and it ends with the same bits. In `make faults` only."""

import os
import random
import signal
import subprocess
import time

import pandas as pd
import pytest
from commands import of

KILLS = int(os.environ.get("DILO_FAULTS", 1))


def tables(folder):
    "What the runs of a study came to, and the encoders' bytes; without the commit, which each clone makes for itself."
    files = sorted((folder / "results/smoke").glob("*.csv"))
    found = {file.name: pd.read_csv(file).drop(columns="commit", errors="ignore").to_csv() for file in files}
    return found | {str(e.parent.name): e.read_bytes() for e in sorted(folder.glob("runs/*/encoder.safetensors"))}


@pytest.mark.skipif(KILLS == 1, reason="takes many minutes: make faults")
def test_a_killed_pipeline_ends_with_the_same_bits(smoke, fresh):
    moments, killed = random.Random(KILLS), 0
    fresh.run("python", "-m", "dilo.config", "smoke")
    while True:
        options = dict(cwd=fresh.folder, env=fresh.env, start_new_session=True, stdout=subprocess.DEVNULL)
        process = subprocess.Popen(["dvc", "repro"], **options)
        try:
            assert process.wait(moments.uniform(3, 40) if killed < KILLS else None) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        deadline = time.monotonic() + 10
        while of(process.pid):
            assert time.monotonic() < deadline, f"left behind: {of(process.pid)}"
            time.sleep(0.1)
    print(f"killed {killed} times")
    assert killed >= 3 and len(tables(smoke.folder)) >= 4
    assert tables(fresh.folder) == tables(smoke.folder)
    assert not [file for file in fresh.folder.rglob("*.part") if ".dvc" not in file.parts]
