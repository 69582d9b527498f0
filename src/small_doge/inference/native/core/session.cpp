#include "session.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

namespace small_doge {

void Session::Input::resize(int tokens, int width) {
    ld = round_up(width, kActPad);
    ld_groups = ld / kGroup4;
    values.assign(static_cast<size_t>(tokens) * ld, 0.0f);
    q.assign(values.size() * kBytesX, 0);
    scale.assign(static_cast<size_t>(tokens) * ld_groups, 0.0f);
    sum.assign(scale.size(), 0);
}

Activations Session::Input::view(const float* source) const {
    return {source, q.data(), scale.data(), sum.data(), ld, ld_groups};
}

Session::Session(std::shared_ptr<Model> model, int batch, int slots, int drafts, std::shared_ptr<Model> draft_model)
    : model_(std::move(model)),
      k_(*model_->kernels),
      slots_(slots),
      drafts_(drafts),
      block_tokens_(kBlockTokens * model_->team.most()) {
    const Config& c = model_->config;
    cache_type_ = model_->layers[0].qkv.type == Type::f32 ? Type::f32 : Type::bf16;
    dim_ = round_up(c.head_dim, 16);
    slot_bytes_ = table_bytes(cache_type_, 1, dim_);
    const size_t heads = static_cast<size_t>(c.layers) * c.kv_heads;
    slot_bytes_total_ = heads * (2 * slot_bytes_ + 12);
    const int queries = c.heads * c.head_dim;
    products_in_keys_ = c.hidden * (2 * queries + 2 * c.kv_heads * c.head_dim + 3 * c.intermediate) / (2 * queries);

    // Pages are committed as slots fill, so a short generation never pays for the whole window.
    const size_t capacity = round_up(slots_ + block_tokens_, kPanel), n = heads * batch;
    cache_memory_ = static_cast<uint8_t*>(std::malloc(n * capacity * 2 * slot_bytes_ + 64));
    score_memory_ = static_cast<float*>(std::malloc(n * capacity * 12));
    if (!cache_memory_ || !score_memory_) {
        std::free(cache_memory_);
        std::free(score_memory_);
        throw std::bad_alloc();
    }
    uint8_t* at = cache_memory_ + (64 - reinterpret_cast<uintptr_t>(cache_memory_) % 64);
    float* scores = score_memory_;
    caches_.resize(n);
    for (HeadCache& h : caches_) {
        h.keys = at;
        h.values = at + capacity * slot_bytes_;
        at += 2 * capacity * slot_bytes_;
        h.scores = scores;
        h.ranks = reinterpret_cast<uint32_t*>(scores + capacity);
        h.positions = reinterpret_cast<int32_t*>(scores + 2 * capacity);
        scores += 3 * capacity;
        h.evicted.reserve(block_tokens_);
    }

    if (drafts_ && draft_model)
        drafter_ = std::make_unique<DraftModel>(std::move(draft_model), batch, slots_);
    else if (drafts_)
        drafter_ = std::make_unique<LookUp>(batch, slots_);
    rows_.resize(batch);
    for (Row& r : rows_) {
        r.seen = Seen(c.vocab);
        r.trust = drafts_;
    }
    ld_x_ = round_up(c.hidden, kPanel);
    ld_qkv_ = round_up((c.heads + 2 * c.kv_heads) * c.head_dim, kPanel);
    ld_attention_ = round_up(c.heads * c.head_dim, kActPad);
    ld_wide_ = round_up(c.intermediate, kActPad);
    if (c.experts) ld_router_ = model_->layers[0].router.panels * kPanel;
    ld_logits_ = model_->head.panels * kPanel;
    logits_.assign(slot_of(batch, 0) * ld_logits_, 0.0f);
    stats_.resize(slot_of(batch, 0) * model_->team.most());

    const int group = c.heads / c.kv_heads, query_rows = 8 * group;
    for (int t = 0; t < model_->team.most(); ++t) {
        auto s = std::make_unique<Scratch>();
        s->hidden.resize(1, c.hidden);
        s->attention.resize(1, c.heads * c.head_dim);
        s->wide.resize(1, c.intermediate);
        s->query.assign(static_cast<size_t>(query_rows) * dim_, 0.0f);
        s->mixed.assign(static_cast<size_t>(query_rows) * dim_, 0.0f);
        s->expert.assign(ld_x_, 0.0f);
        if (c.experts) s->halves.fill(std::vector<Scored>(model_->layers[0].router.rows / 2));
        scratch_.push_back(std::move(s));
    }
    resize(std::max(1, batch));
}

Session::~Session() {
    std::free(cache_memory_);
    std::free(score_memory_);
}

HeadCache& Session::cache(int row, int layer, int kv) {
    const Config& c = model_->config;
    return caches_[(static_cast<size_t>(row) * c.layers + layer) * c.kv_heads + kv];
}

size_t Session::cache_bytes() const {
    const size_t own = slot_bytes_total_ * rows_.size() * (slots_ + block_tokens_);
    return own + (drafter_ ? drafter_->cache_bytes() : 0);
}

size_t Session::cache_bytes_used() const {
    size_t used = drafter_ ? drafter_->cache_bytes_used() : 0;
    for (const HeadCache& h : caches_) used += h.n * (2 * slot_bytes_ + 12);
    return used;
}

void Session::resize(int tokens) {
    if (tokens <= capacity_) return;
    const Config& c = model_->config;
    const size_t n = capacity_ = tokens;
    x_.assign(n * ld_x_, 0.0f);
    qkv_.assign(n * ld_qkv_, 0.0f);
    attention_.assign(n * ld_attention_, 0.0f);
    gate_.assign(n * ld_wide_, 0.0f);
    up_.assign(n * ld_wide_, 0.0f);
    update_.assign(n * ld_x_, 0.0f);
    router_.assign(n * ld_router_, 0.0f);
    if (c.experts) moe_.assign(n * ld_x_, 0.0f);
    cos_.assign(n * (c.head_dim / 2), 0.0f);
    sin_.assign(n * (c.head_dim / 2), 0.0f);
    hidden_.resize(tokens, c.hidden);
    attended_.resize(tokens, c.heads * c.head_dim);
    wide_.resize(tokens, c.intermediate);
}

void Session::reset(const std::vector<int>& rows) {
    check(rows, {});
    const Config& c = model_->config;
    for (int row : rows) {
        rows_[row].length = 0;
        rows_[row].pending = -1;
        rows_[row].ready = false;
        rows_[row].seen.clear();
        rows_[row].trust = drafts_;
        if (drafter_) drafter_->reset(row);
        for (int l = 0; l < c.layers; ++l)
            for (int kv = 0; kv < c.kv_heads; ++kv) cache(row, l, kv).n = 0;
    }
}

void Session::copy(int source, int target) {
    check({source}, {});
    check({target}, {});
    if (source == target) return;
    const std::lock_guard<std::mutex> lock(model_->busy);
    rows_[target] = rows_[source];
    if (drafter_) drafter_->copy(source, target);
    const Config& c = model_->config;
    for (int l = 0; l < c.layers; ++l)
        for (int kv = 0; kv < c.kv_heads; ++kv) cache(target, l, kv).assign(cache(source, l, kv), slot_bytes_);
    // Those of a prompt's end; after a draw they are not needed again.
    std::copy_n(logits(source), ld_logits_, logits_.data() + slot_of(target, 0) * ld_logits_);
    const size_t threads = model_->team.most();
    std::copy_n(stats_.data() + slot_of(source, 0) * threads, threads, stats_.data() + slot_of(target, 0) * threads);
}

void Session::check(const std::vector<int>& rows, const std::vector<int32_t>& tokens) const {
    std::vector<bool> used(rows_.size(), false);
    for (int row : rows) {
        if (row < 0 || row >= batch())
            throw std::invalid_argument("row " + std::to_string(row) + " is not in this session; it has rows 0 to " +
                                        std::to_string(batch() - 1));
        if (used[row])
            throw std::invalid_argument("row " + std::to_string(row) + " is named twice; name each row once");
        used[row] = true;
    }
    for (int32_t t : tokens)
        if (t < 0 || t >= model_->config.vocab)
            throw std::invalid_argument("token id " + std::to_string(t) + " is outside the vocabulary of " +
                                        std::to_string(model_->config.vocab));
}

void Session::advance(const Block& block) {
    for (const Span& s : block.spans) {
        Row& r = rows_[s.row];
        r.ready = s.logits > 0;
        for (int i = 0; i < s.count; ++i) take(s.row, block.tokens[s.first + i]);
    }
}

void Session::take(int row, int32_t token) {
    Row& r = rows_[row];
    ++r.length;
    r.seen.add(token);
    if (drafter_) drafter_->take(row, token);
}

void Session::rewind(int row, int64_t length, const Seen& seen) {
    Row& r = rows_[row];
    forget(row, static_cast<int>(r.length - length));
    r.length = length;
    r.pending = -1;
    r.ready = false;
    r.seen = seen;
}

// Takes a row's last tokens out of its caches; none has evicted another.
void Session::forget(int row, int tokens) {
    const Config& c = model_->config;
    for (int l = 0; l < c.layers; ++l)
        for (int kv = 0; kv < c.kv_heads; ++kv) cache(row, l, kv).n -= tokens;
}

void Session::pack_blocks(const std::vector<int>& rows, const std::vector<std::vector<int32_t>>& prompts,
                          std::vector<Block>& blocks, float* all_logits, float* all_hidden) {
    const size_t vocab = model_->config.vocab, hidden = model_->config.hidden;
    size_t done = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
        const auto& prompt = prompts[i];
        for (size_t at = 0; at < prompt.size();) {
            // Their rows follow the order of the tokens, so blocks may share them whatever they hold.
            if (blocks.empty() || blocks.back().tokens.size() == size_t(block_tokens_)) {
                blocks.emplace_back();
                if (all_logits) blocks.back().all_logits = all_logits + done * vocab;
                if (all_hidden) blocks.back().all_hidden = all_hidden + done * hidden;
            }
            Block& b = blocks.back();
            const size_t n = std::min(prompt.size() - at, block_tokens_ - b.tokens.size());
            b.spans.push_back({rows[i], static_cast<int>(b.tokens.size()), static_cast<int>(n),
                               rows_[rows[i]].length + static_cast<int64_t>(at), at + n == prompt.size() ? 1 : 0});
            b.tokens.insert(b.tokens.end(), prompt.begin() + at, prompt.begin() + at + n);
            at += n;
            done += n;
        }
    }
}

void Session::flush_pending(const std::vector<int>& rows) {
    Block block;
    for (int row : rows) {
        Row& r = rows_[row];
        if (r.pending < 0) continue;
        block.spans.push_back({row, static_cast<int>(block.tokens.size()), 1, r.length, 0});
        block.tokens.push_back(r.pending);
        r.pending = -1;
    }
    if (block.tokens.empty()) return;
    resize(static_cast<int>(block.tokens.size()));
    model_->team.run([&](int thread) { feed(thread, block); });
    advance(block);
}

void Session::prefill(const std::vector<int>& rows, const std::vector<std::vector<int32_t>>& prompts, float* all_logits,
                      float* all_hidden) {
    if (rows.size() != prompts.size()) throw std::invalid_argument("as many prompts as rows are needed");
    check(rows, {});
    for (const auto& p : prompts) {
        if (p.empty()) throw std::invalid_argument("a prompt is empty; begin it with the BOS token");
        check({}, p);
    }
    const std::lock_guard<std::mutex> lock(model_->busy);
    flush_pending(rows);
    std::vector<Block> blocks;
    pack_blocks(rows, prompts, blocks, all_logits, all_hidden);
    for (const Block& b : blocks) resize(static_cast<int>(b.tokens.size()));
    model_->team.run([&](int thread) {
        for (const Block& b : blocks) feed(thread, b);
    });
    for (const Block& b : blocks) advance(b);
}

void Session::step(const std::vector<int>& rows, const std::vector<int32_t>& tokens) {
    std::vector<std::vector<int32_t>> prompts;
    for (int32_t t : tokens) prompts.push_back({t});
    prefill(rows, prompts, nullptr, nullptr);
}

Generated Session::decode(const std::vector<int>& rows, int n, const std::vector<Sampling>& how,
                          const std::vector<std::vector<int32_t>>& stop_ids) {
    check(rows, {});
    for (int row : rows)
        if (!rows_[row].ready && rows_[row].pending < 0)
            throw std::invalid_argument("row " + std::to_string(row) + " has no tokens yet; call prefill first");
    const std::lock_guard<std::mutex> lock(model_->busy);
    const int parts = model_->team.most(), vocab = model_->config.vocab;
    Generated out;
    out.tokens.assign(rows.size() * n, -1);
    out.logprobs.assign(rows.size() * n, 0.0f);
    out.lengths.assign(rows.size(), 0);
    out.stopped.assign(rows.size(), 0);
    std::vector<int> active(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) active[i] = static_cast<int>(i);
    Block block;
    std::vector<const Span*> fed(rows.size());  // what goes into the step under way
    // The tokens that were sampled and are still to be fed, and guesses of what follows them.
    const auto gather = [&] {
        std::vector<int> feeding;
        std::vector<Ask> asks;
        for (int i : active) {
            const Row& r = rows_[rows[i]];
            fed[i] = nullptr;
            if (r.pending < 0) continue;
            // Keys that were evicted do not come back, so there are no guesses once the cache is full.
            const int64_t room = std::min<int64_t>(n - out.lengths[i], slots_ - r.length) - 1;
            feeding.push_back(i);
            asks.push_back({rows[i], r.pending, static_cast<int>(std::min<int64_t>(r.trust, room)), how[i], &r.seen});
        }
        const Guesses guesses = drafter_ ? drafter_->guess(asks) : Guesses(asks.size());
        block.tokens.clear();
        block.spans.clear();
        block.spans.reserve(asks.size());
        for (size_t a = 0; a < asks.size(); ++a) {
            const int row = asks[a].row, first = static_cast<int>(block.tokens.size());
            block.tokens.push_back(asks[a].pending);
            block.tokens.insert(block.tokens.end(), guesses[a].begin(), guesses[a].end());
            const int count = static_cast<int>(block.tokens.size()) - first;
            block.spans.push_back({row, first, count, rows_[row].length, count});
            fed[feeding[a]] = &block.spans.back();
            rows_[row].pending = -1;
            guesses_ += count - 1;
        }
        resize(static_cast<int>(block.tokens.size()));
    };
    const auto sample = [&](int i, Sampler& sampler) {
        Row& r = rows_[rows[i]];
        const int count = fed[i] ? fed[i]->count : 0;
        const int32_t* guessed = fed[i] ? block.tokens.data() + fed[i]->first : nullptr;
        int used = 0;  // tokens fed that are part of the sequence: as long as each is the one drawn before it
        do {
            if (used < count) take(rows[i], guessed[used++]);
            const int at = out.lengths[i]++;
            const size_t slot = slot_of(rows[i], std::max(used - 1, 0));
            const LogitStats* part = stats_.data() + slot * parts;
            LogitStats all = part[0];
            for (int t = 1; t < parts; ++t)
                if (part[t].max > all.max) all = part[t];
            all.sum = 0;
            for (int t = 0; t < parts; ++t) all.sum += part[t].sum * std::exp(part[t].max - all.max);
            const float* logits = logits_.data() + slot * ld_logits_;
            const Choice c = sampler.choose(k_, logits, vocab, all, how[i], r.seen, r.length);
            out.tokens[static_cast<size_t>(i) * n + at] = c.token;
            out.logprobs[static_cast<size_t>(i) * n + at] = c.logprob;
            out.stopped[i] = std::find(stop_ids[i].begin(), stop_ids[i].end(), c.token) != stop_ids[i].end();
            r.pending = c.token;
        } while (used < count && guessed[used] == r.pending && !out.stopped[i]);
        r.ready = true;
        if (count > 1) {
            r.trust = std::min(drafts_, 2 * used - 1);
            forget(rows[i], count - used);
        }
    };

    // A run for each step, so that the team can shrink and grow between them.
    while (!active.empty()) {
        gather();
        steps_ += !block.tokens.empty();
        model_->team.run([&](int thread) {
            if (!block.tokens.empty()) feed(thread, block);
            for (size_t i = thread; i < active.size(); i += model_->team.size())
                sample(active[i], scratch_[thread]->sampler);
        });
        const auto done = [&](int i) { return out.stopped[i] || out.lengths[i] == n; };
        active.erase(std::remove_if(active.begin(), active.end(), done), active.end());
    }
    return out;
}

}  // namespace small_doge
