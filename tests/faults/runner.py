"""Runs `dilo ...` in a process of its own, many times, without importing torch each time, and kills it where it is told to.

A line of JSON on standard input: arguments, folder, kill (seconds after which SIGKILL comes, or null). A line back: status,
seconds, the session of the run, and the end of what it printed.
"""

import json
import os
import signal
import sys
import tempfile
import time

import dilo.evaluation
import dilo.saliency
import dilo.training
import dilo.transfer  # noqa: F401, what the commands load in a run would take most of its time
from dilo.cli import main


def started(arguments, folder, log):
    "The process number of a new session that runs the command."
    child = os.fork()
    if child:
        return child
    os.setsid()
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    os.chdir(folder)
    status = 99
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


def ended(child, since, kill):
    "The wait status of a run, which is killed at its moment if it is still there."
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if kill is not None and time.monotonic() - since >= kill:
            os.kill(child, signal.SIGKILL)
            kill = None
        time.sleep(0.002)


for line in sys.stdin:
    asked = json.loads(line)
    words = [os.fsdecode(word.encode()) for word in asked["arguments"]]  # as a shell hands them over
    with tempfile.TemporaryFile() as log:
        begun = time.monotonic()
        child = started(words, os.fsdecode(asked["folder"].encode()), log)
        status = ended(child, begun, asked["kill"])
        seconds = time.monotonic() - begun
        log.seek(0)
        said = log.read().decode(errors="replace")[-4000:]
    print(json.dumps(dict(status=os.waitstatus_to_exitcode(status), seconds=seconds, session=child, said=said)), flush=True)
