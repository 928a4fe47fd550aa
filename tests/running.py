"`dilo ...` as a user types it, in a process of its own that need not import torch again (runner.py)."

import atexit
import json
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def running(path=(), **changed):
    """A function that runs `dilo ...` in a folder, killed after some seconds or not, and tells how it ended.

    path: folders of modules to come first. changed: of the environment. meanwhile: called once while the command runs."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([*path, str(ROOT)]), "OMP_NUM_THREADS": "1"} | changed
    runner = [sys.executable, str(Path(__file__).with_name("runner.py"))]
    process = subprocess.Popen(runner, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def ask(arguments, folder, kill=None, meanwhile=None):
        asked = dict(arguments=[str(word) for word in arguments], folder=str(folder), kill=kill)
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        if meanwhile is not None:
            meanwhile()
        told = json.loads(process.stdout.readline())
        return told | dict(said=(told["out"] + told["err"])[-4000:])

    yield ask
    process.stdin.close()
    process.wait(60)


@cache
def runner():
    "What `running` gives, one for all tests of this process."
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(running())
