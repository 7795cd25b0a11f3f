// RMS norm, a token a workgroup: `out = x / sqrt(mean(x^2) + eps) * weight`.

struct Params {
    width: u32,
    eps: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first = group.x * p.width;
    var square = 0.0;
    for (var i = thread; i < p.width; i += WORKGROUP) {
        square += x[first + i] * x[first + i];
    }
    let factor = 1.0 / sqrt(workgroup_sum(square, thread) / f32(p.width) + p.eps);
    for (var i = thread; i < p.width; i += WORKGROUP) {
        out[first + i] = x[first + i] * factor * weight[i];
    }
}
