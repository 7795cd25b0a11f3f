// Sizes of matvec.wgsl for many shapes of matrices.

// What matrix.wgsl must know of a row.
var<private> UNITS: u32;
var<private> GROUPS: u32;

fn sizes() -> Sizes {
    UNITS = p.units;
    GROUPS = p.groups;
    let turn = select((p.units + p.turns - 1u) / p.turns, p.units, TURNS == 1u);
    return Sizes(p.cols, p.units, p.units, turn, p.span, p.slots, p.norm, p.add, 0u); // one token
}
