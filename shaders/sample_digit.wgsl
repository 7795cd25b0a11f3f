// Sampling: how many tokens, and how much mass, each value of one digit of the keys has, among the tokens whose digits
// before it are those of top-k's and top-p's last candidates. A workgroup is a block of a row.

@group(0) @binding(0) var<storage, read> keys: array<u32>; // [S, V]
@group(0) @binding(1) var<storage, read_write> state: array<atomic<u32>>; // [S, STATE]
@group(0) @binding(2) var<storage, read> requests: array<Request>;

var<workgroup> bin_counts: array<atomic<u32>, BINS>;
var<workgroup> bin_lows: array<atomic<u32>, BINS>;
var<workgroup> bin_highs: array<atomic<u32>, BINS>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let s = group.y;
    let r = requests[s];
    atomicStore(&bin_counts[thread], 0u);
    atomicStore(&bin_lows[thread], 0u);
    atomicStore(&bin_highs[thread], 0u);
    var search = begin(r);
    if (p.digit > 0u) {
        if (p.digit > 1u) {
            search = load_search(s, p.digit - 2u);
        }
        search = advance(s, r, p.digit - 1u, search, thread);
        if (group.x == 0u && thread == 0u) {
            store_search(s, p.digit - 1u, search);
        }
    }
    workgroupBarrier();
    let shift = DIGIT_BITS * (DIGITS - 1u - p.digit);
    // Digits before this one; there are none before the first.
    let known = select(0xffffff00u << shift, 0u, p.digit == 0u);
    let largest = value_of(atomicLoad(&state[s * STATE + MAX_KEY]));
    let first = group.x * BLOCK;
    let count = min(BLOCK, p.vocabulary - first);
    for (var i = thread; i < count; i += WORKGROUP) {
        let key = keys[s * p.vocabulary + first + i];
        let bin = (key >> shift) & (BINS - 1u);
        if (key > 0u && search.k_rest > 0u && ((key ^ search.k_key) & known) == 0u) {
            atomicAdd(&bin_counts[bin], 1u);
        }
        if (key > 0u && search.p_wanted >= 0.0 && ((key ^ search.p_key) & known) == 0u) {
            let mass = mass_of(weight_of(key, largest, 1.0));
            let before = atomicAdd(&bin_lows[bin], mass.x);
            let high = mass.y + u32(before + mass.x < before);
            if (high > 0u) {
                atomicAdd(&bin_highs[bin], high);
            }
        }
    }
    workgroupBarrier();
    let at = histogram_at(s, p.digit) + thread;
    let own = atomicLoad(&bin_counts[thread]);
    if (own > 0u) {
        atomicAdd(&state[at], own);
    }
    let mass = vec2(atomicLoad(&bin_lows[thread]), atomicLoad(&bin_highs[thread]));
    if (any(mass > vec2(0u))) {
        let before = atomicAdd(&state[at + BINS], mass.x);
        atomicAdd(&state[at + 2u * BINS], mass.y + u32(before + mass.x < before));
    }
}
