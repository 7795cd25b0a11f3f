// The positional part of the queries: copied and rotated to each token's position, interleaved pairs.

struct Params {
    pairs: u32, // tokens * heads * rope / 2
    heads: u32,
    half: u32,  // rope / 2
    q_head: u32,
    q_first: u32,
    out_head: u32,
    out_first: u32,
    mscale: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read> turns: array<vec2<f32>>; // cosine and sine, [T, rope / 2]

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let at = (group.x + group.y * GRID_Y) * WORKGROUP + thread;
    if (at >= p.pairs) {
        return;
    }
    let i = at % p.half;
    let line = at / p.half; // token * heads + head
    let turn = turns[(line / p.heads) * p.half + i];
    let source = line * p.q_head + p.q_first + 2u * i;
    let a = q[source] * p.mscale;
    let b = q[source + 1u] * p.mscale;
    let to = line * p.out_head + p.out_first + 2u * i;
    out[to] = a * turn.x - b * turn.y;
    out[to + 1u] = a * turn.y + b * turn.x;
}
