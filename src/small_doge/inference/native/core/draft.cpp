#include "draft.hpp"

#include <algorithm>
#include <cmath>

#include "session.hpp"

namespace small_doge {
namespace {

constexpr int kMatch = 3;  // tokens that must have stood before: what followed them is the guess
// A draft model's guess of a lower probability is not worth the check; the row's guesses end before it.
constexpr float kSure = 0.2f;

}  // namespace

Guesses LookUp::guess(const std::vector<Ask>& asks) {
    Guesses guesses;
    for (const Ask& ask : asks) guesses.push_back(look_up(ask));
    return guesses;
}

// Prompt look-up (github.com/apoorvumang/prompt-lookup-decoding). In a loop a guess goes on into itself.
std::vector<int32_t> LookUp::look_up(const Ask& ask) const {
    const std::vector<int32_t>& history = histories_[ask.row];
    const int n = static_cast<int>(history.size());
    if (ask.most < 1 || n < kMatch) return {};
    const auto ends_here = [&](int at) {
        if (history[at] != ask.pending) return false;
        for (int i = 1; i < kMatch; ++i)
            if (history[at - i] != history[n - i]) return false;
        return true;
    };
    int at = n - 1;
    while (at >= kMatch - 1 && !ends_here(at)) --at;
    if (at < kMatch - 1) return {};
    std::vector<int32_t> text(history.begin() + at + 1, history.end());
    text.push_back(ask.pending);
    const size_t known = text.size();
    for (int i = 0; i < ask.most; ++i) text.push_back(text[i]);
    return {text.begin() + known, text.end()};
}

DraftModel::DraftModel(std::shared_ptr<Model> model, int rows, int slots) : Drafter(rows, slots), read_(rows) {
    slots = std::min(slots, model->config.window);
    session_ = std::make_unique<Session>(std::move(model), rows, slots, 0, nullptr);
}

DraftModel::~DraftModel() = default;

size_t DraftModel::cache_bytes() const { return session_->cache_bytes(); }

size_t DraftModel::cache_bytes_used() const { return session_->cache_bytes_used(); }

// Goes back to where the row and what was read of it part; returns what is to be read from there on.
std::vector<int32_t> DraftModel::catch_up(const Ask& ask) {
    std::vector<int32_t>& read = read_[ask.row];
    const std::vector<int32_t>& history = histories_[ask.row];
    const auto [was, is] = std::mismatch(read.begin(), read.end(), history.begin(), history.end());
    session_->rewind(ask.row, was - read.begin(), *ask.seen);
    std::vector<int32_t> unread(is, history.end());
    unread.push_back(ask.pending);
    read.erase(was, read.end());
    read.insert(read.end(), unread.begin(), unread.end());
    return unread;
}

// The same seed at the same position draws the same token from the same distribution: the nearer the two models are,
// the more often their draws agree, greedy or not.
Guesses DraftModel::guess(const std::vector<Ask>& asks) {
    Guesses guesses(asks.size()), unread;
    std::vector<size_t> guessing;  // the rows at it, as indices of `asks`
    std::vector<int> rows, most(asks.size());
    std::vector<Sampling> how;
    for (size_t i = 0; i < asks.size(); ++i) {
        // A key that this cache evicted would not come back when guesses are refused.
        const int room = session_->slots() - static_cast<int>(histories_[asks[i].row].size());
        most[i] = std::min(asks[i].most, room);
        if (most[i] < 1) continue;
        guessing.push_back(i);
        rows.push_back(asks[i].row);
        how.push_back(asks[i].how);
        unread.push_back(catch_up(asks[i]));
    }
    if (!rows.empty()) session_->prefill(rows, unread, nullptr, nullptr);
    while (!rows.empty()) {
        const Generated drawn = session_->decode(rows, 1, how, Guesses(rows.size()));
        size_t left = 0;
        for (size_t i = 0; i < rows.size(); ++i) {
            if (drawn.logprobs[i] < std::log(kSure)) continue;
            std::vector<int32_t>& guessed = guesses[guessing[i]];
            guessed.push_back(drawn.tokens[i]);
            if (static_cast<int>(guessed.size()) == most[guessing[i]]) continue;
            read_[rows[i]].push_back(drawn.tokens[i]);
            guessing[left] = guessing[i];
            rows[left] = rows[i];
            how[left++] = how[i];
        }
        rows.resize(left);
        how.resize(left);
    }
    return guesses;
}

}  // namespace small_doge
