// Included: one digit further in the search for top-k's and top-p's last candidates. Masses are sums of integers in units
// of 2^-44, so that they are the same in any order.

var<workgroup> lows: array<u32, WORKGROUP>;
var<workgroup> highs: array<u32, WORKGROUP>;
var<workgroup> found: Search;
var<workgroup> p_bin: atomic<u32>; // 1 + bins before it, from the largest digit on

fn add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2(low, a.y + b.y + u32(low < a.x));
}

fn float_of(mass: vec2<u32>) -> f32 {
    return f32(mass.y) * 0x1p-12f + f32(mass.x) * 0x1p-44f;
}

// A weight of at most 1.
fn mass_of(weight: f32) -> vec2<u32> {
    let scaled = weight * 4096.0;
    let high = floor(scaled);
    return vec2(u32((scaled - high) * 4294967296.0), u32(high));
}

fn running_mass(mine: vec2<u32>, thread: u32) -> vec2<u32> {
    var sum = mine;
    workgroupBarrier();
    lows[thread] = sum.x;
    highs[thread] = sum.y;
    workgroupBarrier();
    for (var step = 1u; step < WORKGROUP; step = step * 2u) {
        var other = vec2(0u);
        if (thread >= step) {
            other = vec2(lows[thread - step], highs[thread - step]);
        }
        workgroupBarrier();
        sum = add(sum, other);
        lows[thread] = sum.x;
        highs[thread] = sum.y;
        workgroupBarrier();
    }
    return sum;
}

fn search_at(s: u32, digit: u32) -> u32 {
    return s * STATE + SEARCHES + SEARCH * digit;
}

fn load_search(s: u32, digit: u32) -> Search {
    let at = search_at(s, digit);
    return Search(
        atomicLoad(&state[at]),
        atomicLoad(&state[at + 1u]),
        atomicLoad(&state[at + 2u]),
        bitcast<f32>(atomicLoad(&state[at + 3u])),
        vec2(atomicLoad(&state[at + 4u]), atomicLoad(&state[at + 5u])),
    );
}

fn store_search(s: u32, digit: u32, search: Search) {
    let at = search_at(s, digit);
    atomicStore(&state[at], search.k_key);
    atomicStore(&state[at + 1u], search.k_rest);
    atomicStore(&state[at + 2u], search.p_key);
    atomicStore(&state[at + 3u], bitcast<u32>(search.p_wanted));
    atomicStore(&state[at + 4u], search.p_above.x);
    atomicStore(&state[at + 5u], search.p_above.y);
}

fn histogram_at(s: u32, digit: u32) -> u32 {
    return s * STATE + HISTOGRAMS + HISTOGRAM * digit;
}

// The search before the first digit.
fn begin(r: Request) -> Search {
    let sampled = r.sharpness > 0.0;
    let k = select(0u, r.top_k, sampled);
    return Search(0u, k, 0u, select(-1.0, 1.0, sampled && r.top_p < 1.0), vec2(0u));
}

// What `digit`'s histogram tells, after what was known before it.
fn advance(s: u32, r: Request, digit: u32, before: Search, thread: u32) -> Search {
    let bin = BINS - 1u - thread; // from the largest digit on
    let at = histogram_at(s, digit) + bin;
    let count = atomicLoad(&state[at]);
    let mass = vec2(atomicLoad(&state[at + BINS]), atomicLoad(&state[at + 2u * BINS]));
    let counts = running_count(count, thread);
    let masses = running_mass(mass, thread);
    if (thread == 0u) {
        found = before;
        atomicStore(&p_bin, 0u);
    }
    workgroupBarrier();
    let placed = bin << (DIGIT_BITS * (DIGITS - 1u - digit));
    let total = counted[WORKGROUP - 1u];
    if (digit == 0u && total <= before.k_rest) {
        if (thread == 0u) {
            found.k_rest = 0u;
        }
    } else if (counts - count < before.k_rest && before.k_rest <= counts) {
        found.k_key = before.k_key | placed;
        found.k_rest = before.k_rest - (counts - count);
    }
    var wanted = before.p_wanted;
    if (digit == 0u && wanted > 0.0) {
        wanted = r.top_p * float_of(vec2(lows[WORKGROUP - 1u], highs[WORKGROUP - 1u]));
    }
    var above = before.p_above;
    if (thread > 0u) {
        above = add(above, vec2(lows[thread - 1u], highs[thread - 1u]));
    }
    // The likeliest is always kept.
    if (any(mass > vec2(0u)) && (float_of(above) < wanted || all(above == vec2(0u)))) {
        atomicMax(&p_bin, thread + 1u);
    }
    workgroupBarrier();
    if (wanted >= 0.0 && atomicLoad(&p_bin) == thread + 1u) {
        found.p_key = before.p_key | placed;
        found.p_wanted = wanted;
        found.p_above = above;
    }
    workgroupBarrier();
    let after = found;
    workgroupBarrier();
    return after;
}
