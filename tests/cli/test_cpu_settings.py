"""What a command sets before torch is loaded."""

import os
import subprocess
import sys

import pytest

SHOW = (
    "import os, sys\n"
    "from prunekit.cli.cpu_settings import set_up\n"
    "set_up()\n"
    "assert 'torch' not in sys.modules\n"
    "print(*(os.environ.get(name) for name in ('GOMP_SPINCOUNT', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_')))\n"
)
NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "MALLOC_")


def shown(**own: str) -> list[str]:
    """The settings in a fresh process with an environment of the user's."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(NAMES)}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", SHOW],
        env=clean | own,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library's settings are those of Linux")
def test_threads_sleep_soon_and_freed_memory_is_kept():
    assert shown() == ["3000", str(32 << 20), str(256 << 20)]


def test_what_the_user_set_stays():
    assert shown(GOMP_SPINCOUNT="7")[0] == "7"
    assert shown(OMP_WAIT_POLICY="PASSIVE")[0] == "None"
    assert shown(MALLOC_ARENA_MAX="1")[1:] == ["None", "None"]


def test_every_command_sets_them(tmp_path):
    line = (
        "import os, sys; from prunekit.cli import main; sys.argv = ['prunekit', '--version']\n"
        "try:\n main()\nfinally:\n print(os.environ['GOMP_SPINCOUNT'])"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(NAMES)}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", line], env=clean, capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.split()[-1] == "3000"
