#include "cache.hpp"

#include <cstring>

namespace small_doge {

void HeadCache::assign(const HeadCache& other, size_t slot_bytes) {
    n = other.n;
    std::memcpy(keys, other.keys, round_up(n, kPanel) * slot_bytes);
    std::memcpy(values, other.values, n * slot_bytes);
    std::memcpy(scores, other.scores, n * sizeof(float));
    std::memcpy(ranks, other.ranks, n * sizeof(uint32_t));
    std::memcpy(positions, other.positions, n * sizeof(int32_t));
}

void HeadCache::compact(int block, Type type, int dim) {
    const int all = n + block, live = all - static_cast<int>(evicted.size());
    n = live;
    if (evicted.empty()) return;
    const size_t slot_bytes = table_bytes(type, 1, dim);
    const Matrix key_rows = key_matrix(type, all, dim);
    std::vector<float> key(dim);
    int from = live;
    for (const Eviction& e : evicted) {
        if (e.slot >= live) continue;
        while (ranks[from] == UINT32_MAX) ++from;
        unpack_row(key_rows, from, key.data());
        set_key(type, e.slot, key.data(), dim);
        std::memcpy(values + e.slot * slot_bytes, values + from * slot_bytes, slot_bytes);
        scores[e.slot] = scores[from];
        ranks[e.slot] = ranks[from];
        positions[e.slot] = positions[from];
        ++from;
    }
    evicted.clear();
}

}  // namespace small_doge
