// Included: many tokens through a head's rows of a packed matrix, which are the product's inputs (BY_COLUMNS) or outputs.
// A workgroup has TOKENS tokens by TILE_COLUMNS outputs and decodes each weight once for all its tokens.

const TILE_UNITS = SLAB / 8u; // units of a slab
const SLABS = ((INNER + 3u) / 4u + SLAB - 1u) / SLAB;
const ITEMS = TILE_COLUMNS * TILE_UNITS;
const THREAD_ITEMS = (ITEMS + WORKGROUP - 1u) / WORKGROUP;

// A thread's units of a slab.
struct Loaded {
    words: array<array<u32, BITS>, THREAD_ITEMS>,
    scales: array<vec2<f32>, THREAD_ITEMS * PARTS>,
}

fn put(t: u32, cell: u32, value: vec4<f32>) {
    put_row(cell, t, value);
}

// Neighbouring threads take neighbouring rows. What lies outside of the matrix is met by zeros or not used.
fn load(thread: u32, block: u32, head: u32, slab: u32) -> Loaded {
    var loaded: Loaded;
    for (var i = 0u; i < THREAD_ITEMS; i++) {
        let item = min(thread + i * WORKGROUP, ITEMS - 1u);
        var row = head * p.row_head + p.row_first;
        var unit: u32;
        if (BY_COLUMNS == 1u) {
            row += min(slab * SLAB * 4u + item % (SLAB * 4u), INNER - 1u);
            unit = block * (TILE_COLUMNS / 32u) + item / (SLAB * 4u);
        } else {
            row += min(block * TILE_COLUMNS + item % TILE_COLUMNS, OUTER - 1u);
            unit = slab * TILE_UNITS + item / TILE_COLUMNS;
        }
        unit = min(unit, UNITS - 1u);
        loaded.words[i] = gate_load(row * UNITS + unit);
        for (var part = 0u; part < PARTS; part++) {
            loaded.scales[i * PARTS + part] = gate_group(0u, row, unit, part, p.scale_base);
        }
    }
    return loaded;
}

fn put_units(thread: u32, loaded: Loaded) {
    var copy = loaded;
    for (var i = 0u; i < THREAD_ITEMS; i++) {
        let item = thread + i * WORKGROUP;
        if (item < ITEMS) {
            var words = copy.words[i];
            for (var j = 0u; j < 8u; j++) {
                let scale = copy.scales[i * PARTS + j / (8u / PARTS)];
                let value = fma(values(&words, j), vec4(scale.x), vec4(scale.y));
                if (BY_COLUMNS == 1u) {
                    put_columns(item % (SLAB * 4u), item / (SLAB * 4u) * 8u + j, value);
                } else {
                    put_column(item / TILE_COLUMNS * 8u + j, item % TILE_COLUMNS, value);
                }
            }
        }
    }
}

fn project(thread: u32, block: u32, head: u32, token: u32, tokens: u32) {
    let at = place(thread);
    var sums = Sums(vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0));
    var next = load(thread, block, head, 0u);
    prepare(thread, token, tokens, head);
    for (var slab = 0u; slab < SLABS; slab++) {
        put_units(thread, next);
        stage(thread, token, tokens, head, slab * SLAB, SLAB);
        workgroupBarrier();
        if (slab + 1u < SLABS) {
            next = load(thread, block, head, slab + 1u); // on its way while this one is multiplied
        }
        sums = multiply(at, sums, 1u);
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
