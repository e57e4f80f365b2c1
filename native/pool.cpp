#include "pool.h"

#include <sched.h>
#include <unistd.h>

#include <climits>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
static inline void relax() { _mm_pause(); }
#else
static inline void relax() {}
#endif

namespace sparsight {

namespace {

// A step has hundreds of short waits, so threads spin. Beyond that another process has the processor of the thread that is waited for: who goes
// on spinning, or yields, uses up the time that the system would give them, and each of the waits then takes a whole time slice. So they sleep.
constexpr int SPINS = 2000;
// Between steps (microseconds while generating) workers spin a little longer, then sleep.
constexpr int IDLE_SPINS = 40000;

#ifdef __linux__
static_assert(sizeof(std::atomic<unsigned>) == sizeof(unsigned), "a futex is four bytes");
void sleep_while(std::atomic<unsigned>& word, unsigned value) { syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0); }
void wake_all(std::atomic<unsigned>& word) { syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0); }
#else
void sleep_while(std::atomic<unsigned>&, unsigned) { sched_yield(); }
void wake_all(std::atomic<unsigned>&) {}
#endif

}  // namespace

Pool::Pool(int threads) : size_(threads) { start(); }
Pool::~Pool() { stop(); }

void Pool::start() {
  owner_ = getpid();
  generation_ = 0, ending_ = false;
  try {
    for (int t = 1; t < size_; t++) threads_.emplace_back([this, t] { loop(t); });
  } catch (...) {  // the system has no more of them
    stop();
    owner_ = 0;
    throw;
  }
}

// Threads do not follow a fork, but what they slept on still counts them, and would wait for them. All of that is left behind, and made anew.
void Pool::forget_parent() {
  new std::vector<std::thread>(std::move(threads_));
  threads_.clear();
  new (&busy_) std::mutex, new (&mutex_) std::mutex, new (&wake_) std::condition_variable;
  passed_ = 0, waiting_ = 0, sleeping_ = 0;
}

void Pool::stop() {
  if (owner_ != getpid()) return forget_parent();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (auto& thread : threads_) thread.join();
  threads_.clear();
}

void Pool::loop(int thread) {
  unsigned seen = 0;
  while (true) {
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen && spins < IDLE_SPINS) relax(), spins++;
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load() != seen; });
    }
    seen = generation_.load(std::memory_order_acquire);
    if (ending_) return;
    (*work_)(thread);
    barrier();
  }
}

void Pool::run(const std::function<void(int)>& work) {
  if (owner_ != getpid()) forget_parent(), start();
  std::lock_guard<std::mutex> one_at_a_time(busy_);
  if (size_ == 1) return work(0);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    work_ = &work;
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  work(0);
  barrier();
}

void Pool::barrier() {
  if (size_ == 1) return;
  const unsigned before = passed_.load(std::memory_order_acquire);
  if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    waiting_.store(0, std::memory_order_relaxed);
    passed_.fetch_add(1);  // before it is asked who sleeps: whoever lies down later sees that it has changed
    if (sleeping_.load() > 0) wake_all(passed_);
    return;
  }
  for (int i = 0; i < SPINS; i++) {
    if (passed_.load(std::memory_order_acquire) != before) return;
    relax();
  }
  sleeping_.fetch_add(1);
  while (passed_.load() == before) sleep_while(passed_, before);
  sleeping_.fetch_sub(1);
}

}  // namespace sparsight
