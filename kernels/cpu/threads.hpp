// The engine's own threads: a fixed pool that runs one parallel loop at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace ic {

// A loop's tasks are handed out one by one. The caller works too and, when no task is left, waits for those threads alone
// that have joined the loop: one that the system has put aside delays nobody.
class Threads {
 public:
  explicit Threads(int count) : count_(count < 1 ? 1 : count) {
    for (int i = 1; i < count_; ++i) workers_.emplace_back([this, i] { work(i); });
  }
  ~Threads() {
    stop_.store(true);
    publish(state_.load() + kGeneration);
    for (auto& worker : workers_) worker.join();
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int count() const { return count_; }

  // Calls body(task, thread) for every task in [0, tasks); returns when all are done.
  template <class Body>
  void run(int tasks, Body&& body) {
    if (count_ == 1 || tasks <= 1) {
      for (int task = 0; task < tasks; ++task) body(task, 0);
      return;
    }
    call_ = [](void* context, int task, int thread) { (*static_cast<Body*>(context))(task, thread); };
    context_ = const_cast<void*>(static_cast<const void*>(&body));
    tasks_ = tasks;
    next_.store(0, std::memory_order_relaxed);
    publish((state_.load(std::memory_order_relaxed) & ~(kGeneration - 1)) + kGeneration);
    drain(0);
    state_.fetch_or(kClosed, std::memory_order_acq_rel);
    while (state_.load(std::memory_order_acquire) & kJoined) idle();
  }

 private:
  // One word says which loop is on, whether it still takes threads, and how many have joined.
  static constexpr uint64_t kJoined = 0x7fff, kClosed = 0x8000, kGeneration = 0x10000;
  // Some hundred microseconds: longer than the gaps inside a step, shorter than anyone's patience with a busy core.
  static constexpr int kSpins = 20000;

  // Not the processor's pause: virtual machines take a row of those for a lock whose holder sleeps, and step in.
  static void idle() {
    for (int i = 0; i < 16; ++i) asm volatile("nop");
  }

  void publish(uint64_t state) {
    state_.store(state);
    if (sleeping_.load() == 0) return;
    { std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
  }

  void drain(int thread) {
    for (int task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) call_(context_, task, thread);
  }

  void work(int thread) {
    uint64_t seen = 0;
    const auto fresh = [&] { return state_.load() / kGeneration != seen; };
    while (!stop_.load(std::memory_order_relaxed)) {
      for (int spins = 0; !fresh(); ++spins) {
        if (spins < kSpins) {
          idle();
          continue;
        }
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.fetch_add(1);
        wake_.wait(lock, fresh);
        sleeping_.fetch_sub(1);
      }
      uint64_t state = state_.load();
      seen = state / kGeneration;
      bool joined = false;
      while (state / kGeneration == seen && !(state & kClosed) && !joined) joined = state_.compare_exchange_weak(state, state + 1);
      if (!joined || stop_.load()) {
        if (joined) state_.fetch_sub(1);
        continue;
      }
      drain(thread);
      state_.fetch_sub(1, std::memory_order_release);
    }
  }

  const int count_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> state_{kClosed};
  std::atomic<int> sleeping_{0}, next_{0};
  std::atomic<bool> stop_{false};
  int tasks_ = 0;
  void (*call_)(void*, int, int) = nullptr;
  void* context_ = nullptr;
};

}  // namespace ic
