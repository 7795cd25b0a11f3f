// Sampling, last step: the token, and what its log-probability and the likeliest ones' are made from. A workgroup is a
// request.

@group(0) @binding(0) var<storage, read> blocks: array<u32>; // as sample_scan wrote them
@group(0) @binding(1) var<storage, read> keys: array<u32>; // [S, V]
@group(0) @binding(2) var<storage, read> state: array<u32>; // [S, STATE]
@group(0) @binding(3) var<storage, read> requests: array<Request>;
@group(0) @binding(4) var<storage, read> weights: array<u32>; // as sample_weigh wrote them
// [S, 6 + 2 * tops]: id and value of a logit that is not finite; token and its logit; the largest logit and the sum of
// exponentials around it; the likeliest tokens and their logits
@group(0) @binding(5) var<storage, read_write> out: array<u32>;

var<workgroup> equals_before: u32;
var<workgroup> weight_before: f32;
var<workgroup> reached: atomic<u32>; // largest running sum: sums in other orders may be larger
var<workgroup> chosen: atomic<u32>; // block, then token
var<workgroup> last: atomic<u32>; // 1 + last candidate of the block

const NOTHING = 0xffffffffu;

// Of the entries in this thread's blocks the first that comes after `last`; of each block `width` are in order.
fn next(s: u32, thread: u32, from_entry: u32, width: u32, last: vec2<u32>) -> vec2<u32> {
    var best = NONE;
    for (var b = thread; b < p.blocks; b += WORKGROUP) {
        let line = (s * p.blocks + b) * (3u + 2u * p.tops) + 1u;
        for (var i = from_entry; i < from_entry + width; i++) {
            let entry = vec2(blocks[line + 2u * i], blocks[line + 2u * i + 1u]);
            if (entry.x > 0u && comes_first(last, entry)) {
                if (comes_first(entry, best)) {
                    best = entry;
                }
                break;
            }
        }
    }
    return best;
}

// Candidates among `equals` tokens with top-k's last key, with `before` such tokens before them.
fn taken(equals: u32, before: u32, k_rest: u32) -> u32 {
    return min(equals, k_rest - min(k_rest, before));
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let s = group.x;
    let r = requests[s];
    let line = s * (6u + 2u * p.tops);
    let best = first_of(next(s, thread, 0u, 1u, vec2(NOTHING, 0u)), thread);
    let largest = value_of(best.x);
    var sum = 0.0;
    for (var b = thread; b < p.blocks; b += WORKGROUP) {
        let at = (s * p.blocks + b) * (3u + 2u * p.tops);
        if (blocks[at + 1u] > 0u) {
            sum += bitcast<f32>(blocks[at]) * weight_of(blocks[at + 1u], largest, 1.0);
        }
    }
    sum = running_sum(sum, thread);
    var token = best.y;
    if (SAMPLED == 1u && r.sharpness > 0.0) {
        token = draw(s, r, largest, best.y, thread);
    }
    if (thread == WORKGROUP - 1u) {
        let bad = state[s * STATE + BAD_ID];
        out[line] = bad;
        out[line + 1u] = 0u;
        if (bad < p.vocabulary) {
            out[line + 1u] = bitcast<u32>(value_of(keys[s * p.vocabulary + bad]));
        }
        out[line + 2u] = token;
        out[line + 3u] = 0u;
        if (token < p.vocabulary) {
            out[line + 3u] = bitcast<u32>(value_of(keys[s * p.vocabulary + token]));
        }
        out[line + 4u] = bitcast<u32>(largest);
        out[line + 5u] = bitcast<u32>(sum);
    }
    var mine = next(s, thread, 1u, p.tops, vec2(NOTHING, 0u));
    for (var t = 0u; t < p.tops; t++) {
        let top = first_of(mine, thread);
        if (thread == 0u) {
            out[line + 6u + 2u * t] = top.y;
            out[line + 7u + 2u * t] = bitcast<u32>(value_of(top.x));
        }
        if (all(mine == top)) {
            mine = next(s, thread, 1u, p.tops, top);
        }
    }
}

fn draw(s: u32, r: Request, largest: f32, best: u32, thread: u32) -> u32 {
    let at = s * STATE + SEARCHES + SEARCH * DIGITS;
    let k_key = state[at];
    let k_rest = state[at + 1u];
    let p_key = state[at + 2u];
    // Without top-k there is no such key: what stands for it is no number, and how a GPU's max treats that is open.
    var equal_weight = 0.0;
    if (k_rest > 0u) {
        equal_weight = weight_of(k_key, largest, r.sharpness);
    }
    // Twice over the blocks: first for the total, then for the block in which the running sum exceeds its share.
    var target_sum = 0.0;
    for (var turn = 0u; turn < 2u; turn++) {
        if (thread == 0u) {
            equals_before = 0u;
            weight_before = 0.0;
            atomicStore(&chosen, NOTHING);
            if (turn == 0u) {
                atomicStore(&reached, 0u);
            }
        }
        for (var tile = 0u; tile < p.blocks; tile += WORKGROUP) {
            let b = tile + thread;
            var weight = 0.0;
            var equals = 0u;
            if (b < p.blocks) {
                weight = bitcast<f32>(weights[2u * (s * p.blocks + b)]);
                equals = weights[2u * (s * p.blocks + b) + 1u];
            }
            let equals_to = running_count(equals, thread);
            let before = equals_before + equals_to - equals;
            weight += f32(taken(equals, before, k_rest)) * equal_weight;
            let weight_to = weight_before + running_sum(weight, thread);
            if (turn == 0u && weight > 0.0) {
                atomicMax(&reached, bitcast<u32>(weight_to));
            } else if (weight > 0.0 && weight_to > target_sum) {
                atomicMin(&chosen, b);
            }
            workgroupBarrier();
            if (turn == 1u && tile <= atomicLoad(&chosen) && atomicLoad(&chosen) < tile + WORKGROUP) {
                // What lies before the block that was found.
                if (b == atomicLoad(&chosen)) {
                    equals_before = before;
                    if (thread > 0u) {
                        weight_before += running[thread - 1u];
                    }
                }
                break;
            }
            if (thread == WORKGROUP - 1u) {
                equals_before += equals_to;
                weight_before = weight_to;
            }
            workgroupBarrier();
        }
        workgroupBarrier();
        target_sum = r.random * bitcast<f32>(atomicLoad(&reached));
        workgroupBarrier();
    }
    let block = atomicLoad(&chosen);
    workgroupBarrier();
    if (thread == 0u) {
        atomicStore(&chosen, NOTHING);
        atomicStore(&last, 0u);
    }
    workgroupBarrier();
    if (block == NOTHING) {
        return best;
    }
    let first = block * BLOCK + thread * EACH;
    var own = array<f32, EACH>();
    var equals = 0u;
    for (var i = 0u; i < EACH; i++) {
        if (first + i < p.vocabulary && keys[s * p.vocabulary + first + i] == k_key) {
            equals++;
        }
    }
    var rank = equals_before + running_count(equals, thread) - equals;
    var sum = 0.0;
    for (var i = 0u; i < EACH; i++) {
        if (first + i < p.vocabulary) {
            let key = keys[s * p.vocabulary + first + i];
            if (key > 0u && key >= p_key) {
                if (key == k_key && k_rest > 0u) {
                    own[i] = select(0.0, equal_weight, rank < k_rest);
                    rank++;
                } else if (key > k_key) {
                    own[i] = weight_of(key, largest, r.sharpness);
                }
            }
        }
        sum += own[i];
    }
    running_sum(sum, thread);
    var to = weight_before;
    if (thread > 0u) {
        to += running[thread - 1u];
    }
    for (var i = 0u; i < EACH; i++) {
        to += own[i];
        if (own[i] > 0.0) {
            atomicMax(&last, first + i + 1u);
            if (to > target_sum) {
                atomicMin(&chosen, first + i);
            }
        }
    }
    workgroupBarrier();
    let token = atomicLoad(&chosen);
    // Rounding may let the sum end just below its share.
    return select(token, atomicLoad(&last) - 1u, token == NOTHING);
}
