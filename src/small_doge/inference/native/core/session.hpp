// A batch of sequences over one model, each with its own bounded caches; prefill, decode and single steps.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "cache.hpp"
#include "draft.hpp"
#include "model.hpp"
#include "sampling.hpp"

namespace small_doge {

constexpr int kBlockTokens = 64;  // tokens a thread that go through the layers together during prefill

// Consecutive tokens of one sequence within a block.
struct Span {
    int row, first, count;  // tokens first .. first + count - 1 of the block
    int64_t start;          // position of the first
    int logits;             // of how many of its last tokens the logits are wanted
};

struct Block {
    std::vector<int32_t> tokens;
    std::vector<Span> spans;
    float* all_logits = nullptr;  // when set: [token][vocab], every token of the block
    float* all_hidden = nullptr;  // when set: [token][hidden], the normalized output of the last layer
};

struct Generated {
    std::vector<int32_t> tokens;   // [row][n], -1 after a row's end
    std::vector<float> logprobs;   // [row][n], 0 there
    std::vector<int32_t> lengths;  // tokens of each row
    std::vector<uint8_t> stopped;  // whether a stop id ended it (it is the last token)
};

class Session {
  public:
    // slots: how many keys a key/value head keeps, at most the model's window. drafts: how many tokens decode guesses,
    // to check them together; fewer than kBlockTokens. They come from draft_model, a model of the same vocabulary and
    // team, or if there is none from what the sequence holds already.
    Session(std::shared_ptr<Model> model, int batch, int slots, int drafts, std::shared_ptr<Model> draft_model);
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    // Appends prompts[i] to sequence rows[i]. all_logits and all_hidden, when set, are [sum of lengths][vocab] and
    // [sum of lengths][hidden].
    void prefill(const std::vector<int>& rows, const std::vector<std::vector<int32_t>>& prompts, float* all_logits,
                 float* all_hidden);
    // One given token to each of the rows.
    void step(const std::vector<int>& rows, const std::vector<int32_t>& tokens);
    // Samples up to n tokens for each of the rows; `how` and `stop_ids` have one entry a row.
    Generated decode(const std::vector<int>& rows, int n, const std::vector<Sampling>& how,
                     const std::vector<std::vector<int32_t>>& stop_ids);
    void reset(const std::vector<int>& rows);
    // Makes row target what row source is: its keys, its last logits and what waits to be fed.
    void copy(int source, int target);
    // Takes back a row's tokens from `length` on, of which none has evicted a key; `seen` is what remains.
    void rewind(int row, int64_t length, const Seen& seen);

    const float* logits(int row) const { return logits_.data() + slot_of(row, 0) * ld_logits_; }
    int64_t length(int row) const { return rows_.at(row).length; }
    int64_t steps() const { return steps_; }      // runs through the layers that decode took
    int64_t guesses() const { return guesses_; }  // tokens that were guessed and checked in them
    int batch() const { return static_cast<int>(rows_.size()); }
    int slots() const { return slots_; }
    size_t cache_bytes() const;
    size_t cache_bytes_used() const;
    const Model& model() const { return *model_; }

  private:
    struct Row {
        int64_t length = 0;    // tokens that went through the layers
        int32_t pending = -1;  // sampled, but not yet fed
        bool ready = false;    // logits and stats belong to the last token
        Seen seen;
        int trust = 0;  // how many tokens to guess next
    };
    // The quantized form of a product's input, for one width.
    struct Input {
        int ld = 0, ld_groups = 0;
        std::vector<float> values;
        std::vector<int8_t> q;
        std::vector<float> scale;
        std::vector<int32_t> sum;
        void resize(int tokens, int width);
        Activations view(const float* source) const;
    };
    struct Scored {
        float score;
        int index;
    };
    // What one thread needs for itself.
    struct Scratch {
        Input hidden, attention, wide;
        std::array<std::vector<Scored>, 2> halves;  // the router's scores, a half each
        std::vector<Scored> pairs;
        std::vector<float> query, weights, mixed, expert;
        Sampler sampler;
    };

    // What a thread computes of a block: of these tokens, the share `index` of `of` of each product's rows.
    struct Part {
        int first, count, index, of;
        // Its tokens of a span, counted from the span's first.
        int begin(const Span& s) const { return std::max(first - s.first, 0); }
        int end(const Span& s) const { return std::min(first + count - s.first, s.count); }
    };

    void feed(int thread, const Block& block);
    Part part(int thread, const Block& block) const;
    int first_of(int thread, const Block& block) const;
    void meet(const Part& part) const;
    void attention(int thread, const Part& part, const Layer& layer, int index, const Block& block, bool stored);
    bool last_has_keys(const Layer& layer) const;
    void store_keys(Scratch& s, const Layer& layer, int index, const Span& span, int kv, const Part& part);
    void evict(int thread, int index, const Block& block);
    void compact(int thread, const Block& block);
    void attend(Scratch& s, const Layer& layer, int index, const Span& span, int kv, int head0, int heads, int t0,
                int t1);
    bool only_wanted(int layer, const Block& block) const;
    int keep_wanted(int thread, const Block& block);
    void head(int thread, const Block& block, int tokens);
    void experts(Scratch& s, const Layer& layer, const float* x, const float* router, float* out);
    Activations prepare(const Part& part, Input& shared, Input& own, const float* source, int ld, Type type,
                        const float* norm, int width);
    HeadCache& cache(int row, int layer, int kv);
    void resize(int tokens);
    void check(const std::vector<int>& rows, const std::vector<int32_t>& tokens) const;
    void pack_blocks(const std::vector<int>& rows, const std::vector<std::vector<int32_t>>& prompts,
                     std::vector<Block>& blocks, float* all_logits, float* all_hidden);
    void flush_pending(const std::vector<int>& rows);
    void advance(const Block& block);
    void take(int row, int32_t token);
    void forget(int row, int tokens);
    // Where the logits and the stats of a span's p-th wanted token are.
    size_t slot_of(int row, int p) const { return static_cast<size_t>(row) * (drafts_ + 1) + p; }

    std::shared_ptr<Model> model_;
    const Kernels& k_;
    const int slots_, drafts_, block_tokens_;
    Type cache_type_;       // of keys and values: float for fp32 weights, bf16 otherwise
    int dim_;               // head_dim padded to the vector width
    int products_in_keys_;  // how many keys a token attends to for the work of its products in a layer
    size_t slot_bytes_ = 0, slot_bytes_total_ = 0;

    int64_t steps_ = 0, guesses_ = 0;
    std::unique_ptr<Drafter> drafter_;  // none without drafts
    std::vector<Row> rows_;
    std::vector<HeadCache> caches_;
    uint8_t* cache_memory_ = nullptr;
    float* score_memory_ = nullptr;

    int capacity_ = 0;  // tokens that the buffers below hold
    int ld_logits_;
    std::vector<float> x_, qkv_, attention_, gate_, up_, update_, router_, moe_, cos_, sin_, logits_, head_out_;
    int ld_x_, ld_qkv_, ld_attention_, ld_wide_, ld_router_ = 0;
    Input hidden_, attended_, wide_;
    std::vector<LogitStats> stats_;  // [row][wanted token][thread of the whole team]
    std::vector<std::unique_ptr<Scratch>> scratch_;
};

}  // namespace small_doge
