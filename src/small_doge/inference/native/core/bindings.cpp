// What Python sees of the core. The wrapper in ../__init__.py is the public surface.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstring>
#include <stdexcept>

#include "session.hpp"

namespace nb = nanobind;
using namespace small_doge;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::ndarray<nb::numpy, T> to_numpy(std::vector<T> values, std::vector<size_t> shape) {
    auto* owned = new std::vector<T>(std::move(values));
    nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    return nb::ndarray<nb::numpy, T>(owned->data(), shape.size(), shape.data(), owner);
}

Type type_of(int code) {
    if (code < 0 || code > 3) throw std::invalid_argument("unknown weight type");
    return static_cast<Type>(code);
}

Part part_of(const Bytes& data, int source, int rows, int cols) {
    const size_t size = source == 0 ? 4 : 2;
    if (source < 0 || source > 2 || data.size() != size * rows * cols)
        throw std::invalid_argument("a tensor's bytes do not match its shape");
    return {data.data(), static_cast<Source>(source), rows};
}

// The model and the buffers that saved weights live in.
struct Core {
    std::shared_ptr<Model> model;
    std::vector<Bytes> kept;
};

nb::list available_isas() {
    nb::list names;
    for (const char* n : {"avx512", "avx2", "neon", "plain"})
        if (find_kernels(n)) names.append(n);
    return names;
}

// x [tokens, cols] times the rows of weight [rows, cols], through the packed form: what the kernel tests compare.
nb::ndarray<nb::numpy, float> product(Floats weight, Floats x, int type, const std::string& isa) {
    const Kernels* k = find_kernels(isa.c_str());
    if (!k) throw std::invalid_argument("isa='" + isa + "' is not available here; take one of available_isas()");
    const int rows = static_cast<int>(weight.shape(0)), cols = static_cast<int>(weight.shape(1));
    const int tokens = static_cast<int>(x.shape(0));
    Team team(1);
    std::vector<uint8_t> bytes(packed_bytes(type_of(type), rows, cols));
    const Matrix m = describe(type_of(type), rows, cols, bytes.data());
    pack_matrix({{reinterpret_cast<const uint8_t*>(weight.data()), Source::f32, rows}}, m, bytes.data(), team);

    const int ld = round_up(cols, kActPad), ld_groups = ld / kGroup4, ldo = m.panels * kPanel;
    std::vector<float> values(size_t(tokens) * ld), scale(size_t(tokens) * ld_groups), out(size_t(tokens) * ldo);
    std::vector<int8_t> q(values.size() * kBytesX);
    std::vector<int32_t> sum(scale.size());
    for (int t = 0; t < tokens; ++t) {
        std::memcpy(values.data() + size_t(t) * ld, x.data() + size_t(t) * cols, sizeof(float) * cols);
        if (is_integer(m.type))
            k->quantize(values.data() + size_t(t) * ld, m.cols_p, m.type, q.data() + size_t(t) * ld * kBytesX,
                        scale.data() + size_t(t) * ld_groups, sum.data() + size_t(t) * ld_groups);
    }
    k->matmul(m, {values.data(), q.data(), scale.data(), sum.data(), ld, ld_groups}, tokens, out.data(), ldo, 0,
              m.panels, nullptr);
    std::vector<float> packed(size_t(tokens) * rows);
    for (int t = 0; t < tokens; ++t)
        std::memcpy(packed.data() + size_t(t) * rows, out.data() + size_t(t) * ldo, sizeof(float) * rows);
    return to_numpy(std::move(packed), {size_t(tokens), size_t(rows)});
}

// Rows of the packed form of weight, widened again: the error of a type without the error of activations.
nb::ndarray<nb::numpy, float> round_trip(Floats weight, int type) {
    const int rows = static_cast<int>(weight.shape(0)), cols = static_cast<int>(weight.shape(1));
    Team team(1);
    std::vector<uint8_t> bytes(packed_bytes(type_of(type), rows, cols));
    const Matrix m = describe(type_of(type), rows, cols, bytes.data());
    pack_matrix({{reinterpret_cast<const uint8_t*>(weight.data()), Source::f32, rows}}, m, bytes.data(), team);
    std::vector<float> out(size_t(rows) * cols);
    for (int r = 0; r < rows; ++r) unpack_row(m, r, out.data() + size_t(r) * cols);
    return to_numpy(std::move(out), {size_t(rows), size_t(cols)});
}

// Bytes a second of repeated reads over one working set that the threads share out, one figure a repeat.
std::vector<double> read_bandwidth(size_t bytes, int threads, int repeats, const std::string& isa) {
    const Kernels* k = find_kernels(isa.c_str());
    if (!k) throw std::invalid_argument("isa='" + isa + "' is not available here; take one of available_isas()");
    Arena arena;
    uint8_t* data = arena.take(bytes);
    std::memset(data, 1, bytes);
    Team team(threads);
    std::vector<uint64_t> sums(threads * 8);
    std::vector<double> rates;
    const int passes = static_cast<int>(std::max<size_t>(1, (size_t(1) << 30) / bytes));
    for (int i = 0; i < repeats; ++i) {
        const auto start = std::chrono::steady_clock::now();
        size_t part = 0;
        team.run([&](int thread) {
            const size_t own = bytes / team.size() / 64 * 64;
            if (thread == 0) part = own * team.size();
            for (int p = 0; p < passes; ++p) sums[thread * 8] += k->read(data + own * thread, own);
        });
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        rates.push_back(static_cast<double>(part) * passes / seconds);
    }
    return rates;
}

}  // namespace

NB_MODULE(_core, m) {
    // Python ends with sessions alive where an exception has them in its traceback; that is no leak.
    nb::set_leak_warnings(false);
    m.def("available_isas", &available_isas);
    m.def("product", &product, nb::arg("weight"), nb::arg("x"), nb::arg("type"), nb::arg("isa"));
    m.def("round_trip", &round_trip, nb::arg("weight"), nb::arg("type"));
    m.def("read_bandwidth", &read_bandwidth, nb::arg("bytes"), nb::arg("threads"), nb::arg("repeats"),
          nb::arg("isa") = "", nb::call_guard<nb::gil_scoped_release>());

    nb::class_<Core>(m, "Core")
        .def(
            "__init__",
            [](Core* self, int layers, int hidden, int intermediate, int heads, int kv_heads, int head_dim, int vocab,
               int window, int experts, int experts_per_token, float eps, float rope_scale, std::vector<float> inv_freq,
               int threads, const std::string& isa, const Core* beside) {
                Config c;
                c.layers = layers;
                c.hidden = hidden;
                c.intermediate = intermediate;
                c.heads = heads;
                c.kv_heads = kv_heads;
                c.head_dim = head_dim;
                c.vocab = vocab;
                c.window = window;
                c.experts = experts;
                c.experts_per_token = experts_per_token;
                c.eps = eps;
                c.rope_scale = rope_scale;
                c.inv_freq = std::move(inv_freq);
                auto team = beside ? beside->model->shared : std::make_shared<Team>(threads);
                new (self) Core{std::make_shared<Model>(std::move(c), std::move(team), isa), {}};
            },
            nb::kw_only(), nb::arg("layers"), nb::arg("hidden"), nb::arg("intermediate"), nb::arg("heads"),
            nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("vocab"), nb::arg("window"), nb::arg("experts"),
            nb::arg("experts_per_token"), nb::arg("eps"), nb::arg("rope_scale"), nb::arg("inv_freq"),
            nb::arg("threads"), nb::arg("isa"), nb::arg("beside").none())
        .def("add_matrix",
             [](Core& self, const std::string& name, const std::vector<std::tuple<Bytes, int, int>>& parts, int cols,
                int type) {
                 std::vector<Part> sources;
                 for (const auto& [data, source, rows] : parts) sources.push_back(part_of(data, source, rows, cols));
                 const nb::gil_scoped_release free;
                 self.model->add_matrix(name, sources, cols, type_of(type));
             })
        .def("add_table",
             [](Core& self, const std::string& name, const Bytes& data, int source, int rows, int cols, int type) {
                 const Part part = part_of(data, source, rows, cols);
                 const nb::gil_scoped_release free;
                 self.model->add_table(name, part, cols, type_of(type));
             })
        .def("adopt",
             [](Core& self, const std::string& name, bool matrix, int type, int rows, int cols, Bytes data) {
                 self.model->adopt(name, matrix, type_of(type), rows, cols, data.data(), data.size());
                 self.kept.push_back(std::move(data));
             })
        .def("finish", [](Core& self) { self.model->finish(); })
        .def("entries",
             [](nb::object self) {
                 nb::list out;
                 for (const auto& [name, e] : nb::cast<Core&>(self).model->entries())
                     out.append(nb::make_tuple(name, e.matrix, static_cast<int>(e.type), e.rows, e.cols,
                                               nb::ndarray<nb::numpy, const uint8_t>(e.data, {e.bytes}, self)));
                 return out;
             })
        .def_prop_ro("bytes", [](const Core& self) { return self.model->bytes(); })
        .def_prop_ro("isa", [](const Core& self) { return self.model->kernels->name; })
        .def_prop_ro("threads", [](const Core& self) { return self.model->team.most(); });

    nb::class_<Session>(m, "Session")
        .def(
            "__init__",
            [](Session* self, Core& core, int batch, int slots, int drafts, Core* draft_core) {
                new (self) Session(core.model, batch, slots, drafts, draft_core ? draft_core->model : nullptr);
            },
            nb::arg("core"), nb::arg("batch"), nb::arg("slots"), nb::arg("drafts") = 0,
            nb::arg("draft_core").none() = nb::none(), nb::keep_alive<1, 2>(), nb::keep_alive<1, 6>())
        .def("prefill",
             [](Session& self, const std::vector<int>& rows, const std::vector<std::vector<int32_t>>& prompts,
                const std::string& all) {  // "logits" or "hidden": returned for every token; "": nothing
                 const bool logits = all == "logits", hidden = all == "hidden";
                 size_t n = 0;
                 for (const auto& p : prompts) n += logits || hidden ? p.size() : 0;
                 const size_t width = logits ? self.model().config.vocab : self.model().config.hidden;
                 std::vector<float> out(n * width);
                 {
                     const nb::gil_scoped_release free;
                     self.prefill(rows, prompts, logits ? out.data() : nullptr, hidden ? out.data() : nullptr);
                 }
                 return to_numpy(std::move(out), {n, width});
             })
        .def("step",
             [](Session& self, const std::vector<int>& rows, const std::vector<int32_t>& tokens) {
                 const nb::gil_scoped_release free;
                 self.step(rows, tokens);
             })
        .def("logits",
             [](const Session& self, const std::vector<int>& rows) {
                 const size_t vocab = self.model().config.vocab;
                 std::vector<float> out(rows.size() * vocab);
                 for (size_t i = 0; i < rows.size(); ++i)
                     std::memcpy(out.data() + i * vocab, self.logits(rows[i]), sizeof(float) * vocab);
                 return to_numpy(std::move(out), {rows.size(), vocab});
             })
        .def("decode",
             [](Session& self, const std::vector<int>& rows, int n,
                const std::vector<std::tuple<float, int, float, float, float, uint64_t>>& how,
                const std::vector<std::vector<int32_t>>& stop_ids) {
                 std::vector<Sampling> sampling;
                 for (const auto& [temperature, top_k, top_p, min_p, penalty, seed] : how)
                     sampling.push_back({temperature, top_k, top_p, min_p, penalty, seed});
                 if (sampling.size() != rows.size() || stop_ids.size() != rows.size())
                     throw std::invalid_argument("one sampling and one list of stop ids a row are needed");
                 Generated g;
                 {
                     const nb::gil_scoped_release free;
                     g = self.decode(rows, n, sampling, stop_ids);
                 }
                 const std::vector<size_t> shape = {rows.size(), size_t(n)};
                 return nb::make_tuple(to_numpy(std::move(g.tokens), shape), to_numpy(std::move(g.logprobs), shape),
                                       to_numpy(std::move(g.lengths), {rows.size()}),
                                       to_numpy(std::move(g.stopped), {rows.size()}));
             })
        .def("reset", &Session::reset)
        .def("copy", &Session::copy, nb::call_guard<nb::gil_scoped_release>())
        .def("length", &Session::length)
        .def_prop_ro("steps", &Session::steps)
        .def_prop_ro("guesses", &Session::guesses)
        .def_prop_ro("batch", &Session::batch)
        .def_prop_ro("slots", &Session::slots)
        .def_prop_ro("cache_bytes", &Session::cache_bytes)
        .def_prop_ro("cache_bytes_used", &Session::cache_bytes_used);
}
