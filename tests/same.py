"""Whether two graphs are the same in all that they hold."""

from __future__ import annotations

from tersor.ir import Attribute, Encoding, Graph


def assert_same(a: Graph, b: Graph) -> None:
    """Structure and contents, value by value, subgraphs included."""
    assert (a.name, a.output_names) == (b.name, b.output_names)
    graphs = list(zip(a.all_graphs(), b.all_graphs(), strict=True))
    for one, other in graphs:
        for v, w in zip(one.values(), other.values(), strict=True):
            assert (v.name, v.type, v.is_constant) == (w.name, w.type, w.is_constant)
            # In the order of building, which for branches is not that of the text.
            assert sorted(u.operand for u in v.uses) == sorted(u.operand for u in w.uses)
            if v.is_constant:
                assert v.encoding.digest == w.encoding.digest  # type: ignore[union-attr]
            if v.contents is not None and not v.is_constant:
                assert w.contents is not None
                assert v.contents.tolist() == w.contents.tolist()
        for m, n in zip(one.nodes, other.nodes, strict=True):
            assert (m.op, m.scope, m.name) == (n.op, n.scope, n.name)
            names = [[None if v is None else v.name for v in node.inputs] for node in (m, n)]
            assert names[0] == names[1]
            plain = [
                {k: _plain(v) for k, v in node.attrs.items() if not isinstance(v, Graph)}
                for node in (m, n)
            ]
            assert plain[0] == plain[1]


def _plain(attr: Attribute) -> object:
    return attr.digest if isinstance(attr, Encoding) else attr
