// Products of one token's activations with packed rows: `out[r] = sum_c x[c] * w[r, c]`. Of several tokens, each has
// workgroups of its own; those that read the same rows run side by side, so that the cache has them for all but one.
//
// ROWS    the rows of one matrix, or of two, one after the other (`second`). With SEVERAL tokens those are grid x
// GATHER  grid y is a choice of the only token: the rows of the chosen expert, for each its own outputs
// SUM     the rows of all chosen experts side by side, each with its own activations times its weight
// PAIRS   grid y is one of the (token, choice) pairs, which are sorted by expert. Its input is its token's row, or with
//         PER_PAIR its own; with WEIGHTED it is multiplied by the pair's weight
//
// A thread keeps the activations of one unit of 32 or 64 columns in registers (all choices' units side by side) and walks
// down the rows, a few at once so that many loads are under way. There is no barrier in that loop: neighbouring
// threads fold their sums (FOLD), the rest is summed at the end. With PAIR two matrices are multiplied and the result
// is silu(first) * second; with NORM the activations are RMS-normalised, by a factor on the results; with ADD the results
// are added to what is there.
//
// An expert's rows are in the binding that holds its part (`SOURCES`); the shared expert, which is every token's last
// choice, may be one more of them.

const ROWS = 0u;
const GATHER = 1u;
const SUM = 2u;
const PAIRS = 3u;

struct Params {
    rows: u32,          // outputs of a matrix or expert
    out_first: u32,     // where the first one goes
    second_block: u32,  // the first block of rows of the second matrix
    second_rows: u32,
    part_first: u32,    // experts: the part (of a pair the expert) that the first binding holds first,
    part_experts: u32,  // and how many a part has
    norm_eps: f32,
    x_first: u32,       // the first activation
    scale_base: vec4<u32>, // word offsets in the scales, of each source
    out_stride: u32,    // values between the outputs of tokens or pairs
    row_first: u32,     // of an expert, and its rows
    expert_rows: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<X>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read_write> second_out: array<f32>;
@group(0) @binding(3) var<storage, read> norm_or_tiles: array<Words>; // pairs: how many; then expert and place in `ids`
@group(0) @binding(4) var<storage, read> ids: array<u32>;             // or pairs, sorted by expert
@group(0) @binding(5) var<storage, read> weights: array<f32>;

const VIRTUAL = UNITS * select(1u, CHOICES, MODE == SUM); // units of a row, or of the rows side by side
const VALUES = STEP_ROWS * (PAIR + 1u);                   // sums of a step
const BLOCK = STEPS * STEP_ROWS * SLOTS;                  // rows of a workgroup
const OUTS = STEPS * VALUES * SLOTS;                      // sums of a workgroup
const QUADS = (COLS + 3u) / 4u;
const UNIT_QUADS = UNIT / 4u;
const LOADS = (VIRTUAL * UNIT_QUADS + WORKGROUP - 1u) / WORKGROUP;
const PER_ROUND = (VIRTUAL + ROUNDS - 1u) / ROUNDS; // units that are staged at once
const PITCH = UNIT + 1u;                            // floats of a staged unit, and one against bank conflicts
const KEPT_SUMS = select(OUTS * SPAN, STEPS * WORKGROUP, FOLD == 1u);

// Activations on their way to their threads, then the sums. Single floats: on Metal, threads that write parts of one
// vector lose each other's.
var<workgroup> cells: array<f32, max(PER_ROUND * PITCH, KEPT_SUMS)>;
var<workgroup> shares: array<f32, (OUTS + 1u) * SHARES>;
var<workgroup> squares: array<f32, WORKGROUP>;

// What a thread has of a step: its unit of each row, with scales and biases.
struct Fetched {
    words: array<array<u32, WORDS>, VALUES>,
    groups: array<array<vec2<f32>, PARTS>, VALUES>,
}

fn swiglu(gate: f32, up: f32) -> f32 {
    return gate / (1.0 + exp(-gate)) * up;
}

// The values of a step folded over neighbouring threads: thread i is left with value i % VALUES of VALUES threads.
fn fold(values: array<f32, VALUES>, thread: u32) -> f32 {
    var kept = values;
    var count = VALUES;
    for (var bit = 1u; bit < VALUES; bit = bit << 1u) {
        let high = (thread & bit) != 0u;
        count = count >> 1u;
        for (var i = 0u; i < count; i++) {
            let even = kept[2u * i];
            let odd = kept[2u * i + 1u];
            kept[i] = select(even, odd, high) + from_lane_xor(select(odd, even, high), bit);
        }
    }
    return kept[0];
}

// What a thread keeps.
struct Kept {
    prepared: Prepared,
    square: f32, // of the activations that the thread brought in
}

// Brings in the activations that begin at `x_at`. `v` is the thread's unit, where it `has` one.
fn keep(thread: u32, x_at: u32, v: u32, has: bool, factor: f32) -> Kept {
    // Runs of memory into registers, and through shared memory to the threads that need them.
    var square = 0.0;
    var quads: array<vec4<f32>, LOADS>;
    for (var i = 0u; i < LOADS; i++) {
        let cell = i * WORKGROUP + thread;
        let column = cell / UNIT_QUADS % UNITS * UNIT_QUADS + cell % UNIT_QUADS;
        quads[i] = vec4(0.0);
        if (cell < VIRTUAL * UNIT_QUADS && column < QUADS) {
            quads[i] = quad_of_x(x_at + cell / UNIT_QUADS / UNITS * COLS, column);
            if (NORM == 1u) {
                square += dot(quads[i], quads[i]);
                quads[i] *= quad_of_norm(column);
            }
        }
    }
    var values: array<vec4<f32>, UNIT_QUADS>;
    for (var q = 0u; q < UNIT_QUADS; q++) {
        values[q] = vec4(0.0);
    }
    for (var round = 0u; round < ROUNDS; round++) {
        if (round > 0u) {
            workgroupBarrier();
        }
        for (var i = 0u; i < LOADS; i++) {
            let cell = i * WORKGROUP + thread;
            let at = cell / UNIT_QUADS - round * PER_ROUND;
            if (at < PER_ROUND && cell < VIRTUAL * UNIT_QUADS) {
                for (var k = 0u; k < 4u; k++) {
                    cells[at * PITCH + cell % UNIT_QUADS * 4u + k] = quads[i][k];
                }
            }
        }
        workgroupBarrier();
        if (has && v - round * PER_ROUND < PER_ROUND) {
            for (var q = 0u; q < UNIT_QUADS; q++) {
                let at = (v - round * PER_ROUND) * PITCH + 4u * q;
                values[q] = vec4(cells[at], cells[at + 1u], cells[at + 2u], cells[at + 3u]);
            }
        }
    }
    workgroupBarrier();
    return Kept(prepare(values, factor), square);
}

// The sums of a step, and where they are added up later.
fn multiply(thread: u32, at: u32, fetched: ptr<function, Fetched>, kept: Prepared) {
    var results: array<f32, VALUES>;
    for (var i = 0u; i < VALUES; i++) {
        results[i] = unit_product((*fetched).words[i], (*fetched).groups[i], kept);
    }
    if (FOLD == 1u) {
        cells[at * WORKGROUP + thread] = fold(results, thread);
    } else if (thread < SLOTS * SPAN) {
        for (var i = 0u; i < VALUES; i++) {
            cells[((at * SLOTS + thread / SPAN) * VALUES + i) * SPAN + thread % SPAN] = results[i];
        }
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) block: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let slot = thread / SPAN;
    let lane = thread % SPAN;
    let busy = slot < SLOTS && lane < VIRTUAL;
    let v = min(lane, VIRTUAL - 1u);
    let unit = v % UNITS;
    let several = MODE == ROWS && SEVERAL == 1u;
    let row_block = select(block.x, block.y, several);
    let item = select(block.y, block.x, several); // the token, choice or pair
    let second = MODE == ROWS && row_block >= p.second_block;

    // Which activations, which expert, and where its rows are.
    var x_line = item;
    var out_line = item;
    var factor = 1.0;
    var index = 0u;
    var source = 0u;
    var mine = true;
    if (MODE == ROWS) {
        source = select(0u, 1u, second);
    } else if (MODE == PAIRS) {
        if (item >= tile_at(0u).x) {
            return;
        }
        let tile = tile_at(item + 1u);
        index = tile.x - p.part_first;
        if (index >= p.part_experts) {
            return;
        }
        out_line = ids[tile.y];
        x_line = select(out_line / CHOSEN, out_line, PER_PAIR == 1u);
        if (WEIGHTED == 1u) {
            factor = weights[out_line];
        }
    } else {
        let choice = select(item, v / UNITS, MODE == SUM);
        if (SHARED == 1u && choice == CHOICES - 1u) {
            source = SOURCES - 1u;
        } else {
            let part = ids[choice] / p.part_experts;
            index = ids[choice] - part * p.part_experts;
            source = part - p.part_first;
            mine = source < SOURCES - SHARED; // or another dispatch has them
        }
        if (!mine && MODE == GATHER) {
            return;
        }
        source = select(0u, source, mine);
        index = select(0u, index, mine);
        x_line = 0u;
        if (MODE == SUM && choice < CHOICES - SHARED) {
            factor = weights[choice];
        }
    }
    if (SOURCES == 1u) {
        source = 0u;
    }
    let first_matrix = source * (PAIR + 1u);
    let scale_base = p.scale_base[source];

    let kept = keep(thread, p.x_first + x_line * COLS, v, busy && mine, factor);

    let rows = select(p.rows, p.second_rows, second);
    let first_row = select(row_block, row_block - p.second_block, second) * BLOCK;
    for (var step = 0u; step < STEPS; step++) {
        // STEP_ROWS divides the rows: a step has all of its rows, or stands in for one that has none.
        let row = min(first_row + (step * SLOTS + slot) * STEP_ROWS, rows - STEP_ROWS);
        let row_at = index * p.expert_rows + p.row_first + row;
        var fetched: Fetched;
        switch first_matrix {
            case 1u: { m1_fetch(index, row_at, unit, scale_base, &fetched); }
            case 2u: { m2_fetch(index, row_at, unit, scale_base, &fetched); }
            case 3u: { m3_fetch(index, row_at, unit, scale_base, &fetched); }
            case 4u: { m4_fetch(index, row_at, unit, scale_base, &fetched); }
            case 5u: { m5_fetch(index, row_at, unit, scale_base, &fetched); }
            default: { m0_fetch(index, row_at, unit, scale_base, &fetched); }
        }
        multiply(thread, step, &fetched, kept.prepared);
    }
    if (NORM == 1u) {
        squares[thread] = kept.square;
    }
    workgroupBarrier();

    // SHARES threads for each sum, then one.
    let share = thread % SHARES;
    for (var o = thread / SHARES; o < OUTS; o += WORKGROUP / SHARES) {
        var sum = 0.0;
        if (FOLD == 1u) {
            let at = (o / VALUES) / SLOTS * WORKGROUP + (o / VALUES) % SLOTS * SPAN + o % VALUES;
            for (var i = VALUES * share; i < SPAN; i += VALUES * SHARES) {
                sum += cells[at + i];
            }
        } else {
            for (var i = share; i < SPAN; i += SHARES) {
                sum += cells[o * SPAN + i];
            }
        }
        shares[o * SHARES + share] = sum;
    }
    if (NORM == 1u && thread < SHARES) {
        var sum = 0.0;
        for (var i = thread; i < WORKGROUP; i += SHARES) {
            sum += squares[i];
        }
        shares[OUTS * SHARES + thread] = sum;
    }
    workgroupBarrier();
    for (var o = thread; o < BLOCK; o += WORKGROUP) {
        let at = (o / STEP_ROWS * VALUES + o % STEP_ROWS * (PAIR + 1u)) * SHARES;
        var result = 0.0;
        for (var i = 0u; i < SHARES; i++) {
            result += shares[at + i];
        }
        var norm = 1.0;
        if (NORM == 1u) {
            var sum = 0.0;
            for (var i = 0u; i < SHARES; i++) {
                sum += shares[OUTS * SHARES + i];
            }
            norm = 1.0 / sqrt(sum / f32(COLS) + p.norm_eps);
        }
        result *= norm;
        if (PAIR == 1u) {
            var other = 0.0;
            for (var i = 0u; i < SHARES; i++) {
                other += shares[at + SHARES + i];
            }
            result = swiglu(result, other * norm);
        }
        let row = first_row + o;
        if (row < rows) {
            if (second) {
                second_out[item * p.second_rows + row] = result;
            } else {
                let to = p.out_first + out_line * p.out_stride + row;
                if (ADD == 1u) {
                    result += out[to];
                }
                out[to] = result;
            }
        }
    }
}
