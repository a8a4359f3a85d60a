/* The thread pool of a library's parallel loops, in place of TVM's.
 *
 * TVM's pool assigns tasks to threads and waits for all of them by sched_yield: on a busy machine a thread that
 * yields, or is preempted, delays every kernel by a time slice (measured: int8 MiniLM at 1x32 takes 32 ms
 * instead of 2.5), and its threads can hang when a process exits.  Here threads claim tasks dynamically, and the
 * caller runs every task that no other thread has claimed.
 *
 *     state = launch << 32 | tasks << 16 | next       incrementing this word atomically claims task `next`
 *
 * A task of launch n can be claimed only while n runs: the caller waits until all claimed tasks are done, so
 * that the data of a launch (function, data) does not change while a thread runs a task of it.  Idle threads spin
 * for some ten microseconds, as the next kernel usually follows at once, then sleep.
 *
 * A forked child has no thread but its caller, which then runs all tasks.
 */
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <unistd.h>

#include <atomic>

struct ParallelEnv { /* as TVMParallelGroupEnv */
  void* sync_handle;
  int32_t num_task;
};
using Task = int (*)(int task, ParallelEnv* env, void* data);
struct Argument { /* as TVMFFIAny of an integer */
  int32_t type;
  uint32_t padding;
  int64_t value;
};

/* Undefined in a library without parallel loops. */
extern "C" __attribute__((weak)) int (*__TVMBackendParallelLaunch)(Task, void*, int);

enum { MAX_THREADS = 1024, MAX_TASKS = 65535, IDLE_SPINS = 2000, WAIT_SPINS = 10000 };

static std::atomic<uint64_t> state;
static std::atomic<int> done, failed, sleeping, stopping;
static Task function;
static void* data;
static pthread_t threads[MAX_THREADS];
static int others; /* threads other than the caller */
static pid_t owner;
#ifdef __linux__
static cpu_set_t cores;     /* on which the process may run */
static int left_free = -1; /* the core that other threads keep off */
#endif
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static thread_local int inside; /* running a task, in which nested loops are serial */

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

static inline int has_task(uint64_t at) { return (at & 0xffff) < (at >> 16 & 0xffff); }

/* Claims and runs one task; 0 if there is none. */
static int work(void) {
  uint64_t at = state.load(std::memory_order_acquire);
  while (has_task(at)) {
    if (state.compare_exchange_weak(at, at + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      ParallelEnv env = {nullptr, (int32_t)(at >> 16 & 0xffff)};
      inside = 1;
      if (function((int)(at & 0xffff), &env, data)) failed.store(1);
      inside = 0;
      done.fetch_add(1, std::memory_order_release);
      return 1;
    }
  }
  return 0;
}

static void* serve(void* unused) {
  for (;;) {
    int spins = 0;
    while (!work()) {
      if (stopping.load(std::memory_order_relaxed)) return unused;
      if (++spins < IDLE_SPINS) {
        relax();
        continue;
      }
      pthread_mutex_lock(&lock);
      sleeping.fetch_add(1);
      while (!has_task(state.load()) && !stopping.load()) pthread_cond_wait(&wake, &lock);
      sleeping.fetch_sub(1);
      pthread_mutex_unlock(&lock);
      spins = 0;
    }
  }
}

/* Makes woken threads start on other cores than the caller's: the scheduler tends to place them on the same
 * one, where they wait for the caller, and it for them, until it rebalances some milliseconds later. */
static void avoid_this_core(void) {
#ifdef __linux__
  int here = sched_getcpu();
  if (here < 0 || here == left_free) return;
  cpu_set_t rest = cores;
  CPU_CLR(here, &rest);
  if (CPU_COUNT(&rest) == 0) return;
  for (int i = 0; i < others; i++) pthread_setaffinity_np(threads[i], sizeof rest, &rest);
  left_free = here;
#endif
}

static void wake_sleepers(void) {
  /* Follows a store to what sleepers test: both are sequentially consistent, so that either this sees a
   * sleeper, or the sleeper sees the store. */
  if (sleeping.load()) {
    pthread_mutex_lock(&lock);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
  }
}

static int launch(Task task, void* argument, int wanted) {
  int tasks = wanted > 0 ? wanted : others + 1;
  if (tasks == 1 || others == 0 || inside || tasks > MAX_TASKS || getpid() != owner) {
    ParallelEnv env = {nullptr, tasks};
    int failures = 0;
    for (int i = 0; i < tasks; i++) failures |= task(i, &env, argument) != 0;
    return -failures;
  }
  uint64_t next = (state.load(std::memory_order_relaxed) >> 32) + 1;
  function = task;
  data = argument;
  done.store(0);
  failed.store(0);
  state.store(next << 32 | (uint64_t)tasks << 16);
  if (sleeping.load()) avoid_this_core();
  wake_sleepers();
  while (work()) {
  }
  for (int spins = 0; done.load(std::memory_order_acquire) < tasks; spins++) {
    /* The thread that runs the last task may be preempted, and wait for this core. */
    if (spins < WAIT_SPINS)
      relax();
    else
      usleep(20);
  }
  return -failed.load();
}

static void stop(void) {
  stopping.store(1);
  wake_sleepers();
  for (int i = 0; i < others; i++) pthread_join(threads[i], nullptr);
  others = 0;
  stopping.store(0);
}

/* Sets the number of threads of the library's parallel loops, including the caller. None of its functions may
 * run meanwhile. */
extern "C" __attribute__((visibility("default"))) int __tvm_ffi_tersor_threads(void* self, const Argument* arguments, int32_t count, Argument* result) {
  (void)self;
  int wanted = count == 1 ? (int)arguments[0].value - 1 : 0;
  wanted = wanted < 0 ? 0 : wanted > MAX_THREADS ? MAX_THREADS : wanted;
  if (getpid() != owner) { /* also the first call: this process has no threads */
    others = 0;
    owner = getpid();
    sleeping.store(0);
    pthread_mutex_init(&lock, nullptr); /* a thread of the parent may have held it */
    pthread_cond_init(&wake, nullptr);
  }
  if (&__TVMBackendParallelLaunch && wanted != others) {
    stop();
#ifdef __linux__
    sched_getaffinity(0, sizeof cores, &cores);
    left_free = -1;
#endif
    while (others < wanted && !pthread_create(&threads[others], nullptr, serve, nullptr)) others++;
    __TVMBackendParallelLaunch = launch;
  } else if (&__TVMBackendParallelLaunch) {
    __TVMBackendParallelLaunch = launch;
  }
  result->type = 0;
  result->padding = 0;
  result->value = 0;
  return 0;
}

/* On unloading, or when the process exits. */
__attribute__((destructor)) static void end(void) {
  if (owner && getpid() == owner) stop();
}
