// Holds the NEON kernels to the plain ones on random input, entry by entry, and then whole models to each other.
// test_neon.py builds this for AArch64, runs it under emulation and judges what it prints: a line for each thing
// compared, with its largest difference and the largest that is allowed, 0 where the bits must be equal.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "session.hpp"

using namespace small_doge;

namespace {

using Floats = std::vector<float>;

const Kernels& neon = *kernels_neon();
const Kernels& plain = *kernels_plain();
const Type types[] = {Type::f32, Type::bf16, Type::int8, Type::int4};
const char* const type_names[] = {"fp32", "bf16", "int8", "int4"};
const int lengths[] = {1, 2, 3, 4, 5, 7, 8, 11, 16, 31, 100, 511, 1030};
std::mt19937 random_bits(0);

float quiet_nan() { return std::numeric_limits<float>::quiet_NaN(); }

struct Verdict {
    double worst, allowed;
};
std::map<std::string, Verdict> verdicts;

template <class Got>
void compare(const std::string& what, const Got& got, const Got& want, double allowed) {
    Verdict& v = verdicts.insert({what, {0, allowed}}).first->second;
    if (got.size() != want.size()) v.worst = INFINITY;
    for (size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
        if (std::memcmp(&got[i], &want[i], sizeof got[i]) == 0) continue;
        const double apart = std::fabs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
        v.worst = std::max(v.worst, apart > 0 ? apart : INFINITY);  // a NaN, or zeros of two signs
    }
}

float whole(int from, int to) { return static_cast<float>(std::uniform_int_distribution<int>(from, to)(random_bits)); }

Floats normal(size_t n, float deviation = 1.0f, float mean = 0.0f) {
    std::normal_distribution<float> draw(mean, deviation);
    Floats x(n);
    for (float& v : x) v = draw(random_bits);
    return x;
}

// Products and sums of these are exact in every order of adding, with one rounding or two: results must be equal.
Floats small_wholes(size_t n) {
    Floats x(n);
    for (float& v : x) v = whole(1, 8) * (whole(0, 1) * 2 - 1);
    return x;
}

std::vector<bf16> to_bf16(const Floats& x) {
    std::vector<bf16> out(x.size());
    plain.to_bf16(x.data(), static_cast<int>(x.size()), out.data());
    return out;
}

// A packed matrix that can be written to.
struct Weights {
    std::vector<uint8_t> bytes;
    Matrix shape;

    Weights(Type type, int rows, int cols, const Floats& values) : bytes(packed_bytes(type, rows, cols)) {
        static Team alone(1);
        shape = describe(type, rows, cols, bytes.data());
        pack_matrix({{reinterpret_cast<const uint8_t*>(values.data()), Source::f32, rows}}, shape, bytes.data(), alone);
    }
    size_t weight_bytes() const { return shape.panel_bytes * shape.panels; }
    void round_scales() {
        for (size_t at = weight_bytes(), i = 0; at < bytes.size(); at += 2, ++i) {
            const uint16_t power = static_cast<uint16_t>(0x3f80 - i % 4 * 0x80);  // 2^-(i % 4)
            std::memcpy(bytes.data() + at, &power, 2);
        }
    }
};

// What `k` makes of x [tokens][cols] in the panels [first, last), into NaN. exact: scales that are powers of two.
Floats product(const Kernels& k, const Weights& w, const Floats& x, int tokens, bool exact, int first, int last) {
    const Matrix& m = w.shape;
    const int ld = round_up(m.cols, kActPad), ld_groups = ld / kGroup4, ldo = (m.panels + 1) * kPanel;
    Floats values(size_t(tokens) * ld), scale(size_t(tokens) * ld_groups), out(size_t(tokens) * ldo, quiet_nan());
    std::vector<int8_t> q(values.size() * kBytesX);
    std::vector<int32_t> sum(scale.size());
    for (int t = 0; t < tokens; ++t) {
        float* row = values.data() + size_t(t) * ld;
        std::copy_n(x.data() + size_t(t) * m.cols, m.cols, row);
        if (is_integer(m.type))
            k.quantize(row, m.cols_p, m.type, q.data() + size_t(t) * ld * kBytesX,
                       scale.data() + size_t(t) * ld_groups, sum.data() + size_t(t) * ld_groups);
    }
    for (size_t i = 0; exact && i < scale.size(); ++i) scale[i] = 1.0f / static_cast<float>(1 << i % 3);
    k.matmul(m, {values.data(), q.data(), scale.data(), sum.data(), ld, ld_groups}, tokens, out.data(), ldo, first,
             last, nullptr);
    return out;
}

void products(Type type) {
    const std::string name = std::string("matmul ") + type_names[static_cast<int>(type)];
    const int shapes[][2] = {{16, 128}, {37, 96}, {80, 200}, {33, 17}, {176, 260}};
    for (const auto& [rows, cols] : shapes) {
        for (const bool exact : {true, false}) {
            const size_t n = size_t(rows) * cols;
            Weights w(type, rows, cols, exact ? small_wholes(n) : normal(n));
            if (exact) w.round_scales();
            const int panels = w.shape.panels;
            const Floats x = exact ? small_wholes(size_t(9) * cols) : normal(size_t(9) * cols);
            const Floats together = product(neon, w, x, 9, exact, 0, panels);
            for (int tokens = 1; tokens <= 9; ++tokens) {
                const Floats got = product(neon, w, x, tokens, exact, 0, panels);
                compare(name + (exact ? ", exact input" : ", normal input"), got,
                        product(plain, w, x, tokens, exact, 0, panels), exact ? 0 : 1e-4);
                compare(name + ", in any company", got, Floats(together.begin(), together.begin() + got.size()), 0);
                const int first = panels / 3, last = panels - panels / 4;
                if (exact)
                    compare(name + ", some panels", product(neon, w, x, tokens, exact, first, last),
                            product(plain, w, x, tokens, exact, first, last), 0);
            }
        }
    }
    const std::vector<int> extremes = type == Type::int8   ? std::vector<int>{127, -127}
                                      : type == Type::int4 ? std::vector<int>{0x00, 0xff}  // -8 and 7
                                                           : std::vector<int>{};
    for (const int byte : extremes) {
        Weights w(type, 32, 256, Floats(32 * 256));
        std::memset(w.bytes.data(), byte, w.weight_bytes());
        w.round_scales();
        for (const float sign : {1.0f, -1.0f}) {
            const Floats x(3 * 256, sign);
            compare(name + ", largest bytes", product(neon, w, x, 3, true, 0, 2), product(plain, w, x, 3, true, 0, 2),
                    0);
        }
    }
}

void quantization() {
    for (const Type type : {Type::int8, Type::int4}) {
        const int n = 384, groups = n / group_of(type);
        const auto quantized = [&](const Kernels& k, const Floats& x, Floats& scale, std::vector<int32_t>& sum) {
            std::vector<int8_t> q(n * kBytesX);
            k.quantize(x.data(), n, type, q.data(), scale.data(), sum.data());
            return q;
        };
        for (int round = 0; round < 20; ++round) {
            Floats x = normal(n, std::exp2(whole(-20, 20))), scales[2] = {Floats(groups), Floats(groups)};
            std::fill_n(x.begin() + 128, 128, 0.0f);                         // a group of zeros
            for (int i = 256; i < n; ++i) x[i] = whole(-254, 254) / 2.0f;  // many halfway between two numbers
            x[256] = x[256 + 32] = x[256 + 64] = x[256 + 96] = 127.0f;
            std::vector<int32_t> sums[2] = {std::vector<int32_t>(groups), std::vector<int32_t>(groups)};
            compare("quantize, bytes", quantized(neon, x, scales[0], sums[0]), quantized(plain, x, scales[1], sums[1]),
                    0);
            compare("quantize, scales", scales[0], scales[1], 0);
            compare("quantize, sums", sums[0], sums[1], 0);
        }
    }
}

template <class T>
void mixes(const std::string& name, void (*Kernels::*mix)(const float*, int, int, const T*, int, int, float*),
           std::vector<T> (*convert)(const Floats&)) {
    for (const bool exact : {true, false}) {
        for (const int dim : {16, 48, 64, 80, 128}) {
            for (const int n : {1, 7, 64, 150}) {
                const int ld = round_up(n, 16);
                const Floats p = exact ? small_wholes(size_t(9) * ld) : normal(size_t(9) * ld, 0.1f);
                const std::vector<T> values = convert(exact ? small_wholes(size_t(n) * dim) : normal(size_t(n) * dim));
                for (int rows = 1; rows <= 9; ++rows) {
                    const auto mixed = [&](const Kernels& k) {
                        Floats out(size_t(rows + 1) * dim, quiet_nan());
                        (k.*mix)(p.data(), ld, rows, values.data(), n, dim, out.data());
                        return out;
                    };
                    compare(name + (exact ? ", exact input" : ", normal input"), mixed(neon), mixed(plain),
                            exact ? 0 : 1e-5);
                }
            }
        }
    }
}

template <class T>
void dots(const std::string& type, float (*Kernels::*dot)(const T*, const float*, int),
          void (*Kernels::*axpy)(const T*, float, int, float*), std::vector<T> (*convert)(const Floats&)) {
    for (const bool exact : {true, false}) {
        for (const int n : lengths) {
            const std::vector<T> a = convert(exact ? small_wholes(n) : normal(n));
            const Floats x = exact ? small_wholes(n) : normal(n);
            const std::string input = exact ? ", exact input" : ", normal input";
            const auto dotted = [&](const Kernels& k) { return Floats{(k.*dot)(a.data(), x.data(), n)}; };
            compare("dot_" + type + input, dotted(neon), dotted(plain), exact ? 0 : 1e-4);
            const auto added = [&](const Kernels& k) {
                Floats out = x;
                out.push_back(quiet_nan());
                (k.*axpy)(a.data(), exact ? -3.0f : 0.7f, n, out.data());
                return out;
            };
            compare("axpy_" + type + input, added(neon), added(plain), exact ? 0 : 1e-6);
        }
    }
}

// `work` fills n values behind which a NaN must stay.
template <class Work>
void vector_loop(const std::string& what, int n, double allowed, Work work) {
    Floats out[2] = {Floats(n + 1, quiet_nan()), Floats(n + 1, quiet_nan())};
    work(neon, out[0].data());
    work(plain, out[1].data());
    compare(what, out[0], out[1], allowed);
}

void vectors() {
    for (const int n : lengths) {
        const Floats a = normal(n), b = normal(n), c = normal(n), wide = normal(n, 20.0f);
        vector_loop("rms_norm", n, 1e-5,
                    [&](const Kernels& k, float* out) { k.rms_norm(a.data(), b.data(), n, 1e-6f, out); });
        for (const bool exact : {true, false}) {
            const Floats w = exact ? small_wholes(n) : a, u = exact ? small_wholes(n) : b;
            vector_loop(exact ? "residual, exact input" : "residual, normal input", n, exact ? 0 : 2e-6,
                        [&](const Kernels& k, float* out) {
                            std::copy(w.rbegin(), w.rend(), out);
                            k.residual(w.data(), u.data(), n, out);
                        });
            const Floats pair = exact ? small_wholes(2 * n) : normal(2 * n);
            vector_loop(exact ? "rope, exact input" : "rope, normal input", 2 * n, exact ? 0 : 5e-6,
                        [&](const Kernels& k, float* out) {
                            std::copy(pair.begin(), pair.end(), out);
                            k.rope(out, w.data(), u.data(), n);
                        });
        }
        std::vector<bf16> narrow[2] = {std::vector<bf16>(n + 1), std::vector<bf16>(n + 1)};
        neon.to_bf16(wide.data(), n, narrow[0].data());
        plain.to_bf16(wide.data(), n, narrow[1].data());
        Floats widened[2];
        for (int i = 0; i < 2; ++i)
            for (const bf16 v : narrow[i]) widened[i].push_back(v.bits);
        compare("to_bf16", widened[0], widened[1], 0);

        Floats scores = wide;
        for (int i = 1; i < n; i += 5) scores[i] = -INFINITY;  // as of keys that were evicted
        vector_loop("softmax", n, 1e-6, [&](const Kernels& k, float* out) {
            std::copy(scores.begin(), scores.end(), out);
            k.softmax(out, n);
        });
        const float largest = *std::max_element(wide.begin(), wide.end());
        for (const float inverse_temperature : {1.0f, 1.25f, 0.01f}) {
            vector_loop("exp_weights", n + 1, 1e-6, [&](const Kernels& k, float* out) {
                out[n] = k.exp_weights(wide.data(), n, largest, inverse_temperature, out) / static_cast<float>(n);
            });
        }
        Floats ties(n);
        for (float& v : ties) v = whole(-9, 2);
        for (const Floats& logits : {wide, ties}) {
            const LogitStats got = neon.stats(logits.data(), n), want = plain.stats(logits.data(), n);
            compare("stats, largest", Floats{got.max}, Floats{want.max}, 0);
            compare("stats, where it is first", std::vector<int>{got.argmax}, std::vector<int>{want.argmax}, 0);
            compare("stats, mean of exponentials", Floats{got.sum / n}, Floats{want.sum / n}, 1e-6);
        }

        std::vector<uint32_t> keys(n);
        std::vector<int32_t> positions(n);
        for (int i = 0; i < n; ++i) {
            keys[i] = i % 7 == 3 ? UINT32_MAX : 0x80000000u + 256 * static_cast<uint32_t>(whole(0, 5));
            positions[i] = i;
        }
        std::shuffle(positions.begin(), positions.end(), random_bits);
        compare("lowest", std::vector<int>{neon.lowest(keys.data(), positions.data(), n)},
                std::vector<int>{plain.lowest(keys.data(), positions.data(), n)}, 0);
    }
    for (int n = 16; n <= 320; n += 16) {
        const Floats gate = normal(n, n % 32 ? 2.0f : 60.0f), up = normal(n);
        vector_loop("silu_mul", n, 2e-5,
                    [&](const Kernels& k, float* out) { k.silu_mul(gate.data(), up.data(), n, out); });
    }
    std::vector<uint8_t> bytes(4096);
    for (uint8_t& b : bytes) b = static_cast<uint8_t>(random_bits());
    compare("read", std::vector<uint64_t>{neon.read(bytes.data(), bytes.size())},
            std::vector<uint64_t>{plain.read(bytes.data(), bytes.size())}, 0);
}

std::shared_ptr<Model> random_model(const std::string& isa, Type type, int experts) {
    random_bits.seed(1);
    Config c;
    c.layers = 2, c.hidden = 64, c.intermediate = 96, c.heads = 4, c.kv_heads = 2, c.head_dim = 16;
    c.vocab = 203, c.window = 2048, c.experts = experts, c.experts_per_token = experts ? 3 : 0;
    for (int i = 0; i < c.head_dim / 2; ++i) c.inv_freq.push_back(std::pow(10000.0f, -2.0f * i / c.head_dim));
    const auto model = std::make_shared<Model>(c, std::make_shared<Team>(2), isa);
    const auto matrix = [&](const std::string& name, int rows, int cols, Type as) {
        const Floats values = normal(size_t(rows) * cols, 0.2f);
        model->add_matrix(name, {{reinterpret_cast<const uint8_t*>(values.data()), Source::f32, rows}}, cols, as);
    };
    const auto table = [&](const std::string& name, const Floats& values, int rows, Type as) {
        const int cols = static_cast<int>(values.size()) / rows;
        model->add_table(name, {reinterpret_cast<const uint8_t*>(values.data()), Source::f32, rows}, cols, as);
    };
    const int kv = c.kv_heads * c.head_dim, side = static_cast<int>(std::lround(std::sqrt(experts)));
    const Type half = type == Type::f32 ? Type::f32 : Type::bf16;
    for (int i = 0; i < c.layers; ++i) {
        const std::string at = "layers." + std::to_string(i) + ".";
        for (const char* name : {"input_layernorm", "post_attention_layernorm", "input_residual",
                                 "post_attention_residual"})
            table(at + name, normal(c.hidden, 0.1f, 1.0f), 1, Type::f32);
        for (const char* name : {"q_norm", "k_norm"}) table(at + name, normal(c.head_dim, 0.1f, 1.0f), 1, Type::f32);
        table(at + "A", normal(c.kv_heads), 1, Type::f32);
        table(at + "dt_proj", normal(size_t(c.kv_heads) * kv, 0.2f), 1, Type::f32);
        matrix(at + "qkv", c.heads * c.head_dim + 2 * kv, c.hidden, type);
        matrix(at + "o_proj", c.hidden, c.heads * c.head_dim, type);
        matrix(at + "gate_proj", c.intermediate, c.hidden, type);
        matrix(at + "up_proj", c.intermediate, c.hidden, type);
        matrix(at + "down_proj", c.hidden, c.intermediate, type);
        if (!experts) continue;
        matrix(at + "router_gate", 2 * side, c.hidden, half);
        for (const char* name : {"down_embed", "up_embed"})
            table(at + name, normal(size_t(experts) * c.hidden, 0.2f), experts, half);
    }
    table("norm", normal(c.hidden, 0.1f, 1.0f), 1, Type::f32);
    matrix("lm_head", c.vocab, c.hidden, type == Type::int4 ? Type::int8 : type);
    model->finish();
    return model;
}

struct Answers {
    Floats prompt, steps;
    std::vector<int32_t> drawn;
};

// Two prompts together, one long enough to be shared out among the threads, single steps, and a greedy and a drawn
// continuation; slots: how many keys are kept.
Answers answers(const std::string& isa, Type type, int experts, int slots) {
    const auto model = random_model(isa, type, experts);
    const int vocab = model->config.vocab;
    std::vector<std::vector<int32_t>> prompts = {std::vector<int32_t>(70), std::vector<int32_t>(5)};
    for (auto& prompt : prompts)
        for (int32_t& token : prompt) token = static_cast<int32_t>(whole(0, vocab - 1));
    Session session(model, 2, slots, 0, nullptr);
    Answers a;
    a.prompt.assign(size_t(75) * vocab, quiet_nan());
    session.prefill({0, 1}, prompts, a.prompt.data(), nullptr);
    for (int i = 0; i < 8; ++i) {
        session.step({0, 1}, {5 * i, 7 * i});
        for (int row : {0, 1}) a.steps.insert(a.steps.end(), session.logits(row), session.logits(row) + vocab);
    }
    Sampling drawn;
    drawn.temperature = 0.8f;
    a.drawn = session.decode({0, 1}, 12, {Sampling(), drawn}, {{}, {}}).tokens;
    return a;
}

void models() {
    // As in test_native_model.py: sums run in another order, which can tip a rounding of an activation.
    const double allowed[] = {1e-4, 0.02, 0.2, 0.2};
    for (const Type type : types) {
        const int code = static_cast<int>(type);
        for (const int experts : {0, 16}) {
            const std::string name = std::string("model ") + type_names[code] + (experts ? ", experts" : "");
            const Answers got = answers("neon", type, experts, 2048), want = answers("plain", type, experts, 2048);
            compare(name + ", prompt", got.prompt, want.prompt, allowed[code]);
            compare(name + ", steps", got.steps, want.steps, allowed[code]);
            if (type == Type::f32) compare(name + ", drawn tokens", got.drawn, want.drawn, 0);
        }
    }
    const Answers got = answers("neon", Type::f32, 0, 20), want = answers("plain", Type::f32, 0, 20);
    compare("model fp32, 20 slots, prompt", got.prompt, want.prompt, allowed[0]);
    compare("model fp32, 20 slots, steps", got.steps, want.steps, allowed[0]);
    compare("model fp32, 20 slots, drawn tokens", got.drawn, want.drawn, 0);
}

std::vector<float> same(const Floats& x) { return x; }

}  // namespace

int main() {
    // As on any ARM machine: NEON is what the core takes by itself, and nothing of x86 is there.
    compare("choice", std::vector<int>{find_kernels("") == &neon, find_kernels("avx2") == nullptr},
            std::vector<int>{1, 1}, 0);
    for (const Type type : types) products(type);
    quantization();
    mixes("mix_f32", &Kernels::mix_f32, same);
    mixes("mix_bf16", &Kernels::mix_bf16, to_bf16);
    dots("f32", &Kernels::dot_f32, &Kernels::axpy_f32, same);
    dots("bf16", &Kernels::dot_bf16, &Kernels::axpy_bf16, to_bf16);
    vectors();
    models();
    for (const auto& [what, verdict] : verdicts)
        std::printf("%s\t%g\t%g\n", what.c_str(), verdict.worst, verdict.allowed);
    return 0;
}
