// Sampling: the weight of a block's candidates at the temperature, and how many of its tokens are top-k's last one's
// equals, of which those with the lower ids are candidates. A workgroup is a block of a row.

@group(0) @binding(0) var<storage, read> keys: array<u32>; // [S, V]
@group(0) @binding(1) var<storage, read_write> state: array<atomic<u32>>; // [S, STATE]
@group(0) @binding(2) var<storage, read> requests: array<Request>;
@group(0) @binding(3) var<storage, read_write> weights: array<u32>; // [S, blocks, 2]: weight, equals

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let s = group.y;
    let r = requests[s];
    var search = begin(r);
    search.k_rest = 0u;
    if (RADIX == 1u) {
        search = advance(s, r, DIGITS - 1u, load_search(s, DIGITS - 2u), thread);
    }
    let largest = value_of(atomicLoad(&state[s * STATE + MAX_KEY]));
    if (r.log_min_p <= 0.0) {
        search.p_key = max(search.p_key, key_of(bitcast<u32>(largest + r.log_min_p)));
    }
    if (group.x == 0u && thread == 0u) {
        store_search(s, DIGITS, search);
    }
    let first = group.x * BLOCK + thread * EACH;
    var sum = 0.0;
    var equals = 0u;
    for (var i = 0u; i < EACH; i++) {
        if (first + i < p.vocabulary) {
            let key = keys[s * p.vocabulary + first + i];
            if (key > 0u && key >= search.p_key) {
                if (search.k_rest > 0u && key == search.k_key) {
                    equals++;
                } else if (key > search.k_key) {
                    sum += weight_of(key, largest, r.sharpness);
                }
            }
        }
    }
    sum = running_sum(sum, thread);
    equals = running_count(equals, thread);
    if (thread == WORKGROUP - 1u) {
        let line = 2u * (s * p.blocks + group.x);
        weights[line] = bitcast<u32>(sum);
        weights[line + 1u] = equals;
    }
}
