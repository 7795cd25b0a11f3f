// Included: many tokens through a head's rows of a packed matrix, which are the product's inputs (BY_COLUMNS) or outputs.
// A workgroup has TOKENS tokens by TILE_COLUMNS outputs and decodes each weight once for all its tokens.

const TILE_UNITS = SLAB / 8u; // units of a slab
const SLABS = ((INNER + 3u) / 4u + SLAB - 1u) / SLAB;

fn put(t: u32, cell: u32, value: vec4<f32>) {
    put_row(cell, t, value);
}

// One unit of the weights; what lies outside of the matrix is met by zeros or not used.
fn put_unit(item: u32, block: u32, head: u32, slab: u32) {
    let row_first = head * p.row_head + p.row_first;
    var row: u32;
    var unit: u32;
    if (BY_COLUMNS == 1u) {
        row = row_first + min(slab * SLAB * 4u + item % (SLAB * 4u), INNER - 1u);
        unit = block * (TILE_COLUMNS / 32u) + item / (SLAB * 4u);
    } else {
        row = row_first + min(block * TILE_COLUMNS + item % TILE_COLUMNS, OUTER - 1u);
        unit = slab * TILE_UNITS + item / TILE_COLUMNS;
    }
    unit = min(unit, UNITS - 1u);
    var words = gate_load(row * UNITS + unit);
    for (var j = 0u; j < 8u; j++) {
        let scale = gate_group(0u, row, unit, j / (8u / PARTS), p.scale_base, p.bias_base);
        let value = fma(values(&words, j), vec4(scale.x), vec4(scale.y));
        if (BY_COLUMNS == 1u) {
            put_columns(item % (SLAB * 4u), item / (SLAB * 4u) * 8u + j, value);
        } else {
            put_column(item / TILE_COLUMNS * 8u + j, item % TILE_COLUMNS, value);
        }
    }
}

fn project(thread: u32, block: u32, head: u32, token: u32, tokens: u32) {
    let at = place(thread);
    var sums = Sums(vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0));
    prepare(thread, token, tokens, head);
    for (var slab = 0u; slab < SLABS; slab++) {
        for (var item = thread; item < TILE_COLUMNS * TILE_UNITS; item += WORKGROUP) {
            put_unit(item, block, head, slab);
        }
        stage(thread, token, tokens, head, slab * SLAB, SLAB);
        workgroupBarrier();
        sums = multiply(at, sums);
        workgroupBarrier();
    }
    put_sums(at, sums);
    workgroupBarrier();
    for (var i = thread; i < tokens * COLUMN_GROUPS; i += WORKGROUP) {
        let t = i / COLUMN_GROUPS;
        let sum = sum_at(t, i % COLUMN_GROUPS);
        for (var c = 0u; c < 4u; c++) {
            let column = block * TILE_COLUMNS + column_of(i % COLUMN_GROUPS, c);
            if (column < OUTER) {
                out[((token + t) * p.heads + head) * OUT_HEAD + column] = sum[c];
            }
        }
    }
}
