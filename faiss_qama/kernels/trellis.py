"""Viterbi's algorithm over a trellis of points, compiled; :mod:`faiss_qama.quantizer.trellis` has the plain form.

Vectors lie side by side in lanes. Each step is the same for all of them, so it is written for registers of lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from faiss_qama.arrays import LANES
from faiss_qama.kernels.compiling import everywhere, jitted, lanes

STATES = 256
_HALF = STATES // 2
_FAR = np.float32(np.inf)


@intrinsic
def _nearer(typing: Any, z: Any, value: Any, p: Any, cells: Any, cell: Any, error: Any, nearest: Any) -> Any:
    """Put point ``p`` and its squared error into row p mod 4 of ``nearest`` and ``error``, where it is nearer.

    It counts only in lanes whose entry in ``cells`` is ``cell``.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        z_, value_, p_, cells_, cell_, error_, nearest_ = arguments
        part, start = builder.and_(p_, ir.Constant(p_.type, 3)), ir.Constant(p_.type, 0)
        e = builder.fsub(builder.load(lanes(context, builder, z, z_, start), align=4), everywhere(builder, value_))
        e = builder.fmul(e, e)
        errors = lanes(context, builder, error, error_, part)
        before = builder.load(errors, align=4)
        of_cell = builder.load(lanes(context, builder, cells, cells_, start), align=1)
        allowed = builder.icmp_unsigned("==", of_cell, everywhere(builder, cell_))
        better = builder.and_(builder.fcmp_ordered("<", e, before), allowed)
        builder.store(builder.select(better, e, before), errors, align=4)
        points = lanes(context, builder, nearest, nearest_, part)
        number = everywhere(builder, builder.trunc(p_, ir.IntType(8)))
        builder.store(builder.select(better, number, builder.load(points, align=1)), points, align=1)
        return context.get_dummy_value()

    return types.void(z, types.float32, types.intp, cells, types.uint8, error, nearest), generate


@intrinsic
def _better_ways(typing: Any, cost: Any, error: Any, u: Any, label: Any, new: Any, came: Any) -> Any:
    """Fill the costs of states 2u and 2u + 1 in ``new``, and in ``came`` a bit per lane: 1 if from state u + half."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        cost_, error_, u_, label_, new_, came_ = arguments

        def number(value: int) -> Any:
            return ir.Constant(u_.type, value)

        def row(kind: Any, array: Any, at: Any) -> Any:
            return builder.load(lanes(context, builder, kind, array, at), align=4)

        low, high = row(cost, cost_, u_), row(cost, cost_, builder.add(u_, number(_HALF)))
        same, other = row(error, error_, label_), row(error, error_, builder.xor(label_, number(2)))
        choices = context.make_array(came)(context, builder, came_).data
        for i, (of_low, of_high) in enumerate(((same, other), (other, same))):
            state = builder.add(builder.add(u_, u_), number(i))
            stay, come = builder.fadd(low, of_low), builder.fadd(high, of_high)
            turned = builder.fcmp_ordered("<", come, stay)
            builder.store(builder.select(turned, come, stay), lanes(context, builder, new, new_, state), align=4)
            builder.store(builder.bitcast(turned, ir.IntType(LANES)), builder.gep(choices, [state]))
        return context.get_dummy_value()

    return types.void(cost, error, types.intp, types.intp, new, came), generate


@jitted()
def encode(z: Any, values: Any, held: Any, known: Any, labels: Any, out: Any) -> None:
    """Fill ``out`` with the points of the best sequences.

    Parameters
    ----------
    z : ndarray of shape (n, columns), float32
        What is quantized.
    values : ndarray of shape (columns, points), float32
        The points of each column, ascending.
    held : ndarray of shape (columns, 2), int64
        Bits of each column in the first code and in the residual code.
    known : ndarray of shape (n or 0, columns), uint8
        Levels of the first code, if they are known.
    labels : ndarray of shape (states / 2,), uint8
        Twice the lowest stored bit, plus the parity, of each state's step to its double.
    out : ndarray of shape (n, columns), uint8
        Points, overwritten.
    """
    n, m = z.shape
    cost, new = np.empty((STATES, LANES), np.float32), np.empty((STATES, LANES), np.float32)
    error, column, cells = np.empty((4, LANES), np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.uint8)
    nearest, came = np.empty((m, 4, LANES), np.uint8), np.empty((m, STATES), np.uint16)
    for start in range(0, n, LANES):
        here = min(LANES, n - start)
        cost[:] = _FAR
        cost[0] = np.float32(0)
        for j in range(m):
            size = 31  # of a cell, as a power of two: all points are in cell 0
            for lane in range(here):
                column[lane] = z[start + lane, j]
            if len(known):
                size = held[j, 1] + 1
                for lane in range(here):
                    cells[lane] = known[start + lane, j]
            error[:] = _FAR
            for p in range(2 << held[j, 0] + held[j, 1]):
                _nearer(column, values[j, p], p, cells, np.uint8(p >> size), error, nearest[j])
            for u in range(_HALF):
                _better_ways(cost, error, u, labels[u], new, came[j])
            cost, new = new, cost
        for lane in range(here):
            _trace(cost, labels, nearest, came, lane, out[start + lane])


@jitted()
def _trace(cost: Any, labels: Any, nearest: Any, came: Any, lane: int, out: Any) -> None:
    """Fill ``out`` (columns,) with the points of a lane on the way to its state of the least cost."""
    state = 0
    for s in range(STATES):
        if cost[s, lane] < cost[state, lane]:
            state = s
    for j in range(len(out) - 1, -1, -1):
        top, before = (int(came[j, state]) >> lane) & 1, state >> 1
        out[j] = nearest[j, int(labels[before]) ^ 2 * ((state & 1) ^ top), lane]
        state = before + _HALF * top
