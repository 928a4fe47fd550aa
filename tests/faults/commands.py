"A process that runs commands again and again, see runner.py."

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def running(path=(), **changed):
    """A function that runs `dilo ...` in a folder, killed after some seconds or not, and tells how it ended.

    path: folders of modules to come first. changed: of the environment."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([*path, str(ROOT)]), "OMP_NUM_THREADS": "1"} | changed
    runner = [sys.executable, str(Path(__file__).with_name("runner.py"))]
    process = subprocess.Popen(runner, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def ask(arguments, folder, kill=None):
        asked = dict(arguments=[str(word) for word in arguments], folder=str(folder), kill=kill)
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield ask
    process.stdin.close()
    process.wait(60)
