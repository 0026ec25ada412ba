// The engine's own threads: a fixed pool that runs one parallel loop at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ic {

class Threads {
 public:
  explicit Threads(int count) : count_(count < 1 ? 1 : count) {
    for (int i = 1; i < count_; ++i) workers_.emplace_back([this, i] { work(i); });
  }
  ~Threads() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int count() const { return count_; }

  // Calls body(task, thread) for every task in [0, tasks), tasks handed out one by one; returns when all are done.
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
    busy_.store(count_ - 1, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    if (sleeping_.load(std::memory_order_acquire) > 0) wake_.notify_all();
    drain(0);
    while (busy_.load(std::memory_order_acquire) > 0) pause();
  }

 private:
  // About 50 microseconds: longer than the gap between two loops of a step, shorter than anyone's patience with an idle core.
  static constexpr int kSpins = 2000;

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
  }

  void drain(int thread) {
    for (int task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) call_(context_, task, thread);
  }

  void work(int thread) {
    uint64_t seen = 0;
    for (;;) {
      int spins = 0;
      while (generation_.load(std::memory_order_acquire) == seen) {
        if (++spins < kSpins) {
          pause();
          continue;
        }
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.fetch_add(1);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
        sleeping_.fetch_sub(1);
      }
      seen = generation_.load(std::memory_order_acquire);
      if (stop_) return;
      drain(thread);
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  const int count_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> sleeping_{0}, next_{0}, busy_{0};
  bool stop_ = false;
  int tasks_ = 0;
  void (*call_)(void*, int, int) = nullptr;
  void* context_ = nullptr;
};

}  // namespace ic
