// Queries into the latent space through W_UK as it is stored, a head's rows by its columns:
// `out[t, h, l] = sum_n q[t, h, n] * w[h * row_head + n, l]`.
//
// A workgroup has one unit of columns of one head and TOKENS tokens; its threads take the rows in turn.

struct Params {
    tokens: u32,
    rows: u32, // of a head, `nope`
    row_head: u32,
    q_head: u32,
    q_stride: u32,
    out_head: u32,
    out_stride: u32,
    head_first: u32,
    scale_base: u32,
    bias_base: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

var<workgroup> partial: array<f32, WORKGROUP * 33u>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let unit = group.x;
    let head = group.y;
    let token = group.z * TOKENS;
    var acc: array<vec4<f32>, 8u * TOKENS>;
    for (var i = 0u; i < 8u * TOKENS; i++) {
        acc[i] = vec4(0.0);
    }
    for (var n = thread; n < p.rows; n += WORKGROUP) {
        let row = head * p.row_head + n;
        var words = gate_load(row * UNITS + unit);
        var factors: array<f32, TOKENS>;
        for (var t = 0u; t < TOKENS; t++) {
            factors[t] = 0.0;
            if (token + t < p.tokens) {
                factors[t] = q[(token + t) * p.q_stride + (p.head_first + head) * p.q_head + n];
            }
        }
        for (var j = 0u; j < 8u; j++) {
            let scale = gate_group(0u, row, unit, j / (8u / PARTS), p.scale_base, p.bias_base);
            let value = values(&words, j) * scale.x + vec4(scale.y);
            for (var t = 0u; t < TOKENS; t++) {
                acc[t * 8u + j] += value * factors[t];
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
        let column = unit * 32u + thread;
        if (thread < 32u && column < COLS && token + t < p.tokens) {
            var sum = 0.0;
            for (var i = 0u; i < WORKGROUP; i++) {
                sum += partial[i * 33u + thread];
            }
            out[(token + t) * p.out_stride + (p.head_first + head) * p.out_head + column] = sum;
        }
        workgroupBarrier();
    }
}
