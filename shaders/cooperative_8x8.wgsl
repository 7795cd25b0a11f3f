// Products of many lines with packed rows by cooperative matrices of 8x8 32-bit floats, for subgroups of 32: those of Apple's
// GPUs, which multiply 32-bit floats as fast as 16-bit ones. So nothing is split or scaled.
//
// A workgroup has LINES lines and a row (of 32 columns at a time) a thread; a subgroup multiplies all lines by its 32 rows. With
// GATED 16 of those are rows of gate and 16 are the same rows of up. A weight is decoded once for all lines. With COUNTED a
// workgroup skips the eights of lines that it does not have.

alias Input = f32;

const PITCH = 36u; // cells between rows in shared memory: 32 columns, and 4 that keep rows apart in its banks
const XS = WORKGROUP * PITCH; // where lines begin; before them are the rows, and in the end results
const EIGHTS = LINES / 8u;
const OWN_QUADS = LINES * 8u / WORKGROUP; // of activations, that a thread brings in
const STORED = min(LINES, 32u);           // lines whose results there is room for at a time
const ROWS = WORKGROUP / (1u + GATED);

var<workgroup> cells: array<f32, (WORKGROUP + LINES) * PITCH>;
var<workgroup> lines_here: Lines;
var<workgroup> inputs: array<u32, LINES>;

// What a thread brings in of one unit.
struct Fetched {
    words: array<u32, BITS>,
    scales: array<vec2<f32>, PARTS>,
    quads: array<vec4<f32>, OWN_QUADS>,
}

// A value of the line that begins at `line`: zero behind its last column.
fn input(line: u32, column: u32) -> f32 {
    if (RAGGED == 0u) {
        return x[line + column];
    }
    return select(0.0, x[line + min(column, COLS - 1u)], column < COLS);
}

fn fetch(lines: Lines, row_at: u32, thread: u32, unit: u32) -> Fetched {
    var fetched: Fetched;
    let second = GATED == 1u && (thread & 16u) != 0u;
    let local = select(thread, (thread >> 5u) * 16u + (thread & 15u), GATED == 1u);
    let row = lines.first_row + min(row_at + local, p.rows - 1u);
    if (second) {
        fetched.words = up_load(row * UNITS + unit);
    } else {
        fetched.words = gate_load(row * UNITS + unit);
    }
    @unroll for (var part = 0u; part < PARTS; part++) {
        if (second) {
            fetched.scales[part] = up_group(lines.matrix, row, unit, part, p.scale_base);
        } else {
            fetched.scales[part] = gate_group(lines.matrix, row, unit, part, p.scale_base);
        }
    }
    let column = unit * 32u + (thread & 7u) * 4u;
    @unroll for (var i = 0u; i < OWN_QUADS; i++) {
        let line = inputs[(thread >> 3u) + i * (WORKGROUP / 8u)];
        fetched.quads[i] = vec4(input(line, column), input(line, column + 1u), input(line, column + 2u), input(line, column + 3u));
    }
    return fetched;
}

fn put_quad(at: u32, value: vec4<f32>) {
    cells[at] = value.x;
    cells[at + 1u] = value.y;
    cells[at + 2u] = value.z;
    cells[at + 3u] = value.w;
}

// Decodes what was fetched into shared memory.
fn lay(thread: u32, fetched: Fetched) {
    let place = place_factors();
    var words = fetched.words;
    @unroll for (var j = 0u; j < 8u; j++) {
        put_quad(thread * PITCH + 4u * j, weighed(quad(&words, j), fetched.scales[j / (8u / PARTS)], place));
    }
    @unroll for (var i = 0u; i < OWN_QUADS; i++) {
        put_quad(XS + ((thread >> 3u) + i * (WORKGROUP / 8u)) * PITCH + (thread & 7u) * 4u, fetched.quads[i]);
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    // Loaded like this they are known to be the same for all threads, as cooperative matrices ask for.
    if (thread == 0u) {
        lines_here = lines_of(select(group.y, group.x, MODE == PLAIN));
    }
    let lines = workgroupUniformLoad(&lines_here);
    if (lines.count == 0u) {
        return;
    }
    let row_at = select(group.x, group.y, MODE == PLAIN) * ROWS;
    for (var t = thread; t < LINES; t += WORKGROUP) {
        inputs[t] = input_at(lines, t);
    }
    // Sums begin as zeros that are loaded: what a matrix of Metal's is that is given no value is not said.
    for (var i = thread; i < 8u * PITCH; i += WORKGROUP) {
        cells[i] = 0.0;
    }
    workgroupBarrier();
    let zero = sum_from(0u);
    var sums: array<Sum, 4u * EIGHTS>;
    @unroll for (var i = 0u; i < 4u * EIGHTS; i++) {
        sums[i] = zero;
    }

    let rows_at = (thread >> 5u) * 32u; // of the subgroup
    var fetched = fetch(lines, row_at, thread, 0u);
    for (var unit = 0u; unit < UNITS; unit++) {
        workgroupBarrier();
        lay(thread, fetched);
        workgroupBarrier();
        // The next unit is on its way while this one is multiplied.
        fetched = fetch(lines, row_at, thread, min(unit + 1u, UNITS - 1u));
        @unroll for (var column = 0u; column < 32u; column += 8u) {
            let w0 = right(rows_at * PITCH + column);
            let w1 = right((rows_at + 8u) * PITCH + column);
            let w2 = right((rows_at + 16u) * PITCH + column);
            let w3 = right((rows_at + 24u) * PITCH + column);
            @unroll for (var eight = 0u; eight < EIGHTS; eight++) {
                if (COUNTED == 0u || eight * 8u < lines.count) {
                    let a = left(XS + eight * 8u * PITCH + column);
                    sums[4u * eight] = multiplied(a, w0, sums[4u * eight]);
                    sums[4u * eight + 1u] = multiplied(a, w1, sums[4u * eight + 1u]);
                    sums[4u * eight + 2u] = multiplied(a, w2, sums[4u * eight + 2u]);
                    sums[4u * eight + 3u] = multiplied(a, w3, sums[4u * eight + 3u]);
                }
            }
        }
    }

    @unroll for (var first = 0u; first < LINES; first += STORED) {
        workgroupBarrier();
        @unroll for (var i = 0u; i < STORED / 2u; i++) {
            store(sums[first / 2u + i], i / 4u * 8u * WORKGROUP + rows_at + i % 4u * 8u, WORKGROUP);
        }
        workgroupBarrier();
        for (var i = thread; i < STORED * ROWS; i += WORKGROUP) {
            let line = first + i / ROWS;
            let row = i % ROWS;
            if (line < lines.count && row_at + row < p.rows) {
                let at = i / ROWS * WORKGROUP + select(row, (row >> 4u) * 32u + (row & 15u), GATED == 1u);
                var result = cells[at];
                if (GATED == 1u) {
                    result = swiglu(result, cells[at + 16u]);
                }
                put(lines, line, row_at + row, result);
            }
        }
    }
}
