// A unit of activations times a unit of codes, in floating point.

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
