r"""Sums over pairs of relations on a GPU, in Triton: no logit is written to memory, and nothing is added by atomics.

The logits of a block of columns are x_ef = (H_if - H_jf) scale_e, as in `tiles`; H, (N, columns), is a product of torch in
float32 and stays in the L2 cache while every pair reads its two rows of it. The products of the relations themselves would
be P / N times the work, in which tensor cores round.

Forward keeps a running maximum m of |x| per anchor, so that float32 holds at any temperature,

    log sum_f 2 cosh(x_ef) = m + log sum_f [exp(x_ef - m) + exp(-x_ef - m)].

Backward recomputes x. dL/dH of an atom is a sum over its pairs, which its own program adds up: x changes its sign with the
order of a pair's atoms, and dL/dx with it. Exponentials are in base 2: `scale` and log sums come times log2(e).
"""

import triton
import triton.language as tl

# The fastest of those tried on an H100: columns of a program that owns an atom; of one that owns columns, and rows it takes
# at once.
ATOM_TILE = 1024
COLUMN_TILE, ROWS_AT_ONCE = 64, 32
SPLITS = 32  # programs that share the rows of a column


@triton.jit
def _included(column, first, end, cosine, threshold, row_id, column_id, EXCLUDES: tl.constexpr):
    """Bool, which entries are summed: inside the range, and not too near to another pair in the teacher."""
    included = (column >= first) & (column < end)
    if EXCLUDES:
        included = included & (((tl.abs(cosine) > threshold) & (row_id != column_id)) == 0)
    return included


@triton.jit
def row_kernel(
    gram, teacher_gram, i, j, scale, teacher_scale, first, end, row_ids, column_ids, threshold,
    largest, total, moment, weight, log_sum, start, width,
    COLUMNS: tl.constexpr, EXCLUDES: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Add a block of columns to the sums of a row; WEIGHTED: only to sum_f w_f x (exp(x - l_f) - exp(-x - l_f))."""
    row = tl.program_id(0)
    row_first, row_end = tl.load(first + row), tl.load(end + row)
    if (row_first < start + width) & (row_end > start):
        of_i, of_j = tl.load(i + row) * width, tl.load(j + row) * width
        column = tl.arange(0, COLUMNS)
        inside = column < width
        x = tl.load(gram + of_i + column, mask=inside, other=0.0) - tl.load(gram + of_j + column, mask=inside, other=0.0)
        x *= tl.load(scale + row)
        cosine, row_id, column_id = x, row, column
        if EXCLUDES:
            cosine = tl.load(teacher_gram + of_i + column, mask=inside, other=0.0)
            cosine -= tl.load(teacher_gram + of_j + column, mask=inside, other=0.0)
            cosine *= tl.load(teacher_scale + row)
            row_id = tl.load(row_ids + row)
            column_id = tl.load(column_ids + start + column, mask=inside, other=-1)
        included = _included(start + column, row_first, row_end, cosine, threshold, row_id, column_id, EXCLUDES) & inside
        before = tl.load(moment + row)
        if WEIGHTED:
            its_sum = tl.load(log_sum + start + column, mask=inside, other=0.0)
            slope = tl.load(weight + start + column, mask=inside, other=0.0)
            slope *= tl.exp2(x - its_sum) - tl.exp2(-x - its_sum)
            tl.store(moment + row, before + tl.sum(tl.where(included, x * slope, 0.0), 0))
        else:
            top = tl.load(largest + row)
            raised = tl.maximum(top, tl.max(tl.where(included, tl.abs(x), 0.0), 0))
            up = tl.where(included, tl.exp2(x - raised), 0.0)
            down = tl.where(included, tl.exp2(-x - raised), 0.0)
            shrink = tl.exp2(top - raised)
            tl.store(total + row, tl.load(total + row) * shrink + tl.sum(up + down, 0))
            tl.store(moment + row, before * shrink + tl.sum(x * (up - down), 0))
            tl.store(largest + row, raised)


@triton.jit(do_not_specialize=["num_rows"])
def column_kernel(
    gram, teacher_gram, i, j, scale, teacher_scale, first, end, row_ids, column_ids, threshold,
    largest, total, moment, num_rows, start, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXCLUDES: tl.constexpr,
):  # fmt: skip
    """The sums of COLUMNS columns over one share of the rows; (SPLITS, width) each. first, end: the rows of a column."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    column_first = tl.load(first + start + column, mask=inside, other=2147483647)
    column_end = tl.load(end + start + column, mask=inside, other=0)
    column_id = column
    if EXCLUDES:
        column_id = tl.load(column_ids + start + column, mask=inside, other=-1)
    share = tl.cdiv(tl.cdiv(num_rows, ROWS), tl.num_programs(1)) * ROWS
    lowest = tl.maximum(tl.min(column_first, 0) // ROWS * ROWS, tl.program_id(1) * share)
    highest = tl.minimum(tl.max(column_end, 0), (tl.program_id(1) + 1) * share)
    top = tl.zeros((COLUMNS,), tl.float32)
    summed = tl.zeros((COLUMNS,), tl.float32)
    of_x = tl.zeros((COLUMNS,), tl.float32)
    for begin in range(lowest, highest, ROWS):
        row = begin + tl.arange(0, ROWS)
        is_row = row < num_rows
        of_i = tl.load(i + row, mask=is_row, other=0)[:, None] * width
        of_j = tl.load(j + row, mask=is_row, other=0)[:, None] * width
        x = tl.load(gram + of_i + column[None, :], mask=inside[None, :], other=0.0)
        x -= tl.load(gram + of_j + column[None, :], mask=inside[None, :], other=0.0)
        x *= tl.load(scale + row, mask=is_row, other=0.0)[:, None]
        cosine, row_id = x, row[:, None]
        if EXCLUDES:
            cosine = tl.load(teacher_gram + of_i + column[None, :], mask=inside[None, :], other=0.0)
            cosine -= tl.load(teacher_gram + of_j + column[None, :], mask=inside[None, :], other=0.0)
            cosine *= tl.load(teacher_scale + row, mask=is_row, other=0.0)[:, None]
            row_id = tl.load(row_ids + row, mask=is_row, other=-1)[:, None]
        included = (
            _included(
                row[:, None],
                column_first[None, :],
                column_end[None, :],
                cosine,
                threshold,
                row_id,
                column_id[None, :],
                EXCLUDES,
            )
            & is_row[:, None]
        )
        raised = tl.maximum(top, tl.max(tl.where(included, tl.abs(x), 0.0), 0))
        up = tl.where(included, tl.exp2(x - raised[None, :]), 0.0)
        down = tl.where(included, tl.exp2(-x - raised[None, :]), 0.0)
        shrink = tl.exp2(top - raised)
        summed = summed * shrink + tl.sum(up + down, 0)
        of_x = of_x * shrink + tl.sum(x * (up - down), 0)
        top = raised
    place = tl.program_id(1) * width + column
    tl.store(largest + place, top, mask=inside)
    tl.store(total + place, summed, mask=inside)
    tl.store(moment + place, of_x, mask=inside)


@triton.jit
def atom_kernel(
    gram, teacher_gram, pairs_of_atom, pair, other, scale, slope, teacher_scale, first, end, row_ids, column_ids, threshold,
    row_weight, row_log_sum, column_weight, column_log_sum, gradient, start, width,
    COLUMNS: tl.constexpr, EXCLUDES: tl.constexpr, OF_ROWS: tl.constexpr, OF_COLUMNS: tl.constexpr,
):  # fmt: skip
    """dL/dH of one atom and COLUMNS columns, the sum over the pairs of the atom."""
    atom = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    own = tl.load(gram + atom * width + column, mask=inside, other=0.0)
    teacher_own, column_id = own, column
    if EXCLUDES:
        teacher_own = tl.load(teacher_gram + atom * width + column, mask=inside, other=0.0)
        column_id = tl.load(column_ids + start + column, mask=inside, other=-1)
    of_column, its_sum = own, own
    if OF_COLUMNS:
        of_column = tl.load(column_weight + start + column, mask=inside, other=0.0)
        its_sum = tl.load(column_log_sum + start + column, mask=inside, other=0.0)
    out = tl.zeros((COLUMNS,), tl.float32)
    for place in range(tl.load(pairs_of_atom + atom), tl.load(pairs_of_atom + atom + 1)):
        row = tl.load(pair + place)
        of_other = tl.load(other + place) * width + column
        x = (own - tl.load(gram + of_other, mask=inside, other=0.0)) * tl.load(scale + row)
        cosine, row_id = x, row
        if EXCLUDES:
            cosine = (teacher_own - tl.load(teacher_gram + of_other, mask=inside, other=0.0)) * tl.load(teacher_scale + row)
            row_id = tl.load(row_ids + row)
        included = _included(
            start + column, tl.load(first + row), tl.load(end + row), cosine, threshold, row_id, column_id, EXCLUDES
        )
        of_x = tl.zeros((COLUMNS,), tl.float32)
        if OF_ROWS:
            log_sum = tl.load(row_log_sum + row)
            of_x += tl.load(row_weight + row) * (tl.exp2(x - log_sum) - tl.exp2(-x - log_sum))
        if OF_COLUMNS:
            of_x += of_column * (tl.exp2(x - its_sum) - tl.exp2(-x - its_sum))
        out += tl.where(included, of_x, 0.0) * tl.load(slope + row)
    tl.store(gradient + atom * width + column, out, mask=inside)
