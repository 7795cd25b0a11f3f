// `gate = silu(gate) * up`, element by element, for gate and up of different formats.

struct Params {
    count: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> up: array<f32>;
@group(0) @binding(1) var<storage, read_write> gate: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let i = (group.x + group.y * GRID_Y) * WORKGROUP + thread;
    if (i < p.count) {
        gate[i] = gate[i] / (1.0 + exp(-gate[i])) * up[i];
    }
}
