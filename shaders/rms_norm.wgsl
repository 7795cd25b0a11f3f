// RMS norm, a token a workgroup: `out = x / sqrt(mean(x^2) + eps) * weight`.

struct Params {
    eps: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;

const EACH = (WIDTH + WORKGROUP - 1u) / WORKGROUP; // values of a thread

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first = group.x * WIDTH;
    var values: array<f32, EACH>;
    var square = 0.0;
    for (var i = 0u; i < EACH; i++) {
        let column = i * WORKGROUP + thread;
        values[i] = select(0.0, x[first + min(column, WIDTH - 1u)], column < WIDTH);
        square += values[i] * values[i];
    }
    let factor = 1.0 / sqrt(workgroup_sum(square, thread) / f32(WIDTH) + p.eps);
    for (var i = 0u; i < EACH; i++) {
        let column = i * WORKGROUP + thread;
        if (column < WIDTH) {
            out[first + column] = values[i] * factor * weight[column];
        }
    }
}
