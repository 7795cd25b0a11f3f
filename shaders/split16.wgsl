// Activations for cooperative matrices, a line a workgroup: a value times a power of two is rounded to a 16-bit float, and if
// EXACT is 1, a lower one has what is left, 22 bits together. The upper one is made by rounding the bits: compilers may take
// a conversion there and back for nothing, and nothing would be left below it. The power brings the line's largest value
// just below the largest 16-bit float.

// A line has WIDTH values and QUADS quads of columns: it is filled up with zeros.

struct Params {
    lines: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> split: array<vec4<f16>>; // a quad's upper floats, then its lower ones
@group(0) @binding(2) var<storage, read_write> factors: array<f32>;      // take the powers off again

var<workgroup> largest: array<f32, WORKGROUP>;

const EACH = (QUADS + WORKGROUP - 1u) / WORKGROUP; // quads of a thread

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let line = group.x + group.y * GRID_Y;
    if (line >= p.lines) {
        return;
    }
    var values: array<vec4<f32>, EACH>;
    var mine = 0.0;
    for (var i = 0u; i < EACH; i++) {
        for (var k = 0u; k < 4u; k++) {
            let column = 4u * (i * WORKGROUP + thread) + k;
            values[i][k] = select(0.0, x[line * WIDTH + min(column, WIDTH - 1u)], column < WIDTH);
        }
        let sizes = abs(values[i]);
        mine = max(mine, max(max(sizes.x, sizes.y), max(sizes.z, sizes.w)));
    }
    largest[thread] = mine;
    workgroupBarrier();
    for (var distance = WORKGROUP / 2u; distance > 0u; distance = distance / 2u) {
        if (thread < distance) {
            largest[thread] = max(largest[thread], largest[thread + distance]);
        }
        workgroupBarrier();
    }
    let exponent = clamp(bitcast<u32>(largest[0]) >> 23u, 15u, 254u);
    let power = bitcast<f32>((268u - exponent) << 23u); // 2^14 over the largest value's power of two
    for (var i = 0u; i < EACH; i++) {
        let quad = i * WORKGROUP + thread;
        if (quad < QUADS) {
            let scaled = power * values[i];
            let upper = bitcast<vec4<f32>>((bitcast<vec4<u32>>(scaled) + vec4(0x1000u)) & vec4(0xffffe000u));
            let to = (line * QUADS + quad) * (1u + EXACT);
            split[to] = vec4<f16>(upper);
            if (EXACT == 1u) {
                split[to + 1u] = vec4<f16>(scaled - upper);
            }
        }
    }
    if (thread == 0u) {
        factors[line] = bitcast<f32>((exponent - 14u) << 23u);
    }
}
