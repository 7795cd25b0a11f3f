// The rows of a step of matvec.wgsl: all loads of a step in one run of instructions, so that all of them are under way
// before the first is waited for. Included once for each matrix that a source may begin with, with FIRST and SECOND
// replaced (SECOND is up, with GATED).

fn FIRST_fetch(index: u32, row_at: u32, unit: u32, scale_base: u32, fetched: ptr<function, Fetched>) {
    for (var i = 0u; i < VALUES; i++) {
        let row = row_at + i / (GATED + 1u);
        if (GATED == 1u && (i & 1u) == 1u) {
            (*fetched).words[i] = SECOND_load(row * UNITS + unit);
        } else {
            (*fetched).words[i] = FIRST_load(row * UNITS + unit);
        }
    }
    for (var i = 0u; i < VALUES; i++) {
        let row = row_at + i / (GATED + 1u);
        for (var part = 0u; part < PARTS; part++) {
            if (GATED == 1u && (i & 1u) == 1u) {
                (*fetched).groups[i][part] = SECOND_group(index, row, unit, part, scale_base);
            } else {
                (*fetched).groups[i][part] = FIRST_group(index, row, unit, part, scale_base);
            }
        }
    }
}
