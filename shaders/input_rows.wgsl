// Included: a few tokens through a head's rows of a packed matrix, which are the product's inputs:
// `out[t, n] = sum_k x[t, k] * w[k, n]`.
//
// A workgroup has BLOCK_UNITS units of columns; a thread has one of them and every ROW_STEP-th row.

const ROW_STEP = WORKGROUP / BLOCK_UNITS;
const THREAD_ROWS = (INNER + ROW_STEP - 1u) / ROW_STEP;
const INNER_CELLS = (INNER + 3u) / 4u;

var<workgroup> xs: array<vec4<f32>, TOKENS * INNER_CELLS>;
var<workgroup> partial: array<f32, WORKGROUP * 33u>;

fn put(t: u32, cell: u32, value: vec4<f32>) {
    xs[t * INNER_CELLS + cell] = value;
}

fn project(thread: u32, block: u32, head: u32, token: u32, tokens: u32) {
    let unit = min(block * BLOCK_UNITS + thread % BLOCK_UNITS, UNITS - 1u);
    let inner = thread / BLOCK_UNITS;
    let row_first = head * p.row_head + p.row_first;
    // All loads before the first use: they come from far.
    var loaded: array<array<u32, BITS>, THREAD_ROWS>;
    var scales: array<vec2<f32>, THREAD_ROWS * PARTS>;
    for (var i = 0u; i < THREAD_ROWS; i++) {
        let row = row_first + min(inner + i * ROW_STEP, INNER - 1u);
        loaded[i] = gate_load(row * UNITS + unit);
        for (var part = 0u; part < PARTS; part++) {
            scales[i * PARTS + part] = gate_group(0u, row, unit, part, p.scale_base);
        }
    }
    prepare(thread, token, tokens, head);
    stage(thread, token, tokens, head, 0u, INNER_CELLS);
    workgroupBarrier();

    var acc: array<vec4<f32>, 8u * TOKENS>;
    for (var i = 0u; i < 8u * TOKENS; i++) {
        acc[i] = vec4(0.0);
    }
    for (var i = 0u; i < THREAD_ROWS; i++) {
        let k = inner + i * ROW_STEP;
        if (k < INNER) {
            var words = loaded[i];
            for (var j = 0u; j < 8u; j++) {
                let scale = scales[i * PARTS + j / (8u / PARTS)];
                let value = fma(values(&words, j), vec4(scale.x), vec4(scale.y));
                for (var t = 0u; t < TOKENS; t++) {
                    acc[t * 8u + j] = fma(value, vec4(xs[t * INNER_CELLS + (k >> 2u)][k & 3u]), acc[t * 8u + j]);
                }
            }
        }
    }

    for (var t = 0u; t < TOKENS; t++) {
        for (var j = 0u; j < 8u; j++) {
            for (var i = 0u; i < 4u; i++) {
                partial[thread * 33u + 4u * j + i] = acc[t * 8u + j][i];
            }
        }
        workgroupBarrier();
        for (var n = thread; n < BLOCK_UNITS * 32u; n += WORKGROUP) {
            let column = block * BLOCK_UNITS * 32u + n;
            var sum = 0.0;
            for (var i = 0u; i < ROW_STEP; i += p.one) {
                sum += partial[(i * BLOCK_UNITS + n / 32u) * 33u + n % 32u];
            }
            if (column < OUTER && t < tokens) {
                out[((token + t) * p.heads + head) * OUT_HEAD + column] = sum;
            }
        }
        workgroupBarrier();
    }
}
