#include "sampling.hpp"

#include <algorithm>
#include <cmath>

#if defined(_MSC_VER)
#include <intrin.h>
#endif

namespace small_doge {
namespace {

uint64_t mix(uint64_t x) {  // the finalizer of SplitMix64
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

double uniform(uint64_t seed, int64_t position) {
    const uint64_t bits = mix(mix(seed) ^ static_cast<uint64_t>(position));
    return static_cast<double>(bits >> 11) * 0x1p-53;
}

int lowest_bit(uint64_t x) {
#if defined(_MSC_VER)
    unsigned long at;
    _BitScanForward64(&at, x);
    return static_cast<int>(at);
#else
    return __builtin_ctzll(x);
#endif
}

}  // namespace

Choice Sampler::choose(const Kernels& k, const float* logits, int vocab, LogitStats stats, const Sampling& how,
                       const Seen& seen, int64_t position) {
    const float log_total = stats.max + std::log(stats.sum);
    const float* x = logits;
    float largest = stats.max;
    int token = stats.argmax;
    if (how.repetition_penalty != 1.0f) {
        adjusted_.assign(logits, logits + vocab);
        for (size_t w = 0; w < seen.words().size(); ++w) {
            for (uint64_t left = seen.words()[w]; left; left &= left - 1) {
                float& l = adjusted_[w * 64 + lowest_bit(left)];
                l = l < 0 ? l * how.repetition_penalty : l / how.repetition_penalty;
            }
        }
        x = adjusted_.data();
        const auto top = std::max_element(adjusted_.begin(), adjusted_.end());
        largest = *top;
        token = static_cast<int>(top - adjusted_.begin());
    }
    const float inverse_temperature = 1.0f / how.temperature;
    if (std::isfinite(inverse_temperature)) {  // 0 is greedy, and so is what a float cannot divide by
        weights_.resize(vocab);
        const float total = k.exp_weights(x, vocab, largest, inverse_temperature, weights_.data());
        const double u = uniform(how.seed, position);
        const bool filtered = how.top_k > 0 || how.top_p < 1.0f || how.min_p > 0.0f;
        token = filtered ? draw_filtered(vocab, total, how, u) : draw_any(vocab, u * total);
    }
    return {token, logits[token] - log_total};
}

int Sampler::draw_any(int vocab, double target) const {
    constexpr int kLanes = 8;  // sums side by side: one after another they take longer than the exponentials did
    double sum = 0;
    int last = 0;
    for (int begin = 0; begin < vocab; begin += 256) {
        const int end = std::min(vocab, begin + 256);
        float lanes[kLanes] = {};
        int at = begin;
        for (; at + kLanes <= end; at += kLanes)
            for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += weights_[at + lane];
        float block = 0;
        for (float lane : lanes) block += lane;
        for (; at < end; ++at) block += weights_[at];
        if (sum + block < target) {
            sum += block;
            continue;
        }
        for (int i = begin; i < end; ++i) {
            if (weights_[i] > 0) last = i;
            sum += weights_[i];
            if (sum > target) return i;
        }
    }
    return last;  // rounding left the target beyond the last weight
}

// The largest weight is 1. Most filters keep a few tokens, so candidates are gathered above a falling floor until
// those left out cannot matter, and only they are sorted.
int Sampler::draw_filtered(int vocab, float total, const Sampling& how, double u) {
    const int most = how.top_k > 0 ? std::min(how.top_k, vocab) : vocab;
    for (float floor = 0.02f;; floor *= 0.02f) {
        const bool last = floor <= how.min_p || floor < 1e-9f;
        if (last) floor = how.min_p;
        candidates_.clear();
        double mass = 0;
        for (int i = 0; i < vocab; ++i) {
            if (weights_[i] < floor) continue;
            candidates_.push_back({weights_[i], i});
            mass += weights_[i];
        }
        const bool enough_k = how.top_k > 0 && static_cast<int>(candidates_.size()) >= most;
        const bool enough_p = how.top_k == 0 && how.top_p < 1.0f && mass >= static_cast<double>(how.top_p) * total;
        if (last || enough_k || enough_p) break;
    }
    const auto heavier = [](const Candidate& a, const Candidate& b) {
        return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
    };
    if (static_cast<int>(candidates_.size()) > most) {
        std::nth_element(candidates_.begin(), candidates_.begin() + most, candidates_.end(), heavier);
        candidates_.resize(most);
    }
    std::sort(candidates_.begin(), candidates_.end(), heavier);

    double kept = total;  // what top-p is a share of: all, or what top-k left
    if (how.top_k > 0) {
        kept = 0;
        for (const Candidate& c : candidates_) kept += c.weight;
    }
    double mass = 0;
    size_t n = 0;
    for (; n < candidates_.size(); ++n) {
        if (n > 0 && ((how.top_p < 1.0f && mass >= how.top_p * kept) || candidates_[n].weight < how.min_p)) break;
        mass += candidates_[n].weight;
    }
    double target = u * mass;
    for (size_t i = 0; i < n; ++i) {
        target -= candidates_[i].weight;
        if (target < 0) return candidates_[i].token;
    }
    return candidates_[n - 1].token;
}

}  // namespace small_doge
