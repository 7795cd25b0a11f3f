// One token's cache entry: the latent normalised, the key rotated. A workgroup is a token.

struct Params {
    latent: u32,
    half: u32, // rope / 2
    eps: f32,
    mscale: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> kv: array<f32>;
@group(0) @binding(1) var<storage, read_write> cache: array<f32>;
@group(0) @binding(2) var<storage, read> norm_weight: array<f32>;
@group(0) @binding(3) var<storage, read> turns: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read> slots: array<u32>; // cache slot of each token

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let token = group.x;
    let width = p.latent + 2u * p.half;
    let source = token * width;
    let to = slots[token] * width;
    var square = 0.0;
    for (var i = thread; i < p.latent; i += WORKGROUP) {
        square += kv[source + i] * kv[source + i];
    }
    let factor = 1.0 / sqrt(workgroup_sum(square, thread) / f32(p.latent) + p.eps);
    for (var i = thread; i < p.latent; i += WORKGROUP) {
        cache[to + i] = kv[source + i] * factor * norm_weight[i];
    }
    for (var i = thread; i < p.half; i += WORKGROUP) {
        let turn = turns[token * p.half + i];
        let a = kv[source + p.latent + 2u * i] * p.mscale;
        let b = kv[source + p.latent + 2u * i + 1u] * p.mscale;
        cache[to + p.latent + 2u * i] = a * turn.x - b * turn.y;
        cache[to + p.latent + 2u * i + 1u] = a * turn.y + b * turn.x;
    }
}
