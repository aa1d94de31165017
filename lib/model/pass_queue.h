#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "support/check.h"

namespace guanaco {

/// Lets one pass at a time use the backend, in the order of asking: a long feed gives way to others
/// after each of its passes. Waiting allocates nothing. A thread that has a turn, of any model, or
/// waits for one is in a callback if it asks for another: it would wait for itself, or for who
/// waits for it, and is refused. A Lockable, too.
class PassQueue {
 public:
  /// Waits for its turn. `look` is called now and then meanwhile, outside of the mutex, and gives
  /// up by throwing. Who is first holds up those behind while it looks.
  template <typename F>
  void lock(F&& look) {
    require(!in_turn_, ErrorCode::invalid_argument,
            "called from a callback, in which nothing may compute with a model");
    std::unique_lock guard(mutex_);
    Waiter self;
    append(self);
    in_turn_ = true;
    while (held_ || first_ != &self) {
      changed_.wait_for(guard, std::chrono::milliseconds(10));
      guard.unlock();
      try {
        look();
      } catch (...) {
        guard.lock();
        remove(self);
        in_turn_ = false;
        changed_.notify_all();
        throw;
      }
      guard.lock();
    }
    held_ = true;
    first_ = self.next;  // `self` goes with this frame; who comes next waits for held_
    if (first_ == nullptr) last_ = nullptr;
  }
  void lock() {
    lock([] {});
  }
  void unlock() {
    const std::lock_guard guard(mutex_);
    held_ = in_turn_ = false;
    changed_.notify_all();
  }

 private:
  struct Waiter {
    Waiter* next = nullptr;
  };
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
  bool held_ = false;
  static inline thread_local bool in_turn_ = false;  ///< this thread has a turn, or waits for one
};

}  // namespace guanaco
