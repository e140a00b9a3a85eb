"""A process that has imported the slow libraries and forks once for each pytest run that it is asked for.

`python warm.py ROOT MODULE...` imports nothing of the project itself, which may change between two runs. A request is a
line of JSON, {"args": pytest's arguments, "log": the file for what it prints, "timeout_s": seconds}, the answer the
exit status of the run, 1 where it ran out of time.
"""

import importlib
import json
import os
import signal
import sys
import time


def main() -> None:
    _, root, *modules = sys.argv
    sys.path[0] = root  # in the place of this file's folder
    os.chdir(root)
    for name in modules:
        importlib.import_module(name)
    for line in sys.stdin:
        print(run(**json.loads(line)), flush=True)


def run(args: list[str], log: str, timeout_s: float) -> int:
    """The exit status of one pytest run in a fork of this process."""
    child = os.fork()
    if not child:
        run_here(args, log)
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(code)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 1


def run_here(args: list[str], log: str) -> None:
    """Run pytest and end this process, with a group of its own and its output in a file."""
    status = 3  # pytest's for an internal error
    try:
        os.setpgid(0, 0)
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        status = importlib.import_module("pytest").main(args)
    finally:
        os._exit(int(status))


if __name__ == "__main__":
    main()
