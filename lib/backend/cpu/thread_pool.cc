#include "backend/cpu/thread_pool.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <system_error>
#include <thread>

#include "support/check.h"
#include "support/signal_mask.h"

namespace guanaco::cpu {
namespace {

/// About the time between two loops of a decoding step; a thread that waits longer sleeps, so that
/// an idle model costs nothing.
constexpr std::chrono::microseconds kSpin(50);

/// Ranges a loop is cut into for each thread: few enough for each to be a long run of memory.
constexpr int kRanges = 8;

void relax() {
#if GUANACO_X86
  __builtin_ia32_pause();
#endif
}

}  // namespace

int usable_cpus() {
  int cpus = std::max(1, int(std::thread::hardware_concurrency()));
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cpus = std::max(1, CPU_COUNT(&set));
  std::ifstream quota_file("/sys/fs/cgroup/cpu.max");  // "max 100000" or "150000 100000"
  std::int64_t quota = 0, period = 0;
  if (quota_file >> quota >> period && quota > 0 && period > 0)
    cpus = int(std::min<std::int64_t>(cpus, (quota + period - 1) / period));
  return cpus;
}

ThreadPool::ThreadPool(int threads) : owner_(getpid()), spins_(threads <= usable_cpus()) {
  workers_.reserve(std::size_t(threads - 1));
  const SignalsMasked masked;
  for (int i = 1; i < threads; ++i) {
    pthread_t worker;
    const auto run_worker = [](void* self) -> void* {
      static_cast<ThreadPool*>(self)->work();
      return nullptr;
    };
    const int failure = pthread_create(&worker, nullptr, run_worker, this);
    if (failure != 0) {
      const std::size_t made = workers_.size() + 1;
      stop();
      fail(ErrorCode::out_of_memory, "threads: {} wanted, the system gave {}: {}", threads, made,
           std::generic_category().message(failure));
    }
    workers_.push_back(worker);
  }
}

ThreadPool::~ThreadPool() { stop(); }

bool ThreadPool::is_child() const noexcept { return getpid() != owner_; }

void ThreadPool::stop() {
  if (is_child()) return;  // its threads are not here
  stopping_.store(true, std::memory_order_relaxed);
  wake();
  for (const pthread_t worker : workers_) pthread_join(worker, nullptr);
}

void ThreadPool::wake() {
  posted_.fetch_add(1, std::memory_order_release);
  posted_.notify_all();
}

void ThreadPool::run(Job job) {
  if (workers_.empty() || job.count <= 1 || is_child()) {
    if (job.count > 0) job.call(job.body, 0, job.count);
    return;
  }
  job_ = job;
  next_.store(0, std::memory_order_relaxed);
  gate_.store(kOpen, std::memory_order_release);
  wake();
  do_share();
  gate_.fetch_and(~kOpen, std::memory_order_acq_rel);
  for (unsigned inside; (inside = gate_.load(std::memory_order_acquire)) > 0;)
    wait_while(gate_, inside);
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::work() {
  for (unsigned seen = 0;;) {
    wait_while(posted_, seen);
    seen = posted_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) return;
    if (!enter()) continue;
    do_share();
    if (gate_.fetch_sub(1, std::memory_order_acq_rel) == 1) gate_.notify_one();
  }
}

/// To the job that is under way, if there is one.
bool ThreadPool::enter() {
  unsigned gate = gate_.load(std::memory_order_relaxed);
  while ((gate & kOpen) != 0)
    if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire,
                                    std::memory_order_relaxed))
      return true;
  return false;
}

void ThreadPool::do_share() noexcept {
  const int size = std::max(1, job_.count / (threads() * kRanges));
  for (int begin; (begin = next_.fetch_add(size, std::memory_order_relaxed)) < job_.count;) {
    try {
      job_.call(job_.body, begin, std::min(begin + size, job_.count));
    } catch (...) {
      const std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }
}

void ThreadPool::wait_while(const std::atomic<unsigned>& value, unsigned old) const {
  const auto changed = [&] { return value.load(std::memory_order_acquire) != old; };
  if (changed()) return;
  if (spins_) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 32; ++i) {
        if (changed()) return;
        relax();
      }
    } while (std::chrono::steady_clock::now() < end);
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace guanaco::cpu
