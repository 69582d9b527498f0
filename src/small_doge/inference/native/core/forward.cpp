// One block of tokens through the layers: the token step when every span holds one token, prefill otherwise.
// Every thread runs the same phases and meets the others at a barrier wherever it reads what they wrote. Few tokens go
// through together, and threads share out the rows of each product, so that a weight is read once. Many are shared out
// themselves: a thread then reads all weights, but nothing of what another computed except keys and values.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "session.hpp"

namespace small_doge {
namespace {

struct Range {
    int first, last;
};

// Thread's share of n panels, in pairs because the byte kernels take two at a time.
Range share(int n, int thread, int threads) {
    const long pairs = (n + 1) / 2;
    const int first = static_cast<int>(pairs * thread / threads) * 2;
    const int last = static_cast<int>(pairs * (thread + 1) / threads) * 2;
    return {std::min(first, n), std::min(last, n)};
}

float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// From how many tokens a thread on they are shared out, and not the rows.
constexpr int kOwnTokens = 16;

}  // namespace

Session::Part Session::part(int thread, const Block& block) const {
    const int threads = model_->team.size(), tokens = static_cast<int>(block.tokens.size());
    if (tokens < kOwnTokens * threads) return {0, tokens, thread, threads};
    const int first = first_of(thread, block);
    return {first, first_of(thread + 1, block) - first, 0, 1};
}

// Where a thread's tokens begin, so that all have as much to do: those behind see more keys.
int Session::first_of(int thread, const Block& block) const {
    const int threads = model_->team.size();
    const auto work = [&](const Span& s, int t) { return products_in_keys_ + std::min<int64_t>(s.start, slots_) + t; };
    int64_t all = 0, before = 0;
    for (const Span& s : block.spans)
        for (int t = 0; t < s.count; ++t) all += work(s, t);
    for (const Span& s : block.spans)
        for (int t = 0; t < s.count; before += work(s, t++))
            if (before * threads >= all * thread) return s.first + t;
    return static_cast<int>(block.tokens.size());
}

// Waits for what the others compute of the part's tokens.
void Session::meet(const Part& part) const {
    if (part.of > 1) model_->team.barrier();
}

// Normalizes (when norm is given) and quantizes the input of a product. A lone token is done by every thread for
// itself, which is cheaper than meeting; more tokens are shared out.
Activations Session::prepare(const Part& part, Input& shared, Input& own, const float* source, int ld, Type type,
                             const float* norm, int width) {
    const bool lone = part.of > 1 && part.count == 1;
    Input& in = lone ? own : shared;
    const int n = round_up(width, group_of(type)), last = part.first + part.count;
    for (int t = part.first + (lone ? 0 : part.index); t < last; t += lone ? 1 : part.of) {
        const float* values = source + static_cast<size_t>(t) * ld;
        if (norm) {
            float* out = in.values.data() + static_cast<size_t>(t) * in.ld;
            k_.rms_norm(values, norm, width, model_->config.eps, out);
            values = out;
        }
        if (is_integer(type)) {
            const size_t at = static_cast<size_t>(t) * in.ld, at_group = static_cast<size_t>(t) * in.ld_groups;
            k_.quantize(values, n, type, in.q.data() + at * kBytesX, in.scale.data() + at_group,
                        in.sum.data() + at_group);
        }
    }
    if (!lone) meet(part);
    return in.view(norm ? in.values.data() : source).from(part.first);
}

void Session::feed(int thread, const Block& block) {
    const Config& c = model_->config;
    const int threads = model_->team.size(), half = c.head_dim / 2;
    int tokens = static_cast<int>(block.tokens.size());
    Part p = part(thread, block);
    Scratch& own = *scratch_[thread];

    for (const Span& s : block.spans) {
        for (int t = p.begin(s); t < p.end(s); ++t) {
            const size_t at = s.first + t;
            if (at % p.of != static_cast<size_t>(p.index)) continue;
            model_->embed(block.tokens[at], x_.data() + at * ld_x_);
            const float position = static_cast<float>(s.start + t);
            for (int i = 0; i < half; ++i) {
                cos_[at * half + i] = std::cos(position * c.inv_freq[i]) * c.rope_scale;
                sin_[at * half + i] = std::sin(position * c.inv_freq[i]) * c.rope_scale;
            }
        }
    }
    model_->team.barrier();

    // What this thread reads first of a matrix.
    const auto begin = [&](const Matrix& m) { return m.data + m.panel_bytes * share(m.panels, p.index, p.of).first; };
    const auto product = [&](const Matrix& m, const Activations& in, float* out, int ldo, const uint8_t* then) {
        const Range r = share(m.panels, p.index, p.of);
        k_.matmul(m, in, p.count, out + static_cast<size_t>(p.first) * ldo, ldo, r.first, r.last, then);
        return Range{r.first * kPanel, std::min(r.last * kPanel, m.rows)};
    };
    const auto add_update = [&](Range r, const float* weight) {
        for (int t = p.first; t < p.first + p.count && r.first < r.last; ++t) {
            const size_t at = static_cast<size_t>(t) * ld_x_ + r.first;
            k_.residual(weight + r.first, update_.data() + at, r.last - r.first, x_.data() + at);
        }
    };

    for (int i = 0; i < c.layers; ++i) {
        const Layer& l = model_->layers[i];
        Activations in = prepare(p, hidden_, own.hidden, x_.data(), ld_x_, l.qkv.type, l.norm1, c.hidden);
        product(l.qkv, in, qkv_.data(), ld_qkv_, cache(block.spans[0].row, i, 0).keys);
        // Whoever computed all keys of a lone token also stores them, so that there is one wait and not two.
        const bool stored = p.count == 1 && last_has_keys(l);
        if (stored && thread == threads - 1)
            for (int kv = 0; kv < c.kv_heads; ++kv) store_keys(own, l, i, block.spans[0], kv, p);
        meet(p);

        attention(thread, p, l, i, block, stored);
        meet(p);
        const int wanted = only_wanted(i, block) ? keep_wanted(thread, block) : tokens;
        if (wanted < tokens) p = {0, tokens = wanted, thread, threads};

        in = prepare(p, attended_, own.attention, attention_.data(), ld_attention_, l.o.type, nullptr,
                     c.heads * c.head_dim);
        add_update(product(l.o, in, update_.data(), ld_x_, begin(l.gate)), l.residual1);
        meet(p);

        in = prepare(p, hidden_, own.hidden, x_.data(), ld_x_, l.gate.type, l.norm2, c.hidden);
        product(l.gate, in, gate_.data(), ld_wide_, begin(l.up));
        const Range wide = product(l.up, in, up_.data(), ld_wide_, begin(c.experts ? l.router : l.down));
        for (int t = p.first; t < p.first + p.count; ++t) {
            const size_t at = static_cast<size_t>(t) * ld_wide_ + wide.first;
            if (wide.first < wide.last)
                k_.silu_mul(gate_.data() + at, up_.data() + at, round_up(wide.last - wide.first, kPanel),
                            gate_.data() + at);
        }
        if (c.experts) product(l.router, in, router_.data(), ld_router_, begin(l.down));
        meet(p);

        float* mixture = own.expert.data();
        if (c.experts && p.of > 1 && p.count == 1) {
            experts(own, l, in.values, router_.data(), mixture);
        } else if (c.experts) {
            mixture = moe_.data();
            for (int t = p.index; t < p.count; t += p.of)
                experts(own, l, in.values + static_cast<size_t>(t) * in.ld,
                        router_.data() + static_cast<size_t>(p.first + t) * ld_router_,
                        mixture + static_cast<size_t>(p.first + t) * ld_x_);
            meet(p);
        }
        in = prepare(p, wide_, own.wide, gate_.data(), ld_wide_, l.down.type, nullptr, c.intermediate);
        const Matrix& next = i + 1 < c.layers ? model_->layers[i + 1].qkv : model_->head;
        const Range r = product(l.down, in, update_.data(), ld_x_, begin(next));
        for (int t = p.first; c.experts && t < p.first + p.count && r.first < r.last; ++t) {
            const size_t at = static_cast<size_t>(t) * ld_x_ + r.first;
            k_.axpy_f32(mixture + at, 1.0f, r.last - r.first, update_.data() + at);
        }
        add_update(r, l.residual2);
        if (i + 1 < c.layers) meet(p);
    }
    model_->team.barrier();
    compact(thread, block);
    head(thread, block, tokens);
}

// Behind its keys the last layer is needed for those tokens only whose logits are wanted.
bool Session::only_wanted(int layer, const Block& block) const {
    return layer + 1 == model_->config.layers && !block.all_logits && !block.all_hidden;
}

// Moves what belongs to these tokens to the front; returns how many they are.
int Session::keep_wanted(int thread, const Block& block) {
    std::vector<int> wanted;
    bool moves = false;
    for (const Span& s : block.spans) {
        for (int at = s.first + s.count - s.logits; at < s.first + s.count; ++at) {
            moves |= at != static_cast<int>(wanted.size());
            wanted.push_back(at);
        }
    }
    if (moves) model_->team.barrier();
    for (size_t to = 0; moves && thread == 0 && to < wanted.size(); ++to) {
        const size_t from = wanted[to];
        if (from == to) continue;
        std::memcpy(x_.data() + to * ld_x_, x_.data() + from * ld_x_, sizeof(float) * ld_x_);
        std::memcpy(attention_.data() + to * ld_attention_, attention_.data() + from * ld_attention_,
                    sizeof(float) * ld_attention_);
    }
    if (moves) model_->team.barrier();
    return static_cast<int>(wanted.size());
}

// Whether the last thread's share of a product is all keys and values, and key/value heads don't divide among threads.
bool Session::last_has_keys(const Layer& layer) const {
    const Config& c = model_->config;
    const int threads = model_->team.size();
    return c.kv_heads % threads != 0 &&
           share(layer.qkv.panels, threads - 1, threads).first * kPanel <= c.heads * c.head_dim;
}

void Session::attention(int thread, const Part& part, const Layer& layer, int index, const Block& block, bool stored) {
    const Config& c = model_->config;
    Scratch& own = *scratch_[thread];
    const int group = c.heads / c.kv_heads, items = static_cast<int>(block.spans.size()) * c.kv_heads;
    const bool single = block.spans.size() == block.tokens.size();
    // A thread that owns whole key/value heads need not wait for another's keys.
    const bool whole = single && !stored && (items % part.of == 0 || items >= 4 * part.of);

    int item = 0;
    for (const Span& s : block.spans) {
        if (part.begin(s) >= part.end(s)) continue;
        for (int kv = 0; !stored && kv < c.kv_heads; ++kv, ++item) {
            if (item % part.of != part.index) continue;
            store_keys(own, layer, index, s, kv, part);
            if (whole) attend(own, layer, index, s, kv, kv * group, group, 0, 1);
        }
    }
    if (whole) return;
    if (!stored) model_->team.barrier();
    if (part.of == 1) evict(thread, index, block);

    const int heads = single ? 1 : group, queries = single ? 1 : 8;
    item = 0;
    for (const Span& s : block.spans) {
        const int first = only_wanted(index, block) ? std::max(part.begin(s), s.count - s.logits) : part.begin(s);
        for (int t = first; t < part.end(s); t += queries)
            for (int h = 0; h < c.heads; h += heads, ++item)
                if (item % part.of == part.index)
                    attend(own, layer, index, s, h / group, h, heads, t, std::min(part.end(s), t + queries));
    }
}

// Normalizes and rotates the keys of one key/value head for the part's tokens of the span, scores them, and puts them
// behind the live slots.
void Session::store_keys(Scratch& s, const Layer& layer, int index, const Span& span, int kv, const Part& part) {
    const Config& c = model_->config;
    HeadCache& h = cache(span.row, index, kv);
    const int d = c.head_dim, half = d / 2, values_width = c.kv_heads * d;
    float* k = s.query.data();
    for (int t = part.begin(span); t < part.end(span); ++t) {
        const int at = span.first + t;
        const float* token = qkv_.data() + static_cast<size_t>(at) * ld_qkv_ + c.heads * d;
        const float* values = token + values_width;
        std::memset(k + d, 0, sizeof(float) * (dim_ - d));
        k_.rms_norm(token + kv * d, layer.k_norm, d, c.eps, k);
        k_.rope(k, cos_.data() + static_cast<size_t>(at) * half, sin_.data() + static_cast<size_t>(at) * half, half);
        h.set_key(cache_type_, h.n + t, k, dim_);
        uint8_t* to = h.values + (h.n + t) * slot_bytes_;
        std::memset(to, 0, slot_bytes_);
        if (cache_type_ == Type::f32)
            std::memcpy(to, values + kv * d, sizeof(float) * d);
        else
            k_.to_bf16(values + kv * d, d, reinterpret_cast<bf16*>(to));
        const float score =
            std::exp(layer.decay[kv] *
                     softplus(k_.dot_f32(layer.dt + static_cast<size_t>(kv) * values_width, values, values_width)));
        h.set_score(h.n + t, score, static_cast<int32_t>(span.start + t));
    }
    if (part.end(span) - part.begin(span) == span.count) h.evict(k_, span.count, slots_);
}

// Of the spans whose keys several threads have stored.
void Session::evict(int thread, int index, const Block& block) {
    bool full = false;
    int item = 0;
    for (const Span& s : block.spans) {
        for (int kv = 0; kv < model_->config.kv_heads; ++kv, ++item) {
            HeadCache& h = cache(s.row, index, kv);
            full |= h.n + s.count > slots_;
            if (item % model_->team.size() == thread) h.evict(k_, s.count, slots_);
        }
    }
    if (full) model_->team.barrier();
}

// Closes the holes that the block's evictions left.
void Session::compact(int thread, const Block& block) {
    const Config& c = model_->config;
    int item = 0;
    for (const Span& s : block.spans)
        for (int i = 0; i < c.layers; ++i)
            for (int kv = 0; kv < c.kv_heads; ++kv, ++item)
                if (item % model_->team.size() == thread) cache(s.row, i, kv).compact(s.count, cache_type_, dim_);
}

// Queries t0 .. t1 - 1 of the span, `heads` heads from head0 on, against one key/value head.
void Session::attend(Scratch& s, const Layer& layer, int index, const Span& span, int kv, int head0, int heads, int t0,
                     int t1) {
    const Config& c = model_->config;
    const HeadCache& h = cache(span.row, index, kv);
    const int d = c.head_dim, half = d / 2, rows = (t1 - t0) * heads, n = h.n + t1;
    const int ld = round_up(n, 16);
    const float scaling = 1.0f / std::sqrt(static_cast<float>(d));
    if (s.weights.size() < static_cast<size_t>(rows) * ld) s.weights.resize(static_cast<size_t>(rows) * (ld + 256));

    for (int r = 0; r < rows; ++r) {
        const int at = span.first + t0 + r / heads;
        float* q = s.query.data() + static_cast<size_t>(r) * dim_;
        k_.rms_norm(qkv_.data() + static_cast<size_t>(at) * ld_qkv_ + (head0 + r % heads) * d, layer.q_norm, d, c.eps,
                    q);
        k_.rope(q, cos_.data() + static_cast<size_t>(at) * half, sin_.data() + static_cast<size_t>(at) * half, half);
        for (int i = 0; i < d; ++i) q[i] *= scaling;
    }
    const Matrix keys = h.key_matrix(cache_type_, n, dim_);
    Activations queries;
    queries.values = s.query.data();
    queries.ld = dim_;
    k_.matmul(keys, queries, rows, s.weights.data(), ld, 0, keys.panels, h.values);
    for (int r = 0; r < rows; ++r) {
        const int t = t0 + r / heads, seen = h.n + t + 1;
        float* w = s.weights.data() + static_cast<size_t>(r) * ld;
        k_.axpy_f32(h.scores, 1.0f, seen, w);
        for (const Eviction& e : h.evicted)
            if (e.query <= t) w[e.slot] = -std::numeric_limits<float>::infinity();
        k_.softmax(w, seen);
        std::fill(w + seen, w + n, 0.0f);
    }
    if (cache_type_ == Type::f32)
        k_.mix_f32(s.weights.data(), ld, rows, reinterpret_cast<const float*>(h.values), n, dim_, s.mixed.data());
    else
        k_.mix_bf16(s.weights.data(), ld, rows, reinterpret_cast<const bf16*>(h.values), n, dim_, s.mixed.data());
    for (int r = 0; r < rows; ++r)
        std::memcpy(attention_.data() + static_cast<size_t>(span.first + t0 + r / heads) * ld_attention_ +
                        (head0 + r % heads) * d,
                    s.mixed.data() + static_cast<size_t>(r) * dim_, sizeof(float) * d);
}

// The routed experts of one token: the k pairs of highest summed score of two halves of n scores each.
void Session::experts(Scratch& s, const Layer& layer, const float* x, const float* router, float* out) {
    const Config& c = model_->config;
    const int side = layer.router.rows / 2, k = c.experts_per_token, best = std::min(k, side);
    const auto higher = [](const Scored& a, const Scored& b) { return a.score > b.score; };
    auto& [first, second] = s.halves;
    for (int i = 0; i < side; ++i) {
        first[i] = {router[i], i};
        second[i] = {router[side + i], i};
    }
    std::partial_sort(first.begin(), first.begin() + best, first.end(), higher);
    std::partial_sort(second.begin(), second.begin() + best, second.end(), higher);
    // Pair (i, j) of the sorted halves is preceded by (i + 1)(j + 1) - 1 pairs that are no worse.
    std::vector<Scored>& pairs = s.pairs;
    pairs.clear();
    for (int i = 0; i < best; ++i)
        for (int j = 0; j < best && (i + 1) * (j + 1) <= k; ++j)
            pairs.push_back({first[i].score + second[j].score, first[i].index * side + second[j].index});
    std::partial_sort(pairs.begin(), pairs.begin() + k, pairs.end(), higher);

    s.weights.resize(std::max<size_t>(s.weights.size(), k));
    for (int i = 0; i < k; ++i) s.weights[i] = pairs[i].score;
    k_.softmax(s.weights.data(), k);
    std::fill(out, out + c.hidden, 0.0f);
    const bool wide = layer.down_embed.type == Type::f32;
    for (int i = 0; i < k; ++i) {
        const uint8_t* down = layer.down_embed.data + table_bytes(layer.down_embed.type, pairs[i].index, c.hidden);
        const uint8_t* up = layer.up_embed.data + table_bytes(layer.up_embed.type, pairs[i].index, c.hidden);
        const float a = wide ? k_.dot_f32(reinterpret_cast<const float*>(down), x, c.hidden)
                             : k_.dot_bf16(reinterpret_cast<const bf16*>(down), x, c.hidden);
        const float weight = s.weights[i] * a / (1.0f + std::exp(-a));
        if (wide)
            k_.axpy_f32(reinterpret_cast<const float*>(up), weight, c.hidden, out);
        else
            k_.axpy_bf16(reinterpret_cast<const bf16*>(up), weight, c.hidden, out);
    }
}

// Logits where they are wanted, and each thread's share of what sampling needs to know about them.
void Session::head(int thread, const Block& block, int tokens) {
    const Config& c = model_->config;
    Team& team = model_->team;
    const int threads = team.size();
    const Matrix& m = model_->head;
    const Range panels = share(m.panels, thread, threads);
    const int first = panels.first * kPanel, last = std::min(panels.last * kPanel, c.vocab);

    if (block.all_hidden) {
        for (int t = thread; t < tokens; t += threads)
            k_.rms_norm(x_.data() + static_cast<size_t>(t) * ld_x_, model_->final_norm, c.hidden, c.eps,
                        block.all_hidden + static_cast<size_t>(t) * c.hidden);
        team.barrier();
        tokens = keep_wanted(thread, block);
    }
    if (tokens == 0) return;

    // The product goes straight to the sequences' logits where these lie in a row.
    bool direct = !block.all_logits;
    size_t first_slot = 0;
    int at = 0;
    for (const Span& s : block.spans) {
        for (int p = 0; p < s.logits; ++p, ++at) {
            if (at == 0) first_slot = slot_of(s.row, 0);
            direct &= slot_of(s.row, p) == first_slot + at;
        }
    }
    if (!direct) {
        if (thread == 0 && head_out_.size() < static_cast<size_t>(tokens) * ld_logits_)
            head_out_.resize(static_cast<size_t>(tokens) * ld_logits_);
        team.barrier();
    }
    const Part all = {0, tokens, thread, threads};
    const Activations in =
        prepare(all, hidden_, scratch_[thread]->hidden, x_.data(), ld_x_, m.type, model_->final_norm, c.hidden);
    float* out = direct ? logits_.data() + first_slot * ld_logits_ : head_out_.data();
    k_.matmul(m, in, tokens, out, ld_logits_, panels.first, panels.last, nullptr);

    const LogitStats none = {-std::numeric_limits<float>::infinity(), 0, 0.0f};
    at = 0;
    for (const Span& s : block.spans) {
        at += block.all_logits ? s.count : s.logits;
        for (int p = 0; p < s.logits; ++p) {
            const size_t slot = slot_of(s.row, p);
            float* row = logits_.data() + slot * ld_logits_;
            if (!direct && first < last)
                std::memcpy(row + first, out + static_cast<size_t>(at - s.logits + p) * ld_logits_ + first,
                            sizeof(float) * (last - first));
            LogitStats* stats = stats_.data() + slot * team.most();
            stats[thread] = first < last ? k_.stats(row + first, last - first) : none;
            stats[thread].argmax += first;
            if (thread == 0) std::fill(stats + threads, stats + team.most(), none);
        }
    }
    for (int i = 0; block.all_logits && i < tokens && first < last; ++i)
        std::memcpy(block.all_logits + static_cast<size_t>(i) * c.vocab + first,
                    out + static_cast<size_t>(i) * ld_logits_ + first, sizeof(float) * (last - first));
    team.barrier();
}

}  // namespace small_doge
