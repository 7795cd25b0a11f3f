// Products of one token's activations with packed rows: `out[r] = sum_c x[c] * w[r, c]`. Of several tokens, each has
// workgroups of its own; those that read the same rows run side by side, so that the cache has them for all but one.
//
// ROWS    the rows of one matrix, or of two, one after the other (`second`). Of `several` tokens, those are grid x
// GATHER  grid y is a choice of the only token: the rows of the chosen expert, for each its own outputs
// SUM     the rows of all chosen experts side by side, each with its own activations times its weight
// ROUTED  grid y is one of the (token, choice) pairs, which are sorted by expert. Its input is its token's row, or with
//         OWN_INPUT a row of its own; with WEIGHTED its result is multiplied by its weight
//
// A thread keeps the activations of one unit of 32 or 64 columns in registers (all choices' units side by side, with TURNS
// above 1 some of them after the others) and walks down the rows, a few at once so that many loads are under way. There is no barrier in that loop: runs of neighbouring
// threads fold their sums, and at the end a thread for each output adds those of all runs. With GATED there are two matrices, gate
// and up, and the result is silu(gate) * up; with `norm` the activations are RMS-normalised, by a factor on the
// results; with `add` the results are added to what is there.
//
// An expert's rows are in the binding that holds its part (`SOURCES`); the shared expert, which is every token's last
// choice, may be one more of them.
//
// The code of all kernels of a layer should stay in the cache for instructions (128 KB on an H100): fetching it takes
// longer than the small products themselves. So the loop over steps is not unrolled, and for ROWS the sizes of the matrix
// are parameters: all of a layer's dense projections run the same code.

const ROWS = 0u;
const GATHER = 1u;
const SUM = 2u;
const ROUTED = 3u;

struct Params {
    rows: u32,          // outputs of a matrix or expert
    out_first: u32,     // where the first one goes
    second_block: u32,  // the first block of rows of the second matrix
    second_rows: u32,
    part_first: u32,    // experts: the part (with ROUTED the expert) that the first binding begins with,
    part_experts: u32,  // and how many experts a part has
    norm_eps: f32,
    x_first: u32,       // the first activation
    scale_base: vec4<u32>, // word offsets in the scales, of each source
    out_stride: u32,    // values between the outputs of tokens or pairs
    row_first: u32,     // of an expert, and its rows
    expert_rows: u32,
    cols: u32,
    units: u32,         // of a row, and its groups of scales
    groups: u32,
    span: u32,
    slots: u32,
    steps: u32,
    norm: u32,
    add: u32,
    turns: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<X>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read_write> second_out: array<f32>;
@group(0) @binding(3) var<storage, read> norm_or_tiles: array<Words>; // pairs: how many; then expert and place in `ids`
@group(0) @binding(4) var<storage, read> ids: array<u32>;             // or pairs, sorted by expert
@group(0) @binding(5) var<storage, read> weights: array<f32>;

// Sizes that are constants (sizes_fixed.wgsl) or parameters (sizes_varied.wgsl).
struct Sizes {
    cols: u32,
    units: u32,   // of a row
    beside: u32,  // units of a row, or of the rows side by side
    turn: u32,    // of these at a time: as many as threads multiply at once
    span: u32,    // threads on them: a multiple of RUN
    slots: u32,   // rows beneath each other
    norm: u32,
    add: u32,
    several: u32,
}

const VALUES = STEP_ROWS * (GATED + 1u); // sums of a step
const RUNS = WORKGROUP / RUN;           // runs of threads that fold their sums
const UNIT_QUADS = UNIT / 4u;
const PITCH = UNIT_QUADS + 1u;          // quads of a staged unit, and one against bank conflicts
const MAX_TURNS = 2u;                   // TURNS is 1, or this for any more

var<workgroup> staged: array<vec4<f32>, STAGED * PITCH>; // activations on their way to their threads
var<workgroup> sums: array<f32, MAX_STEPS * RUNS * VALUES>;

// What a thread has of a step: its unit of each row, with scales and biases.
struct Fetched {
    words: array<array<u32, WORDS>, VALUES>,
    groups: array<array<vec2<f32>, PARTS>, VALUES>,
}

fn swiglu(gate: f32, up: f32) -> f32 {
    return gate / (1.0 + exp(-gate)) * up;
}

// The values of a step folded over the RUN threads of a run: thread i is left with value i % VALUES.
fn fold(values: array<f32, VALUES>, thread: u32) -> f32 {
    var kept = values;
    @unroll for (var bit = 1u; bit < VALUES; bit <<= 1u) {
        let high = (thread & bit) != 0u;
        @unroll for (var i = 0u; i < VALUES / (2u * bit); i++) {
            let even = kept[2u * i];
            let odd = kept[2u * i + 1u];
            kept[i] = select(even, odd, high) + from_lane_xor(select(odd, even, high), bit);
        }
    }
    @unroll for (var bit = VALUES; bit < RUN; bit <<= 1u) {
        kept[0] += from_lane_xor(kept[0], bit);
    }
    return kept[0];
}

// What a thread keeps.
struct Kept {
    prepared: Prepared,
    square: f32, // of all activations, with `norm`
}

// Brings in the activations of the turn that begins with unit `first_unit` of those at `x_at`. `v` is the thread's unit of the
// turn, where it `has` one.
fn keep(thread: u32, s: Sizes, x_at: u32, first_unit: u32, v: u32, has: bool, factor: f32) -> Kept {
    // Runs of memory into registers, and through shared memory to the threads that need them. All loads before the first
    // use, and none in a branch of its own: they come from far.
    let units = select(min(s.turn, s.beside - first_unit), s.beside, TURNS == 1u);
    let cells = units * UNIT_QUADS;
    let first_cell = first_unit * UNIT_QUADS;
    let row_quads = (s.cols + 3u) / 4u;
    var quads: array<vec4<f32>, LOADS>;
    @unroll for (var i = 0u; i < LOADS; i++) {
        let cell = first_cell + min(i * WORKGROUP + thread, cells - 1u);
        if (RAGGED == 0u) {
            quads[i] = quad_of_x(x_at, cell); // whole units: the next row follows
        } else {
            let row = cell / UNIT_QUADS / s.units;
            quads[i] = quad_of_x(x_at + row * s.cols, min(cell - row * s.units * UNIT_QUADS, row_quads - 1u));
        }
    }
    var square = 0.0;
    if (s.norm == 1u) {
        @unroll for (var i = 0u; i < LOADS; i++) {
            let cell = first_cell + i * WORKGROUP + thread;
            let counts = cell < row_quads && (TURNS == 1u || cell < first_cell + cells);
            square += select(0.0, dot(quads[i], quads[i]), counts);
            quads[i] *= quad_of_norm(min(cell, row_quads - 1u));
        }
        square = workgroup_sum(square, thread);
    }
    var values: array<vec4<f32>, UNIT_QUADS>;
    @unroll for (var q = 0u; q < UNIT_QUADS; q++) {
        values[q] = vec4(0.0);
    }
    for (var first = 0u; first < units; first += STAGED) {
        if (first > 0u || first_unit > 0u) {
            workgroupBarrier();
        }
        @unroll for (var i = 0u; i < LOADS; i++) {
            let cell = i * WORKGROUP + thread;
            let at = cell / UNIT_QUADS - first;
            if (at < STAGED && cell < cells) {
                let column = (cell / UNIT_QUADS + first_unit) % s.units * UNIT_QUADS + cell % UNIT_QUADS;
                let inside = RAGGED == 0u || column < row_quads;
                staged[at * PITCH + cell % UNIT_QUADS] = select(vec4(0.0), quads[i], inside);
            }
        }
        workgroupBarrier();
        if (has && v - first < STAGED) {
            @unroll for (var q = 0u; q < UNIT_QUADS; q++) {
                values[q] = staged[(v - first) * PITCH + q];
            }
        }
    }
    return Kept(prepare(values, factor), square);
}

// An expert, or a matrix.
struct Chosen {
    source: u32,
    index: u32,  // of those in the source
    factor: f32, // what its activations are multiplied by
    mine: bool,  // or another dispatch has it
}

fn choice_at(choice: u32) -> Chosen {
    let factor = select(1.0, weights[min(choice, max(CHOICES - SHARED, 1u) - 1u)], MODE == SUM && choice < CHOICES - SHARED);
    if (SHARED == 1u && choice == CHOICES - 1u) {
        return Chosen(SOURCES - 1u, 0u, factor, true);
    }
    let id = ids[choice];
    let part = id / p.part_experts;
    let source = part - p.part_first;
    let mine = source < SOURCES - SHARED;
    return Chosen(select(0u, source, mine), select(0u, id - part * p.part_experts, mine), factor, mine);
}

// Keeps a sum; of a later turn, with what the same thread kept before.
fn store(at: u32, first_unit: u32, value: f32) {
    if (TURNS > 1u && first_unit > 0u) {
        sums[at] += value;
    } else {
        sums[at] = value;
    }
}

// What a thread does in every turn.
struct Work {
    thread: u32,
    slot: u32,
    lane: u32,
    busy: bool,     // whether it has a unit
    x_at: u32,      // first activation
    chosen: Chosen, // with SUM of each turn
    rows: u32,
    first_row: u32,
}

// Brings in a turn's activations and adds their products with all rows to `sums`. Returns the sum of their squares, with `norm`.
fn multiply(s: Sizes, work: Work, turn: u32) -> f32 {
    let first_unit = turn * s.turn;
    let v = min(first_unit + min(work.lane, s.turn - 1u), s.beside - 1u);
    var chosen = work.chosen;
    if (MODE == SUM) {
        chosen = choice_at(v / s.units);
    }
    let unit = select(v, v % s.units, MODE == SUM);
    let source = select(chosen.source, 0u, SOURCES == 1u);
    let first_matrix = source * (GATED + 1u);
    let scale_base = p.scale_base[source];
    let has = work.busy && chosen.mine && (TURNS == 1u || first_unit + work.lane < s.beside);
    let kept = keep(work.thread, s, work.x_at, first_unit, v - first_unit, has, chosen.factor);
    for (var step = 0u; step < p.steps; step++) {
        // STEP_ROWS divides the rows. A step past the end repeats the last rows; its results are dropped.
        let row = min(work.first_row + (step * s.slots + work.slot) * STEP_ROWS, work.rows - STEP_ROWS);
        let row_at = chosen.index * p.expert_rows + p.row_first + row;
        var fetched: Fetched;
        switch first_matrix {
            case 1u: { m1_fetch(chosen.index, row_at, unit, scale_base, &fetched); }
            case 2u: { m2_fetch(chosen.index, row_at, unit, scale_base, &fetched); }
            case 3u: { m3_fetch(chosen.index, row_at, unit, scale_base, &fetched); }
            case 4u: { m4_fetch(chosen.index, row_at, unit, scale_base, &fetched); }
            case 5u: { m5_fetch(chosen.index, row_at, unit, scale_base, &fetched); }
            default: { m0_fetch(chosen.index, row_at, unit, scale_base, &fetched); }
        }
        var results: array<f32, VALUES>;
        @unroll for (var i = 0u; i < VALUES; i++) {
            results[i] = unit_product(fetched.words[i], fetched.groups[i], kept.prepared);
        }
        if (RUN > 1u) {
            let result = fold(results, work.thread);
            if (work.thread % RUN < VALUES) {
                store((step * RUNS + work.thread / RUN) * VALUES + work.thread % RUN, first_unit, result);
            }
        } else {
            @unroll for (var i = 0u; i < VALUES; i++) {
                store((step * RUNS + work.thread) * VALUES + i, first_unit, results[i]);
            }
        }
    }
    return kept.square;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) block: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let s = sizes();
    let slot = thread / s.span;
    let lane = thread % s.span;
    let busy = slot < s.slots && lane < s.turn;
    let several = MODE == ROWS && s.several == 1u;
    let row_block = select(block.x, block.y, several);
    let item = select(block.y, block.x, several); // the token, the choice, or the (token, choice) pair
    let second = MODE == ROWS && row_block >= p.second_block;

    // Which activations, which expert, and where its rows are.
    var x_line = select(item, 0u, MODE == GATHER || MODE == SUM);
    var out_line = item;
    var chosen = Chosen(select(0u, 1u, second), 0u, 1.0, true);
    if (MODE == ROUTED) {
        if (item >= tile_at(0u).x) {
            return;
        }
        let tile = tile_at(item + 1u);
        chosen.index = tile.x - p.part_first;
        if (chosen.index >= p.part_experts) {
            return;
        }
        out_line = ids[tile.y];
        x_line = select(out_line / CHOSEN, out_line, OWN_INPUT == 1u);
        if (WEIGHTED == 1u) {
            chosen.factor = weights[out_line];
        }
    } else if (MODE == GATHER) {
        chosen = choice_at(item);
        if (!chosen.mine) {
            return;
        }
    }

    let rows = select(p.rows, p.second_rows, second);
    let block_rows = p.steps * s.slots * STEP_ROWS;
    let first_row = select(row_block, row_block - p.second_block, second) * block_rows;
    let work = Work(thread, slot, lane, busy, p.x_first + x_line * s.cols, chosen, rows, first_row);
    var square = 0.0;
    // One turn is no loop, not even of one round.
    @unroll for (var turn = 0u; turn < TURNS % MAX_TURNS; turn++) {
        square += multiply(s, work, 0u);
    }
    @unroll for (var loops = 0u; loops < TURNS / MAX_TURNS; loops++) {
        for (var turn = 0u; turn < p.turns; turn++) {
            square += multiply(s, work, turn);
        }
    }
    workgroupBarrier();

    let norm = select(1.0, 1.0 / sqrt(square / f32(s.cols) + p.norm_eps), s.norm == 1u);
    let runs = s.span / RUN; // of a row
    // There are no more outputs than threads, and so there is no loop. Only workgroups of ROUTED may have more.
    for (var o = thread; o < block_rows; o += WORKGROUP) {
        let row_of_slots = o / STEP_ROWS;
        let step = row_of_slots / s.slots;
        let first = (step * RUNS + (row_of_slots - step * s.slots) * runs) * VALUES + o % STEP_ROWS * (GATED + 1u);
        var result = 0.0;
        var other = 0.0;
        for (var run = 0u; run < runs; run++) {
            result += sums[first + run * VALUES];
            if (GATED == 1u) {
                other += sums[first + run * VALUES + 1u];
            }
        }
        result *= norm;
        if (GATED == 1u) {
            result = swiglu(result, other * norm);
        }
        let row = first_row + o;
        if (row < rows) {
            if (second) {
                second_out[item * p.second_rows + row] = result;
            } else {
                let to = p.out_first + out_line * p.out_stride + row;
                if (s.add == 1u) {
                    result += out[to];
                }
                out[to] = result;
            }
        }
        if (MODE != ROUTED) {
            break;
        }
    }
}
