// Sizes of matvec.wgsl for one shape of matrix.

fn sizes() -> Sizes {
    return Sizes(COLS, UNITS, BESIDE, TURN, SPAN, SLOTS, NORM, ADD, SEVERAL);
}
