// The choice of experts (DeepSeek-V3's noaux_tc with sigmoid scores); a token a workgroup.
//
// Choice values are compared as integers that order as the floats do, so that ties and signed zeros are decided as on the
// CPU: ties go to the lower id.

struct Params {
    normalize: u32,
    scale: f32,
    one: u32, // steps by it keep a loop from being unrolled
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;

const GROUP_SIZE = EXPERTS / GROUPS;

// The best of each BLOCK neighbouring experts come into the second round.
const BLOCKS = (EXPERTS + BLOCK - 1u) / BLOCK;
const SURVIVORS = min(CHOSEN, BLOCK);

var<workgroup> scores: array<f32, EXPERTS>;
var<workgroup> keys: array<u32, BLOCKS * BLOCK>; // 0 past the end: no value has it
var<workgroup> group_keys: array<u32, GROUPS>;
var<workgroup> best: array<vec2<u32>, BLOCKS * SURVIVORS>; // key, id
var<workgroup> chosen: array<u32, CHOSEN>;

fn key(value: f32) -> u32 {
    let bits = select(bitcast<u32>(value), 0u, value == 0.0);
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

fn value_of(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let token = group.x;
    for (var e = thread; e < BLOCKS * BLOCK; e += WORKGROUP) {
        keys[e] = 0u;
        if (e < EXPERTS) {
            let score = 1.0 / (1.0 + exp(-logits[token * EXPERTS + e]));
            scores[e] = score;
            keys[e] = key(score + bias[e]);
        }
    }
    workgroupBarrier();
    if (GROUPS > 1u) {
        for (var g = thread; g < GROUPS; g += WORKGROUP) {
            var first = 0u;
            var second = 0u;
            for (var e = g * GROUP_SIZE; e < (g + 1u) * GROUP_SIZE; e++) {
                if (keys[e] > first) {
                    second = first;
                    first = keys[e];
                } else if (keys[e] > second) {
                    second = keys[e];
                }
            }
            var sum = value_of(first);
            if (GROUP_SIZE > 1u) {
                sum += value_of(second);
            }
            group_keys[g] = key(sum);
        }
        workgroupBarrier();
        for (var e = thread; e < EXPERTS; e += WORKGROUP) {
            let own = e / GROUP_SIZE;
            var better = 0u;
            for (var g = 0u; g < GROUPS; g++) {
                if (group_keys[g] > group_keys[own] || (group_keys[g] == group_keys[own] && g < own)) {
                    better++;
                }
            }
            if (better >= KEPT) {
                keys[e] = 0x80000000u; // the key of 0.0
            }
        }
        workgroupBarrier();
    }
    // An expert's place is the number of those that are better: first in its block, then among all blocks' best. Of equal
    // ones the first is better, and both rounds keep their order.
    for (var e = thread; e < BLOCKS * BLOCK; e += WORKGROUP) {
        let first = e & ~(BLOCK - 1u);
        let own = keys[e];
        var rank = 0u;
        for (var i = 0u; i < BLOCK; i += p.one) {
            // Neighbouring threads read neighbouring keys.
            let other = first + ((e + i) & (BLOCK - 1u));
            rank += u32(keys[other] > own || (keys[other] == own && other < e));
        }
        if (rank < SURVIVORS) {
            best[e / BLOCK * SURVIVORS + rank] = vec2(own, e);
        }
    }
    workgroupBarrier();
    for (var s = thread; s < BLOCKS * SURVIVORS; s += WORKGROUP) {
        let own = best[s];
        var rank = 0u;
        for (var i = 0u; i < BLOCKS * SURVIVORS; i += p.one) {
            rank += u32(best[i].x > own.x || (best[i].x == own.x && i < s));
        }
        if (rank < CHOSEN) {
            chosen[rank] = own.y;
        }
    }
    workgroupBarrier();
    var divisor = 1.0;
    if (p.normalize == 1u && CHOSEN > 1u) {
        divisor = 0.0;
        for (var k = 0u; k < CHOSEN; k += p.one) {
            divisor += scores[chosen[k]];
        }
    }
    for (var k = thread; k < CHOSEN; k += WORKGROUP) {
        ids[token * CHOSEN + k] = chosen[k];
        weights[token * CHOSEN + k] = scores[chosen[k]] / divisor * p.scale;
    }
}
