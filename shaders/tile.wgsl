// Included: products of two tiles in shared memory, TILE_ROWS by TILE_COLUMNS sums over SLAB cells of four values each.
//
// A thread has four rows by four columns; TEAM threads have the whole tile. The teams share the slab's cells, and their
// sums are put together at the end, in the same memory.

const ROW_GROUPS = TILE_ROWS / 4u;
const COLUMN_GROUPS = TILE_COLUMNS / 4u;
const TEAM = ROW_GROUPS * COLUMN_GROUPS;
const TEAMS = WORKGROUP / TEAM;
const TEAM_CELLS = SLAB / TEAMS;

// One more than there are lines, so that the cells of one line lie in different banks.
const ROW_STRIDE = TILE_ROWS + 1u;
const COLUMN_STRIDE = TILE_COLUMNS + 1u;
const COLUMNS_AT = SLAB * ROW_STRIDE;
const SUM_STRIDE = TILE_COLUMNS + 8u;

var<workgroup> cells: array<vec4<f32>, max(SLAB * (ROW_STRIDE + COLUMN_STRIDE), TEAMS * TILE_ROWS * SUM_STRIDE / 4u)>;

struct Place {
    team: u32,
    row: u32, // first of the thread's; the others are ROW_GROUPS apart
    column: u32,
}

// 32 neighbouring threads have eight neighbouring columns by four rows: few cells, read by many.
fn place(thread: u32) -> Place {
    let at = thread % TEAM;
    let column = at % 8u + at / (8u * ROW_GROUPS) * 8u;
    return Place(thread / TEAM, (at / 8u) % ROW_GROUPS, column);
}

fn put_row(cell: u32, row: u32, value: vec4<f32>) {
    cells[cell * ROW_STRIDE + row] = value;
}

fn put_column(cell: u32, column: u32, value: vec4<f32>) {
    cells[COLUMNS_AT + cell * COLUMN_STRIDE + column] = value;
}

fn put_column_value(inner: u32, column: u32, value: f32) {
    cells[COLUMNS_AT + (inner >> 2u) * COLUMN_STRIDE + column][inner & 3u] = value;
}

// Adds the slab's products to a thread's sums; a row's four columns lie together.
fn multiply(at: Place, sums: ptr<function, array<vec4<f32>, 4>>) {
    for (var i = 0u; i < TEAM_CELLS; i++) {
        let cell = at.team * TEAM_CELLS + i;
        var rows: array<vec4<f32>, 4>;
        var columns: array<vec4<f32>, 4>;
        for (var k = 0u; k < 4u; k++) {
            rows[k] = cells[cell * ROW_STRIDE + k * ROW_GROUPS + at.row];
            columns[k] = cells[COLUMNS_AT + cell * COLUMN_STRIDE + k * COLUMN_GROUPS + at.column];
        }
        for (var r = 0u; r < 4u; r++) {
            for (var c = 0u; c < 4u; c++) {
                var sum = (*sums)[r][c];
                sum = fma(rows[r].x, columns[c].x, sum);
                sum = fma(rows[r].y, columns[c].y, sum);
                sum = fma(rows[r].z, columns[c].z, sum);
                sum = fma(rows[r].w, columns[c].w, sum);
                (*sums)[r][c] = sum;
            }
        }
    }
}

// Brings a thread's sums where `sum_at` finds them; the slab is gone.
fn put_sums(at: Place, sums: ptr<function, array<vec4<f32>, 4>>) {
    for (var r = 0u; r < 4u; r++) {
        for (var c = 0u; c < 4u; c++) {
            let line = at.team * TILE_ROWS + r * ROW_GROUPS + at.row;
            let to = line * SUM_STRIDE + c * COLUMN_GROUPS + at.column;
            cells[to >> 2u][to & 3u] = (*sums)[r][c];
        }
    }
}

fn sum_at(row: u32, column: u32) -> f32 {
    var sum = 0.0;
    for (var team = 0u; team < TEAMS; team++) {
        let at = (team * TILE_ROWS + row) * SUM_STRIDE + column;
        sum += cells[at >> 2u][at & 3u];
    }
    return sum;
}
