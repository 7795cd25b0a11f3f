// ggml's CPU kernels at the shapes of Kimi-K2, timed on request: the other side of src/main.rs.
//
// `ggml TYPE REPACK THREADS`: a type of ggml (q4_0, q4_K, mxfp4, ...), 1 for weights repacked where ggml can, else 0. Then
// each line `OPERATION TOKENS SECONDS` of its input is answered with operations a second.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace {

constexpr int64_t experts = 64, chosen = 8, hidden = 7168, width = 2048, heads = 8192, vocabulary = 16384;
constexpr size_t rotated = 256u << 20;

std::mt19937 random_bits(1);

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

[[noreturn]] void fail(const char *why) {
    printf("%s\n", why);
    exit(1);
}

// Room for the descriptions of some tensors and graphs; their data lies in buffers.
ggml_context *context(size_t tensors) {
    return ggml_init({ggml_tensor_overhead() * tensors + ggml_graph_overhead() * 32, nullptr, true});
}

ggml_type type_named(const std::string &name) {
    for (int i = 0; i < GGML_TYPE_COUNT; i++) {
        const char *found = ggml_type_name(static_cast<ggml_type>(i));
        if (found && name == found) return static_cast<ggml_type>(i);
    }
    fail("no such type");
}

// Where weights lie: plain, or repacked.
ggml_backend_buffer_type_t buffer_type(ggml_backend_t backend, bool repack) {
    if (!repack) return ggml_backend_cpu_buffer_type();
    auto *registry = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
    auto extra = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(registry, "ggml_backend_dev_get_extra_bufts"));
    for (auto *found = extra(ggml_backend_get_device(backend)); found && *found; found++) {
        if (!strcmp(ggml_backend_buft_name(*found), "CPU_REPACK")) return *found;
    }
    fail("no repacking");
}

// Random weights: some rows, again and again.
void fill(ggml_tensor *tensor) {
    const int64_t rows = 64, columns = tensor->ne[0];
    std::vector<float> values(columns * rows);
    std::normal_distribution<float> normal(0, 0.05f);
    for (auto &value : values) value = normal(random_bits);
    std::vector<char> packed(ggml_row_size(tensor->type, columns) * rows), all(ggml_nbytes(tensor));
    ggml_quantize_chunk(tensor->type, values.data(), packed.data(), 0, rows, columns, nullptr);
    for (size_t at = 0; at < all.size(); at += packed.size()) {
        memcpy(&all[at], packed.data(), std::min(packed.size(), all.size() - at));
    }
    ggml_backend_tensor_set(tensor, all.data(), 0, all.size());
}

struct Weights {
    ggml_tensor *up, *down; // [experts, rows, columns]
    std::vector<ggml_tensor *> output, head;
};

Weights load(ggml_type type, ggml_backend_buffer_type_t where, bool repack) {
    auto *c = context(200);
    Weights w;
    w.up = ggml_new_tensor_3d(c, type, hidden, width, experts);
    w.down = ggml_new_tensor_3d(c, type, width, hidden, experts);
    auto copies = [&](int64_t columns, int64_t rows) {
        return rotated / (ggml_row_size(type, columns) * rows) + 1;
    };
    for (size_t i = 0; i < copies(heads, hidden); i++) w.output.push_back(ggml_new_tensor_2d(c, type, heads, hidden));
    for (size_t i = 0; i < copies(hidden, vocabulary); i++) {
        w.head.push_back(ggml_new_tensor_2d(c, type, hidden, vocabulary));
    }
    if (!ggml_backend_alloc_ctx_tensors_from_buft(c, where)) fail("too little memory");
    if (repack && !w.up->extra) fail("ggml does not repack this type");
    fill(w.up);
    fill(w.down);
    for (auto *t : w.output) fill(t);
    for (auto *t : w.head) fill(t);
    return w;
}

// The graphs of one operation, each over other weights.
std::vector<ggml_cgraph *> graphs(const Weights &w, const std::string &operation, int64_t tokens) {
    const bool up = operation == "up", routed = up || operation == "down";
    const auto &dense = operation == "output" ? w.output : w.head;
    const size_t count = !routed ? dense.size() : tokens == 1 ? experts / chosen : 1;
    auto *in = context(64), *c = context(4000);
    std::vector<ggml_tensor *> floats, gates, ups;
    auto input = [&](int64_t a, int64_t b, int64_t d) {
        floats.push_back(ggml_new_tensor_3d(in, GGML_TYPE_F32, a, b, d));
        return floats.back();
    };
    auto *x = up ? input(hidden, 1, tokens) : routed ? input(width, chosen, tokens) : input(dense[0]->ne[0], tokens, 1);
    auto *residual = routed ? input(hidden, tokens, 1) : input(dense[0]->ne[1], tokens, 1);
    auto *shares = input(1, chosen, tokens);
    for (size_t i = 0; i < count && routed; i++) {
        gates.push_back(ggml_new_tensor_2d(in, GGML_TYPE_I32, chosen, tokens));
        ups.push_back(ggml_new_tensor_2d(in, GGML_TYPE_I32, chosen, tokens));
    }
    ggml_backend_alloc_ctx_tensors_from_buft(in, ggml_backend_cpu_buffer_type());
    std::uniform_real_distribution<float> uniform(-.5, .5);
    for (auto *t : floats) {
        std::vector<float> values(ggml_nelements(t));
        for (auto &value : values) value = uniform(random_bits);
        ggml_backend_tensor_set(t, values.data(), 0, ggml_nbytes(t));
    }
    for (size_t i = 0; i < gates.size(); i++) {
        std::vector<int32_t> first, second, order(experts);
        for (int64_t t = 0; t < tokens; t++) {
            std::iota(order.begin(), order.end(), 0);
            if (tokens > 1) std::shuffle(order.begin(), order.end(), random_bits);
            for (int64_t k = 0; k < chosen; k++) {
                const int32_t expert = tokens == 1 ? static_cast<int32_t>(i * chosen + k) : order[k];
                first.push_back(expert);
                second.push_back((expert + experts / 2) % experts);
            }
        }
        ggml_backend_tensor_set(gates[i], first.data(), 0, first.size() * 4);
        ggml_backend_tensor_set(ups[i], second.data(), 0, second.size() * 4);
    }
    std::vector<ggml_cgraph *> all;
    for (size_t i = 0; i < count; i++) {
        auto *graph = ggml_new_graph(c);
        ggml_tensor *y;
        if (up) {
            y = ggml_swiglu_split(c, ggml_mul_mat_id(c, w.up, x, gates[i]), ggml_mul_mat_id(c, w.up, x, ups[i]));
        } else if (routed) {
            auto *parts = ggml_mul(c, ggml_mul_mat_id(c, w.down, x, gates[i]), shares);
            ggml_build_forward_expand(graph, parts);
            y = residual;
            for (int64_t k = 0; k < chosen; k++) {
                y = ggml_add(c, y, ggml_view_2d(c, parts, hidden, tokens, parts->nb[2], k * parts->nb[1]));
            }
        } else {
            y = ggml_add(c, ggml_mul_mat(c, dense[i], x), residual);
        }
        ggml_build_forward_expand(graph, y);
        all.push_back(graph);
    }
    if (!ggml_backend_alloc_ctx_tensors_from_buft(c, ggml_backend_cpu_buffer_type())) fail("too little memory");
    return all;
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 4) fail("expected TYPE REPACK THREADS");
    const ggml_type type = type_named(argv[1]);
    const bool repack = atoi(argv[2]);
    auto *backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, atoi(argv[3]));
    const Weights weights = load(type, buffer_type(backend, repack), repack);
    printf("ready ggml %s, %s%s, %.4f bits a weight\n", ggml_version(), argv[1], repack ? " repacked" : "",
           8.0 * ggml_row_size(type, heads) / heads);
    fflush(stdout);
    std::map<std::string, std::vector<ggml_cgraph *>> made;
    char operation[32];
    long tokens;
    double seconds;
    size_t at = 0;
    while (scanf("%31s %ld %lf", operation, &tokens, &seconds) == 3) {
        auto &all = made[operation + std::to_string(tokens)];
        if (all.empty()) all = graphs(weights, operation, tokens);
        auto step = [&] { ggml_backend_graph_compute(backend, all[at++ % all.size()]); };
        step(); // warm
        const double start = now();
        long count = 0;
        while (count == 0 || now() - start < seconds) {
            step();
            count++;
        }
        printf("%.6f\n", count / (now() - start));
        fflush(stdout);
    }
}
