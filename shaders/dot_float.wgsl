// A unit of activations times a unit of codes, in floating point.

struct Prepared {
    values: array<vec4<f32>, 8>, // scaled to the places that codes have in a float
    sums: array<f32, PARTS>,     // of the activations of each group
}

fn prepare(values: array<vec4<f32>, 8>, factor: f32) -> Prepared {
    var prepared: Prepared;
    @unroll for (var part = 0u; part < PARTS; part++) {
        var sum = vec4(0.0);
        @unroll for (var q = part * (8u / PARTS); q < (part + 1u) * (8u / PARTS); q++) {
            let value = values[q] * factor;
            sum += value;
            prepared.values[q] = value * place_factors();
        }
        prepared.sums[part] = (sum.x + sum.y) + (sum.z + sum.w);
    }
    return prepared;
}

fn unit_product(words: array<u32, BITS>, groups: array<vec2<f32>, PARTS>, x: Prepared) -> f32 {
    var unit = words;
    var result = 0.0;
    @unroll for (var part = 0u; part < PARTS; part++) {
        var sums = vec2(0.0);
        @unroll for (var q = part * (8u / PARTS); q < (part + 1u) * (8u / PARTS); q++) {
            let code = placed(&unit, q);
            sums.x = fma(x.values[q].x, code.x, sums.x);
            sums.y = fma(x.values[q].y, code.y, sums.y);
            sums.x = fma(x.values[q].z, code.z, sums.x);
            sums.y = fma(x.values[q].w, code.w, sums.y);
        }
        result = fma(groups[part].x, sums.x + sums.y, fma(groups[part].y, x.sums[part], result));
    }
    return result;
}
