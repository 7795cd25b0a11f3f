// Products of a few lines with packed rows, each row read once for all of them: bound by reading the weights.
//
// A subgroup (or LANES threads) has ROWS rows; its lanes take neighbouring units of 32 codes, so that a load is one run
// of memory. The activations of TILE units of all lines lie in shared memory, column by column of four, so that
// neighbouring lanes read neighbouring cells. With GATED there are two matrices, gate and up, and the
// result is silu(gate) * up; with COUNTED a workgroup skips the lines it does not have.

alias Input = f32;

var<workgroup> xs: array<vec4<f32>, LINES * TILE * 8u>;
// Of the activations of each part of a unit.
var<workgroup> sums: array<f32, LINES * TILE * PARTS>;

const PART_QUADS = 8u / PARTS;
const TILES = (UNITS + TILE - 1u) / TILE;
const RESULTS = ROWS * LINES;

fn cell(t: u32, j: u32, unit: u32) -> u32 {
    return (t * 8u + j) * TILE + unit;
}

// Brings units `first ..` of the lines' activations in.
fn stage(thread: u32, lines: Lines, first: u32, count: u32) {
    workgroupBarrier();
    let places = place_factors();
    for (var t = 0u; t < LINES; t++) {
        if (COUNTED == 1u && t >= lines.count) {
            break;
        }
        let at = input_at(lines, t);
        // Whole cells: on Metal, threads that write parts of one vector lose each other's.
        for (var i = thread; i < count * 8u; i += WORKGROUP) {
            let column = first * 32u + 4u * i;
            var value = vec4(0.0);
            for (var k = 0u; k < 4u; k++) {
                if (RAGGED == 0u || column + k < COLS) {
                    value[k] = x[at + column + k];
                }
            }
            xs[cell(t, i & 7u, i >> 3u)] = value * places;
        }
    }
    workgroupBarrier();
    if (INTEGER) {
        for (var i = thread; i < LINES * TILE * PARTS; i += WORKGROUP) {
            let t = i / (TILE * PARTS);
            let unit = (i / PARTS) % TILE;
            if (unit < count && (COUNTED == 0u || t < lines.count)) {
                var ones = vec4(0.0);
                for (var j = (i % PARTS) * PART_QUADS; j < (i % PARTS + 1u) * PART_QUADS; j++) {
                    ones += xs[cell(t, j, unit)];
                }
                sums[i] = dot(ones, vec4(1.0) / places);
            }
        }
        workgroupBarrier();
    }
}

// A part's products with scale and bias.
fn scaled(product: f32, scale: vec2<f32>, sum: f32, before: f32) -> f32 {
    if (!INTEGER) {
        return fma(scale.x, product, before);
    }
    return fma(scale.x, product, fma(scale.y, sum, before));
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let lines = lines_of(group.y);
    if (lines.count == 0u) {
        return;
    }
    let lane = thread & (LANES - 1u);
    let row_at = (group.x * (WORKGROUP / LANES) + thread / LANES) * ROWS;
    var acc: array<f32, RESULTS>;
    var up_acc: array<f32, RESULTS>;
    for (var i = 0u; i < RESULTS; i++) {
        acc[i] = 0.0;
        up_acc[i] = 0.0;
    }
    for (var tile = 0u; tile < TILES; tile++) {
        let count = min(TILE, UNITS - tile * TILE);
        stage(thread, lines, tile * TILE, count);
        for (var u = lane; u < count; u += LANES) {
            let unit = tile * TILE + u;
            var gate: array<array<u32, BITS>, ROWS>;
            var up: array<array<u32, BITS>, ROWS>;
            var scales: array<vec2<f32>, ROWS * PARTS>;
            var up_scales: array<vec2<f32>, ROWS * PARTS>;
            for (var r = 0u; r < ROWS; r++) {
                let row = lines.first_row + min(row_at + r, p.rows - 1u);
                gate[r] = gate_load(row * UNITS + unit);
                if (GATED == 1u) {
                    up[r] = up_load(row * UNITS + unit);
                }
                for (var part = 0u; part < PARTS; part++) {
                    let at = r * PARTS + part;
                    scales[at] = gate_group(lines.matrix, row, unit, part, p.scale_base);
                    up_scales[at] = up_group(lines.matrix, row, unit, part, p.scale_base);
                }
            }
            for (var part = 0u; part < PARTS; part++) {
                var products: array<f32, RESULTS>;
                var up_products: array<f32, RESULTS>;
                for (var i = 0u; i < RESULTS; i++) {
                    products[i] = 0.0;
                    up_products[i] = 0.0;
                }
                for (var q = 0u; q < PART_QUADS; q++) {
                    let j = part * PART_QUADS + q;
                    var g: array<vec4<f32>, ROWS>;
                    var w: array<vec4<f32>, ROWS>;
                    for (var r = 0u; r < ROWS; r++) {
                        var gate_words = gate[r];
                        g[r] = placed(&gate_words, j);
                        if (GATED == 1u) {
                            var up_words = up[r];
                            w[r] = placed(&up_words, j);
                        }
                    }
                    for (var t = 0u; t < LINES; t++) {
                        if (COUNTED == 0u || t < lines.count) {
                            let value = xs[cell(t, j, u)];
                            for (var r = 0u; r < ROWS; r++) {
                                let at = r * LINES + t;
                                products[at] = multiply(value, g[r], products[at]);
                                if (GATED == 1u) {
                                    up_products[at] = multiply(value, w[r], up_products[at]);
                                }
                            }
                        }
                    }
                }
                for (var r = 0u; r < ROWS; r++) {
                    let scale = scales[r * PARTS + part];
                    let up_scale = up_scales[r * PARTS + part];
                    for (var t = 0u; t < LINES; t++) {
                        if (COUNTED == 0u || t < lines.count) {
                            let at = r * LINES + t;
                            let sum = sums[(t * TILE + u) * PARTS + part];
                            acc[at] = scaled(products[at], scale, sum, acc[at]);
                            if (GATED == 1u) {
                                up_acc[at] = scaled(up_products[at], up_scale, sum, up_acc[at]);
                            }
                        }
                    }
                }
            }
        }
    }

    // Lane i keeps result i, so that all are written at once.
    var mine = 0.0;
    for (var i = 0u; i < RESULTS; i++) {
        var result = 0.0;
        if (COUNTED == 0u || i % LINES < lines.count) {
            result = lanes_sum(acc[i], thread);
            if (GATED == 1u) {
                result = swiglu(result, lanes_sum(up_acc[i], thread));
            }
        }
        mine = select(mine, result, lane == i % LANES);
        if (i % LANES == LANES - 1u || i + 1u == RESULTS) {
            let at = i - i % LANES + lane;
            let row = row_at + at / LINES;
            if (at < RESULTS && at % LINES < lines.count && row < p.rows) {
                put(lines, at % LINES, row, mine);
            }
        }
    }
}
