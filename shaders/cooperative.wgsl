// Products of many lines with packed rows by cooperative matrices of 16x16 (f16 to f32), for subgroups of 32.
//
// A workgroup has LINES lines and a row (of 32 columns at a time) a thread; a subgroup multiplies all lines by its 32
// rows. With GATED 16 of those are rows of gate and 16 are the same rows of up. Each
// activation comes as an upper and a lower 16-bit float (split16.wgsl). If SPLIT is 1, weights are split alike after
// decoding. The product of two lower floats is left out: results are as good as those of 32-bit floats to about 2^-21.
// Weights are multiplied by FACTOR, a power of two, so that lower floats keep their bits.

alias Input = vec4<f16>; // two columns: the upper floats, then the lower ones
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;

@group(0) @binding(5) var<storage, read> factors: array<f32>; // of lines of activations

const PITCH = 20u;     // columns in twos: 16, and 4 that keep rows apart in the banks of shared memory
const INPUTS = LINES * 16u / WORKGROUP; // cells of a thread
const PART_QUADS = 8u / PARTS;

// Rows of cooperative matrices begin at multiples of 16 bytes, so every one of these has a multiple of that.
var<workgroup> upper: array<vec2<f16>, WORKGROUP * PITCH>;
var<workgroup> lower: array<vec2<f16>, max(WORKGROUP * PITCH * SPLIT, 4u)>;
var<workgroup> x_upper: array<vec2<f16>, LINES * PITCH>;
var<workgroup> x_lower: array<vec2<f16>, LINES * PITCH>;
var<workgroup> results: array<f32, 16u * WORKGROUP>;
var<workgroup> lines_here: Lines;
var<workgroup> inputs: array<u32, LINES>;
var<workgroup> input_factors: array<f32, LINES>;

struct Fetched {
    words: array<u32, BITS>,
    scales: array<vec2<f32>, PARTS>,
    values: array<vec4<f16>, INPUTS>,
}

fn fetch(lines: Lines, row_at: u32, thread: u32, unit: u32, fetched: ptr<function, Fetched>) {
    let second = GATED == 1u && (thread & 16u) != 0u;
    let local = select(thread, (thread >> 5u) * 16u + (thread & 15u), GATED == 1u);
    let row = lines.first_row + min(row_at + local, p.rows - 1u);
    if (second) {
        (*fetched).words = up_load(row * UNITS + unit);
    } else {
        (*fetched).words = gate_load(row * UNITS + unit);
    }
    for (var part = 0u; part < PARTS; part++) {
        if (second) {
            (*fetched).scales[part] = up_group(lines.matrix, row, unit, part, p.scale_base);
        } else {
            (*fetched).scales[part] = gate_group(lines.matrix, row, unit, part, p.scale_base);
        }
    }
    for (var i = 0u; i < INPUTS; i++) {
        (*fetched).values[i] = x[inputs[(thread >> 4u) + i * (WORKGROUP / 16u)] + unit * 16u + (thread & 15u)];
    }
}

// Decodes what was fetched into shared memory.
fn lay(thread: u32, fetched: ptr<function, Fetched>) {
    let place = place_factors();
    var words = (*fetched).words;
    for (var j = 0u; j < 8u; j++) {
        let scale = f32(FACTOR) * (*fetched).scales[j / PART_QUADS];
        let value = weighed(quad(&words, j), scale, place);
        let at = thread * PITCH + 2u * j;
        if (SPLIT == 1u) {
            // Cut, which is faster than to round: activations are rounded, so what is left out has no sign in common.
            let first = bitcast<vec4<f32>>(bitcast<vec4<u32>>(value) & vec4(0xffffe000u));
            let rest = value - first;
            upper[at] = vec2<f16>(first.xy);
            upper[at + 1u] = vec2<f16>(first.zw);
            lower[at] = vec2<f16>(rest.xy);
            lower[at + 1u] = vec2<f16>(rest.zw);
        } else {
            upper[at] = vec2<f16>(value.xy);
            upper[at + 1u] = vec2<f16>(value.zw);
        }
    }
    for (var i = 0u; i < INPUTS; i++) {
        let at = ((thread >> 4u) + i * (WORKGROUP / 16u)) * PITCH + (thread & 15u);
        x_upper[at] = (*fetched).values[i].xy;
        x_lower[at] = (*fetched).values[i].zw;
    }
}

const ROWS = WORKGROUP / (1u + GATED);

// Writes 16 lines, which lie in `results`.
fn write(lines: Lines, row_at: u32, thread: u32, first: u32) {
    workgroupBarrier();
    for (var i = thread; i < 16u * ROWS; i += WORKGROUP) {
        let line = first + i / ROWS;
        let row = i % ROWS;
        if (line < lines.count && row_at + row < p.rows) {
            let factor = input_factors[line] / f32(FACTOR);
            let at = (i / ROWS) * WORKGROUP + select(row, (row >> 4u) * 32u + (row & 15u), GATED == 1u);
            var result = factor * results[at];
            if (GATED == 1u) {
                result = swiglu(result, factor * results[at + 16u]);
            }
            put(lines, line, row_at + row, result);
        }
    }
    workgroupBarrier();
}

fn multiplied(x: Left, y: Left, w: Right, v: Right, sum: Sum) -> Sum {
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
    let row_at = select(group.x, group.y, MODE == PLAIN) * ROWS;
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
    let rows_at = (thread >> 5u) * 32u; // of the subgroup
    var fetched: Fetched;
    fetch(lines, row_at, thread, 0u, &fetched);
    for (var unit = 0u; unit < UNITS; unit++) {
        workgroupBarrier();
        lay(thread, &fetched);
        workgroupBarrier();
        if (unit + 1u < UNITS) {
            fetch(lines, row_at, thread, unit + 1u, &fetched);
        }
        for (var slice = 0u; slice < 16u; slice += 8u) {
            let at = rows_at * PITCH + slice;
            let w0 = coopLoad<Right>(&upper[at], PITCH);
            let w1 = coopLoad<Right>(&upper[at + 16u * PITCH], PITCH);
            let v0 = coopLoad<Right>(&lower[at * SPLIT], PITCH);
            let v1 = coopLoad<Right>(&lower[(at + 16u * PITCH) * SPLIT], PITCH);
            let x0 = coopLoadT<Left>(&x_upper[slice], PITCH);
            let y0 = coopLoadT<Left>(&x_lower[slice], PITCH);
            sum00 = multiplied(x0, y0, w0, v0, sum00);
            sum01 = multiplied(x0, y0, w1, v1, sum01);
            if (some1) {
                let x1 = coopLoadT<Left>(&x_upper[slice + 16u * PITCH], PITCH);
                let y1 = coopLoadT<Left>(&x_lower[slice + 16u * PITCH], PITCH);
                sum10 = multiplied(x1, y1, w0, v0, sum10);
                sum11 = multiplied(x1, y1, w1, v1, sum11);
            }
            if (some2) {
                let x2 = coopLoadT<Left>(&x_upper[slice + 32u * PITCH], PITCH);
                let y2 = coopLoadT<Left>(&x_lower[slice + 32u * PITCH], PITCH);
                sum20 = multiplied(x2, y2, w0, v0, sum20);
                sum21 = multiplied(x2, y2, w1, v1, sum21);
            }
            if (some3) {
                let x3 = coopLoadT<Left>(&x_upper[slice + 48u * PITCH], PITCH);
                let y3 = coopLoadT<Left>(&x_lower[slice + 48u * PITCH], PITCH);
                sum30 = multiplied(x3, y3, w0, v0, sum30);
                sum31 = multiplied(x3, y3, w1, v1, sum31);
            }
        }
    }

    coopStoreT(sum00, &results[rows_at], WORKGROUP);
    coopStoreT(sum01, &results[rows_at + 16u], WORKGROUP);
    write(lines, row_at, thread, 0u);
    if (some1) {
        coopStoreT(sum10, &results[rows_at], WORKGROUP);
        coopStoreT(sum11, &results[rows_at + 16u], WORKGROUP);
        write(lines, row_at, thread, 16u);
    }
    if (some2) {
        coopStoreT(sum20, &results[rows_at], WORKGROUP);
        coopStoreT(sum21, &results[rows_at + 16u], WORKGROUP);
        write(lines, row_at, thread, 32u);
    }
    if (some3) {
        coopStoreT(sum30, &results[rows_at], WORKGROUP);
        coopStoreT(sum31, &results[rows_at + 16u], WORKGROUP);
        write(lines, row_at, thread, 48u);
    }
}
