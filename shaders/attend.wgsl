// Causal attention of latent queries over the paged latent cache: `softmax(scale * q . [c | k_pe]) @ c`, not yet divided
// by the sum of its exponentials.
//
// A workgroup has TILE_COLUMNS heads of one token and one segment of its positions. All heads share the cached keys, so a
// key that is read is used by all of them. TILE_ROWS positions at a time: their scores are a tile product over slabs of
// the key's cells (tile.wgsl), the next slab being on its way while one is multiplied; then the softmax moves on; then
// each thread adds the weighted latents for one or a few cells of four columns. values.wgsl puts the segments together.

const WIDTH = LATENT + ROPE;
const WIDTH_CELLS = (WIDTH + 3u) / 4u;
const LATENT_CELLS = (LATENT + 3u) / 4u;
const ALIGNED = WIDTH % 4u == 0u;
const SLABS = (WIDTH_CELLS + SLAB - 1u) / SLAB;
const SLAB_ITEMS = (TILE_ROWS + TILE_COLUMNS) * SLAB;
const LOADS = (SLAB_ITEMS + WORKGROUP - 1u) / WORKGROUP;

// The scores of a group of four heads are weighed by so many threads, so many positions each.
const SCORERS = min(16u, WORKGROUP / COLUMN_GROUPS);
const SCORES = TILE_ROWS / SCORERS;

// SPAN threads have neighbouring cells of the result and the same groups of heads.
const THREAD_GROUPS = COLUMN_GROUPS * SPAN / WORKGROUP;
const ROUNDS = (LATENT_CELLS + SPAN - 1u) / SPAN;

@group(0) @binding(1) var<storage, read_write> parts: array<vec4<f32>>; // [segment, head, LATENT_CELLS]
@group(0) @binding(3) var<storage, read> cache: array<vec4<f32>>;

var<workgroup> slots: array<u32, TILE_ROWS>; // the first value of each position's key
var<workgroup> score_parts: array<vec4<f32>, SCORERS * COLUMN_GROUPS>;
var<workgroup> corrections: array<vec4<f32>, COLUMN_GROUPS>;

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

// One cell of a slab: of a key for the first TILE_ROWS lines, of a query for the others.
fn fetch(item: u32, slab: u32, token: u32, head_first: u32) -> vec4<f32> {
    let line = item / SLAB;
    let cell = slab * SLAB + item % SLAB;
    if (item >= SLAB_ITEMS || cell >= WIDTH_CELLS) {
        return vec4(0.0);
    }
    if (line < TILE_ROWS) {
        return key_cell(slots[line], cell);
    }
    let head = min(head_first + line - TILE_ROWS, p.heads - 1u);
    return query_cell((token * p.heads + head) * WIDTH, cell);
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
    var sums = Sums(vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0));
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
        sums = multiply(at, sums, select(1u, p.one, ROLLED == 1u));
        workgroupBarrier();
    }
    put_sums(at, sums);
    workgroupBarrier();
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let segment = segment_of(group.x);
    let here = segment_at(segment);
    let head_first = group.y * TILE_COLUMNS;

    // Of a scorer's four heads: the same for all its fellows, and its own share.
    let scorer = thread / COLUMN_GROUPS;
    let scored = thread % COLUMN_GROUPS;
    var largest = vec4(LOWEST);
    var total = vec4(0.0);

    let column = thread % SPAN;
    let group_first = thread / SPAN * THREAD_GROUPS;
    var mixed: array<vec4<f32>, 4u * THREAD_GROUPS * ROUNDS>;
    for (var i = 0u; i < 4u * THREAD_GROUPS * ROUNDS; i++) {
        mixed[i] = vec4(0.0);
    }

    for (var first = here.start; first < here.end; first += TILE_ROWS) {
        workgroupBarrier();
        if (thread < TILE_ROWS) { // there are more threads
            slots[thread] = slot_of(here, first + thread) * WIDTH;
        }
        workgroupBarrier();
        score(thread, here.token, head_first);

        var scores: array<vec4<f32>, SCORES>;
        var highest = vec4(LOWEST);
        if (scorer < SCORERS) {
            for (var i = 0u; i < SCORES; i++) {
                let row = i * SCORERS + scorer;
                scores[i] = select(vec4(LOWEST), sum_at(row, scored) * p.scale, first + row < here.end);
                highest = max(highest, scores[i]);
            }
            score_parts[thread] = highest;
        }
        workgroupBarrier();
        if (scorer < SCORERS) {
            for (var i = 0u; i < SCORERS; i += p.one) {
                highest = max(highest, score_parts[i * COLUMN_GROUPS + scored]);
            }
            highest = max(highest, largest);
            let correction = exp(largest - highest);
            largest = highest;
            total *= correction;
            for (var i = 0u; i < SCORES; i++) {
                // The weights take the place of the first team's sums: no other thread reads those.
                let weight = exp(scores[i] - highest);
                total += weight;
                cells[(i * SCORERS + scorer) * COLUMN_GROUPS + scored] = weight;
            }
            if (scorer == 0u) {
                corrections[scored] = correction;
            }
        }
        workgroupBarrier();

        for (var g = 0u; g < THREAD_GROUPS; g++) {
            let correction = corrections[group_first + g];
            for (var r = 0u; r < ROUNDS; r++) {
                let at = 4u * (r * THREAD_GROUPS + g);
                mixed[at] *= correction.x;
                mixed[at + 1u] *= correction.y;
                mixed[at + 2u] *= correction.z;
                mixed[at + 3u] *= correction.w;
            }
        }
        // Weights past the end are zero, keys there are the last position's.
        let count = min(TILE_ROWS, here.end - first);
        for (var i = 0u; i < count; i += 4u) {
            for (var r = 0u; r < ROUNDS; r++) {
                let cell = column + r * SPAN;
                if (cell < LATENT_CELLS) {
                    var keys: array<vec4<f32>, 4>;
                    for (var k = 0u; k < 4u; k++) {
                        keys[k] = key_cell(slots[i + k], cell);
                    }
                    for (var k = 0u; k < 4u; k++) {
                        for (var g = 0u; g < THREAD_GROUPS; g++) {
                            let weight = cells[(i + k) * COLUMN_GROUPS + group_first + g];
                            let at = 4u * (r * THREAD_GROUPS + g);
                            mixed[at] = fma(keys[k], vec4(weight.x), mixed[at]);
                            mixed[at + 1u] = fma(keys[k], vec4(weight.y), mixed[at + 1u]);
                            mixed[at + 2u] = fma(keys[k], vec4(weight.z), mixed[at + 2u]);
                            mixed[at + 3u] = fma(keys[k], vec4(weight.w), mixed[at + 3u]);
                        }
                    }
                }
            }
        }
    }

    workgroupBarrier();
    if (scorer < SCORERS) {
        score_parts[thread] = total;
    }
    workgroupBarrier();
    if (scorer == 0u) {
        var sum = vec4(0.0);
        for (var i = 0u; i < SCORERS; i += p.one) {
            sum += score_parts[i * COLUMN_GROUPS + scored];
        }
        for (var i = 0u; i < 4u; i++) {
            let head = head_first + column_of(scored, i);
            if (head < p.heads) {
                stats[segment * p.heads + head] = vec2(largest[i], sum[i]);
            }
        }
    }
    for (var g = 0u; g < THREAD_GROUPS; g++) {
        for (var i = 0u; i < 4u; i++) {
            let head = head_first + column_of(group_first + g, i);
            for (var r = 0u; r < ROUNDS; r++) {
                let cell = column + r * SPAN;
                if (head < p.heads && cell < LATENT_CELLS) {
                    parts[(segment * p.heads + head) * LATENT_CELLS + cell] = mixed[4u * (r * THREAD_GROUPS + g) + i];
                }
            }
        }
    }
}
