#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "support/check.h"

namespace guanaco {

/// Lets one pass at a time use the backend, in the order of asking: a long feed gives way to others
/// after each of its passes. Waiting allocates nothing. A thread that has its turn or waits for it
/// is in a callback if it asks again: it would wait for itself and is refused. A Lockable, too.
class PassQueue {
 public:
  /// Waits for its turn. `look` is called now and then meanwhile, outside of the mutex, and gives up
  /// by throwing. Who is first holds up those behind while it looks.
  template <typename F>
  void lock(F&& look) {
    std::unique_lock guard(mutex_);
    Waiter self;
    require(!has(self.thread), ErrorCode::invalid_argument,
            "called from a callback of the same model, where nothing else may compute with it");
    append(self);
    while (holder_ != std::thread::id() || first_ != &self) {
      changed_.wait_for(guard, std::chrono::milliseconds(10));
      guard.unlock();
      try {
        look();
      } catch (...) {
        guard.lock();
        remove(self);
        changed_.notify_all();
        throw;
      }
      guard.lock();
    }
    holder_ = self.thread;
    first_ = self.next;  // `self` goes with this frame; who comes next waits for holder_
    if (first_ == nullptr) last_ = nullptr;
  }
  void lock() {
    lock([] {});
  }
  void unlock() {
    const std::lock_guard guard(mutex_);
    holder_ = {};
    changed_.notify_all();
  }

 private:
  struct Waiter {
    Waiter* next = nullptr;
    std::thread::id thread = std::this_thread::get_id();
  };
  bool has(std::thread::id thread) const {
    const Waiter* at = first_;
    while (at != nullptr && at->thread != thread) at = at->next;
    return at != nullptr || holder_ == thread;
  }
  void append(Waiter& waiter) {
    (last_ != nullptr ? last_->next : first_) = &waiter;
    last_ = &waiter;
  }
  void remove(Waiter& waiter) {
    Waiter* before = nullptr;
    for (Waiter* at = first_; at != &waiter; at = at->next) before = at;
    (before != nullptr ? before->next : first_) = waiter.next;
    if (last_ == &waiter) last_ = before;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  Waiter *first_ = nullptr, *last_ = nullptr;  ///< on the stacks of the threads that wait
  std::thread::id holder_;                     ///< whose turn it is; of no thread: nobody's
};

}  // namespace guanaco
