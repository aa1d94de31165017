#pragma once

#include <pthread.h>
#include <signal.h>

namespace guanaco {

/// While it lives, threads that are made begin with signals masked: what is sent to the process is
/// for the host's threads, and only a worker's own faults reach the handlers that report a crash.
class SignalsMasked {
 public:
  SignalsMasked() {
    sigset_t sent;
    sigfillset(&sent);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&sent, fault);
    pthread_sigmask(SIG_SETMASK, &sent, &before_);
  }
  ~SignalsMasked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsMasked(const SignalsMasked&) = delete;
  SignalsMasked& operator=(const SignalsMasked&) = delete;

 private:
  sigset_t before_;
};

}  // namespace guanaco
