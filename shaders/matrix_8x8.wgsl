// Included: cooperative matrices of 8x8 32-bit floats, of a subgroup of 32, loaded from and stored to `cells` in shared memory.

alias Left = coop_mat8x8<f32, A>;
alias Right = coop_mat8x8<f32, B>;
alias Sum = coop_mat8x8<f32, C>;

// Rows of the matrix are PITCH cells apart.
fn left(at: u32) -> Left {
    return coopLoadT<Left>(&cells[at], PITCH);
}

// Columns of the matrix are PITCH cells apart.
fn right(at: u32) -> Right {
    return coopLoad<Right>(&cells[at], PITCH);
}

// Rows of the matrix are PITCH cells apart.
fn sum_from(at: u32) -> Sum {
    return coopLoadT<Sum>(&cells[at], PITCH);
}

fn multiplied(x: Left, w: Right, sum: Sum) -> Sum {
    return coopMultiplyAdd(x, w, sum);
}

// Rows of the matrix come to be `pitch` cells apart.
fn store(sum: Sum, at: u32, pitch: u32) {
    coopStoreT(sum, &cells[at], pitch);
}
