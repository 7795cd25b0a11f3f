// Reads a buffer once, for measuring how fast memory can be read.

struct Params {
    count: u32, // of 16 bytes
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> data: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first = group.x * WORKGROUP * CELLS + thread;
    var sum = vec4(0u);
    for (var i = 0u; i < CELLS; i++) {
        let at = first + i * WORKGROUP;
        if (at < p.count) {
            sum ^= data[at];
        }
    }
    // Keeps the loads; random data never comes to this.
    if (all(sum == vec4(0x12345678u))) {
        out[thread] = sum.x;
    }
}
