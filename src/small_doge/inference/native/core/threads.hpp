// A fixed team of threads for work of a few microseconds: they spin between phases and park between calls.
#pragma once
#include <atomic>
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

    int size() const { return size_; }
    // Runs work(thread) on every thread, the caller's being 0, and returns when all are done. One caller at a time.
    void run(const std::function<void(int)>& work);
    // Meets the other threads of the running work; what was written before is visible to all after.
    void barrier();

  private:
    void worker(int thread);

    const int size_;
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
