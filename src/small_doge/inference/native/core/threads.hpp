// A fixed team of threads for work of a few microseconds: they spin between phases and park between calls.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace small_doge {

class Team {
  public:
    explicit Team(int threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    // Threads that the team has, and those that take part in the running work: all, or the caller alone for a while
    // after the others were found to lack a core, since a barrier then costs a time slice.
    int most() const { return most_; }
    int size() const { return size_; }
    // Runs work(thread) on every thread that takes part, the caller's being 0, and returns when all are done. One
    // caller at a time.
    void run(const std::function<void(int)>& work);
    // Meets the other threads of the running work; what was written before is visible to all after.
    void barrier();

  private:
    using Clock = std::chrono::steady_clock;

    void worker(int thread);
    void judge(Clock::time_point start);

    const int most_;
    int size_;
    Clock::duration stalled_{};  // how long the caller waited at barriers beyond any honest wait, in this run
    Clock::duration alone_for_;
    Clock::time_point alone_until_{};
    std::vector<std::thread> workers_;
    const std::function<void(int)>* work_ = nullptr;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<uint32_t> started_{0};
    std::atomic<bool> stop_{false};
    std::atomic<int> parked_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
};

}  // namespace small_doge
