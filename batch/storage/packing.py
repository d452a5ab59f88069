"""Sets of numbers: packed into a slice's row, and passed whole to a statement.

Owns: the byte form of a slice's line list (unsigned 32-bit, little-endian, in sending order) and
`among`, which tests a column against any number of values with one constant SQL text.
May not touch: tables.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles


def pack_lines(lines: Sequence[int]) -> bytes:
    """Line numbers (1 … 2³²−1), in the given order, 4 bytes each."""
    return struct.pack(f"<{len(lines)}I", *lines)


def unpack_lines(packed: bytes) -> list[int]:
    """The reverse of pack_lines."""
    return list(struct.unpack(f"<{len(packed) // 4}I", packed))


class among(sa.sql.functions.FunctionElement[bool]):  # noqa: N801 - reads as SQL
    """`among(column, values)`: true when the column is one of the integers; `values` may be a bindparam's name.

    One parameter whatever the count: an IN list of 500 placeholders would be a new text to parse for
    each length, and SQLite stops at 32,766 of them.
    """

    type = sa.Boolean()
    inherit_cache = True

    def __init__(self, column: sa.ColumnElement[Any], values: Iterable[int] | str) -> None:
        if isinstance(values, str):
            super().__init__(column, sa.bindparam(values, type_=_Integers()))
        else:
            super().__init__(column, sa.bindparam(None, list(values), type_=_Integers(), unique=True))

    def self_group(self, against: Any = None) -> among:
        """A predicate already: SQLAlchemy would add "= 1" on SQLite, and the whole batch would be scanned."""
        return self


class _Integers(sa.types.TypeDecorator[Any]):
    """A list of integers as one parameter: an array on PostgreSQL, JSON text on SQLite."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.ARRAY(sa.BigInteger()))
        return dialect.type_descriptor(sa.Text())

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        values = value if isinstance(value, list) else list(value)
        return values if dialect.name == "postgresql" else orjson.dumps(values).decode()


@compiles(among, "sqlite")
def _among_sqlite(element: among, compiler: Any, **kw: Any) -> str:
    column, values = element.clauses
    test, array = compiler.process(column, **kw), compiler.process(values, **kw)
    return f"{test} IN (SELECT value FROM json_each({array}))"  # noqa: S608 - compiled by SQLAlchemy


@compiles(among, "postgresql")
def _among_postgresql(element: among, compiler: Any, **kw: Any) -> str:
    column, values = element.clauses
    return f"{compiler.process(column, **kw)} = ANY (CAST({compiler.process(values, **kw)} AS BIGINT[]))"
