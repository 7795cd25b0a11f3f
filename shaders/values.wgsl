// The end of attention in one dispatch: the segments of attend.wgsl are put together and go through W_UV.
//
// Grid: blocks of a head's values, heads, blocks of TOKENS tokens. How the latents meet W_UV is a piece of its own:
// output_rows.wgsl or tiled_rows.wgsl.

const INNER = LATENT;
const OUTER = VALUE;
const OUT_HEAD = VALUE;
const LATENT_CELLS = (LATENT + 3u) / 4u;

struct Params {
    tokens: u32,
    heads: u32,
    row_head: u32, // rows of the matrix from head to head, and the first of a head
    row_first: u32,
    scale_base: u32,
    segments_at: u32, // in `batch`: the segments, and of each token the first one
    firsts: u32,
    one: u32, // steps by it keep a loop from being unrolled: the code of a layer's kernels should stay in the cache
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> parts: array<vec4<f32>>; // [segment, head, LATENT_CELLS]
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read> stats: array<vec2<f32>>; // largest score, sum: [segment, head]
@group(0) @binding(3) var<storage, read> batch: array<u32>;

// Of all segments of the tokens: a batch has no more of them than this.
var<workgroup> segment_stats: array<vec2<f32>, MAX_SEGMENTS + TOKENS>;
var<workgroup> segment_weights: array<f32, MAX_SEGMENTS + TOKENS>;
var<workgroup> slices: array<vec4<f32>, WORKGROUP * (min(SLICES, 2u) - 1u) + 1u>;

// The weight of each segment of the tokens.
fn prepare(thread: u32, token: u32, tokens: u32, head: u32) {
    let base = batch[p.firsts + token];
    let count = batch[p.firsts + token + tokens] - base;
    for (var i = thread; i < count; i += WORKGROUP * p.one) {
        segment_stats[i] = stats[(base + i) * p.heads + head];
    }
    workgroupBarrier();
    for (var i = thread; i < count; i += WORKGROUP * p.one) {
        var first = 0u;
        var end = count;
        if (TOKENS > 1u) {
            let own = batch[p.segments_at + 4u * (base + i)];
            first = batch[p.firsts + own] - base;
            end = batch[p.firsts + own + 1u] - base;
        }
        // 1 / sum of exp(x - own) * y: where another score is so much larger, nothing of this segment is left.
        let own_score = segment_stats[i].x;
        var total = 0.0;
        for (var s = first; s < end; s += p.one) {
            total = fma(exp(min(segment_stats[s].x - own_score, 60.0)), segment_stats[s].y, total);
        }
        segment_weights[i] = 1.0 / total;
    }
    workgroupBarrier();
}

// Every SLICES-th segment of a token, DEPTH loads at a time: they come from far.
fn merged(base: u32, token: u32, head: u32, cell: u32, slice: u32) -> vec4<f32> {
    let end = batch[p.firsts + token + 1u];
    var sum = vec4(0.0);
    for (var s = batch[p.firsts + token] + slice; s < end; s += DEPTH * SLICES) {
        var loads: array<vec4<f32>, DEPTH>;
        for (var d = 0u; d < DEPTH; d++) {
            let segment = min(s + d * SLICES, end - 1u);
            loads[d] = parts[(segment * p.heads + head) * LATENT_CELLS + cell];
        }
        for (var d = 0u; d < DEPTH; d++) {
            let segment = s + d * SLICES;
            if (segment < end) {
                sum = fma(loads[d], vec4(segment_weights[segment - base]), sum);
            }
        }
    }
    for (var k = 0u; k < 4u; k++) {
        sum[k] = select(0.0, sum[k], 4u * cell + k < LATENT);
    }
    return sum;
}

// Brings `count` cells of each token's attended latent in, from cell `first` on; zeros where there is none.
fn stage(thread: u32, token: u32, tokens: u32, head: u32, first: u32, count: u32) {
    let base = batch[p.firsts + token];
    if (SLICES == 1u) {
        for (var i = thread; i < TOKENS * count; i += WORKGROUP) {
            let t = i / count;
            let cell = i % count;
            var value = vec4(0.0);
            if (t < tokens && first + cell < LATENT_CELLS) {
                value = merged(base, token + t, head, first + cell, 0u);
            }
            put(t, cell, value);
        }
        return;
    }
    // SLICES threads share a cell.
    const SPAN = WORKGROUP / SLICES;
    for (var i = 0u; i < TOKENS * count; i += SPAN) {
        let item = i + thread % SPAN;
        let t = item / count;
        let cell = item % count;
        var value = vec4(0.0);
        if (t < tokens && first + cell < LATENT_CELLS) {
            value = merged(base, token + t, head, first + cell, thread / SPAN);
        }
        slices[thread] = value;
        workgroupBarrier();
        if (thread < SPAN && item < TOKENS * count) {
            for (var s = 1u; s < SLICES; s++) {
                value += slices[thread + s * SPAN];
            }
            put(t, cell, value);
        }
        workgroupBarrier();
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let token = group.z * TOKENS;
    project(thread, group.x, group.y, token, min(TOKENS, p.tokens - token));
}
