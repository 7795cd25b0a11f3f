// Causal attention of latent queries over the paged latent cache: `softmax(scale * q . [c | k_pe]) @ c`, not yet divided
// by the sum of its exponentials.
//
// A workgroup has TILE_ROWS heads of one token and one segment of its positions. All heads share the cached keys, so a
// key that is read is used by all of them. TILE_COLUMNS positions at a time: their scores are a tile product over slabs of
// the key's cells (tile.wgsl), the next slab being on its way while one is multiplied; then the softmax moves on; then
// each thread adds the weighted latents for one or a few cells of four columns. values.wgsl puts the segments together.

const WIDTH = LATENT + ROPE;
const WIDTH_CELLS = (WIDTH + 3u) / 4u;
const LATENT_CELLS = (LATENT + 3u) / 4u;
const ALIGNED = WIDTH % 4u == 0u;
const SLABS = (WIDTH_CELLS + SLAB - 1u) / SLAB;
const SLAB_ITEMS = (TILE_ROWS + TILE_COLUMNS) * SLAB;
const LOADS = (SLAB_ITEMS + WORKGROUP - 1u) / WORKGROUP;

// Threads on a row of scores, and scores of each.
const ROW_THREADS = WORKGROUP / TILE_ROWS;
const SCORES = TILE_COLUMNS / ROW_THREADS;

// SPAN threads have neighbouring cells of the result and the same heads.
const THREAD_HEADS = TILE_ROWS * SPAN / WORKGROUP;
const ROUNDS = (LATENT_CELLS + SPAN - 1u) / SPAN;
const WEIGHT_STRIDE = TILE_ROWS / 4u + 1u;

const LOWEST = -3.0e38;

struct Params {
    heads: u32,
    segments: u32, // number of segments, and where they begin in `batch`
    segments_at: u32,
    scale: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> parts: array<vec4<f32>>; // [segment, head, LATENT_CELLS]
@group(0) @binding(2) var<storage, read_write> stats: array<vec2<f32>>; // largest score, sum: [segment, head]
@group(0) @binding(3) var<storage, read> cache: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> batch: array<u32>; // segments: token, start, end, page table

var<workgroup> slots: array<u32, TILE_COLUMNS>; // the first value of each position's key
var<workgroup> weights: array<vec4<f32>, TILE_COLUMNS * WEIGHT_STRIDE>; // of four heads each
var<workgroup> row_parts: array<f32, WORKGROUP>;
var<workgroup> corrections: array<f32, TILE_ROWS>;

fn query_cell(first: u32, cell: u32) -> vec4<f32> {
    if (ALIGNED) {
        return q[(first >> 2u) + cell];
    }
    var value = vec4(0.0);
    for (var i = 0u; i < 4u; i++) {
        if (4u * cell + i < WIDTH) {
            let at = first + 4u * cell + i;
            value[i] = q[at >> 2u][at & 3u];
        }
    }
    return value;
}

fn key_cell(first: u32, cell: u32) -> vec4<f32> {
    if (ALIGNED) {
        return cache[(first >> 2u) + cell];
    }
    var value = vec4(0.0);
    for (var i = 0u; i < 4u; i++) {
        if (4u * cell + i < WIDTH) {
            let at = first + 4u * cell + i;
            value[i] = cache[at >> 2u][at & 3u];
        }
    }
    return value;
}

// One cell of a slab: of a query for the first TILE_ROWS lines, of a key for the others.
fn fetch(item: u32, slab: u32, token: u32, head_first: u32) -> vec4<f32> {
    let line = item / SLAB;
    let cell = slab * SLAB + item % SLAB;
    if (item >= SLAB_ITEMS || cell >= WIDTH_CELLS) {
        return vec4(0.0);
    }
    if (line < TILE_ROWS) {
        let head = min(head_first + line, p.heads - 1u);
        return query_cell((token * p.heads + head) * WIDTH, cell);
    }
    return key_cell(slots[line - TILE_ROWS], cell);
}

fn put(item: u32, value: vec4<f32>) {
    let line = item / SLAB;
    if (line < TILE_ROWS) {
        put_row(item % SLAB, line, value);
    } else if (item < SLAB_ITEMS) {
        put_column(item % SLAB, line - TILE_ROWS, value);
    }
}

// The scores of a tile, as sums that `sum_at` finds.
fn score(thread: u32, token: u32, head_first: u32) {
    let at = place(thread);
    var sums: array<vec4<f32>, 4>;
    for (var r = 0u; r < 4u; r++) {
        sums[r] = vec4(0.0);
    }
    var next: array<vec4<f32>, LOADS>;
    for (var i = 0u; i < LOADS; i++) {
        next[i] = fetch(thread + i * WORKGROUP, 0u, token, head_first);
    }
    for (var slab = 0u; slab < SLABS; slab++) {
        for (var i = 0u; i < LOADS; i++) {
            put(thread + i * WORKGROUP, next[i]);
        }
        workgroupBarrier();
        if (slab + 1u < SLABS) {
            for (var i = 0u; i < LOADS; i++) {
                next[i] = fetch(thread + i * WORKGROUP, slab + 1u, token, head_first);
            }
        }
        multiply(at, &sums);
        workgroupBarrier();
    }
    put_sums(at, &sums);
    workgroupBarrier();
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    // The last segments first: in a prompt they are the longest.
    let nth = group.x + group.z * GRID_Y;
    if (nth >= p.segments) {
        return;
    }
    let segment = p.segments - 1u - nth;
    let token = batch[p.segments_at + 4u * segment];
    let start = batch[p.segments_at + 4u * segment + 1u];
    let end = batch[p.segments_at + 4u * segment + 2u];
    let table = batch[p.segments_at + 4u * segment + 3u];
    let head_first = group.y * TILE_ROWS;

    let row = thread / ROW_THREADS;
    let lane = thread % ROW_THREADS;
    var largest = LOWEST; // the row's, the same for all its threads
    var total = 0.0;      // this thread's share

    let column = thread % SPAN;
    let heads_at = thread / SPAN * THREAD_HEADS;
    var mix: array<vec4<f32>, THREAD_HEADS * ROUNDS>;
    for (var i = 0u; i < THREAD_HEADS * ROUNDS; i++) {
        mix[i] = vec4(0.0);
    }

    for (var first = start; first < end; first += TILE_COLUMNS) {
        workgroupBarrier();
        for (var i = thread; i < TILE_COLUMNS; i += WORKGROUP) {
            let position = min(first + i, end - 1u);
            slots[i] = (batch[table + position / PAGE] * PAGE + position % PAGE) * WIDTH;
        }
        workgroupBarrier();
        score(thread, token, head_first);

        var scores: array<f32, SCORES>;
        var highest = LOWEST;
        for (var i = 0u; i < SCORES; i++) {
            let position = i * ROW_THREADS + lane;
            scores[i] = select(LOWEST, sum_at(row, position) * p.scale, first + position < end);
            highest = max(highest, scores[i]);
        }
        row_parts[thread] = highest;
        workgroupBarrier();
        for (var i = 0u; i < ROW_THREADS; i++) {
            highest = max(highest, row_parts[row * ROW_THREADS + i]);
        }
        highest = max(highest, largest);
        let correction = exp(largest - highest);
        largest = highest;
        total *= correction;
        for (var i = 0u; i < SCORES; i++) {
            let weight = exp(scores[i] - highest);
            total += weight;
            weights[(i * ROW_THREADS + lane) * WEIGHT_STRIDE + (row >> 2u)][row & 3u] = weight;
        }
        if (lane == 0u) {
            corrections[row] = correction;
        }
        workgroupBarrier();

        for (var h = 0u; h < THREAD_HEADS; h++) {
            for (var r = 0u; r < ROUNDS; r++) {
                mix[r * THREAD_HEADS + h] *= corrections[heads_at + h];
            }
        }
        // Weights past the end are zero, keys there are the last position's.
        let count = min(TILE_COLUMNS, end - first);
        for (var i = 0u; i < count; i += 4u) {
            for (var r = 0u; r < ROUNDS; r++) {
                let cell = column + r * SPAN;
                if (cell < LATENT_CELLS) {
                    var keys: array<vec4<f32>, 4>;
                    for (var k = 0u; k < 4u; k++) {
                        keys[k] = key_cell(slots[i + k], cell);
                    }
                    for (var k = 0u; k < 4u; k++) {
                        for (var h = 0u; h < THREAD_HEADS; h += 4u) {
                            let weight = weights[(i + k) * WEIGHT_STRIDE + ((heads_at + h) >> 2u)];
                            let at = r * THREAD_HEADS + h;
                            mix[at] = fma(keys[k], vec4(weight.x), mix[at]);
                            mix[at + 1u] = fma(keys[k], vec4(weight.y), mix[at + 1u]);
                            mix[at + 2u] = fma(keys[k], vec4(weight.z), mix[at + 2u]);
                            mix[at + 3u] = fma(keys[k], vec4(weight.w), mix[at + 3u]);
                        }
                    }
                }
            }
        }
    }

    workgroupBarrier();
    row_parts[thread] = total;
    workgroupBarrier();
    if (lane == 0u && head_first + row < p.heads) {
        var sum = 0.0;
        for (var i = 0u; i < ROW_THREADS; i++) {
            sum += row_parts[row * ROW_THREADS + i];
        }
        stats[segment * p.heads + head_first + row] = vec2(largest, sum);
    }
    for (var h = 0u; h < THREAD_HEADS; h++) {
        let head = head_first + heads_at + h;
        for (var r = 0u; r < ROUNDS; r++) {
            let cell = column + r * SPAN;
            if (head < p.heads && cell < LATENT_CELLS) {
                parts[(segment * p.heads + head) * LATENT_CELLS + cell] = mix[r * THREAD_HEADS + h];
            }
        }
    }
}
