// Rows of a packed matrix, as values: `out[t, c] = w[row, c]`, where `row` is `ids[t]`, or the token that was chosen at the
// place `ids[t]`. A thread writes a unit.

struct Params {
    chosen: u32, // whether `ids` are places
    row_first: u32, // the rows that the bindings hold
    rows: u32,
    all_rows: u32,
    scale_base: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read> chosen: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let unit = group.x * WORKGROUP + thread;
    let token = group.y;
    var id = ids[token];
    if (p.chosen != 0u) {
        id = min(chosen[id], p.all_rows - 1u); // none was found: what follows is not used
    }
    let row = id - p.row_first;
    if (unit >= UNITS || row >= p.rows) {
        return;
    }
    var words = gate_load(row * UNITS + unit);
    for (var j = 0u; j < 8u; j++) {
        let scale = gate_group(0u, row, unit, j / (8u / PARTS), p.scale_base);
        let value = values(&words, j) * scale.x + vec4(scale.y);
        for (var i = 0u; i < 4u; i++) {
            let column = unit * 32u + 4u * j + i;
            if (column < COLS) {
                out[token * COLS + column] = value[i];
            }
        }
    }
}
