#pragma once

#include <pthread.h>
#include <sys/types.h>

#include <atomic>
#include <exception>
#include <mutex>
#include <type_traits>
#include <vector>

namespace guanaco::cpu {

/// CPUs this process may use: its affinity mask, cut to the quota of its control group.
int usable_cpus();

/// Threads that share loops with the one that calls. Used by one thread at a time. In a child that
/// the process forks there are no other threads: there the one that calls does it all.
class ThreadPool {
 public:
  /// `threads` in all, the caller being one of them. Throws out_of_memory if they cannot be made.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;

  int threads() const noexcept { return int(workers_.size()) + 1; }

  /// Calls body(begin, end) with ranges that together are [0, count) and returns when all are done.
  /// A thread that is held up leaves ranges to the others. Allocates nothing. Throws what a body
  /// threw, the first of them.
  template <typename F>
  void parallel_for(int count, F&& body) {
    using Callable = std::remove_reference_t<F>;
    run({[](void* f, int begin, int end) { (*static_cast<Callable*>(f))(begin, end); }, &body,
         count});
  }

 private:
  struct Job {
    void (*call)(void*, int begin, int end) = nullptr;
    void* body = nullptr;
    int count = 0;
  };
  void run(Job job);
  void wake();
  void work();
  bool enter();
  void do_share() noexcept;
  void wait_while(const std::atomic<unsigned>& value, unsigned old) const;
  void stop();
  bool is_child() const noexcept;  ///< of the process that made the threads

  const pid_t owner_;
  std::vector<pthread_t> workers_;
  bool spins_;  ///< only where every thread has a CPU: else spinning keeps others from working
  Job job_;
  std::atomic<int> next_ = 0;         ///< where the next range of the job begins
  std::atomic<unsigned> posted_ = 0;  ///< jobs so far
  /// Workers that are at the job, and kOpen while more may join. Who comes late, because the system
  /// ran something else meanwhile, is not waited for.
  std::atomic<unsigned> gate_ = 0;
  static constexpr unsigned kOpen = 1u << 31;
  std::atomic<bool> stopping_ = false;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

}  // namespace guanaco::cpu
