#include "model.hpp"

#include <cstdlib>
#include <new>
#include <stdexcept>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace small_doge {
namespace {

constexpr size_t kHuge = size_t(2) << 20;
constexpr size_t kBlock = size_t(32) << 20;

uint8_t* allocate(size_t bytes) {
#if defined(_WIN32)
    void* p = _aligned_malloc(bytes, kHuge);
#else
    void* p = std::aligned_alloc(kHuge, bytes);
#endif
    if (!p) throw std::bad_alloc();
#if defined(__linux__)
    madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return static_cast<uint8_t*>(p);
}

const Kernels* require_kernels(const std::string& isa) {
    const Kernels* k = find_kernels(isa.c_str());
    if (!k)
        throw std::invalid_argument("isa='" + isa +
                                    "' is not available here; leave isa unset or take one of available_isas()");
    return k;
}

}  // namespace

Arena::~Arena() {
    for (uint8_t* b : blocks_) {
#if defined(_WIN32)
        _aligned_free(b);
#else
        std::free(b);
#endif
    }
}

uint8_t* Arena::take(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    if (bytes > left_) {
        left_ = bytes > kBlock ? (bytes + kHuge - 1) / kHuge * kHuge : kBlock;
        blocks_.push_back(next_ = allocate(left_));
    }
    uint8_t* p = next_;
    next_ += bytes;
    left_ -= bytes;
    used_ += bytes;
    return p;
}

Model::Model(Config c, std::shared_ptr<Team> shared, const std::string& isa)
    : config(std::move(c)), kernels(require_kernels(isa)), shared(std::move(shared)), team(*this->shared) {}

void Model::add_matrix(const std::string& name, const std::vector<Part>& parts, int cols, Type type) {
    int rows = 0;
    for (const Part& p : parts) rows += p.rows;
    const size_t bytes = packed_bytes(type, rows, cols);
    uint8_t* out = arena_.take(bytes);
    pack_matrix(parts, describe(type, rows, cols, nullptr), out, team);
    entries_[name] = {true, type, rows, cols, out, bytes};
}

void Model::add_table(const std::string& name, const Part& part, int cols, Type type) {
    const size_t bytes = table_bytes(type, part.rows, cols);
    uint8_t* out = arena_.take(bytes);
    pack_table(part, {type, part.rows, cols, nullptr}, out, team);
    entries_[name] = {false, type, part.rows, cols, out, bytes};
}

void Model::adopt(const std::string& name, bool is_matrix, Type type, int rows, int cols, const uint8_t* data,
                  size_t bytes) {
    if (bytes != (is_matrix ? packed_bytes(type, rows, cols) : table_bytes(type, rows, cols)))
        throw std::invalid_argument("'" + name + "' in the saved file has the wrong number of bytes; save it again");
    entries_[name] = {is_matrix, type, rows, cols, data, bytes};
}

Matrix Model::matrix(const std::string& name, int rows, int cols) const {
    const auto it = entries_.find(name);
    if (it == entries_.end()) throw std::invalid_argument("the checkpoint has no '" + name + "'");
    const Entry& e = it->second;
    if (!e.matrix || e.rows != rows || e.cols != cols)
        throw std::invalid_argument("'" + name + "' has another shape than config.json says");
    return describe(e.type, rows, cols, e.data);
}

Table Model::table(const std::string& name, int rows, int cols) const {
    const auto it = entries_.find(name);
    if (it == entries_.end()) throw std::invalid_argument("the checkpoint has no '" + name + "'");
    const Entry& e = it->second;
    if (e.matrix || e.rows != rows || e.cols != cols)
        throw std::invalid_argument("'" + name + "' has another shape than config.json says");
    return {e.type, rows, cols, e.data};
}

const float* Model::vector(const std::string& name, int n) const {
    const Table t = table(name, 1, n);
    if (t.type != Type::f32) throw std::invalid_argument("'" + name + "' must be stored in fp32");
    return t.floats();
}

void Model::finish() {
    const Config& c = config;
    const int q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
    for (int i = 0; i < c.layers; ++i) {
        const std::string at = "layers." + std::to_string(i) + ".";
        Layer l{};
        l.norm1 = vector(at + "input_layernorm", c.hidden);
        l.norm2 = vector(at + "post_attention_layernorm", c.hidden);
        l.residual1 = vector(at + "input_residual", c.hidden);
        l.residual2 = vector(at + "post_attention_residual", c.hidden);
        l.q_norm = vector(at + "q_norm", c.head_dim);
        l.k_norm = vector(at + "k_norm", c.head_dim);
        l.decay = vector(at + "A", c.kv_heads);
        l.dt = vector(at + "dt_proj", c.kv_heads * kv);
        l.qkv = matrix(at + "qkv", q + 2 * kv, c.hidden);
        l.o = matrix(at + "o_proj", c.hidden, q);
        l.gate = matrix(at + "gate_proj", c.intermediate, c.hidden);
        l.up = matrix(at + "up_proj", c.intermediate, c.hidden);
        l.down = matrix(at + "down_proj", c.hidden, c.intermediate);
        if (c.experts) {
            int side = 0;
            while (side * side < c.experts) ++side;
            l.router = matrix(at + "router_gate", 2 * side, c.hidden);
            l.down_embed = table(at + "down_embed", c.experts, c.hidden);
            l.up_embed = table(at + "up_embed", c.experts, c.hidden);
        }
        layers.push_back(l);
    }
    final_norm = vector("norm", c.hidden);
    head = matrix("lm_head", c.vocab, c.hidden);
    tied_ = !entries_.count("embed_tokens");
    if (!tied_) embedding_ = table("embed_tokens", c.vocab, c.hidden);
}

void Model::embed(int token, float* out) const {
    if (tied_)
        unpack_row(head, token, out);
    else
        unpack_row(embedding_, token, out);
}

size_t Model::bytes() const {
    size_t total = 0;
    for (const auto& e : entries_) total += e.second.bytes;
    return total;
}

}  // namespace small_doge
