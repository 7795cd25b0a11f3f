// The attention of attend.wgsl by cooperative matrices of 16x16 (f16 to f32), for subgroups of 32.
//
// A workgroup has 16 heads of one token and one segment of its positions, TILE positions at a time. Keys lie in the cache as
// upper and lower halves (latent_query.wgsl), and are multiplied from there: a subgroup has 16 positions of the scores, then
// a quarter of the latent's columns of the result. Queries and the weights of the softmax are split into halves here. The
// product of two lower halves is left out. A tile of 16 positions lies in one page.

alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;

const WIDTH = LATENT + ROPE;
const PAIRS = WIDTH / 2u; // of a key's columns: the upper halves of all, then the lower
const STEPS = WIDTH / 16u;
const HEADS = 16u;
const TILE = 64u;
const COLUMN_TILES = LATENT / 64u; // of a subgroup
const MATES = WORKGROUP / HEADS;   // threads of a head
const MATE_PAIRS = TILE / 2u / MATES;

// Rows of cooperative matrices begin at multiples of 16 bytes; those of neighbours lie in other banks of shared memory.
const QUERY_PITCH = PAIRS + 4u;
const SCORE_PITCH = TILE + 4u;
const WEIGHT_PITCH = TILE / 2u + 4u;

// Powers of two on the latents in the cache and on the weights, so that lower halves keep their bits.
const LATENT_POWER = 64.0;
const WEIGHT_POWER = 16384.0;

const LOWEST = -3.0e38;

struct Params {
    heads: u32,
    segments_at: u32, // where the segments begin in `batch`
    first: u32,       // the dispatch's segments
    count: u32,
    scale: f32,
    one: u32, // steps by it keep a loop from being unrolled
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> parts: array<f32>; // [segment, head, LATENT]
@group(0) @binding(2) var<storage, read_write> stats: array<vec2<f32>>; // largest score, sum: [segment, head]
@group(0) @binding(3) var<storage, read> keys: array<vec2<f16>>;
@group(0) @binding(4) var<storage, read> batch: array<u32>; // segments: token, start, end, page table

struct Segment {
    token: u32,
    start: u32,
    end: u32,
    table: u32,
}

var<workgroup> segment_here: Segment;
var<workgroup> moved: vec4<u32>; // whether some head's largest score has changed, four times
var<workgroup> upper: array<vec2<f16>, HEADS * QUERY_PITCH>;
var<workgroup> lower: array<vec2<f16>, HEADS * QUERY_PITCH>;
var<workgroup> scores: array<f32, HEADS * SCORE_PITCH>;
var<workgroup> upper_weights: array<vec2<f16>, HEADS * WEIGHT_PITCH>;
var<workgroup> lower_weights: array<vec2<f16>, HEADS * WEIGHT_PITCH>;
var<workgroup> corrections: array<f32, HEADS>;

struct Halves {
    upper: vec2<f16>,
    lower: vec2<f16>,
}

// As in halves.wgsl.
fn halves(pair: vec2<f32>) -> Halves {
    let first = bitcast<vec2<f32>>(bitcast<vec2<u32>>(pair) & vec2(0xffffe000u));
    return Halves(vec2<f16>(first), vec2<f16>(pair - first));
}

fn highest_of_mates(value: f32) -> f32 {
    var highest = value;
    for (var i = 1u; i < MATES; i = 2u * i) {
        highest = max(highest, subgroupShuffleXor(highest, i));
    }
    return highest;
}

fn multiplied(x: Left, y: Left, w: Right, v: Right, sum: Sum) -> Sum {
    return coopMultiplyAdd(x, v, coopMultiplyAdd(x, w, coopMultiplyAdd(y, w, sum)));
}

// A cell of a head's query, its latent part without the power that the cache's has.
fn query_cell(first: u32, cell: u32) -> vec4<f32> {
    return q[first + cell] * select(1.0, 1.0 / LATENT_POWER, cell < LATENT / 4u);
}

// Brings the queries in, each times a power of two. Returns what takes that off the thread's head's scores.
fn stage(thread: u32, line: u32) -> f32 {
    let head = thread / MATES;
    var largest = 0.0;
    for (var cell = thread % MATES; cell < WIDTH / 4u; cell += MATES) {
        let value = abs(query_cell(line, cell));
        largest = max(largest, max(max(value.x, value.y), max(value.z, value.w)));
    }
    let exponent = clamp(bitcast<u32>(highest_of_mates(largest)) >> 23u, 15u, 254u);
    let power = bitcast<f32>((268u - exponent) << 23u);
    for (var cell = thread % MATES; cell < WIDTH / 4u; cell += MATES) {
        let value = power * query_cell(line, cell);
        let a = halves(value.xy);
        let b = halves(value.zw);
        let at = head * QUERY_PITCH + 2u * cell;
        upper[at] = a.upper;
        upper[at + 1u] = b.upper;
        lower[at] = a.lower;
        lower[at + 1u] = b.lower;
    }
    return bitcast<f32>((exponent - 14u) << 23u);
}

// Where the key of a position begins.
fn key_at(table: u32, position: u32) -> u32 {
    return (batch[table + position / PAGE] * PAGE + position % PAGE) * WIDTH;
}

// The scores of 16 positions.
fn score(key: u32, to: u32) {
    var sum = Sum();
    for (var step = 0u; step < STEPS; step += DEPTH * p.one) {
        for (var i = 0u; i < DEPTH; i++) {
            let at = 8u * (step + i);
            let w = coopLoad<Right>(&keys[key + at], WIDTH);
            let v = coopLoad<Right>(&keys[key + PAIRS + at], WIDTH);
            let x = coopLoadT<Left>(&upper[at], QUERY_PITCH);
            let y = coopLoadT<Left>(&lower[at], QUERY_PITCH);
            sum = multiplied(x, y, w, v, sum);
        }
    }
    coopStoreT(sum, &scores[to], SCORE_PITCH);
}

// Adds the weighted latents of 16 positions, 16 columns of them.
fn mix(x: Left, y: Left, at: u32, sum: Sum) -> Sum {
    let w = coopLoadT<Right>(&keys[at], WIDTH);
    let v = coopLoadT<Right>(&keys[at + PAIRS], WIDTH);
    return multiplied(x, y, w, v, sum);
}

// A sum of 16 heads and columns, each head times its correction.
fn corrected(thread: u32, sum: Sum) -> Sum {
    let at = thread / 32u * 256u;
    workgroupBarrier();
    coopStoreT(sum, &scores[at], 16u);
    workgroupBarrier();
    for (var i = thread % 32u; i < 256u; i += 32u) {
        scores[at + i] *= corrections[i / 16u];
    }
    workgroupBarrier();
    return coopLoadT<Sum>(&scores[at], 16u);
}

// Writes a sum to row `first` of the parts and those after it, as many as there are heads left.
fn write(thread: u32, sum: Sum, first: u32, heads: u32, column: u32) {
    if (heads >= HEADS) {
        coopStoreT(sum, &parts[first * LATENT + column], LATENT);
        return;
    }
    let at = thread / 32u * 256u;
    workgroupBarrier();
    coopStoreT(sum, &scores[at], 16u);
    workgroupBarrier();
    for (var i = thread % 32u; i < 16u * heads; i += 32u) {
        parts[(first + i / 16u) * LATENT + column + i % 16u] = scores[at + i];
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    // The last segments first: in a prompt they are the longest.
    let segment = p.first + p.count - 1u - group.x;
    if (thread == 0u) {
        let at = p.segments_at + 4u * segment;
        segment_here = Segment(batch[at], batch[at + 1u], batch[at + 2u], batch[at + 3u]);
    }
    let here = workgroupUniformLoad(&segment_here);
    let head_first = group.y * HEADS;
    let head = thread / MATES;
    let mate = thread % MATES;
    let query = here.token * p.heads + min(head_first + head, p.heads - 1u);
    let unit = p.scale * stage(thread, query * (WIDTH / 4u));

    let rows_at = thread / 32u * 16u;
    let columns_at = thread / 32u * COLUMN_TILES * 8u; // pairs
    var largest = LOWEST;
    var total = 0.0;
    // Named one by one: a cooperative matrix is no value to index.
    var sum0 = Sum();
    var sum1 = Sum();
    var sum2 = Sum();
    var sum3 = Sum();
    var sum4 = Sum();
    var sum5 = Sum();
    var sum6 = Sum();
    var sum7 = Sum();
    for (var first = here.start; first < here.end; first += TILE) {
        workgroupBarrier();
        if (first + rows_at < here.end) {
            score(key_at(here.table, first + rows_at), rows_at);
        }
        workgroupBarrier();
        var values: array<vec2<f32>, MATE_PAIRS>;
        var highest = largest;
        for (var i = 0u; i < MATE_PAIRS; i++) {
            let position = 2u * (mate + i * MATES);
            let at = head * SCORE_PITCH + position;
            let inside = vec2(first + position, first + position + 1u) < vec2(here.end);
            values[i] = select(vec2(LOWEST), unit * vec2(scores[at], scores[at + 1u]), inside);
            highest = max(highest, max(values[i].x, values[i].y));
        }
        highest = highest_of_mates(highest);
        let correction = exp(largest - highest);
        largest = highest;
        total *= correction;
        for (var i = 0u; i < MATE_PAIRS; i++) {
            let weights = exp(values[i] - highest);
            total += weights.x + weights.y;
            let split = halves(WEIGHT_POWER * weights);
            let at = head * WEIGHT_PITCH + mate + i * MATES;
            upper_weights[at] = split.upper;
            lower_weights[at] = split.lower;
        }
        if (mate == 0u) {
            corrections[head] = correction;
        }
        workgroupBarrier();
        if (first > here.start) {
            if (thread == 0u) {
                var some = false;
                for (var i = 0u; i < HEADS; i += p.one) {
                    some = some || corrections[i] != 1.0;
                }
                moved = vec4(u32(some));
            }
            if (workgroupUniformLoad(&moved).x != 0u) {
                sum0 = corrected(thread, sum0);
                if (COLUMN_TILES > 1u) { sum1 = corrected(thread, sum1); }
                if (COLUMN_TILES > 2u) { sum2 = corrected(thread, sum2); }
                if (COLUMN_TILES > 3u) { sum3 = corrected(thread, sum3); }
                if (COLUMN_TILES > 4u) { sum4 = corrected(thread, sum4); }
                if (COLUMN_TILES > 5u) { sum5 = corrected(thread, sum5); }
                if (COLUMN_TILES > 6u) { sum6 = corrected(thread, sum6); }
                if (COLUMN_TILES > 7u) { sum7 = corrected(thread, sum7); }
            }
        }
        // Weights past the end are zero; the keys there are finite.
        let count = min(TILE, here.end - first);
        for (var i = 0u; i < count; i += 16u * p.one) {
            let x = coopLoadT<Left>(&upper_weights[i / 2u], WEIGHT_PITCH);
            let y = coopLoadT<Left>(&lower_weights[i / 2u], WEIGHT_PITCH);
            let at = key_at(here.table, first + i) + columns_at;
            sum0 = mix(x, y, at, sum0);
            if (COLUMN_TILES > 1u) { sum1 = mix(x, y, at + 8u, sum1); }
            if (COLUMN_TILES > 2u) { sum2 = mix(x, y, at + 16u, sum2); }
            if (COLUMN_TILES > 3u) { sum3 = mix(x, y, at + 24u, sum3); }
            if (COLUMN_TILES > 4u) { sum4 = mix(x, y, at + 32u, sum4); }
            if (COLUMN_TILES > 5u) { sum5 = mix(x, y, at + 40u, sum5); }
            if (COLUMN_TILES > 6u) { sum6 = mix(x, y, at + 48u, sum6); }
            if (COLUMN_TILES > 7u) { sum7 = mix(x, y, at + 56u, sum7); }
        }
    }

    for (var i = 1u; i < MATES; i = 2u * i) {
        total += subgroupShuffleXor(total, i);
    }
    if (mate == 0u && head_first + head < p.heads) {
        // With the powers that are on the parts.
        stats[segment * p.heads + head_first + head] = vec2(largest, total * LATENT_POWER * WEIGHT_POWER);
    }
    let row = segment * p.heads + head_first;
    let heads = p.heads - head_first;
    let column = 2u * columns_at;
    write(thread, sum0, row, heads, column);
    if (COLUMN_TILES > 1u) { write(thread, sum1, row, heads, column + 16u); }
    if (COLUMN_TILES > 2u) { write(thread, sum2, row, heads, column + 32u); }
    if (COLUMN_TILES > 3u) { write(thread, sum3, row, heads, column + 48u); }
    if (COLUMN_TILES > 4u) { write(thread, sum4, row, heads, column + 64u); }
    if (COLUMN_TILES > 5u) { write(thread, sum5, row, heads, column + 80u); }
    if (COLUMN_TILES > 6u) { write(thread, sum6, row, heads, column + 96u); }
    if (COLUMN_TILES > 7u) { write(thread, sum7, row, heads, column + 112u); }
}
