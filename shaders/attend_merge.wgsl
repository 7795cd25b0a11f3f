// Puts the segments of attend.wgsl together: a workgroup is one head of one token.

struct Params {
    lines: u32, // tokens * heads
    segments: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> parts: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

const STRIDE = LATENT + 2u;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let line = group.x + group.y * GRID_Y;
    if (line >= p.lines) {
        return;
    }
    let first = line * p.segments * STRIDE;
    var largest = -3.0e38;
    for (var s = 0u; s < p.segments; s++) {
        largest = max(largest, parts[first + s * STRIDE + LATENT]);
    }
    var total = 0.0;
    for (var s = 0u; s < p.segments; s++) {
        total += exp(parts[first + s * STRIDE + LATENT] - largest) * parts[first + s * STRIDE + LATENT + 1u];
    }
    for (var column = thread; column < LATENT; column += WORKGROUP) {
        var sum = 0.0;
        for (var s = 0u; s < p.segments; s++) {
            sum += exp(parts[first + s * STRIDE + LATENT] - largest) * parts[first + s * STRIDE + column];
        }
        out[line * LATENT + column] = sum / total;
    }
}
