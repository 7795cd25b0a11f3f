// Products of many lines with packed rows: bound by arithmetic.
//
// A workgroup has LINES lines; a thread has two rows, with GATED one of gate and the same one of up, and all of the lines'
// results for them. It decodes a unit of its rows into registers and multiplies it with every line's activations, which
// are in shared memory: all threads read the same ones at the same time. With TEAMS above 1 each team of threads has all of the
// rows and some of the units, and their sums are added up at the end: so that a few lines keep a device busy. With GATED the
// result is silu(gate) * up; with COUNTED a workgroup skips the lines it does not have.

alias Input = f32;

const TEAM_THREADS = WORKGROUP / TEAMS;
const TEAM_UNITS = STAGED / TEAMS;      // neighbouring ones
const OWN = 2u - GATED;                 // rows of a thread, TEAM_THREADS apart
const TILE_ROWS = OWN * TEAM_THREADS;
const STAGED_QUADS = STAGED * 8u;       // of each line, at a time
const PART_QUADS = 8u / PARTS;
const STORED = min(LINES, 8u);          // lines whose teams' sums there is room for at a time
const SUMS = WORKGROUP * STORED / 2u * min(TEAMS - 1u, 1u);

var<workgroup> xs: array<vec4<f32>, max(LINES * STAGED_QUADS, SUMS)>; // in the end the teams' sums, two lines in a cell
var<workgroup> inputs: array<u32, LINES>;

// What a thread brings in of one unit: gate and up, or two rows.
struct Fetched {
    words: array<array<u32, BITS>, 2>,
    scales: array<array<vec2<f32>, PARTS>, 2>,
}

// Of rows `first` and `second` of gate, or of row `first` of gate and up.
fn fetch(matrix: u32, first: u32, second: u32, unit: u32) -> Fetched {
    var fetched: Fetched;
    fetched.words[0] = gate_load(first * UNITS + unit);
    if (GATED == 1u) {
        fetched.words[1] = up_load(first * UNITS + unit);
    } else {
        fetched.words[1] = gate_load(second * UNITS + unit);
    }
    @unroll for (var part = 0u; part < PARTS; part++) {
        fetched.scales[0][part] = gate_group(matrix, first, unit, part, p.scale_base);
        if (GATED == 1u) {
            fetched.scales[1][part] = up_group(matrix, first, unit, part, p.scale_base);
        } else {
            fetched.scales[1][part] = gate_group(matrix, second, unit, part, p.scale_base);
        }
    }
    return fetched;
}

// Brings the lines' activations of STAGED units from `first` on into shared memory.
fn stage(thread: u32, first: u32) {
    for (var cell = thread; cell < LINES * STAGED_QUADS; cell += WORKGROUP) {
        let column = first * 32u + cell % STAGED_QUADS * 4u;
        let at = inputs[cell / STAGED_QUADS] + column;
        var value = vec4(0.0);
        if (column + 3u < COLS) {
            value = vec4(x[at], x[at + 1u], x[at + 2u], x[at + 3u]);
        } else if (column < COLS) {
            value.x = x[at];
            value.y = select(0.0, x[at + min(1u, COLS - 1u - column)], column + 1u < COLS);
            value.z = select(0.0, x[at + min(2u, COLS - 1u - column)], column + 2u < COLS);
        }
        xs[cell] = value;
    }
}

// Writes line `t` of a thread's rows.
fn finish(lines: Lines, t: u32, row_at: u32, sums: vec2<f32>) {
    if (t < lines.count && row_at < p.rows) {
        if (GATED == 1u) {
            put(lines, t, row_at, swiglu(sums.x, sums.y));
        } else {
            put(lines, t, row_at, sums.x);
            if (row_at + TEAM_THREADS < p.rows) {
                put(lines, t, row_at + TEAM_THREADS, sums.y);
            }
        }
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    // Neighbouring workgroups share the weights if the lines are many, and the lines if they are few.
    let lines = lines_of(select(group.y, group.x, MODE == PLAIN));
    if (lines.count == 0u) {
        return;
    }
    let team = select(0u, thread / TEAM_THREADS, TEAMS > 1u); // so that compilers know it of one team
    let own = select(thread, thread % TEAM_THREADS, TEAMS > 1u);
    let rows_at = select(group.x, group.y, MODE == PLAIN) * TILE_ROWS;
    let row_at = rows_at + own;
    let first = lines.first_row + min(row_at, p.rows - 1u);
    let second = lines.first_row + min(row_at + TEAM_THREADS, p.rows - 1u);
    for (var t = thread; t < LINES; t += WORKGROUP) {
        inputs[t] = input_at(lines, t);
    }

    let place = place_factors();
    var acc: array<vec2<f32>, LINES>;
    @unroll for (var t = 0u; t < LINES; t++) {
        acc[t] = vec2(0.0);
    }
    var fetched = fetch(lines.matrix, first, second, min(team * TEAM_UNITS, UNITS - 1u));
    for (var staged = 0u; staged < UNITS; staged += STAGED) {
        workgroupBarrier();
        stage(thread, staged);
        workgroupBarrier();
        let end = staged + (team + 1u) * TEAM_UNITS;
        for (var unit = end - TEAM_UNITS; unit < min(end, UNITS); unit++) {
            var w: array<vec4<f32>, 8>;
            var other_w: array<vec4<f32>, 8>;
            var words = fetched.words[0];
            var other_words = fetched.words[1];
            @unroll for (var j = 0u; j < 8u; j++) {
                w[j] = weighed(quad(&words, j), fetched.scales[0][j / PART_QUADS], place);
                other_w[j] = weighed(quad(&other_words, j), fetched.scales[1][j / PART_QUADS], place);
            }
            // The next unit is on its way while this one is multiplied.
            let next = unit + 1u + select(0u, STAGED - TEAM_UNITS, unit + 1u == end);
            fetched = fetch(lines.matrix, first, second, min(next, UNITS - 1u));
            let cell = (unit - staged) * 8u;
            @unroll for (var t = 0u; t < LINES; t++) {
                if (COUNTED == 0u || t < lines.count) {
                    var sums = acc[t];
                    @unroll for (var j = 0u; j < 8u; j++) {
                        let value = xs[t * STAGED_QUADS + cell + j];
                        sums = vec2(multiply(value, w[j], sums.x), multiply(value, other_w[j], sums.y));
                    }
                    acc[t] = sums;
                }
            }
        }
    }

    if (TEAMS == 1u) {
        @unroll for (var t = 0u; t < LINES; t++) {
            finish(lines, t, row_at, acc[t]);
        }
        return;
    }
    @unroll for (var first_line = 0u; first_line < LINES; first_line += STORED) {
        workgroupBarrier();
        @unroll for (var t = 0u; t < STORED; t += 2u) {
            xs[t / 2u * WORKGROUP + thread] = vec4(acc[first_line + t], acc[first_line + t + 1u]);
        }
        workgroupBarrier();
        for (var i = thread; i < STORED / 2u * TEAM_THREADS; i += WORKGROUP) {
            let at = i / TEAM_THREADS * WORKGROUP + i % TEAM_THREADS;
            var sums = xs[at];
            for (var other = 1u; other < TEAMS; other++) {
                sums += xs[at + other * TEAM_THREADS];
            }
            let t = first_line + i / TEAM_THREADS * 2u;
            finish(lines, t, rows_at + i % TEAM_THREADS, vec2(sums.x, sums.y));
            finish(lines, t + 1u, rows_at + i % TEAM_THREADS, vec2(sums.z, sums.w));
        }
    }
}
