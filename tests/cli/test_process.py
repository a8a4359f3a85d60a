"""The command as users run it: a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tersor.pipeline.registry import passes

TERSOR = [sys.executable, "-m", "tersor"]


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TERSOR, *arguments], capture_output=True, text=True, timeout=300)


def test_help_loads_nothing_heavy(folder: Path) -> None:
    code = (
        "import sys; from tersor.cli.main import app\n"
        "try: app(['--help'], prog_name='tersor')\n"
        "except SystemExit: pass\n"
        "print(*{'onnx', 'onnxruntime', 'torch', 'tvm', 'networkx'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("Usage: tersor ")
    assert done.stderr.split() == []


def test_an_error_is_one_line_on_stderr(files: Path) -> None:
    done = start("compile", "dangling.onnx", "out.onnx")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: dangling.onnx: Add %y (n[/red]\N{REPLACEMENT CHARACTER}[2J): its operand 'nope' is not defined\n"
    )
    assert not Path("out.onnx").exists()


def test_usage_errors_exit_with_2(folder: Path) -> None:
    done = start("compile")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: Missing argument 'IN' (see 'tersor compile --help')\n"


def test_a_reader_that_leaves_is_no_error(folder: Path) -> None:
    done = subprocess.run(
        f"{' '.join(TERSOR)} passes | head -n 1", shell=True, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (f"{next(iter(passes()))}\n", "")


@pytest.mark.slow
def test_an_interrupt_ends_it_in_one_line_and_leaves_no_process(files: Path) -> None:
    process = subprocess.Popen(
        [*TERSOR, "bench", "m.onnx", "m.onnx", "--pairs", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while len(children(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = children(process.pid)
    assert len(workers) == 2
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def children(pid: int) -> list[int]:
    """Child processes, as Linux lists them."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    if not listed.exists():
        pytest.skip("needs Linux's list of child processes")
    return [int(p) for p in listed.read_text().split()]


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudoterminal")
def test_on_a_terminal_the_progress_bar_goes_away(files: Path) -> None:
    import pty

    main, side = pty.openpty()
    done = subprocess.run(
        [*TERSOR, "convert", "m.onnx", "out.onnx"], stdout=subprocess.PIPE, stderr=side, timeout=60
    )
    os.close(side)
    shown = os.read(main, 1 << 16)
    os.close(main)
    assert done.returncode == 0
    assert done.stdout.decode().splitlines()[-1] == "wrote out.onnx (the model only)"
    assert shown.endswith((b"\x1b[2K", b"\r"))  # the line of the bar was erased last
