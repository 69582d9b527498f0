#include "cache.hpp"

#include <cstring>

namespace small_doge {

void HeadCache::assign(const HeadCache& other, size_t slot_bytes) {
    n = other.n;
    std::memcpy(keys, other.keys, n * slot_bytes);
    std::memcpy(values, other.values, n * slot_bytes);
    std::memcpy(scores, other.scores, n * sizeof(float));
    std::memcpy(ranks, other.ranks, n * sizeof(uint32_t));
    std::memcpy(positions, other.positions, n * sizeof(int32_t));
}

void HeadCache::compact(int block, size_t slot_bytes) {
    const int all = n + block, live = all - static_cast<int>(evicted.size());
    int from = live;
    for (const Eviction& e : evicted) {
        if (e.slot >= live) continue;
        while (ranks[from] == UINT32_MAX) ++from;
        std::memcpy(keys + e.slot * slot_bytes, keys + from * slot_bytes, slot_bytes);
        std::memcpy(values + e.slot * slot_bytes, values + from * slot_bytes, slot_bytes);
        scores[e.slot] = scores[from];
        ranks[e.slot] = ranks[from];
        positions[e.slot] = positions[from];
        ++from;
    }
    evicted.clear();
    n = live;
}

}  // namespace small_doge
