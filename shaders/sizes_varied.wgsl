// Sizes of matvec.wgsl for many shapes of matrices.

// What matrix.wgsl must know of a row.
var<private> UNITS: u32;
var<private> GROUPS: u32;

fn sizes() -> Sizes {
    UNITS = p.units;
    GROUPS = p.groups;
    return Sizes(p.cols, p.units, p.units, p.span, p.slots, p.norm, p.add, 0u); // one token
}
