// Executes one kernel of Metal's on a CPU, as a program: `RUN INPUT OUTPUT`. The kernel's text comes before this file, and
// after it `main`, which hands `execute` a call of the kernel.
//
// Threads of a workgroup are fibres. One runs until it meets others (a barrier, or an operation of its simdgroup); which one
// is next is drawn by a seed. So what a barrier should order comes in any order where it is missing. Shared memory begins as
// NaNs, and each buffer ends at a page that can't be touched.
//
// INPUT, in words of 4 bytes: seed, threads, grid (3), bytes of shared memory; the number of parameters' words, and those; the
// number of bindings, and of each its buffer; the number of buffers, and of each whether it is written, the number of its
// words, and those. OUTPUT: the written buffers.
#pragma once
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

namespace run {

const uint lanes = 32, most_given = 64, stack_bytes = 256 << 10;

struct Fibre {
    enum class State { ready, barrier, simdgroup, done } state;
    const void *site;
    ucontext_t context;
    // What it gives to its simdgroup: by turns, since one may be at the next operation before another has read.
    alignas(16) char given[2][most_given];
    uint turn;
    // The lanes that take part in the operation: those that were not done when it began.
    uint active;
};

struct Buffer {
    uint written, words;
    char *start;
};

static std::vector<Fibre> fibres;
static std::vector<Buffer> buffers;
static std::vector<uint> bindings;
static std::vector<char> shared_memory, parameters;
static uint current, shared_used, threads;
static uint64_t random_state;
static ucontext_t scheduler;
static std::function<void()> *body;
static metal::uint3 group, grid;

[[noreturn]] static void fail(const char *what) {
    fprintf(stderr, "%s (workgroup %u, %u, %u)\n", what, group.x, group.y, group.z);
    exit(3);
}

static uint draw(uint below) {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return uint(random_state * 0x2545f4914f6cdd1dull >> 40) % below;
}

void meet(Meeting meeting, const void *site) {
    Fibre &own = fibres[current];
    own.state = meeting == Meeting::barrier ? Fibre::State::barrier : Fibre::State::simdgroup;
    own.site = site;
    swapcontext(&own.context, &scheduler);
}

uint lane() { return current % lanes; }

void give(const void *value, uint bytes, const void *site) {
    if (bytes > most_given) fail("an operation of a simdgroup on too large a value");
    Fibre &own = fibres[current];
    own.turn ^= 1;
    memcpy(own.given[own.turn], value, bytes);
    meet(Meeting::simdgroup, site);
}

static Fibre &other(uint lane) { return fibres[current / lanes * lanes + lane]; }

bool has_lane(uint lane) { return lane < lanes && (fibres[current].active >> lane & 1); }

const void *given(uint lane) { return other(lane).given[fibres[current].turn]; }

static void begin() {
    (*body)();
    fibres[current].state = Fibre::State::done;
    swapcontext(&fibres[current].context, &scheduler);
}

// Whether all of these threads that are not done wait in one place; then they go on.
static bool release(uint first, uint end, Fibre::State state) {
    const void *site = nullptr;
    bool any = false;
    uint active = 0;
    for (uint i = first; i < end; i++) {
        if (fibres[i].state == Fibre::State::done) continue;
        active |= 1u << (i - first) % lanes;
        if (fibres[i].state != state) return false;
        if (any && fibres[i].site != site) return false;
        any = true;
        site = fibres[i].site;
    }
    for (uint i = first; i < end; i++)
        if (fibres[i].state == state) {
            fibres[i].state = Fibre::State::ready;
            fibres[i].active = active;
        }
    return any;
}

static void workgroup() {
    static std::vector<std::vector<char>> stacks(threads, std::vector<char>(stack_bytes));
    memset(shared_memory.data(), 0xff, shared_memory.size());
    for (uint i = 0; i < threads; i++) {
        Fibre &f = fibres[i];
        f.state = Fibre::State::ready;
        f.turn = 0;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = stacks[i].data();
        f.context.uc_stack.ss_size = stacks[i].size();
        f.context.uc_link = &scheduler;
        makecontext(&f.context, begin, 0);
    }
    std::vector<uint> ready;
    for (;;) {
        ready.clear();
        for (uint i = 0; i < threads; i++)
            if (fibres[i].state == Fibre::State::ready) ready.push_back(i);
        for (uint i = uint(ready.size()); i > 1; i--) std::swap(ready[i - 1], ready[draw(i)]);
        for (uint i : ready) {
            current = i;
            swapcontext(&scheduler, &fibres[i].context);
        }
        bool moved = false, left = false;
        for (uint i = 0; i < threads; i += lanes) {
            const uint end = i + lanes < threads ? i + lanes : threads;
            moved |= release(i, end, Fibre::State::simdgroup);
        }
        for (const Fibre &f : fibres) left |= f.state != Fibre::State::done;
        if (!left) return;
        if (!moved && !release(0, threads, Fibre::State::barrier))
            fail("threads wait for each other in different places: a barrier that not all of them reach");
    }
}

// The argument of a kernel that is a buffer.
template <class T> T &buffer(uint binding) {
    if (binding >= bindings.size()) fail("a buffer that was not given");
    return *reinterpret_cast<T *>(buffers[bindings[binding]].start);
}

template <class T> const T &params() {
    if (parameters.size() < sizeof(T)) fail("parameters that were not given");
    return *reinterpret_cast<const T *>(parameters.data());
}

// The argument that is the `number`th variable of shared memory; each has its place at its first use.
template <class T, int number> T &shared() {
    static const uint at = shared_used;
    static const bool first = (shared_used += (sizeof(T) + 15) / 16 * 16, true);
    (void)first;
    if (at + sizeof(T) > shared_memory.size()) fail("more shared memory than was given");
    return *reinterpret_cast<T *>(shared_memory.data() + at);
}

// The argument that is the buffers' sizes: unchecked kernels do not read it.
template <class T> const T &sizes() {
    static const T none = {};
    return none;
}

static uint read_word(FILE *file) {
    uint word;
    if (fread(&word, 4, 1, file) != 1) fail("the input ends early");
    return word;
}

static std::vector<uint> read_words(FILE *file, size_t count) {
    std::vector<uint> words(count);
    if (fread(words.data(), 4, count, file) != count) fail("the input ends early");
    return words;
}

// `bytes` bytes that end, up to their alignment, where a page begins that can't be touched; so does one end before them.
static char *guarded(size_t bytes) {
    const size_t page = 4096, room = (bytes + page - 1) / page * page, tail = (bytes + 15) / 16 * 16;
    void *all = mmap(nullptr, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *start = static_cast<char *>(all) + page;
    if (all == MAP_FAILED || mprotect(start, room ? room : page, PROT_READ | PROT_WRITE)) fail("no memory");
    return bytes ? start + room - tail : start;
}

static int execute(int count, char **arguments, std::function<void()> call) {
    if (count != 3) fail("expected two arguments: INPUT OUTPUT");
    FILE *in = fopen(arguments[1], "rb");
    if (!in) fail("no input");
    const std::vector<uint> head = read_words(in, 6);
    random_state = 0x9e3779b97f4a7c15ull ^ (uint64_t(head[0]) << 20);
    threads = head[1];
    grid = metal::uint3(head[2], head[3], head[4]);
    shared_memory.resize(head[5] + 16);
    const std::vector<uint> words = read_words(in, read_word(in));
    parameters.assign(4 * words.size() + 64, 0);
    memcpy(parameters.data(), words.data(), 4 * words.size());
    bindings = read_words(in, read_word(in));
    for (uint left = read_word(in); left; left--) {
        Buffer b = {read_word(in), 0, nullptr};
        b.words = read_word(in);
        b.start = guarded(4 * size_t(b.words));
        if (fread(b.start, 4, b.words, in) != b.words) fail("the input ends early");
        buffers.push_back(b);
    }
    for (uint buffer : bindings)
        if (buffer >= buffers.size()) fail("a binding to a buffer that is not there");
    fclose(in);
    fibres.resize(threads);
    body = &call;
    for (uint z = 0; z < grid.z; z++)
        for (uint y = 0; y < grid.y; y++)
            for (uint x = 0; x < grid.x; x++) {
                group = metal::uint3(x, y, z);
                workgroup();
            }
    FILE *out = fopen(arguments[2], "wb");
    if (!out) fail("no output");
    for (const Buffer &b : buffers)
        if (b.written && fwrite(b.start, 4, b.words, out) != b.words) fail("the output can't be written");
    return fclose(out);
}

}  // namespace run
