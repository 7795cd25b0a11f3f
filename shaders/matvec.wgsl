// One token's activations times packed rows: `out[r] = sum_c x[c] * w[r, c]`.
//
// ROWS    the rows of one matrix, or of two, one after the other (`second`), that read the same activations
// GATHER  grid y is a choice: the rows of the chosen expert, for each its own outputs
// SUM     the rows of all chosen experts side by side, each with its own activations times its weight
//
// A thread keeps the activations of one unit of 32 or 64 columns in registers (all choices' units side by side) and walks
// down the rows, a few at once so that many loads are under way. There is no barrier in that loop: neighbouring
// threads fold their sums (FOLD), the rest is summed at the end. With PAIR two matrices are multiplied and the result
// is silu(first) * second; with NORM the activations are RMS-normalised, by a factor on the results; with ADD the
// results are added to what is there.
//
// An expert's rows are in the binding that holds its part (`SOURCES`); the shared expert, which is every token's last
// choice, may be one more of them.

const ROWS = 0u;
const GATHER = 1u;
const SUM = 2u;

struct Params {
    rows: u32,          // outputs of a matrix or expert
    out_first: u32,     // where the first one goes
    second_block: u32,  // the first block of rows of the second matrix
    second_rows: u32,
    part_first: u32,    // experts: the part that the first binding holds, and how many a part has
    part_experts: u32,
    norm_eps: f32,
    x_first: u32,       // the first activation
    scale_base: vec4<u32>, // word offsets in the scales, of each source
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<X>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read_write> second_out: array<f32>;
@group(0) @binding(3) var<storage, read> norm_weight: array<X>;
@group(0) @binding(4) var<storage, read> ids: array<u32>;
@group(0) @binding(5) var<storage, read> weights: array<f32>;

const VIRTUAL = UNITS * select(1u, CHOICES, MODE == SUM); // units of a row, or of the rows side by side
const VALUES = STEP_ROWS * (PAIR + 1u);                   // sums of a step
const BLOCK = STEPS * STEP_ROWS * SLOTS;                  // rows of a workgroup
const OUTS = STEPS * VALUES * SLOTS;
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

fn load(matrix: u32, unit: u32) -> array<u32, WORDS> {
    switch matrix {
        case 1u: { return m1_load(unit); }
        case 2u: { return m2_load(unit); }
        case 3u: { return m3_load(unit); }
        case 4u: { return m4_load(unit); }
        case 5u: { return m5_load(unit); }
        default: { return m0_load(unit); }
    }
}

fn group(matrix: u32, index: u32, row: u32, unit: u32, part: u32, scale_base: u32) -> vec2<f32> {
    switch matrix {
        case 1u: { return m1_group(index, row, unit, part, scale_base); }
        case 2u: { return m2_group(index, row, unit, part, scale_base); }
        case 3u: { return m3_group(index, row, unit, part, scale_base); }
        case 4u: { return m4_group(index, row, unit, part, scale_base); }
        case 5u: { return m5_group(index, row, unit, part, scale_base); }
        default: { return m0_group(index, row, unit, part, scale_base); }
    }
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

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) block: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let slot = thread / SPAN;
    let lane = thread % SPAN;
    let busy = slot < SLOTS && lane < VIRTUAL;
    let v = min(lane, VIRTUAL - 1u);
    let unit = v % UNITS;
    let second = MODE == ROWS && block.x >= p.second_block;

    // Which expert, and where its rows are.
    var index = 0u;
    var source = 0u;
    var mine = true;
    var choice = 0u;
    if (MODE == ROWS) {
        source = select(0u, 1u, second);
    } else {
        choice = select(block.y, v / UNITS, MODE == SUM);
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
    }
    if (SOURCES == 1u) {
        source = 0u;
    }
    let first_matrix = source * (PAIR + 1u);
    let scale_base = p.scale_base[source];

    // Runs of memory into registers, and through shared memory to the threads that need them.
    var square = 0.0;
    var quads: array<vec4<f32>, LOADS>;
    for (var i = 0u; i < LOADS; i++) {
        let cell = i * WORKGROUP + thread;
        let column = cell / UNIT_QUADS % UNITS * UNIT_QUADS + cell % UNIT_QUADS;
        quads[i] = vec4(0.0);
        if (cell < VIRTUAL * UNIT_QUADS && column < QUADS) {
            quads[i] = quad_of_x(p.x_first + cell / UNIT_QUADS / UNITS * COLS, column);
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
        if (busy && mine && v - round * PER_ROUND < PER_ROUND) {
            for (var q = 0u; q < UNIT_QUADS; q++) {
                let at = (v - round * PER_ROUND) * PITCH + 4u * q;
                values[q] = vec4(cells[at], cells[at + 1u], cells[at + 2u], cells[at + 3u]);
            }
        }
    }
    workgroupBarrier();
    var factor = 1.0;
    if (MODE == SUM && choice < CHOICES - SHARED) {
        factor = weights[choice];
    }
    let prepared = prepare(values, factor);

    let rows = select(p.rows, p.second_rows, second);
    let first_row = select(block.x, block.x - p.second_block, second) * BLOCK;
    for (var step = 0u; step < STEPS; step++) {
        // STEP_ROWS divides the rows: a step has all of its rows, or stands in for one that has none.
        let row_at = min(first_row + (step * SLOTS + slot) * STEP_ROWS, rows - STEP_ROWS) + index * p.rows;
        let unit_at = row_at * UNITS + unit;
        var words: array<array<u32, WORDS>, VALUES>;
        var groups: array<array<vec2<f32>, PARTS>, VALUES>;
        for (var i = 0u; i < VALUES; i++) {
            let matrix = first_matrix + select(0u, i & 1u, PAIR == 1u);
            let row = row_at + select(i, i >> 1u, PAIR == 1u);
            words[i] = load(matrix, unit_at + select(i, i >> 1u, PAIR == 1u) * UNITS);
            for (var part = 0u; part < PARTS; part++) {
                groups[i][part] = group(matrix, index, row, unit, part, scale_base);
            }
        }
        var results: array<f32, VALUES>;
        for (var i = 0u; i < VALUES; i++) {
            results[i] = unit_product(words[i], groups[i], prepared);
        }
        if (FOLD == 1u) {
            cells[step * WORKGROUP + thread] = fold(results, thread);
        } else if (slot < SLOTS) {
            for (var i = 0u; i < VALUES; i++) {
                let at = ((step * SLOTS + slot) * VALUES + i) * SPAN + lane;
                cells[at] = results[i];
            }
        }
    }
    if (NORM == 1u) {
        squares[thread] = square;
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
                second_out[row] = result;
            } else {
                let to = select(0u, block.y * p.rows, MODE == GATHER) + p.out_first + row;
                if (ADD == 1u) {
                    result += out[to];
                }
                out[to] = result;
            }
        }
    }
}
