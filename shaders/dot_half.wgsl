// A unit of activations times a unit of codes that are read as denormal 16-bit floats: a mask for two codes, nothing else.
// Only where the device does not take such floats for zero (kimi-quant/src/gpu/denormals.rs). Which codes a word has and
// at which places is found by kimi-quant/src/gpu/halves.rs, which fills in the lines in capitals.

// What activations are multiplied by for the places of their codes.
const PLACES_OF_QUADS = array<vec4<f32>, 8>(QUADS_PLACES);

fn unit_product(words: array<u32, WORDS>, groups: array<vec2<f32>, PARTS>, x: Prepared) -> f32 {
    MULTIPLY_WINDOWS
    return RESULT;
}
