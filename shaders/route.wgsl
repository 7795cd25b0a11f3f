// The choice of experts (DeepSeek-V3's noaux_tc with sigmoid scores); a token a workgroup.
//
// Choice values are compared as integers that order as the floats do, so that ties and signed zeros are decided as on the
// CPU: ties go to the lower id.

struct Params {
    normalize: u32,
    scale: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;

const GROUP_SIZE = EXPERTS / GROUPS;

var<workgroup> scores: array<f32, EXPERTS>;
var<workgroup> keys: array<u32, EXPERTS>;
var<workgroup> group_keys: array<u32, GROUPS>;
var<workgroup> best: array<vec2<u32>, WORKGROUP>; // key, id
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
    for (var e = thread; e < EXPERTS; e += WORKGROUP) {
        let score = 1.0 / (1.0 + exp(-logits[token * EXPERTS + e]));
        scores[e] = score;
        keys[e] = key(score + bias[e]);
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
    for (var k = 0u; k < CHOSEN; k++) {
        var mine = vec2(0u, 0xffffffffu);
        for (var e = thread; e < EXPERTS; e += WORKGROUP) {
            // A chosen expert has the key 0; no value has.
            if (keys[e] > mine.x) {
                mine = vec2(keys[e], e);
            }
        }
        best[thread] = mine;
        workgroupBarrier();
        for (var half = WORKGROUP / 2u; half > 0u; half = half / 2u) {
            if (thread < half) {
                let other = best[thread + half];
                if (other.x > best[thread].x || (other.x == best[thread].x && other.y < best[thread].y)) {
                    best[thread] = other;
                }
            }
            workgroupBarrier();
        }
        if (thread == 0u) {
            let id = min(best[0].y, EXPERTS - 1u);
            chosen[k] = id;
            keys[id] = 0u;
        }
        workgroupBarrier();
    }
    var divisor = 1.0;
    if (p.normalize == 1u && CHOSEN > 1u) {
        divisor = 0.0;
        for (var k = 0u; k < CHOSEN; k++) {
            divisor += scores[chosen[k]];
        }
    }
    for (var k = thread; k < CHOSEN; k += WORKGROUP) {
        ids[token * CHOSEN + k] = chosen[k];
        weights[token * CHOSEN + k] = scores[chosen[k]] / divisor * p.scale;
    }
}
