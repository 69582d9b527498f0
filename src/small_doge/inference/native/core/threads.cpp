#include "threads.hpp"

#include <chrono>

#if defined(_M_X64) || defined(__x86_64__)
#include <immintrin.h>
#endif

namespace small_doge {
namespace {

inline void relax() {
#if defined(_M_X64) || defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

// About a millisecond. A phase lasts microseconds, so a longer wait means that the other thread was taken off its core;
// it comes back by itself, and yielding sooner would only give this core away as well, a time slice at each barrier.
constexpr int kSpins = 50000;
// A caller that decodes in chunks comes back sooner than this; a parked worker costs a wake-up of about 50 us.
constexpr std::chrono::microseconds kLinger{300};

}  // namespace

Team::Team(int threads) : size_(threads) {
    for (int i = 1; i < size_; ++i) workers_.emplace_back([this, i] { worker(i); });
}

Team::~Team() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stop_.store(true);
    }
    wake_.notify_all();
    for (std::thread& w : workers_) w.join();
}

void Team::run(const std::function<void(int)>& work) {
    if (size_ == 1) return work(0);
    work_ = &work;
    started_.fetch_add(1);
    if (parked_.load() > 0) {
        const std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    work(0);
    barrier();
}

void Team::barrier() {
    if (size_ == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
        if (spins < kSpins)
            relax();
        else
            std::this_thread::yield();
    }
}

void Team::worker(int thread) {
    uint32_t seen = 0;
    for (;;) {
        const auto since = std::chrono::steady_clock::now();
        for (int spins = 0; started_.load() == seen && !stop_.load(); ++spins) {
            relax();
            if (spins % 256 != 255 || std::chrono::steady_clock::now() - since < kLinger) continue;
            std::unique_lock<std::mutex> lock(mutex_);
            parked_.fetch_add(1);
            wake_.wait(lock, [&] { return started_.load() != seen || stop_.load(); });
            parked_.fetch_sub(1);
        }
        if (stop_.load()) return;
        seen = started_.load();
        (*work_)(thread);
        barrier();
    }
}

}  // namespace small_doge
