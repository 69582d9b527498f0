// From logits to the next token.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.hpp"

namespace small_doge {

struct Sampling {
    float temperature = 0.0f;  // 0: greedy
    int top_k = 0;             // 0: off
    float top_p = 1.0f;
    float min_p = 0.0f;
    float repetition_penalty = 1.0f;
    uint64_t seed = 0;
};

struct Choice {
    int token;
    float logprob;  // under the model's own distribution: temperature 1, no filter, no penalty
};

// Which tokens a sequence holds, for the repetition penalty: flat memory however long it grows.
class Seen {
  public:
    explicit Seen(int vocab = 0) : bits_((vocab + 63) / 64) {}
    void add(int token) { bits_[token / 64] |= uint64_t(1) << (token % 64); }
    void clear() { std::fill(bits_.begin(), bits_.end(), 0); }
    const std::vector<uint64_t>& words() const { return bits_; }

  private:
    std::vector<uint64_t> bits_;
};

class Sampler {
  public:
    // Order of the filters as in transformers: penalty, temperature, top-k, top-p, min-p. The draw depends on the
    // seed and the position only, not on how a generation is cut into calls or batched.
    Choice choose(const Kernels& k, const float* logits, int vocab, LogitStats stats, const Sampling& how,
                  const Seen& seen, int64_t position);

  private:
    struct Candidate {
        float weight;
        int token;
    };
    int draw_any(int vocab, double target) const;
    int draw_filtered(int vocab, float total, const Sampling& how, double u);

    std::vector<float> adjusted_, weights_;
    std::vector<Candidate> candidates_;
};

}  // namespace small_doge
