// Products of one line of activations, or a few, with packed rows: `out[r] = sum_c x[c] * w[r, c]`.
//
// ROWS    LINES neighbouring tokens (grid y) and the rows of one matrix, or of two, one after the other (`second`)
// GATHER  grid y is a choice of the only token: the rows of the chosen expert, for each its own outputs
// SUM     the rows of all chosen experts side by side, each with its own activations times its weight
// TILES   grid y is a tile: up to LINES (token, choice) pairs that chose the same expert. A line's input is its token's
//         row, or with PER_PAIR the pair's own; with WEIGHTED it is multiplied by the pair's weight
//
// A thread keeps the activations of one unit of 32 or 64 columns in registers (all choices' units side by side) and walks
// down the rows, a few at once so that many loads are under way. There is no barrier in that loop: neighbouring
// threads fold their sums (FOLD), the rest is summed at the end. With PAIR two matrices are multiplied and the result
// is silu(first) * second; with NORM the activations of the only line are RMS-normalised, by a factor on the results;
// with ADD the results are added to what is there.
//
// An expert's rows are in the binding that holds its part (`SOURCES`); the shared expert, which is every token's last
// choice, may be one more of them.

const ROWS = 0u;
const GATHER = 1u;
const SUM = 2u;
const TILES = 3u;

struct Params {
    rows: u32,          // outputs of a matrix or expert
    out_first: u32,     // where the first one goes
    second_block: u32,  // the first block of rows of the second matrix
    second_rows: u32,
    part_first: u32,    // experts: the part (of a tile the expert) that the first binding holds first,
    part_experts: u32,  // and how many a part has
    norm_eps: f32,
    x_first: u32,       // the first activation
    scale_base: vec4<u32>, // word offsets in the scales, of each source
    tokens: u32,
    out_stride: u32,    // values between lines of outputs
    row_first: u32,     // of an expert, and its rows
    expert_rows: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<X>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read_write> second_out: array<f32>;
@group(0) @binding(3) var<storage, read> norm_or_tiles: array<Words>; // tiles: how many; then expert, first pair, count
@group(0) @binding(4) var<storage, read> ids: array<u32>;             // or pairs, sorted by expert
@group(0) @binding(5) var<storage, read> weights: array<f32>;

const VIRTUAL = UNITS * select(1u, CHOICES, MODE == SUM); // units of a row, or of the rows side by side
const VALUES = STEP_ROWS * (PAIR + 1u);                   // sums of a step, of each line
const BLOCK = STEPS * STEP_ROWS * SLOTS;                  // rows of a workgroup
const OUTS = STEPS * VALUES * SLOTS;                      // sums of a line
const QUADS = (COLS + 3u) / 4u;
const UNIT_QUADS = UNIT / 4u;
const LOADS = (VIRTUAL * UNIT_QUADS + WORKGROUP - 1u) / WORKGROUP;
const PER_ROUND = (VIRTUAL + ROUNDS - 1u) / ROUNDS; // units that are staged at once
const PITCH = UNIT + 1u;                            // floats of a staged unit, and one against bank conflicts
const KEPT_SUMS = LINES * select(OUTS * SPAN, STEPS * WORKGROUP, FOLD == 1u);

// Activations on their way to their threads, then the sums. Single floats: on Metal, threads that write parts of one
// vector lose each other's.
var<workgroup> cells: array<f32, max(PER_ROUND * PITCH, KEPT_SUMS)>;
var<workgroup> shares: array<f32, (LINES * OUTS + 1u) * SHARES>;
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

// What a thread keeps of a line.
struct Kept {
    prepared: Prepared,
    square: f32, // of the activations that the thread brought in
}

// Brings in a line of activations that begins at `x_at`. `v` is the thread's unit, where it `has` one.
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

// Line `line`, or the last one, of a workgroup that has `count` of them from `first` on.
fn keep_line(thread: u32, line: u32, first: u32, count: u32, v: u32, has: bool) -> Kept {
    var at = first + min(line, count - 1u);
    var factor = 1.0;
    if (MODE == TILES) {
        let pair = ids[at];
        at = select(pair / CHOSEN, pair, PER_PAIR == 1u);
        if (WEIGHTED == 1u) {
            factor = weights[pair];
        }
    }
    return keep(thread, p.x_first + at * COLS, v, has, factor);
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
    var line_first = block.y * LINES;
    var line_count = min(LINES, p.tokens - line_first);
    if (MODE == ROWS) {
        source = select(0u, 1u, second);
    } else if (MODE == TILES) {
        if (block.y >= tile_at(0u).x) {
            return;
        }
        let tile = tile_at(block.y + 1u);
        index = tile.x - p.part_first;
        if (index >= p.part_experts) {
            return;
        }
        line_first = tile.y;
        line_count = tile.z;
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

    // One by one, so that they are registers whatever a compiler makes of loops.
    var kept: array<Prepared, LINES>;
    var square = 0.0;
    if (MODE == ROWS || MODE == TILES) {
        let one = keep_line(thread, 0u, line_first, line_count, v, busy);
        kept[0] = one.prepared;
        square = one.square;
        if (LINES > 1u) {
            kept[1u % LINES] = keep_line(thread, 1u, line_first, line_count, v, busy).prepared;
        }
        if (LINES > 2u) {
            kept[2u % LINES] = keep_line(thread, 2u, line_first, line_count, v, busy).prepared;
        }
        if (LINES > 3u) {
            kept[3u % LINES] = keep_line(thread, 3u, line_first, line_count, v, busy).prepared;
        }
    } else {
        var factor = 1.0;
        if (MODE == SUM && choice < CHOICES - SHARED) {
            factor = weights[choice];
        }
        let one = keep(thread, p.x_first, v, busy && mine, factor);
        kept[0] = one.prepared;
        square = one.square;
    }

    let rows = select(p.rows, p.second_rows, second);
    let first_row = select(block.x, block.x - p.second_block, second) * BLOCK;
    for (var step = 0u; step < STEPS; step++) {
        // STEP_ROWS divides the rows: a step has all of its rows, or stands in for one that has none.
        let row_here = min(first_row + (step * SLOTS + slot) * STEP_ROWS, rows - STEP_ROWS);
        let row_at = index * p.expert_rows + p.row_first + row_here;
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
        for (var line = 0u; line < LINES; line++) {
            if (line > 0u && line >= line_count) {
                continue;
            }
            var results: array<f32, VALUES>;
            for (var i = 0u; i < VALUES; i++) {
                results[i] = unit_product(words[i], groups[i], kept[line]);
            }
            let at = line * STEPS + step;
            if (FOLD == 1u) {
                cells[at * WORKGROUP + thread] = fold(results, thread);
            } else if (slot < SLOTS) {
                for (var i = 0u; i < VALUES; i++) {
                    cells[((at * SLOTS + slot) * VALUES + i) * SPAN + lane] = results[i];
                }
            }
        }
    }
    if (NORM == 1u) {
        squares[thread] = square;
    }
    workgroupBarrier();

    // SHARES threads for each sum, then one.
    let share = thread % SHARES;
    for (var o = thread / SHARES; o < LINES * OUTS; o += WORKGROUP / SHARES) {
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
        shares[LINES * OUTS * SHARES + thread] = sum;
    }
    workgroupBarrier();
    for (var i = thread; i < LINES * BLOCK; i += WORKGROUP) {
        let line = i / BLOCK;
        let o = i % BLOCK;
        let at = (line * OUTS + o / STEP_ROWS * VALUES + o % STEP_ROWS * (PAIR + 1u)) * SHARES;
        var result = 0.0;
        for (var i = 0u; i < SHARES; i++) {
            result += shares[at + i];
        }
        var norm = 1.0;
        if (NORM == 1u) {
            var sum = 0.0;
            for (var i = 0u; i < SHARES; i++) {
                sum += shares[LINES * OUTS * SHARES + i];
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
        if (row < rows && (LINES == 1u || line < line_count)) {
            if (second) {
                second_out[(line_first + line) * p.second_rows + row] = result;
            } else {
                var to = p.out_first + row;
                if (MODE == ROWS) {
                    to += (line_first + line) * p.out_stride;
                } else if (MODE == GATHER) {
                    to += block.y * p.rows;
                } else if (MODE == TILES) {
                    to += ids[line_first + line] * p.out_stride;
                }
                if (ADD == 1u) {
                    result += out[to];
                }
                out[to] = result;
            }
        }
    }
}
