"""The custom call that XLA makes: reads its frame, and shares the columns of a product among XLA's threads.

The layouts are those of xla/ffi/api/c_api.h, which JAX installs; fields keep their places from version to
version. An item is a panel of columns for a block of rows. The thread that calls and its helpers take items
from one counter. Then the caller waits for the items that helpers have begun, never for a helper that has
begun none, so it does not matter how busy the pool is. What they share lives until the last has looked at it.
"""

from typing import Any

from llvmlite import ir

from pallas_kernels.x86 import _ir, _panel, _tile
from pallas_kernels.x86._ir import INT, LONG, POINTER, VOID, at, load, long, store

# Offsets in bytes. Of XLA_FFI_CallFrame:
_EXTENSION, _API, _CONTEXT, _ARGUMENTS, _RESULTS = 8, 16, 24, 72, 112
# of XLA_FFI_Buffer, XLA_FFI_Metadata_Extension, XLA_FFI_Metadata, XLA_FFI_Api:
_DATA, _DIMS = 24, 40
_METADATA, _VERSION_OF_METADATA, _VERSION_OF_API = 24, 24, 32
_CREATE_ERROR, _DESTROY_ERROR, _SCHEDULE, _NUM_THREADS = 48, 64, 136, 144
_RESOURCE_EXHAUSTED = 8

# What threads share: the operands, then these, then scratch for each.
_OPERANDS = len(_panel.Operands._fields)
_NEXT, _DONE, _USERS, _SLOTS, _ITEMS, _PANELS, _ROWS, _BYTES = (8 * (_OPERANDS + i) for i in range(8))
_HEADER = 192
ROWS_OF_AN_ITEM = 96  # at least, so that packing its panel takes little of the time
ITEMS_OF_A_THREAD = 4  # at least, so that threads finish together
WORK_OF_A_THREAD = 1 << 21  # multiplications at least, of 10 microseconds: what it takes to wake one


def _count(b: ir.IRBuilder, shared: ir.Value, counter: int, by: int) -> ir.Value:
    """The value before."""
    return b.atomic_rmw("add", at(b, shared, counter), long(by), "acq_rel")


def _work(module: ir.Module, item: ir.Function) -> ir.Function:
    """void run(shared): take items until there are none."""
    made = ir.Function(module, ir.FunctionType(VOID, [POINTER]), "run")
    made.linkage = "internal"
    (shared,) = made.args
    b = ir.IRBuilder(made.append_basic_block())
    operands = [load(b, shared, of, 8 * i) for i, of in enumerate(item.ftype.args[:_OPERANDS])]
    items, panels, rows, size = (load(b, shared, LONG, field) for field in (_ITEMS, _PANELS, _ROWS, _BYTES))
    m = operands[7]
    slot = _count(b, shared, _SLOTS, 1)
    scratch = at(b, shared, b.add(long(_HEADER), b.mul(slot, size)))
    take, do, end = (b.append_basic_block(name) for name in ("take", "do", "end"))
    b.branch(take)
    b.position_at_end(take)
    i = _count(b, shared, _NEXT, 1)
    b.cbranch(b.icmp_signed("<", i, items), do, end)
    b.position_at_end(do)
    row = b.mul(b.sdiv(i, panels), rows)
    column = b.mul(b.srem(i, panels), long(_panel.COLUMNS))
    b.call(item, [*operands, scratch, column, row, _ir.least(b, m, b.add(row, rows))])
    _count(b, shared, _DONE, 1)
    b.branch(take)
    b.position_at_end(end)
    b.ret_void()
    return made


def _release(b: ir.IRBuilder, shared: ir.Value) -> None:
    last = b.icmp_signed("==", _count(b, shared, _USERS, -1), long(1))
    with b.if_then(last):
        _ir.call(b, "free", VOID, shared)


def _help(module: ir.Module, run: ir.Function) -> ir.Function:
    """void help(shared): a task of XLA's thread pool."""
    made = ir.Function(module, ir.FunctionType(VOID, [POINTER]), "help")
    made.linkage = "internal"
    b = ir.IRBuilder(made.append_basic_block())
    b.call(run, made.args)
    _release(b, made.args[0])
    b.ret_void()
    return made


def _api(b: ir.IRBuilder, api: ir.Value, function: int, *fields: Any) -> ir.Value:
    """A call of a function of XLA_FFI_Api: its argument is a structure of its size, a null, and fields."""
    size = 16 + 8 * len(fields)
    arguments = _ir.stack(b, size)
    for i, field in enumerate((long(size), long(0), *fields)):
        store(b, field, arguments, 8 * i)
    callee = ir.FunctionType(POINTER, [POINTER]).as_pointer()
    return b.call(b.inttoptr(load(b, api, LONG, function), callee), [arguments])


def module(*, packed: bool) -> ir.Module:
    """The module whose function `call` is the handler of the custom call.

    Its operands are those of `_panel.Operands`; x_sum comes only with int8 codes.
    """
    made = ir.Module("vnni")
    item = _tile.function(made, packed=packed)
    run = _work(made, item)
    helper = _help(made, run)
    handler = ir.Function(made, ir.FunctionType(POINTER, [POINTER]), "call")
    (frame,) = handler.args
    b = ir.IRBuilder(handler.append_basic_block("entry"))
    start = b.append_basic_block("start")
    b.branch(start)
    b.position_at_end(start)
    null = ir.Constant(POINTER, None)
    api = load(b, frame, POINTER, _API)
    extension = load(b, frame, POINTER, _EXTENSION)
    with b.if_then(b.icmp_unsigned("!=", extension, null)):  # XLA asks for the version: it is that of XLA
        metadata = load(b, extension, POINTER, _METADATA)
        store(b, load(b, api, LONG, _VERSION_OF_API), metadata, _VERSION_OF_METADATA)
        b.ret(null)

    arguments, results = (load(b, frame, POINTER, field) for field in (_ARGUMENTS, _RESULTS))
    buffers = [load(b, arguments, POINTER, 8 * i) for i in range(5 if packed else 6)]
    buffers = [*buffers, buffers[-1]] if packed else buffers
    data = [load(b, buffer, POINTER, _DATA) for buffer in buffers]
    y = load(b, load(b, results, POINTER), POINTER, _DATA)
    (m, k), (groups, n) = (
        [load(b, load(b, buffers[i], POINTER, _DIMS), LONG, 8 * axis) for axis in (0, 1)] for i in (0, 2)
    )
    sizes = (m, n, k, groups)
    o = _panel.Operands._make([*data, y, *sizes])

    found = _ir.stack(b, 8)
    store(b, long(1), found)
    context = load(b, frame, POINTER, _CONTEXT)
    error = _api(b, api, _NUM_THREADS, context, found)
    with b.if_then(b.icmp_unsigned("!=", error, null)):  # no pool
        _api(b, api, _DESTROY_ERROR, error)
        store(b, long(1), found)
    threads = load(b, found, LONG)
    panels = _ir.ceil_div(b, n, long(_panel.COLUMNS))
    wanted = _ir.ceil_div(b, b.mul(threads, long(ITEMS_OF_A_THREAD)), panels)
    blocks = _ir.least(b, wanted, _ir.ceil_div(b, m, long(ROWS_OF_AN_ITEM)))
    tall = long(_tile.ROWS[0])
    rows = b.mul(_ir.ceil_div(b, _ir.ceil_div(b, m, blocks), tall), tall)
    items = b.mul(_ir.ceil_div(b, m, rows), panels)
    worth = b.sdiv(b.mul(b.mul(m, n), k), long(WORK_OF_A_THREAD))
    users = _ir.least(b, _ir.least(b, threads, items), b.add(worth, long(1)))
    size = _panel.size(b, o)
    total = b.add(long(_HEADER), b.mul(users, size))
    shared = _ir.call(b, "aligned_alloc", POINTER, long(_panel.REGISTER), total)
    with b.if_then(b.icmp_unsigned("==", shared, null)):
        text = bytearray(b"no memory for panels of w\0")
        message = ir.GlobalVariable(made, ir.ArrayType(ir.IntType(8), len(text)), "message")
        message.initializer = ir.Constant(message.value_type, text)
        message.linkage, message.global_constant = "internal", True
        b.ret(_api(b, api, _CREATE_ERROR, message, long(_RESOURCE_EXHAUSTED)))
    for i, operand in enumerate(o):
        store(b, operand, shared, 8 * i)
    zero = long(0)
    fields = {_NEXT: zero, _DONE: zero, _USERS: users, _SLOTS: zero}
    fields |= {_ITEMS: items, _PANELS: panels, _ROWS: rows, _BYTES: size}
    for field, value in fields.items():
        store(b, value, shared, field)

    with b.if_then(b.icmp_signed(">", users, long(1))):

        def hire(_: ir.Value, __: list[ir.Value]) -> list[ir.Value]:
            error = _api(b, api, _SCHEDULE, context, helper, shared)
            with b.if_then(b.icmp_unsigned("!=", error, null)):  # it will not come
                _api(b, api, _DESTROY_ERROR, error)
                _count(b, shared, _USERS, -1)
            return []

        _ir.loop(b, long(1), users, long(1), hire)
    b.call(run, [shared])
    wait, done = b.append_basic_block("wait"), b.append_basic_block("done")
    b.branch(wait)
    b.position_at_end(wait)
    _ir.call(b, "sched_yield", INT)
    finished = b.load_atomic(at(b, shared, _DONE), "acquire", 8, typ=LONG)
    b.cbranch(b.icmp_signed("<", finished, items), wait, done)
    b.position_at_end(done)
    _release(b, shared)
    b.ret(null)
    return made
