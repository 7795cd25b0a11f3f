// Included: what the steps of sampling share.
//
// A row of logits is cut into blocks of WORKGROUP * EACH tokens. Logits become keys, integers that order as the floats do
// (0 for a token that is ruled out), so that ties are decided as on the CPU: in favour of the lower id.

struct Params {
    vocabulary: u32,
    blocks: u32, // of a row
    tops: u32, // likeliest tokens to report: the largest number that a request asks for
    digit: u32, // of sample_digit
}

struct Request {
    row: u32,
    changes: u32, // where its changes begin in `lists`: token, bias, 1 if the repetition penalty counts it, what to subtract
    change_count: u32,
    mask: u32, // where its mask begins in `lists`
    mask_words: u32, // NO_MASK for none
    repetition: f32,
    repetition_inverse: f32,
    sharpness: f32, // 1 / temperature; 0 for greedy
    top_p: f32,
    log_min_p: f32, // above 0 for none
    top_k: u32, // 0 for none
    random: f32, // in [0, 1)
}

// How far the search for top-k's and top-p's last candidates has come: the digits that are known, the others 0.
struct Search {
    k_key: u32,
    k_rest: u32, // candidates to take among those that begin like k_key; 0 where top-k rules nothing out
    p_key: u32,
    p_wanted: f32, // mass; below 0 where top-p rules nothing out
    p_above: vec2<u32>, // mass that is certainly above p_key
}

const NO_MASK = 0xffffffffu;
const BLOCK = WORKGROUP * EACH;
const DIGIT_BITS = 8u;
const DIGITS = 4u;
const BINS = 256u; // WORKGROUP is as large

// State of a request, in words: largest key; lowest id of a logit that is not finite; a search after each digit and the one
// in the end; of each digit a histogram: counts, masses (low, high).
const MAX_KEY = 0u;
const BAD_ID = 1u;
const SEARCHES = 2u;
const SEARCH = 6u;
const HISTOGRAMS = SEARCHES + SEARCH * (DIGITS + 1u);
const HISTOGRAM = 3u * BINS;
const STATE = HISTOGRAMS + RADIX * DIGITS * HISTOGRAM;

var<immediate> p: Params;

fn key_of(bits: u32) -> u32 {
    let plain = select(bits, 0u, bits == 0x80000000u);
    return select(plain | 0x80000000u, ~plain, plain >= 0x80000000u);
}

fn value_of(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}

fn weight_of(key: u32, largest: f32, sharpness: f32) -> f32 {
    return exp(max((value_of(key) - largest) * sharpness, -100.0));
}

fn comes_first(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x > b.x || (a.x == b.x && a.y < b.y);
}

// No token: comes after all others.
const NONE = vec2(0u, 0xffffffffu);

var<workgroup> firsts: array<vec2<u32>, WORKGROUP>;

// Of all threads' (key, id) the one that comes first.
fn first_of(mine: vec2<u32>, thread: u32) -> vec2<u32> {
    firsts[thread] = mine;
    workgroupBarrier();
    for (var distance = WORKGROUP / 2u; distance > 0u; distance = distance / 2u) {
        if (thread < distance && comes_first(firsts[thread + distance], firsts[thread])) {
            firsts[thread] = firsts[thread + distance];
        }
        workgroupBarrier();
    }
    let first = firsts[0];
    workgroupBarrier();
    return first;
}

var<workgroup> running: array<f32, WORKGROUP>;

// Sum over this thread and those before it; `running` holds all of them until the next call.
fn running_sum(mine: f32, thread: u32) -> f32 {
    var sum = mine;
    workgroupBarrier();
    running[thread] = sum;
    workgroupBarrier();
    for (var step = 1u; step < WORKGROUP; step = step * 2u) {
        var other = 0.0;
        if (thread >= step) {
            other = running[thread - step];
        }
        workgroupBarrier();
        sum += other;
        running[thread] = sum;
        workgroupBarrier();
    }
    return sum;
}

var<workgroup> counted: array<u32, WORKGROUP>;

fn running_count(mine: u32, thread: u32) -> u32 {
    var sum = mine;
    workgroupBarrier();
    counted[thread] = sum;
    workgroupBarrier();
    for (var step = 1u; step < WORKGROUP; step = step * 2u) {
        var other = 0u;
        if (thread >= step) {
            other = counted[thread - step];
        }
        workgroupBarrier();
        sum += other;
        counted[thread] = sum;
        workgroupBarrier();
    }
    return sum;
}
