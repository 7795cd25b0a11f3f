// Which activations meet which rows in a product of many tokens; included by few, tiled and cooperative.wgsl.
//
// PLAIN    LINES neighbouring tokens and all rows of a matrix
// GROUPED  a tile of `tiles`: (token, choice) pairs that chose the same expert. A line's input is its token's row, or
//          with OWN_INPUT a row of the pair's own; its output is the pair's row, with WEIGHTED multiplied by the pair's weight.

const PLAIN = 0u;
const GROUPED = 1u;

struct Params {
    rows: u32,         // outputs of this dispatch
    tokens: u32,
    x_stride: u32,     // values between lines, of inputs and outputs
    out_stride: u32,
    row_first: u32,    // of the matrix (of an expert) and of the outputs
    out_first: u32,
    expert_first: u32, // the experts that the bindings hold
    experts: u32,
    expert_rows: u32,
    scale_base: u32,   // word offsets in the scales
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<Input>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read> pairs: array<u32>;       // sorted by expert
@group(0) @binding(3) var<storage, read> tiles: array<vec4<u32>>; // how many; then expert, first of `pairs`, count
@group(0) @binding(4) var<storage, read> weights: array<f32>;

// The lines of a workgroup.
struct Lines {
    first: u32,     // token, or place in `pairs`
    count: u32,     // 0: nothing to do
    matrix: u32,    // index of the expert in the bindings
    first_row: u32, // of the weights
}

fn lines_of(block: u32) -> Lines {
    if (MODE == PLAIN) {
        let first = block * LINES;
        return Lines(first, min(LINES, p.tokens - first), 0u, p.row_first);
    }
    if (block >= tiles[0].x) {
        return Lines();
    }
    let tile = tiles[block + 1u];
    let expert = tile.x - p.expert_first;
    if (expert >= p.experts) {
        return Lines();
    }
    return Lines(tile.y, tile.z, expert, expert * p.expert_rows + p.row_first);
}

// Where the inputs of line `t` begin; lines beyond the count read the last one.
fn input_at(lines: Lines, t: u32) -> u32 {
    let line = lines.first + min(t, lines.count - 1u);
    if (MODE == PLAIN) {
        return line * p.x_stride;
    }
    let pair = pairs[line];
    return select(pair / CHOSEN, pair, OWN_INPUT == 1u) * p.x_stride;
}

fn multiply(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
    return fma(a.x, b.x, fma(a.y, b.y, fma(a.z, b.z, fma(a.w, b.w, sum))));
}

// The weights of a quad of codes; `place` is what their places divide them by.
fn weighed(raw: vec4<f32>, scale: vec2<f32>, place: vec4<f32>) -> vec4<f32> {
    if (!INTEGER) {
        return raw * scale.x;
    }
    let factor = place * scale.x;
    return fma(raw, factor, vec4(scale.y) - factor);
}

fn swiglu(gate: f32, up: f32) -> f32 {
    return gate / (1.0 + exp(-gate)) * up;
}

// Writes output `row` of line `t`.
fn put(lines: Lines, t: u32, row: u32, value: f32) {
    var line = lines.first + t;
    var result = value;
    if (MODE == GROUPED) {
        line = pairs[line];
        if (WEIGHTED == 1u) {
            result *= weights[line];
        }
    }
    let to = line * p.out_stride + p.out_first + row;
    if (ADD == 1u) {
        result += out[to];
    }
    out[to] = result;
}
