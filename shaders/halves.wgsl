// Splits activations for cooperative matrices, a line a workgroup: a value times a power of two is an upper and a lower
// 16-bit float, 22 bits together. The power brings the line's largest value just below the largest 16-bit float.

struct Params {
    lines: u32,
    width: u32,
    pairs: u32, // of columns, filled up with zeros
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> halves: array<vec4<f16>>; // two columns: upper, lower
@group(0) @binding(2) var<storage, read_write> factors: array<f32>;      // take the powers off again

var<workgroup> largest: array<f32, WORKGROUP>;

fn column(line: u32, i: u32) -> f32 {
    if (i >= p.width) {
        return 0.0;
    }
    return x[line * p.width + i];
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let line = group.x + group.y * GRID_Y;
    if (line >= p.lines) {
        return;
    }
    var mine = 0.0;
    for (var i = thread; i < p.width; i += WORKGROUP) {
        mine = max(mine, abs(column(line, i)));
    }
    largest[thread] = mine;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half = half / 2u) {
        if (thread < half) {
            largest[thread] = max(largest[thread], largest[thread + half]);
        }
        workgroupBarrier();
    }
    let exponent = clamp(bitcast<u32>(largest[0]) >> 23u, 15u, 254u);
    let power = bitcast<f32>((268u - exponent) << 23u); // 2^14 over the largest value's power of two
    for (var i = thread; i < p.pairs; i += WORKGROUP) {
        let values = power * vec2(column(line, 2u * i), column(line, 2u * i + 1u));
        let upper = vec2<f16>(values);
        let lower = vec2<f16>(values - vec2<f32>(upper));
        halves[line * p.pairs + i] = vec4(upper, lower);
    }
    if (thread == 0u) {
        factors[line] = bitcast<f32>((exponent - 14u) << 23u);
    }
}
