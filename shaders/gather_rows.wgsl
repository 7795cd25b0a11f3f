// Some rows of anything in words of 32 bits: `out[s] = x[rows[s]]`.

struct Params {
    width: u32,
    count: u32, // of rows
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
@group(0) @binding(2) var<storage, read> rows: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.y * GRID_Y + group.x;
    if (row >= p.count) {
        return;
    }
    for (var i = thread; i < p.width; i += WORKGROUP) {
        out[row * p.width + i] = x[rows[row] * p.width + i];
    }
}
