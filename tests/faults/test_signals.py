"The end of a job on a cluster: SIGTERM to every process of the run. It saves, says so, and goes on to the same bits."

import os
import signal
import subprocess
import sys
import time

import pytest
from commands import COMMANDS, MANY, PRETRAIN, contents, inputs, of, place, run  # noqa: F401, the last two are fixtures
from running import ROOT

READ = ["--set=data.storage=streamed", "--set=train.workers=2", "--epochs", "12"]
JOBS = {  # with the files whose coming shows that they are at work
    "pretrain": ([*PRETRAIN, "dilo", *READ], "last.pt"),
    "transfer": ([*COMMANDS["transfer"], "--length", "40"], "*/last.pt"),
    "embed": ("embed large --weights e.safetensors --out out/f.npy --jobs 2 --size 32 --quiet".split(), "f.work/rows.npy"),
}


@pytest.mark.parametrize("name", JOBS if MANY else ["pretrain"])
def test_the_end_of_a_job_costs_nothing(place, run, tmp_path, name):  # noqa: F811
    command, sign = JOBS[name]
    whole, folder = inputs(place, tmp_path / "whole"), inputs(place, tmp_path / "place")
    assert run(command, whole)["status"] == 0
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    options = dict(cwd=folder, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    job = subprocess.Popen([sys.executable, "-m", "dilo.cli", *command], **options)
    deadline = time.monotonic() + 120
    while not list((folder / "out").glob(sign)):
        assert time.monotonic() < deadline and job.poll() is None, "it ended or never began"
        time.sleep(0.002)
    os.killpg(job.pid, signal.SIGTERM)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 130 and "goes on from here" in said and "Traceback" not in said, said
    while of(job.pid):
        assert time.monotonic() < deadline, of(job.pid)
        time.sleep(0.1)
    assert run(command, folder)["status"] == 0
    assert contents(folder) == contents(whole)
