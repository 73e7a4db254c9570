"""Real command lines in processes of their own that import nothing anew: each is forked from one that has imported everything.

As a script: ``python command_server.py`` reads folder and words of a command line, as JSON, from standard input, line by line. For
each it forks a process that stands in the folder and runs the command, with ``out`` and ``err`` there; it prints the process id and
then its status.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType


class CommandServer:
    """Starts command lines and waits for them, one at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - this file
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> "CommandServer":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()

    def start(self, folder: Path, words: list[str]) -> int:
        """The process id of a command."""
        assert self.process.stdin
        folder.mkdir(exist_ok=True)
        self.process.stdin.write(json.dumps([str(folder), words]) + "\n")
        self.process.stdin.flush()
        return self._number()

    def status(self) -> int:
        """Exit code of the command that was started last; negative for a signal."""
        return self._number()

    def done(self, folder: Path, words: list[str]) -> None:
        """A command that nobody disturbs and that must succeed."""
        self.start(folder, words)
        assert self.status() == 0, (folder / "err").read_text()

    def _number(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())


def serve() -> None:
    """Fork a process for each line of standard input."""
    import diffusers
    import torch

    from prunekit.cli import main
    from prunekit.data import load_images
    from prunekit.runs import experts_run as runner  # noqa: F401 - the forks have it

    torch.set_num_threads(1)
    load_images("digits")
    diffusers.UNet2DModel  # noqa: B018 - its lazy import
    for line in sys.stdin:
        folder, words = json.loads(line)
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), number)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.argv, code = words, 0
            try:
                main()
            except SystemExit as stop:
                code = int(stop.code or 0)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
