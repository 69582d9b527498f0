#include "threads.hpp"

#include <algorithm>

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
// How long the caller works alone once the others lacked a core: doubled each time, up to the limit.
constexpr std::chrono::milliseconds kAlone{20}, kAloneMost{1000};

thread_local bool is_worker = false;

}  // namespace

Team::Team(int threads) : most_(threads), size_(threads), alone_for_(kAlone) {
    for (int i = 1; i < most_; ++i) workers_.emplace_back([this, i] { worker(i); });
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
    const Clock::time_point start = Clock::now();
    size_ = start < alone_until_ ? 1 : most_;
    if (size_ == 1) return work(0);
    work_ = &work;
    stalled_ = {};
    started_.fetch_add(1);
    if (parked_.load() > 0) {
        const std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    work(0);
    barrier();
    judge(start);
}

void Team::judge(Clock::time_point start) {
    const Clock::time_point now = Clock::now();
    if (stalled_ * 3 > now - start) {
        alone_until_ = now + alone_for_;
        alone_for_ = std::min<Clock::duration>(2 * alone_for_, kAloneMost);
    } else if (now - alone_until_ > kAloneMost) {
        alone_for_ = kAlone;
    }
}

void Team::barrier() {
    const int others = size_ - 1;  // read before arriving: once all have, the caller may begin another run
    if (others == 0) return;
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == others) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; spins < kSpins; ++spins) {
        if (phase_.load(std::memory_order_acquire) != phase) return;
        relax();
    }
    const Clock::time_point since = Clock::now();
    while (phase_.load(std::memory_order_acquire) == phase) std::this_thread::yield();
    if (!is_worker) stalled_ += Clock::now() - since;
}

void Team::worker(int thread) {
    is_worker = true;
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
