// Sizes of matvec.wgsl for one shape of matrix.

fn sizes() -> Sizes {
    return Sizes(COLS, UNITS, BESIDE, SPAN, SLOTS, NORM, ADD, SEVERAL);
}
