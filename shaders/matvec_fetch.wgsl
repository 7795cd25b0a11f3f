// The rows of a step of matvec.wgsl: all loads of a step in one run of instructions, so that all of them are under way
// before the first is waited for. Included once for each matrix that a source may begin with, with FIRST and SECOND
// replaced (SECOND is up, with GATED).

fn FIRST_fetch(index: u32, row_at: u32, unit: u32, scale_base: u32, fetched: ptr<function, Fetched>) {
    let first_unit = row_at * UNITS + unit;
    @unroll for (var i = 0u; i < VALUES; i++) {
        let at = first_unit + i / (GATED + 1u) * UNITS;
        if (GATED == 1u && (i & 1u) == 1u) {
            (*fetched).words[i] = SECOND_load(at);
        } else {
            (*fetched).words[i] = FIRST_load(at);
        }
    }
    @unroll for (var part = 0u; part < PARTS; part++) {
        let group = group_of(unit, part);
        let first_group = row_at * GROUPS + group;
        @unroll for (var i = 0u; i < VALUES; i++) {
            var at = first_group + i / (GATED + 1u) * GROUPS;
            if (SCALE_ROWS > 1u) {
                at = (row_at + i / (GATED + 1u)) / SCALE_ROWS * GROUPS + group;
            }
            if (GATED == 1u && (i & 1u) == 1u) {
                (*fetched).groups[i][part] = SECOND_group_at(index, at, scale_base);
            } else {
                (*fetched).groups[i][part] = FIRST_group_at(index, at, scale_base);
            }
        }
    }
}
