// The bounded cache: the w keys of highest score of one sequence, layer and key/value head.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels.hpp"
#include "pack.hpp"

namespace small_doge {

// Scores are compared with 15 bits of mantissa: prefill and decode round differently, and where scores tie
// (a repeated token in the first layer) recency must decide, not noise.
inline uint32_t rank_of(float score) {
    uint32_t bits;
    static_assert(sizeof bits == sizeof score, "a score is 32 bits");
    std::memcpy(&bits, &score, 4);
    return (bits + 0x80u) & 0xffffff00u;
}

// A key that leaves: invisible to the block's queries from `query` on.
struct Eviction {
    int slot, query;
};

struct HeadCache {
    uint8_t* keys = nullptr;    // rotated and normalized, a row a slot of a packed matrix; float or bf16
    uint8_t* values = nullptr;  // [slot][dim], of the same type
    float* scores = nullptr;
    uint32_t* ranks = nullptr;
    int32_t* positions = nullptr;
    int n = 0;                      // live slots, 0 .. n - 1, in no order
    std::vector<Eviction> evicted;  // by the block under way, whose keys lie behind the live slots

    void set_score(int slot, float score, int32_t position) {
        scores[slot] = score;
        ranks[slot] = rank_of(score);
        positions[slot] = position;
    }
    // Once the block's `count` keys stand behind the live ones, each in turn: of window + 1 keys the lowest leaves.
    void evict(const Kernels& k, int count, int window) {
        for (int query = 0; query < count; ++query) {
            const int slots = n + query + 1;
            if (slots - static_cast<int>(evicted.size()) <= window) continue;
            const int gone = k.lowest(ranks, positions, slots);
            ranks[gone] = UINT32_MAX;  // above every score: it is not found again
            evicted.push_back({gone, query});
        }
    }

    // The keys of the first `slots` slots, to be multiplied by queries.
    Matrix key_matrix(Type type, int slots, int dim) const { return describe(type, slots, dim, keys); }
    void set_key(Type type, int slot, const float* key, int dim) {
        pack_row(type, key, dim, slot % kPanel, keys + describe(type, 1, dim, nullptr).panel_bytes * (slot / kPanel));
    }

    // Takes over the live slots of another cache of the same capacity.
    void assign(const HeadCache& other, size_t slot_bytes);

    // After the block's attention: fills the holes from the end.
    void compact(int block, Type type, int dim);
};

}  // namespace small_doge
