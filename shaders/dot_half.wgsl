// A unit of activations times a unit of codes that are read as denormal 16-bit floats: a mask for two codes, nothing else.
// Only where the device does not take such floats for zero (kimi-quant/src/gpu/denormals.rs). Which codes a word has and
// at which places is found by kimi-quant/src/gpu/halves.rs, which fills in the lines in capitals.

struct Prepared {
    values: array<vec4<f32>, 8>, // scaled to the places that codes have in a 16-bit float
    sums: array<f32, PARTS>,     // of the activations of each group
}

fn prepare(values: array<vec4<f32>, 8>, factor: f32) -> Prepared {
    var prepared: Prepared;
    @unroll for (var part = 0u; part < PARTS; part++) {
        var sum = vec4(0.0);
        @unroll for (var q = part * (8u / PARTS); q < (part + 1u) * (8u / PARTS); q++) {
            prepared.values[q] = values[q] * factor;
            sum += prepared.values[q];
        }
        prepared.sums[part] = (sum.x + sum.y) + (sum.z + sum.w);
    }
    SCALE_TO_PLACES
    return prepared;
}

fn unit_product(words: array<u32, WORDS>, groups: array<vec2<f32>, PARTS>, x: Prepared) -> f32 {
    MULTIPLY_WINDOWS
    return RESULT;
}
