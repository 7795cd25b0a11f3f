// Products of many lines with packed rows: bound by arithmetic.
//
// A workgroup has LINES lines and TILE_ROWS rows (of each matrix), a thread BLOCK_LINES x BLOCK_ROWS of their results. For
// every unit of 32 columns the weights are decoded once into shared memory, beside the activations, in cells of four
// columns: `ws[column / 4][row]`, `xs[column / 4][line]`, so that neighbouring threads read neighbouring cells. The next
// unit is on its way while this one is multiplied. With GATED there are two matrices, gate and up, and the
// result is silu(gate) * up; with COUNTED a workgroup skips the lines it does not have.

alias Input = f32;

const ACROSS = LINES / BLOCK_LINES;    // threads along the lines
const DOWN = TILE_ROWS / BLOCK_ROWS;   // threads along the rows
const RESULTS = BLOCK_LINES * BLOCK_ROWS;
const PIECES = max(WORKGROUP / TILE_ROWS, 1u);  // threads that share a unit
const LOADS = max(TILE_ROWS / WORKGROUP, 1u);   // units of a thread
const INPUTS = LINES * 8u / WORKGROUP;          // cells of activations of a thread
const PITCH = LINES + 1u;                       // keeps columns apart in the banks of shared memory
const PIECE_QUADS = 8u / PIECES;
const PART_QUADS = 8u / PARTS;

var<workgroup> ws: array<vec4<f32>, 8u * TILE_ROWS>;
var<workgroup> up_ws: array<vec4<f32>, 8u * TILE_ROWS * GATED + 1u>;
var<workgroup> xs: array<vec4<f32>, 8u * PITCH>;
var<workgroup> inputs: array<u32, LINES>;

// What a thread brings in of one unit.
struct Fetched {
    words: array<array<u32, BITS>, LOADS>,
    up_words: array<array<u32, BITS>, LOADS>,
    scales: array<vec2<f32>, LOADS * PARTS>,
    up_scales: array<vec2<f32>, LOADS * PARTS>,
    values: array<vec4<f32>, INPUTS>,
}

fn fetch(lines: Lines, row_at: u32, thread: u32, unit: u32, fetched: ptr<function, Fetched>) {
    for (var l = 0u; l < LOADS; l++) {
        let row = lines.first_row + min(row_at + (thread + l * WORKGROUP) % TILE_ROWS, p.rows - 1u);
        (*fetched).words[l] = gate_load(row * UNITS + unit);
        if (GATED == 1u) {
            (*fetched).up_words[l] = up_load(row * UNITS + unit);
        }
        for (var part = 0u; part < PARTS; part++) {
            let at = l * PARTS + part;
            (*fetched).scales[at] = gate_group(lines.matrix, row, unit, part, p.scale_base);
            (*fetched).up_scales[at] = up_group(lines.matrix, row, unit, part, p.scale_base);
        }
    }
    let column = unit * 32u + 4u * (thread & 7u);
    for (var i = 0u; i < INPUTS; i++) {
        let at = inputs[(thread >> 3u) + i * (WORKGROUP / 8u)] + column;
        var value = vec4(0.0);
        for (var k = 0u; k < 4u; k++) {
            if (RAGGED == 0u || column + k < COLS) {
                value[k] = x[at + k];
            }
        }
        (*fetched).values[i] = value;
    }
}

// Decodes what was fetched into shared memory.
fn lay(thread: u32, fetched: ptr<function, Fetched>) {
    let place = place_factors();
    let piece = thread / TILE_ROWS;
    for (var l = 0u; l < LOADS; l++) {
        var words = (*fetched).words[l];
        var up_words = (*fetched).up_words[l];
        let row = (thread + l * WORKGROUP) % TILE_ROWS;
        for (var j = 0u; j < 8u; j++) {
            if (PIECES == 1u || j / PIECE_QUADS == piece) {
                let scale = l * PARTS + j / PART_QUADS;
                ws[j * TILE_ROWS + row] = weighed(quad(&words, j), (*fetched).scales[scale], place);
                if (GATED == 1u) {
                    up_ws[j * TILE_ROWS + row] = weighed(quad(&up_words, j), (*fetched).up_scales[scale], place);
                }
            }
        }
    }
    // Whole cells: on Metal, threads that write parts of one vector lose each other's.
    for (var i = 0u; i < INPUTS; i++) {
        xs[(thread & 7u) * PITCH + (thread >> 3u) + i * (WORKGROUP / 8u)] = (*fetched).values[i];
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    // Neighbouring workgroups share the weights if the lines are many, and the lines if they are few.
    let lines = lines_of(select(group.y, group.x, MODE == PLAIN));
    if (lines.count == 0u) {
        return;
    }
    let row_at = select(group.x, group.y, MODE == PLAIN) * TILE_ROWS;
    for (var t = thread; t < LINES; t += WORKGROUP) {
        inputs[t] = input_at(lines, t);
    }
    workgroupBarrier();
    // Eight neighbouring threads have neighbouring rows, so that they write one run of memory.
    let across = (thread >> 3u) % ACROSS;
    let down = (thread & 7u) + (thread / (8u * ACROSS)) * 8u;

    var acc: array<f32, RESULTS>;
    var up_acc: array<f32, RESULTS>;
    for (var i = 0u; i < RESULTS; i++) {
        acc[i] = 0.0;
        up_acc[i] = 0.0;
    }
    var fetched: Fetched;
    fetch(lines, row_at, thread, 0u, &fetched);
    for (var unit = 0u; unit < UNITS; unit++) {
        workgroupBarrier();
        lay(thread, &fetched);
        workgroupBarrier();
        if (unit + 1u < UNITS) {
            fetch(lines, row_at, thread, unit + 1u, &fetched);
        }
        for (var j = 0u; j < 8u; j++) {
            var w: array<vec4<f32>, BLOCK_ROWS>;
            var up_w: array<vec4<f32>, BLOCK_ROWS>;
            for (var r = 0u; r < BLOCK_ROWS; r++) {
                w[r] = ws[j * TILE_ROWS + down + r * DOWN];
                if (GATED == 1u) {
                    up_w[r] = up_ws[j * TILE_ROWS + down + r * DOWN];
                }
            }
            for (var t = 0u; t < BLOCK_LINES; t++) {
                if (COUNTED == 0u || t * ACROSS < lines.count) {
                    let value = xs[j * PITCH + across + t * ACROSS];
                    for (var r = 0u; r < BLOCK_ROWS; r++) {
                        let at = t * BLOCK_ROWS + r;
                        acc[at] = multiply(value, w[r], acc[at]);
                        if (GATED == 1u) {
                            up_acc[at] = multiply(value, up_w[r], up_acc[at]);
                        }
                    }
                }
            }
        }
    }

    for (var t = 0u; t < BLOCK_LINES; t++) {
        for (var r = 0u; r < BLOCK_ROWS; r++) {
            let line = across + t * ACROSS;
            let row = row_at + down + r * DOWN;
            if (line < lines.count && row < p.rows) {
                var result = acc[t * BLOCK_ROWS + r];
                if (GATED == 1u) {
                    result = swiglu(result, up_acc[t * BLOCK_ROWS + r]);
                }
                put(lines, line, row, result);
            }
        }
    }
}
