// What a token's attention begins with, in one dispatch: its queries go into the latent space through W_UK, their
// positional part is rotated, and its key (normalised latent, rotated positional part) goes into the cache.
//
// Grid: blocks of latent columns, heads, blocks of TOKENS tokens. The workgroups one past the last head store the keys.
// How a head's queries meet W_UK is a piece of its own: input_rows.wgsl, output_rows.wgsl or tiled_rows.wgsl.

const INNER = NOPE;
const OUTER = LATENT;
const OUT_HEAD = LATENT + ROPE;
const WIDTH = LATENT + ROPE;
const TURNS = ROPE / 2u;
const THREAD_CELLS = ((LATENT + 1u) / 2u + WORKGROUP - 1u) / WORKGROUP;

struct Params {
    tokens: u32,
    heads: u32,
    row_head: u32, // rows of the matrix from head to head
    row_first: u32,
    scale_base: u32,
    slots: u32, // where the tokens' cache slots begin in `batch`
    eps: f32,
    mscale: f32,
    one: u32, // steps by it keep a loop from being unrolled
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read> kv: array<f32>;
// Floats of 32 bits, or with LATENT_POWER upper and lower ones of 16 for attend_cooperative.wgsl.
@group(0) @binding(3) var<storage, read_write> cache: array<u32>;
@group(0) @binding(4) var<storage, read> norm_weight: array<f32>;
@group(0) @binding(5) var<storage, read> batch: array<u32>; // begins with cosines and sines, [T, rope / 2, 2]

fn prepare(thread: u32, token: u32, tokens: u32, head: u32) {}

// Brings `count` cells of each token's query in, from cell `first` on; zeros where there is none.
fn stage(thread: u32, token: u32, tokens: u32, head: u32, first: u32, count: u32) {
    for (var i = thread; i < TOKENS * count; i += WORKGROUP) {
        let t = i / count;
        let cell = i % count;
        var value = vec4(0.0);
        for (var k = 0u; k < 4u; k++) {
            let column = 4u * (first + cell) + k;
            if (t < tokens && column < NOPE) {
                value[k] = q[((token + t) * p.heads + head) * (NOPE + ROPE) + column];
            }
        }
        put(t, cell, value);
    }
}

fn rotated(token: u32, i: u32, pair: vec2<f32>) -> vec2<f32> {
    let at = 2u * (token * TURNS + i);
    let cosine = bitcast<f32>(batch[at]);
    let sine = bitcast<f32>(batch[at + 1u]);
    let x = pair * p.mscale;
    return vec2(x.x * cosine - x.y * sine, x.x * sine + x.y * cosine);
}

fn rotate_query(thread: u32, token: u32, tokens: u32, head: u32) {
    for (var i = thread; i < tokens * TURNS; i += WORKGROUP) {
        let line = (token + i / TURNS) * p.heads + head;
        let source = line * (NOPE + ROPE) + NOPE + 2u * (i % TURNS);
        let turned = rotated(token + i / TURNS, i % TURNS, vec2(q[source], q[source + 1u]));
        let to = line * OUT_HEAD + LATENT + 2u * (i % TURNS);
        out[to] = turned.x;
        out[to + 1u] = turned.y;
    }
}

// Stores two columns of a key, of which the second may be one too many.
fn keep(to: u32, column: u32, pair: vec2<f32>, end: u32) {
    if (LATENT_POWER > 0u) {
        let value = pair * select(1.0, f32(LATENT_POWER), column < LATENT);
        let upper = bitcast<vec2<f32>>((bitcast<vec2<u32>>(value) + vec2(0x1000u)) & vec2(0xffffe000u));
        cache[to + column / 2u] = pack2x16float(upper);
        cache[to + (WIDTH + column) / 2u] = pack2x16float(value - upper);
        return;
    }
    cache[to + column] = bitcast<u32>(pair.x);
    if (column + 1u < end) {
        cache[to + column + 1u] = bitcast<u32>(pair.y);
    }
}

fn store_key(thread: u32, token: u32) {
    let source = token * WIDTH;
    let to = batch[p.slots + token] * WIDTH;
    var square = 0.0;
    var values: array<vec2<f32>, THREAD_CELLS>;
    for (var k = 0u; k < THREAD_CELLS; k++) {
        let column = 2u * (k * WORKGROUP + thread);
        let first = kv[source + min(column, LATENT - 1u)];
        let second = kv[source + min(column + 1u, LATENT - 1u)];
        values[k] = select(vec2(0.0), vec2(first, second), vec2(column, column + 1u) < vec2(LATENT));
        square += dot(values[k], values[k]);
    }
    let factor = 1.0 / sqrt(workgroup_sum(square, thread) / f32(LATENT) + p.eps);
    for (var k = 0u; k < THREAD_CELLS; k++) {
        let column = 2u * (k * WORKGROUP + thread);
        if (column < LATENT) {
            let weight = vec2(norm_weight[column], norm_weight[min(column + 1u, LATENT - 1u)]);
            keep(to, column, values[k] * factor * weight, LATENT);
        }
    }
    for (var i = thread; i < TURNS; i += WORKGROUP) {
        let pair = source + LATENT + 2u * i;
        keep(to, LATENT + 2u * i, rotated(token, i, vec2(kv[pair], kv[pair + 1u])), WIDTH);
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let token = group.z * TOKENS;
    let tokens = min(TOKENS, p.tokens - token);
    if (group.y == p.heads) {
        for (var t = group.x; t < tokens; t += groups.x) {
            store_key(thread, token + t);
        }
        return;
    }
    if (group.x == 0u) {
        rotate_query(thread, token, tokens, group.y);
    }
    project(thread, group.x, group.y, token, tokens);
}
