// Who guesses how a sequence goes on, so that the model checks several tokens in one run through its layers.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "sampling.hpp"

namespace small_doge {

class Model;
class Session;

// A row that wants guesses.
struct Ask {
    int row;
    int32_t pending;  // the token drawn last, not yet taken
    int most;         // how many guesses at most
    Sampling how;     // how the row draws
    const Seen* seen;
};

using Guesses = std::vector<std::vector<int32_t>>;

class Drafter {
  public:
    // slots: tokens of a row after which nobody asks for guesses any more.
    Drafter(int rows, int slots) : histories_(rows), slots_(slots) {}
    virtual ~Drafter() = default;

    // The row goes on with this token. Threads may tell of different rows at once.
    void take(int row, int32_t token) {
        if (histories_[row].size() < slots_) histories_[row].push_back(token);
    }
    void reset(int row) { histories_[row].clear(); }
    void copy(int source, int target) { histories_[target] = histories_[source]; }
    // What may follow the pending token of each asking row.
    virtual Guesses guess(const std::vector<Ask>& asks) = 0;
    // Caches of its own: reserved, and held by keys now.
    virtual size_t cache_bytes() const { return 0; }
    virtual size_t cache_bytes_used() const { return 0; }

  protected:
    std::vector<std::vector<int32_t>> histories_;

  private:
    const size_t slots_;
};

// What followed the row's latest tokens where they stood before.
class LookUp : public Drafter {
  public:
    using Drafter::Drafter;
    Guesses guess(const std::vector<Ask>& asks) override;

  private:
    std::vector<int32_t> look_up(const Ask& ask) const;
};

// What a smaller model of the same vocabulary draws. It reads a row when it is first asked about it.
class DraftModel : public Drafter {
  public:
    DraftModel(std::shared_ptr<Model> model, int rows, int slots);
    ~DraftModel() override;
    Guesses guess(const std::vector<Ask>& asks) override;
    size_t cache_bytes() const override;
    size_t cache_bytes_used() const override;

  private:
    std::vector<int32_t> catch_up(const Ask& ask);

    std::unique_ptr<Session> session_;
    std::vector<std::vector<int32_t>> read_;  // what the session's caches hold of each row
};

}  // namespace small_doge
