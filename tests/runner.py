"""Runs `dilo ...` in processes of their own, without importing torch for each, and kills them where it is told to.

A line of JSON on standard input: arguments, folder, kill (seconds after which SIGKILL comes, or null). A line back: status,
seconds, the session of the run, and what it wrote to standard output and to standard error.
"""

import atexit
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback


def started(arguments, folder, out, err):
    "The process number of a new session that runs the command. It ends as Python does, but does not take its modules apart."
    child = os.fork()
    if child:
        return child
    os.setsid()
    for stream, file in enumerate((os.open(os.devnull, os.O_RDONLY), out.fileno(), err.fileno())):
        os.dup2(file, stream)
    os.chdir(folder)
    status = 1
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # as Python's own end does: first what waits for workers, then the rest
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


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


if __name__ == "__main__":  # not in the processes that a command spawns
    import dilo.evaluation
    import dilo.saliency
    import dilo.training
    import dilo.transfer  # noqa: F401, what the commands load in a run would take most of its time
    from dilo.cli import main

    while line := sys.stdin.readline():
        asked = json.loads(line)
        words = [os.fsdecode(word.encode()) for word in asked["arguments"]]  # as a shell hands them over
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            begun = time.monotonic()
            child = started(words, os.fsdecode(asked["folder"].encode()), out, err)
            status = os.waitstatus_to_exitcode(ended(child, begun, asked["kill"]))
            told = dict(status=status, seconds=time.monotonic() - begun, session=child)
            for name, file in (("out", out), ("err", err)):
                file.seek(0)
                told[name] = file.read().decode(errors="replace")
        print(json.dumps(told), flush=True)
