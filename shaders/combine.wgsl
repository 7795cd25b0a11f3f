// Adds each token's expert results to the residual, in the order of choice: columns `first ..` of
// `residual[t] += sum_j parts[t * CHOSEN + j]`. The parts are weighted already.

struct Params {
    tokens: u32,
    width: u32,  // of the parts
    first: u32,
    stride: u32, // of the residual
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> parts: array<f32>;
@group(0) @binding(1) var<storage, read_write> residual: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let column = group.x * WORKGROUP + thread;
    if (column >= p.width) {
        return;
    }
    let token = group.y + group.z * GRID_Y;
    if (token >= p.tokens) {
        return;
    }
    var sum = residual[token * p.stride + p.first + column];
    for (var j = 0u; j < CHOSEN; j++) {
        sum += parts[(token * CHOSEN + j) * p.width + column];
    }
    residual[token * p.stride + p.first + column] = sum;
}
