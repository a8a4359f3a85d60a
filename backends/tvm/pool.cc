/* Threads of a library: what its parallel loops run on, in place of TVM's own pool.
 *
 * TVM's pool deals each thread its tasks and waits for all by sched_yield: on a machine with other work a
 * thread that yields, or that has its core taken, holds up every kernel by a time slice (measured: int8
 * MiniLM at 1x32 takes 32 ms for 2.5), and its threads can hang when a process ends.  Here tasks are taken,
 * not dealt: the caller does what no other thread has begun.
 *
 *     state = launch << 32 | tasks << 16 | next       one word: who adds 1 to it has taken task `next`
 *
 * A task of launch n can be taken only while n runs: the caller waits until all that were taken are done,
 * so what belongs to a launch (function, data) does not change under a thread that has a task of it.
 * Threads spin for some ten microseconds, as the next kernel mostly follows at once, then they sleep.
 *
 * A child of fork has no threads but its caller, which does all of the tasks then.
 */
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <unistd.h>

#include <atomic>

struct ParallelEnv { /* TVMParallelGroupEnv */
  void* sync_handle;
  int32_t num_task;
};
using Task = int (*)(int task, ParallelEnv* env, void* data);
struct Argument { /* TVMFFIAny of an integer */
  int32_t type;
  uint32_t padding;
  int64_t value;
};

/* In a library without parallel loops there is none. */
extern "C" __attribute__((weak)) int (*__TVMBackendParallelLaunch)(Task, void*, int);

enum { MOST_THREADS = 1024, MOST_TASKS = 65535, IDLE_SPINS = 2000, WAIT_SPINS = 10000 };

static std::atomic<uint64_t> state;
static std::atomic<int> done, failed, sleeping, stopping;
static Task function;
static void* data;
static pthread_t threads[MOST_THREADS];
static int others; /* threads besides the caller */
static pid_t owner;
#ifdef __linux__
static cpu_set_t cores;     /* that the process may use */
static int left_free = -1; /* the core that no other thread uses */
#endif
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static thread_local int inside; /* a task: loops in it are not parallel */

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

static inline int has_task(uint64_t at) { return (at & 0xffff) < (at >> 16 & 0xffff); }

/* Takes and does one task; 0 where there is none. */
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

/* Whoever is roused begins on another core than the caller's: the system likes to put it on the same one,
 * where it waits for the caller, which waits for it, until the next balancing some milliseconds later. */
static void keep_off_this_core(void) {
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

static void rouse(void) {
  /* After a store of what sleepers look at: both are sequentially consistent, so that either this sees a
   * sleeper, or the sleeper sees the store. */
  if (sleeping.load()) {
    pthread_mutex_lock(&lock);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
  }
}

static int launch(Task task, void* argument, int wanted) {
  int tasks = wanted > 0 ? wanted : others + 1;
  if (tasks == 1 || others == 0 || inside || tasks > MOST_TASKS || getpid() != owner) {
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
  if (sleeping.load()) keep_off_this_core();
  rouse();
  while (work()) {
  }
  for (int spins = 0; done.load(std::memory_order_acquire) < tasks; spins++) {
    /* Who has the last task may be off its core, and wait for this one. */
    if (spins < WAIT_SPINS)
      relax();
    else
      usleep(20);
  }
  return -failed.load();
}

static void stop(void) {
  stopping.store(1);
  rouse();
  for (int i = 0; i < others; i++) pthread_join(threads[i], nullptr);
  others = 0;
  stopping.store(0);
}

/* The library's parallel loops run on as many threads, the caller's among them, from now on. Nothing of it
 * may run meanwhile. */
extern "C" __attribute__((visibility("default"))) int __tvm_ffi_tersor_threads(void* self, const Argument* arguments, int32_t count, Argument* result) {
  (void)self;
  int wanted = count == 1 ? (int)arguments[0].value - 1 : 0;
  wanted = wanted < 0 ? 0 : wanted > MOST_THREADS ? MOST_THREADS : wanted;
  if (getpid() != owner) { /* also the first call: there are no threads of this process */
    others = 0;
    owner = getpid();
    sleeping.store(0);
    pthread_mutex_init(&lock, nullptr); /* a thread that is gone may have held it */
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

/* When the library is unloaded, or the process ends. */
__attribute__((destructor)) static void end(void) {
  if (owner && getpid() == owner) stop();
}
