// Causal attention of latent queries over the paged latent cache: `softmax(scale * q . [c | k_pe]) @ c`.
//
// A workgroup has HEADS heads of one token and one segment of its positions, which it reads POSITIONS at a time into
// shared memory, once for all its heads. The softmax runs along. One segment writes the result, several write what
// attend_merge.wgsl puts together.

const WIDTH = LATENT + ROPE;
const STRIDE = WIDTH + SPREAD;
const SPREAD = WORKGROUP / (HEADS * POSITIONS); // threads on one score
const COLUMNS = (LATENT + WORKGROUP - 1u) / WORKGROUP;
const LOWEST = -3.0e38;

struct Params {
    heads: u32,
    segments: u32,
    segment: u32, // positions of a segment
    scale: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read> cache: array<f32>;
@group(0) @binding(3) var<storage, read> tokens: array<vec2<u32>>; // position, start of the page table
@group(0) @binding(4) var<storage, read> tables: array<u32>;

var<workgroup> queries: array<f32, HEADS * STRIDE>;
var<workgroup> keys: array<f32, POSITIONS * STRIDE>;
var<workgroup> parts: array<f32, WORKGROUP>;
var<workgroup> scores: array<f32, HEADS * POSITIONS>;
var<workgroup> corrections: array<f32, HEADS>;
var<workgroup> totals: array<vec2<f32>, HEADS>; // largest score, sum of exponentials

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let token = group.z;
    let head_at = group.x * HEADS;
    let start = group.y * p.segment;
    let end = min(start + p.segment, tokens[token].x + 1u);
    let table = tokens[token].y;
    for (var i = thread; i < HEADS * WIDTH; i += WORKGROUP) {
        let head = min(head_at + i / WIDTH, p.heads - 1u);
        queries[(i / WIDTH) * STRIDE + i % WIDTH] = q[(token * p.heads + head) * WIDTH + i % WIDTH];
    }
    if (thread < HEADS) {
        totals[thread] = vec2(LOWEST, 0.0);
    }
    var acc: array<f32, HEADS * COLUMNS>;
    for (var i = 0u; i < HEADS * COLUMNS; i++) {
        acc[i] = 0.0;
    }
    let score = thread / SPREAD;
    let score_head = score / POSITIONS;
    let score_position = score % POSITIONS;
    for (var first = start; first < end; first += POSITIONS) {
        for (var i = thread; i < POSITIONS * WIDTH; i += WORKGROUP) {
            let position = min(first + i / WIDTH, end - 1u);
            let slot = tables[table + position / PAGE] * PAGE + position % PAGE;
            keys[(i / WIDTH) * STRIDE + i % WIDTH] = cache[slot * WIDTH + i % WIDTH];
        }
        workgroupBarrier();
        var sum = 0.0;
        for (var i = thread % SPREAD; i < WIDTH; i += SPREAD) {
            sum += queries[score_head * STRIDE + i] * keys[score_position * STRIDE + i];
        }
        parts[thread] = sum;
        workgroupBarrier();
        if (thread < HEADS * POSITIONS) {
            var whole = 0.0;
            for (var i = 0u; i < SPREAD; i++) {
                whole += parts[thread * SPREAD + i];
            }
            scores[thread] = select(LOWEST, whole * p.scale, first + thread % POSITIONS < end);
        }
        workgroupBarrier();
        if (thread < HEADS) {
            var largest = totals[thread].x;
            for (var i = 0u; i < POSITIONS; i++) {
                largest = max(largest, scores[thread * POSITIONS + i]);
            }
            let correction = exp(totals[thread].x - largest);
            var total = totals[thread].y * correction;
            for (var i = 0u; i < POSITIONS; i++) {
                let weight = exp(scores[thread * POSITIONS + i] - largest);
                scores[thread * POSITIONS + i] = weight;
                total += weight;
            }
            totals[thread] = vec2(largest, total);
            corrections[thread] = correction;
        }
        workgroupBarrier();
        for (var c = 0u; c < COLUMNS; c++) {
            let column = thread + c * WORKGROUP;
            if (column < LATENT) {
                for (var h = 0u; h < HEADS; h++) {
                    var mix = acc[h * COLUMNS + c] * corrections[h];
                    for (var i = 0u; i < POSITIONS; i++) {
                        mix += scores[h * POSITIONS + i] * keys[i * STRIDE + column];
                    }
                    acc[h * COLUMNS + c] = mix;
                }
            }
        }
        workgroupBarrier();
    }
    workgroupBarrier();
    for (var h = 0u; h < HEADS; h++) {
        if (head_at + h >= p.heads) {
            break;
        }
        let line = token * p.heads + head_at + h;
        for (var c = 0u; c < COLUMNS; c++) {
            let column = thread + c * WORKGROUP;
            if (column < LATENT) {
                if (p.segments == 1u) {
                    out[line * LATENT + column] = acc[h * COLUMNS + c] / totals[h].y;
                } else {
                    out[(line * p.segments + group.y) * (LATENT + 2u) + column] = acc[h * COLUMNS + c];
                }
            }
        }
        if (p.segments > 1u && thread == 0u) {
            let at = (line * p.segments + group.y) * (LATENT + 2u) + LATENT;
            out[at] = totals[h].x;
            out[at + 1u] = totals[h].y;
        }
    }
}
