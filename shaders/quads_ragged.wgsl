// Activations four at a time, where rows begin anywhere: what is beyond a row is 0.

alias X = f32;
alias Words = u32;

// A quad of a row of `p.cols` values that begins at value `start`.
fn quad_of_x(start: u32, quad: u32) -> vec4<f32> {
    var value = vec4(0.0);
    for (var i = 0u; i < min(4u, p.cols - 4u * quad); i++) {
        value[i] = x[start + 4u * quad + i];
    }
    return value;
}

fn quad_of_norm(quad: u32) -> vec4<f32> {
    var value = vec4(0.0);
    for (var i = 0u; i < min(4u, p.cols - 4u * quad); i++) {
        value[i] = bitcast<f32>(norm_or_tiles[4u * quad + i]);
    }
    return value;
}

fn tile_at(i: u32) -> vec4<u32> {
    return vec4(norm_or_tiles[4u * i], norm_or_tiles[4u * i + 1u], norm_or_tiles[4u * i + 2u], norm_or_tiles[4u * i + 3u]);
}
