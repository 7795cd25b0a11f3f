// Products of many lines with packed rows by cooperative matrices of 16x16 (f16 to f32), for subgroups of 32.
//
// A workgroup has LINES lines and a row a thread, of which 16 columns are in shared memory at a time: what a workgroup needs
// of it decides how many a core runs. A subgroup multiplies all lines by its 32 rows. With GATED 16 of those are of gate and
// 16 are the same rows of up. Sums are of 32-bit floats. Weights are multiplied by FACTOR, a power of two, so that lower
// floats keep their bits.
//
// EXACT is 1: each activation comes as an upper and a lower 16-bit float (split16.wgsl), and if SPLIT is 1, weights are split
// alike after decoding. The product of two lower floats is left out: results are as good as those of 32-bit floats to about
// 2^-21. EXACT is 0: activations and weights are rounded to a 16-bit float each, and multiplied once.

alias Input = vec4<f16>; // of a quad of columns: the upper floats; if EXACT is 1, the next has the lower ones
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;

@group(0) @binding(5) var<storage, read> factors: array<f32>; // of lines of activations

const PITCH = 6u;                            // in quads: 4, and 2 that keep rows apart in the banks of shared memory
const INPUTS = LINES * 8u / WORKGROUP;        // quads of a unit that a thread brings in
const PART_QUADS = 8u / PARTS;

// Rows of cooperative matrices begin at multiples of 16 bytes, so every one of these has a multiple of that.
var<workgroup> upper: array<vec4<f16>, WORKGROUP * PITCH>;
var<workgroup> lower: array<vec4<f16>, max(WORKGROUP * PITCH * SPLIT, 2u)>;
var<workgroup> x_upper: array<vec4<f16>, LINES * PITCH>;
var<workgroup> x_lower: array<vec4<f16>, max(LINES * PITCH * EXACT, 2u)>;
var<workgroup> results: array<f32, 256u * WRITERS>; // 16 lines and rows of each of some subgroups
var<workgroup> lines_here: Lines;
var<workgroup> inputs: array<u32, LINES>;
var<workgroup> input_factors: array<f32, LINES>;

// A thread's share of a unit of columns on its way.
struct Fetched {
    words: array<u32, BITS>,
    scales: array<vec2<f32>, PARTS>,
    values: array<array<vec4<f16>, 1u + EXACT>, INPUTS>,
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
    @unroll for (var i = 0u; i < INPUTS; i++) {
        let place = i * WORKGROUP + thread;
        let begin = inputs[place / 8u] + (unit * 8u + place % 8u) * (1u + EXACT);
        fetched.values[i][0] = x[begin];
        if (EXACT == 1u) {
            fetched.values[i][EXACT] = x[begin + 1u];
        }
    }
    return fetched;
}

// Decodes a quad of codes into shared memory.
fn lay_weights(to: u32, value: vec4<f32>) {
    if (SPLIT == 1u) {
        // Cut, which is faster than to round: activations are rounded, so what is left out has no sign in common.
        let first = bitcast<vec4<f32>>(bitcast<vec4<u32>>(value) & vec4(0xffffe000u));
        upper[to] = vec4<f16>(first);
        lower[to * SPLIT] = vec4<f16>(value - first);
    } else {
        upper[to] = vec4<f16>(value);
    }
}

// Brings the left or right columns of the activations that were fetched into shared memory.
fn lay_inputs(thread: u32, fetched: Fetched, side: u32) {
    if ((thread & 4u) != 4u * side) {
        return;
    }
    @unroll for (var i = 0u; i < INPUTS; i++) {
        let to = (i * WORKGROUP + thread) / 8u * PITCH + (thread & 3u);
        x_upper[to] = fetched.values[i][0];
        if (EXACT == 1u) {
            x_lower[to * EXACT] = fetched.values[i][EXACT];
        }
    }
}

// The subgroup's first row.
fn rows_of(thread: u32) -> u32 {
    return thread & 0xffffffe0u;
}

// Writes 16 lines of the subgroups' 32 rows each, WRITERS subgroups at a time.
fn write(lines: Lines, row_at: u32, thread: u32, first: u32, sum0: Sum, sum1: Sum) {
    let lane = thread & 31u;
    let at = (thread >> 5u) % WRITERS * 256u;
    var found: array<f32, 8>;
    var others: array<f32, 8>;
    for (var turn = 0u; turn < WORKGROUP / 32u; turn += WRITERS) {
        let mine = (thread >> 5u) / WRITERS * WRITERS == turn;
        workgroupBarrier();
        if (mine) {
            coopStoreT(sum0, &results[at], 16u);
        }
        workgroupBarrier();
        if (mine) {
            @unroll for (var i = 0u; i < 8u; i++) {
                found[i] = results[at + 32u * i + lane];
            }
        }
        workgroupBarrier();
        if (mine) {
            coopStoreT(sum1, &results[at], 16u);
        }
        workgroupBarrier();
        if (mine) {
            @unroll for (var i = 0u; i < 8u; i++) {
                others[i] = results[at + 32u * i + lane];
            }
        }
    }
    let row = row_at + rows_of(thread) / (1u + GATED) + (lane & 15u);
    @unroll for (var i = 0u; i < 8u; i++) {
        let line = first + 2u * i + (lane >> 4u);
        if (line < lines.count) {
            let factor = input_factors[line] / f32(FACTOR);
            let value = factor * found[i];
            let other = factor * others[i];
            if (GATED == 1u) {
                if (row < p.rows) {
                    put(lines, line, row, swiglu(value, other));
                }
            } else {
                if (row < p.rows) {
                    put(lines, line, row, value);
                }
                if (row + 16u < p.rows) {
                    put(lines, line, row + 16u, other);
                }
            }
        }
    }
}

fn multiplied(x: Left, y: Left, w: Right, v: Right, sum: Sum) -> Sum {
    if (EXACT == 0u) {
        return coopMultiplyAdd(x, w, sum);
    }
    let upper_sum = coopMultiplyAdd(x, w, coopMultiplyAdd(y, w, sum));
    if (SPLIT == 1u) {
        return coopMultiplyAdd(x, v, upper_sum);
    }
    return upper_sum;
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
    let row_at = select(group.x, group.y, MODE == PLAIN) * WORKGROUP / (1u + GATED);
    for (var t = thread; t < LINES; t += WORKGROUP) {
        let at = input_at(lines, t);
        inputs[t] = at;
        input_factors[t] = factors[at / p.x_stride];
    }
    workgroupBarrier();

    // Sums of 16 lines and 16 rows, named one by one: a cooperative matrix is no value to index.
    var sum00 = Sum();
    var sum01 = Sum();
    var sum10 = Sum();
    var sum11 = Sum();
    var sum20 = Sum();
    var sum21 = Sum();
    var sum30 = Sum();
    var sum31 = Sum();
    let some1 = (LINES > 16u) & (lines.count > 16u);
    let some2 = (LINES > 32u) & (lines.count > 32u);
    let some3 = (LINES > 48u) & (lines.count > 48u);
    let factors_of_places = place_factors();
    let at = rows_of(thread) * PITCH;
    var fetched = fetch(lines, row_at, thread, 0u);
    for (var unit = 0u; unit < UNITS; unit++) {
        @unroll for (var side = 0u; side < 2u; side++) {
            workgroupBarrier();
            var words = fetched.words;
            @unroll for (var j = 4u * side; j < 4u * side + 4u; j++) {
                let scale = f32(FACTOR) * fetched.scales[j / PART_QUADS];
                lay_weights(thread * PITCH + j % 4u, weighed(quad(&words, j), scale, factors_of_places));
            }
            lay_inputs(thread, fetched, side);
            workgroupBarrier();
            if (side == 1u && unit + 1u < UNITS) {
                fetched = fetch(lines, row_at, thread, unit + 1u);
            }
            let w0 = coopLoad<Right>(&upper[at], PITCH);
            let w1 = coopLoad<Right>(&upper[at + 16u * PITCH], PITCH);
            let v0 = coopLoad<Right>(&lower[at * SPLIT], PITCH);
            let v1 = coopLoad<Right>(&lower[(at + 16u * PITCH) * SPLIT], PITCH);
            let x0 = coopLoadT<Left>(&x_upper[0], PITCH);
            let y0 = coopLoadT<Left>(&x_lower[0], PITCH);
            sum00 = multiplied(x0, y0, w0, v0, sum00);
            sum01 = multiplied(x0, y0, w1, v1, sum01);
            if (some1) {
                let x1 = coopLoadT<Left>(&x_upper[min(16u * PITCH, LINES * PITCH - 1u)], PITCH);
                let y1 = coopLoadT<Left>(&x_lower[min(16u * PITCH, LINES * PITCH - 1u) * EXACT], PITCH);
                sum10 = multiplied(x1, y1, w0, v0, sum10);
                sum11 = multiplied(x1, y1, w1, v1, sum11);
            }
            if (some2) {
                let x2 = coopLoadT<Left>(&x_upper[min(32u * PITCH, LINES * PITCH - 1u)], PITCH);
                let y2 = coopLoadT<Left>(&x_lower[min(32u * PITCH, LINES * PITCH - 1u) * EXACT], PITCH);
                sum20 = multiplied(x2, y2, w0, v0, sum20);
                sum21 = multiplied(x2, y2, w1, v1, sum21);
            }
            if (some3) {
                let x3 = coopLoadT<Left>(&x_upper[min(48u * PITCH, LINES * PITCH - 1u)], PITCH);
                let y3 = coopLoadT<Left>(&x_lower[min(48u * PITCH, LINES * PITCH - 1u) * EXACT], PITCH);
                sum30 = multiplied(x3, y3, w0, v0, sum30);
                sum31 = multiplied(x3, y3, w1, v1, sum31);
            }
        }
    }

    write(lines, row_at, thread, 0u, sum00, sum01);
    if (some1) {
        write(lines, row_at, thread, 16u, sum10, sum11);
    }
    if (some2) {
        write(lines, row_at, thread, 32u, sum20, sum21);
    }
    if (some3) {
        write(lines, row_at, thread, 48u, sum30, sum31);
    }
}
