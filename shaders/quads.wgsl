// Activations four at a time, where all rows begin at a multiple of four.

alias X = vec4<f32>;
alias Words = vec4<u32>;

// A quad of a row that begins at value `start`.
fn quad_of_x(start: u32, quad: u32) -> vec4<f32> {
    return x[(start >> 2u) + quad];
}

fn quad_of_norm(quad: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(norm_or_tiles[quad]);
}

fn tile_at(i: u32) -> vec4<u32> {
    return norm_or_tiles[i];
}
