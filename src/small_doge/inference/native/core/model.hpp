// A Doge model: its shape, and its weights in packed form under the names that the saved file uses.
#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "pack.hpp"
#include "threads.hpp"
#include "types.hpp"

namespace small_doge {

struct Config {
    int layers = 0, hidden = 0, intermediate = 0, heads = 0, kv_heads = 0, head_dim = 0, vocab = 0, window = 0;
    int experts = 0, experts_per_token = 0;  // 0: a dense MLP
    float eps = 1e-6f, rope_scale = 1.0f;
    std::vector<float> inv_freq;  // head_dim / 2
};

struct Layer {
    const float *norm1, *norm2, *residual1, *residual2, *q_norm, *k_norm, *decay, *dt;
    Matrix qkv, o, gate, up, down, router;
    Table down_embed, up_embed;
};

// Large blocks on huge pages: weights are read from end to end for every token, and 4 KiB pages cost walks.
class Arena {
  public:
    ~Arena();
    uint8_t* take(size_t bytes);
    size_t used() const { return used_; }

  private:
    std::vector<uint8_t*> blocks_;
    size_t left_ = 0, used_ = 0;
    uint8_t* next_ = nullptr;
};

struct Entry {
    bool matrix;
    Type type;
    int rows, cols;
    const uint8_t* data;
    size_t bytes;
};

class Model {
  public:
    // Models that take turns may share a team. Throws std::invalid_argument for an instruction set that this build or
    // this CPU lacks.
    Model(Config config, std::shared_ptr<Team> shared, const std::string& isa);

    void add_matrix(const std::string& name, const std::vector<Part>& parts, int cols, Type type);
    void add_table(const std::string& name, const Part& part, int cols, Type type);
    // Takes bytes as saved, in place: they must outlive the model.
    void adopt(const std::string& name, bool matrix, Type type, int rows, int cols, const uint8_t* data, size_t bytes);
    // Resolves the layers. Throws std::invalid_argument naming the first weight that is missing or misshapen.
    void finish();

    void embed(int token, float* out) const;
    const std::map<std::string, Entry>& entries() const { return entries_; }
    size_t bytes() const;

    Config config;
    const Kernels* kernels;
    const std::shared_ptr<Team> shared;
    Team& team;
    std::mutex busy;  // one caller at a time owns the team

    std::vector<Layer> layers;
    const float* final_norm = nullptr;
    Matrix head;

  private:
    Matrix matrix(const std::string& name, int rows, int cols) const;
    Table table(const std::string& name, int rows, int cols) const;
    const float* vector(const std::string& name, int n) const;

    Arena arena_;
    std::map<std::string, Entry> entries_;
    Table embedding_;
    bool tied_ = false;
};

}  // namespace small_doge
