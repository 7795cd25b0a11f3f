// Stands in for matrix.wgsl where an op has no second matrix.

fn MATRIX_load(unit: u32) -> array<u32, WORDS> {
    var words: array<u32, WORDS>;
    return words;
}

fn MATRIX_group(index: u32, row: u32, unit: u32, sub: u32, scale_base: u32) -> vec2<f32> {
    return vec2(0.0);
}

fn MATRIX_group_at(index: u32, at: u32, scale_base: u32) -> vec2<f32> {
    return vec2(0.0);
}
