"""The thread pool of a library (backends/tvm/pool.cc): every task runs exactly once, in all circumstances."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tvm", reason="tvm is not installed")

from tersor.backends.tvm.link import POOL, find_compiler

# The rest of a library, and loops that count the tasks that run.
HARNESS = r"""
#include <atomic>
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>
struct Env { void* sync; int32_t tasks; };
using Task = int (*)(int, Env*, void*);
extern "C" {
__attribute__((weak)) int (*__TVMBackendParallelLaunch)(Task, void*, int) = nullptr;
int __tvm_ffi_tersor_threads(void*, const int64_t*, int32_t, int64_t*);

void threads(int64_t count) {
  int64_t argument[2] = {1, count}, result[2];
  __tvm_ffi_tersor_threads(nullptr, argument, 1, result);
}

static std::atomic<int> seen[256];
static int once(int task, Env* env, void* expected) {
  seen[task]++;
  return env->tasks != *(int*)expected;
}
/* How many tasks did not run exactly once, over many loops. */
int loops(int count, int tasks, int expected) {
  int wrong = 0;
  for (int i = 0; i < count; i++) {
    for (auto& s : seen) s = 0;
    wrong += __TVMBackendParallelLaunch(once, &expected, tasks) != 0;
    for (int t = 0; t < 256; t++) wrong += seen[t] != (t < expected);
    if (i % 50 == 0) usleep(2000); /* so that threads go to sleep and are woken */
  }
  return wrong;
}

static int outer(int, Env*, void*) {
  int two = 2;
  return __TVMBackendParallelLaunch(once, &two, 2);
}
int nested() {
  for (auto& s : seen) s = 0;
  int failed = __TVMBackendParallelLaunch(outer, nullptr, 2);
  return failed || seen[0] != 2 || seen[1] != 2;
}

static int failing(int task, Env*, void*) { return task == 1 ? -1 : 0; }
int fails() { return __TVMBackendParallelLaunch(failing, nullptr, 4); }

int in_child() {
  pid_t child = fork();
  if (child == 0) {
    int before = loops(20, 2, 2);
    threads(3);
    _exit(before || loops(20, 3, 3));
  }
  int status;
  waitpid(child, &status, 0);
  return status;
}
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    (folder / "harness.cc").write_text(HARNESS)
    made = folder / "pool.so"
    command = [find_compiler(), "-O2", "-fPIC", "-shared", "-pthread", "-Wall", "-Werror"]
    subprocess.run([*command, "-o", made, POOL, folder / "harness.cc"], check=True)
    return made


@pytest.fixture
def pool(library: Path) -> Iterator[ctypes.CDLL]:
    yield ctypes.CDLL(str(library))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_task_runs_once(pool: ctypes.CDLL, threads: int) -> None:
    pool.threads(ctypes.c_int64(threads))
    assert pool.loops(300, 0, threads) == 0  # As many tasks as threads.
    for tasks in (1, 2, 7, 255):
        assert pool.loops(100, tasks, tasks) == 0


def test_the_number_of_threads_can_change(pool: ctypes.CDLL) -> None:
    for threads in (4, 1, 2, 2, 6, 0):
        pool.threads(ctypes.c_int64(threads))
        assert pool.loops(30, 0, max(threads, 1)) == 0


def test_a_nested_loop_is_serial(pool: ctypes.CDLL) -> None:
    pool.threads(ctypes.c_int64(2))
    assert [pool.nested() for _ in range(200)] == [0] * 200


def test_a_task_that_fails_fails_the_loop(pool: ctypes.CDLL) -> None:
    for threads in (1, 2):
        pool.threads(ctypes.c_int64(threads))
        assert pool.fails() != 0 and pool.loops(10, 2, 2) == 0


def test_a_forked_child_runs_all_tasks_and_can_start_its_own_threads(
    pool: ctypes.CDLL,
) -> None:
    pool.threads(ctypes.c_int64(3))
    assert pool.loops(50, 3, 3) == 0
    assert pool.in_child() == 0
    assert pool.loops(50, 3, 3) == 0


def test_a_process_exits_with_threads_that_spin_or_sleep(library: Path) -> None:
    code = (
        "import ctypes, sys, time\n"
        "pool = ctypes.CDLL(sys.argv[1])\n"
        "pool.threads(ctypes.c_int64(4))\n"
        "assert pool.loops(20, 4, 4) == 0\n"
        "time.sleep(float(sys.argv[2]))"
    )
    for pause in ("0", "0.01"):
        subprocess.run([sys.executable, "-c", code, library, pause], check=True, timeout=60)
