// Activations times packed rows: `out[t, r] = sum_c x[t, c] * w[r, c]`, for one or a few tokens a workgroup.
//
// PLAIN   rows of one matrix; `head` (grid y) moves along its inputs, rows and outputs together
// GATHER  grid y is a (token, choice) pair; the rows are those of the chosen expert
// SUM     grid y is a token; its choices are added up, each with its weight
//
// A subgroup (or LANES threads) has ROWS rows; its lanes take neighbouring units of 32 codes, so that a load is one run
// of memory. The activations of TILE units lie in shared memory, column by column of four, so that neighbouring lanes
// read neighbouring cells. With NORM the activations are RMS-normalised on their way in; with PAIR two matrices are
// multiplied and the result is silu(first) * second; with ADD the result is added to what is there.

const PLAIN = 0u;
const GATHER = 1u;
const SUM = 2u;

struct Params {
    rows: u32,         // outputs of this dispatch
    tokens: u32,
    x_stride: u32,     // floats between tokens, of inputs and outputs
    out_stride: u32,
    x_head: u32,       // between heads: floats of inputs, rows, floats of outputs
    row_head: u32,
    out_head: u32,
    row_first: u32,    // of the matrix and of the outputs
    out_first: u32,
    expert_first: u32, // the experts that the bindings hold
    experts: u32,
    expert_rows: u32,
    scale_base: u32,   // word offsets in the scales
    bias_base: u32,
    norm_eps: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read> norm_weight: array<f32>;
@group(0) @binding(3) var<storage, read> ids: array<u32>;
@group(0) @binding(4) var<storage, read> weights: array<f32>;

var<workgroup> xs: array<vec4<f32>, TOKENS * TILE * 8u>;
// For each part of a unit the sum of what multiplies its codes, and the sum of the activations.
var<workgroup> sums: array<vec2<f32>, TOKENS * TILE * PARTS>;

const PART_QUADS = 8u / PARTS;
const TILES = (UNITS + TILE - 1u) / TILE;
const ACCUMULATORS = BLOCK_ROWS * TOKENS * (PAIR + 1u);

fn cell(t: u32, j: u32, unit: u32) -> u32 {
    return (t * 8u + j) * TILE + unit;
}

// Brings units `first ..` of the tokens' activations in; `x_at` is the first token's first value.
fn stage(thread: u32, tokens: u32, x_at: u32, first: u32, factors: array<f32, TOKENS>) {
    workgroupBarrier();
    let places = place_factors();
    for (var t = 0u; t < TOKENS; t++) {
        for (var i = thread; i < TILE * 32u; i += WORKGROUP) {
            let column = first * 32u + i;
            var value = 0.0;
            if (t < tokens && column < COLS) {
                value = x[x_at + t * p.x_stride + column] * factors[t];
                if (NORM == 1u) {
                    value *= norm_weight[column];
                }
            }
            xs[cell(t, (i & 31u) >> 2u, i >> 5u)][i & 3u] = value * places[i & 3u];
        }
    }
    workgroupBarrier();
    if (INTEGER) {
        for (var i = thread; i < TOKENS * TILE * PARTS; i += WORKGROUP) {
            let t = i / (TILE * PARTS);
            let unit = (i / PARTS) % TILE;
            var ones = vec4(0.0);
            for (var j = (i % PARTS) * PART_QUADS; j < (i % PARTS + 1u) * PART_QUADS; j++) {
                ones += xs[cell(t, j, unit)];
            }
            sums[i] = vec2(dot(ones, vec4(1.0)), dot(ones, vec4(1.0) / places));
        }
        workgroupBarrier();
    }
}

fn swiglu(gate: f32, up: f32) -> f32 {
    return gate / (1.0 + exp(-gate)) * up;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let lane = thread & (LANES - 1u);
    let team = thread / LANES;
    let y = group.y + group.z * GRID_Y;
    var token = 0u;
    var tokens = 1u;
    var head = 0u;
    var pair = 0u;
    var slots = 1u;
    if (MODE == PLAIN) {
        head = group.y;
        token = group.z * TOKENS;
        tokens = min(TOKENS, p.tokens - token);
    } else if (MODE == GATHER) {
        pair = y;
        if (pair >= p.tokens * CHOSEN) {
            return;
        }
        token = pair / CHOSEN;
        if (ids[pair] - p.expert_first >= p.experts) {
            return;
        }
    } else {
        token = y;
        if (token >= p.tokens) {
            return;
        }
        slots = CHOSEN;
    }

    var factors: array<f32, TOKENS>;
    for (var t = 0u; t < TOKENS; t++) {
        factors[t] = 1.0;
        if (NORM == 1u) {
            var square = 0.0;
            if (t < tokens) {
                for (var i = thread; i < COLS; i += WORKGROUP) {
                    let value = x[(token + t) * p.x_stride + i];
                    square += value * value;
                }
            }
            factors[t] = 1.0 / sqrt(workgroup_sum(square, thread) / f32(COLS) + p.norm_eps);
        }
    }

    let row_at = group.x * BLOCK_ROWS * (WORKGROUP / LANES) + team * BLOCK_ROWS;
    var acc: array<f32, ACCUMULATORS>;
    for (var i = 0u; i < ACCUMULATORS; i++) {
        acc[i] = 0.0;
    }
    for (var slot = 0u; slot < slots; slot++) {
        var x_at = token * p.x_stride + head * p.x_head;
        var first_row = head * p.row_head + p.row_first;
        var index = 0u;
        if (MODE != PLAIN) {
            let choice = select(pair, token * CHOSEN + slot, MODE == SUM);
            index = ids[choice] - p.expert_first;
            if (index >= p.experts) {
                continue;
            }
            first_row = index * p.expert_rows;
            if (MODE == SUM) {
                x_at = choice * p.x_stride;
                factors[0] = weights[choice];
            }
        }
        for (var tile = 0u; tile < TILES; tile++) {
            stage(thread, tokens, x_at, tile * TILE, factors);
            let count = min(TILE, UNITS - tile * TILE);
            for (var block = 0u; block < BLOCK_ROWS; block += ROWS) {
                for (var u = lane; u < count; u += LANES) {
                    let unit = tile * TILE + u;
                    var gate: array<array<u32, BITS>, ROWS>;
                    var up: array<array<u32, BITS>, ROWS>;
                    for (var r = 0u; r < ROWS; r++) {
                        let row = first_row + min(row_at + block + r, p.rows - 1u);
                        gate[r] = gate_load(row * UNITS + unit);
                        if (PAIR == 1u) {
                            up[r] = up_load(row * UNITS + unit);
                        }
                    }
                    for (var r = 0u; r < ROWS; r++) {
                        let row = first_row + min(row_at + block + r, p.rows - 1u);
                        let at = (block + r) * TOKENS * (PAIR + 1u);
                        var gate_words = gate[r];
                        var up_words = up[r];
                        for (var part = 0u; part < PARTS; part++) {
                            var products: array<f32, TOKENS>;
                            var up_products: array<f32, TOKENS>;
                            for (var t = 0u; t < TOKENS; t++) {
                                products[t] = 0.0;
                                up_products[t] = 0.0;
                            }
                            for (var q = 0u; q < PART_QUADS; q++) {
                                let j = part * PART_QUADS + q;
                                let g = quad(&gate_words, j);
                                for (var t = 0u; t < TOKENS; t++) {
                                    products[t] += dot(xs[cell(t, j, u)], g);
                                }
                                if (PAIR == 1u) {
                                    let w = quad(&up_words, j);
                                    for (var t = 0u; t < TOKENS; t++) {
                                        up_products[t] += dot(xs[cell(t, j, u)], w);
                                    }
                                }
                            }
                            let scale = gate_group(index, row, unit, part, p.scale_base, p.bias_base);
                            for (var t = 0u; t < TOKENS; t++) {
                                acc[at + t] += with_sums(products[t], scale, t, u, part);
                            }
                            if (PAIR == 1u) {
                                let up_scale = up_group(index, row, unit, part, p.scale_base, p.bias_base);
                                for (var t = 0u; t < TOKENS; t++) {
                                    acc[at + TOKENS + t] += with_sums(up_products[t], up_scale, t, u, part);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    for (var r = 0u; r < BLOCK_ROWS; r++) {
        for (var t = 0u; t < TOKENS; t++) {
            let at = r * TOKENS * (PAIR + 1u) + t;
            var result = lanes_sum(acc[at], thread);
            if (PAIR == 1u) {
                result = swiglu(result, lanes_sum(acc[at + TOKENS], thread));
            }
            if (lane == 0u && t < tokens && row_at + r < p.rows) {
                let line = select(token + t, pair, MODE == GATHER);
                let to = line * p.out_stride + head * p.out_head + p.out_first + row_at + r;
                if (ADD == 1u) {
                    result += out[to];
                }
                out[to] = result;
            }
        }
    }
}

fn with_sums(product: f32, scale: vec2<f32>, t: u32, unit: u32, part: u32) -> f32 {
    if (!INTEGER) {
        return scale.x * product;
    }
    let sum = sums[(t * TILE + unit) * PARTS + part];
    return scale.x * (product - sum.x) + scale.y * sum.y;
}
