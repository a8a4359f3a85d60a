"""Reports and summaries as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.built import Built, Split
from tersor.cli.console import clean, number, say, show, size, table

if TYPE_CHECKING:
    from tersor.analysis.summary import Scope, Summary
    from tersor.numerics.fidelity import Fidelity, OutputFidelity
    from tersor.pipeline.report import PassReport, Report


SHOWN_LABELS = 20


def show_report(report: Report, *, skips: bool) -> None:
    """What a compilation did: passes that changed something, times, fidelity, size, decisions."""
    _show_passes(report.passes)
    _show_skips(report.passes, listed=skips)
    _show_times([row for row in report.measured if row.get("against") == "the input"])
    if report.fidelity:
        show_fidelity(report.fidelity)
    _show_size(report.size_before, report.size_after)
    for line in report.decisions:
        say(line)


def show_written(path: Path, model: Built) -> None:
    what = "the model alone" if path.suffix == ".onnx" else "an artifact: tersor.load reads it"
    if path.suffix == ".onnx" and isinstance(model, Split):
        what = f"its weights are in {model.weights.name} beside it, and belong to it"
    say(f"wrote {path} ({what})")


def show_fidelity(fidelity: Fidelity) -> None:
    """The outputs against those of the input model, the worst first."""
    on = f"on {fidelity.on}" if fidelity.on else ""
    if fidelity.samples is not None:
        on += f" ({number(fidelity.samples)} samples)"
    if fidelity.worst is None:
        say(f"fidelity: unknown {on}".rstrip() + ": no output has anything to compare")
        return
    say(f"fidelity: {_share(fidelity.kept)} {on}".rstrip() + f", by {fidelity.worst.label}")
    made = table(
        "output", ">elements", ">agree", ">mean cosine", ">worst", ">relative error", ">largest"
    )
    for one in fidelity.outputs:
        made.add_row(clean(one.label), number(one.elements), *_told(one))
    show(made)
    for one in fidelity.outputs:
        if one.misplaced:
            say(f"{one.label}: NaN or infinity elsewhere in {number(one.misplaced)} elements")


def _told(one: OutputFidelity) -> list[str]:
    shares = (one.agreement, one.mean_cosine, one.min_cosine)
    errors = (one.relative_error, one.max_error)
    return [
        *("" if v is None else _share(v) for v in shares),
        *("" if v is None else f"{v:.3g}" for v in errors),
    ]


def _share(value: float | None) -> str:
    """Never 1 for what is less."""
    if value is None:
        return "unknown"
    return "1" if value == 1 else f"{min(value, 0.999999):.6g}"


def _show_passes(passes: list[PassReport]) -> None:
    changed = [p for p in passes if p.rewrites or p.notes]
    if not changed:
        say("no pass found anything to change")
        return
    made = table("pass", ">rewrites", ">nodes", ">weights", ">seconds")
    for step in changed:
        made.add_row(
            clean(step.name),
            number(step.rewrites),
            number(step.nodes) if step.nodes is not None else "unknown",
            size(step.weight_bytes),
            f"{step.seconds:.2f}" if step.seconds is not None else "unknown",
        )
    show(made)
    for step in changed:
        for note in step.notes:
            say(f"{step.name}: {note}")


def _show_skips(passes: list[PassReport], *, listed: bool) -> None:
    # Rounds of the same pass meet the same place again; said once.
    found = list(dict.fromkeys((p.name, node, why) for p in passes for node, why in p.skips))
    if found and not listed:
        say(f"rules did not apply in {len(found)} places: list them with --skips")
    for name, node, why in found if listed else ():
        say(f"{name}: {node}: {why}")


def _show_times(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    made = table("built", "at", ">input ms", ">result ms", ">speedup", ">quartiles", ">pairs")
    for row in rows:
        made.add_row(clean(row["candidate"]), clean(row["sizes"]), *time_cells(row))
    show(made)


def time_cells(row: dict[str, Any]) -> list[str]:
    """Cells of one paired measurement (``Paired.to_json``)."""
    return [
        f"{row['before_ms']:.3f}",
        f"{row['after_ms']:.3f}",
        f"{row['speedup']:.2f}x",
        f"{row['speedup_q1']:.2f}–{row['speedup_q3']:.2f}",
        str(row["pairs"]),
    ]


def _show_size(before: int | None, after: int | None) -> None:
    ratio = f", {after / before:.3f} of it" if before and after is not None else ""
    say(f"size: {size(before)} to {size(after)}{ratio}")


# -- summaries -----------------------------------------------------------------------------------


def show_summary(
    summary: Summary, at: dict[str, int], *, top: int, depth: int, remarks: Sequence[str] = ()
) -> None:
    """One model: interface, numbers, ops, largest weights, modules; and what was remarked of it."""
    for name, type in summary.inputs:
        say(f"input   {name}: {type}")
    for name, type in summary.outputs:
        say(f"output  {name}: {type}")
    if summary.labels:
        say(f"labels: {_labels(summary.labels)}")
    say(f"nodes: {number(summary.nodes)}")
    say(f"parameters: {number(summary.parameters)}, held in {size(summary.weight_bytes)}")
    say(f"MACs: {_macs(summary, at)}")
    for remark in remarks:
        say(f"remark: {remark}")
    say()
    ops = table("op", ">nodes")
    for op, count in summary.ops.items():
        ops.add_row(clean(op), number(count))
    show(ops)
    _show_weights(summary, top)
    _show_scopes(summary.scopes, depth)


def _labels(labels: dict[str, str]) -> str:
    shown = [f"{number} {label}" for number, label in list(labels.items())[:SHOWN_LABELS]]
    rest = f" … {len(labels)} in all" if len(labels) > SHOWN_LABELS else ""
    return clean(", ".join(shown)) + rest


def show_comparison(before: Summary, after: Summary, at: dict[str, int], names: list[str]) -> None:
    """Two models side by side."""
    made = table("", f">{clean(names[0])}", f">{clean(names[1])}", ">ratio")
    numbers = [
        ("nodes", before.nodes, after.nodes, number),
        ("parameters", before.parameters, after.parameters, number),
        ("weights", before.weight_bytes, after.weight_bytes, size),
    ]
    for label, a, b, text in numbers:
        made.add_row(label, text(a), text(b), f"{b / a:.3f}" if a else "")
    for op in [*before.ops, *(op for op in after.ops if op not in before.ops)]:
        a, b = before.ops.get(op, 0), after.ops.get(op, 0)
        made.add_row(f"  {clean(op)}", number(a), number(b), f"{b - a:+d}" if a != b else "")
    show(made)
    for name, summary in zip(names, (before, after), strict=True):
        say(f"MACs of {name}: {_macs(summary, at)}")
    sides = [("inputs", before.inputs, after.inputs), ("outputs", before.outputs, after.outputs)]
    for kind, old, new in sides:
        if old != new:
            say(f"{kind} differ: {_interface(old)} against {_interface(new)}")


def _interface(values: list[tuple[str, str]]) -> str:
    return ", ".join(f"{name}: {type}" for name, type in values)


def _macs(summary: Summary, at: dict[str, int]) -> str:
    from tersor.ir.dims import evaluate, symbols

    told = number(summary.macs)
    if symbols(summary.macs) and symbols(summary.macs) <= at.keys():
        where = " ".join(f"{k}={v}" for k, v in at.items())
        told += f" = {evaluate(summary.macs, at):,} at {where}"
    if summary.unknown_macs:
        ops = ", ".join(f"{count} {op}" for op, count in summary.unknown_macs.items())
        told += f", without those of {ops}, which are unknown"
    return clean(told)


def _show_weights(summary: Summary, top: int) -> None:
    if not summary.largest or not top:
        return
    say()
    made = table("largest weights", ">shape", "held as", ">size")
    for weight in summary.largest[:top]:
        shape = "x".join(map(str, weight.shape)) or "scalar"
        made.add_row(clean(weight.name), shape, clean(weight.held), size(weight.bytes))
    show(made)


def _show_scopes(scopes: list[Scope], depth: int) -> None:
    shown = [s for s in scopes if s.path.count(".") < depth]
    if not any(s.path for s in shown) or not depth:
        return
    say()
    made = table("module", ">parameters", ">weights")
    for scope in shown:
        made.add_row(clean(scope.path) or "(none)", number(scope.parameters), size(scope.bytes))
    show(made)
