// Included: a few tokens through a head's rows of a packed matrix, which are the product's outputs:
// `out[t, n] = sum_k x[t, k] * w[n, k]`.
//
// A workgroup has BLOCK_ROWS rows; its threads take their units in turn.

const ITEMS = BLOCK_ROWS * UNITS;
const THREAD_ITEMS = (ITEMS + WORKGROUP - 1u) / WORKGROUP;

// A unit's eight cells lie UNITS apart, so that neighbouring threads read neighbouring cells.
var<workgroup> xs: array<vec4<f32>, TOKENS * 8u * UNITS>;
var<workgroup> dots: array<f32, BLOCK_ROWS * (UNITS + 1u)>;

fn put(t: u32, cell: u32, value: vec4<f32>) {
    xs[(t * 8u + (cell & 7u)) * UNITS + (cell >> 3u)] = value;
}

fn project(thread: u32, block: u32, head: u32, token: u32, tokens: u32) {
    // All loads before the first use: they come from far.
    var loaded: array<array<u32, BITS>, THREAD_ITEMS>;
    var scales: array<vec2<f32>, THREAD_ITEMS * PARTS>;
    for (var i = 0u; i < THREAD_ITEMS; i++) {
        let item = min(thread + i * WORKGROUP, ITEMS - 1u);
        let row = head * p.row_head + p.row_first + min(block * BLOCK_ROWS + item / UNITS, OUTER - 1u);
        loaded[i] = gate_load(row * UNITS + item % UNITS);
        for (var part = 0u; part < PARTS; part++) {
            scales[i * PARTS + part] = gate_group(0u, row, item % UNITS, part, p.scale_base);
        }
    }
    prepare(thread, token, tokens, head);
    stage(thread, token, tokens, head, 0u, 8u * UNITS);
    workgroupBarrier();

    for (var t = 0u; t < TOKENS; t++) {
        for (var i = 0u; i < THREAD_ITEMS; i++) {
            let item = thread + i * WORKGROUP;
            if (item < ITEMS) {
                var words = loaded[i];
                var sum = vec4(0.0);
                for (var j = 0u; j < 8u; j++) {
                    let scale = scales[i * PARTS + j / (8u / PARTS)];
                    let value = fma(values(&words, j), vec4(scale.x), vec4(scale.y));
                    sum = fma(value, xs[(t * 8u + j) * UNITS + item % UNITS], sum);
                }
                dots[item / UNITS * (UNITS + 1u) + item % UNITS] = dot(sum, vec4(1.0));
            }
        }
        workgroupBarrier();
        for (var r = thread; r < BLOCK_ROWS; r += WORKGROUP) {
            let row = block * BLOCK_ROWS + r;
            var sum = 0.0;
            for (var unit = 0u; unit < UNITS; unit++) {
                sum += dots[r * (UNITS + 1u) + unit];
            }
            if (row < OUTER && t < tokens) {
                out[((token + t) * p.heads + head) * OUT_HEAD + row] = sum;
            }
        }
        workgroupBarrier();
    }
}
